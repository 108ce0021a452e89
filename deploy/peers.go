package deploy

import (
	"go.yaml.in/yaml/v3"

	"hearthline/pipeline"
)

// peersPort is the name of the port at which gateways reach each other. There is no Service for it: each says in the
// pipeline's table where it is, its pod's address, and the others go there directly, also while it drains.
const peersPort = "peers"

// gatewayPeers finds where gateways reach each other, and sees to it that they can: each on an address that others reach, with its
// certificates mounted. Several that do not would serve their own clients and no others'.
func (r *renderer) gatewayPeers() {
	gateway, settings := r.roles[0], r.plan.Spec.Gateway.Settings
	section, at := under(&settings, "peers", r.plan.Spec.Gateway.Pos)
	listen, listenAt := under(section, "listen", at)
	const path = "gateway.settings.peers.listen"
	if r.target == "compose" { // one gateway, whose ports can be published once: it needs no certificates for others
		for _, use := range r.plan.Spec.Env {
			if use.Path == path {
				r.env[use.Name] = Value{}
			}
		}
	}
	text := ""
	if listen != nil {
		text = r.valueThere(path, listen.Value)
	}
	host, number, ok := hostPort(text)
	most := gateway.run.Replicas
	if a := gateway.run.Autoscale; a != nil {
		most = a.Max
	}
	switch {
	case text == "" && most > 1 && r.target == "kubernetes":
		r.find(at, path, `write peers: {listen: "${HEARTHLINE_PEERS:-}", certificate: …, key: …, ca: …}, and deploy.env.HEARTHLINE_PEERS: 0.0.0.0:8884`,
			"there may be %d gateways, and they do not reach each other: commands and messages would not come to the clients of another", most)
		return
	case text == "":
		return
	case !ok || loopback(host):
		r.find(listenAt, path, "write 0.0.0.0:8884", "%s is %s, which no other gateway reaches", path, text)
		return
	}
	gateway.peers = &port{peersPort, number}
	for _, key := range []string{"certificate", "key", "ca"} {
		file, fileAt := under(section, key, at)
		if file != nil {
			r.mounted(fileAt, "gateway.settings.peers."+key, file.Value, gateway)
		}
	}
}

// under is what a mapping holds under a key, nil for nothing, and where that stands: else is where the mapping does.
func under(n *yaml.Node, key string, otherwise pipeline.Pos) (*yaml.Node, pipeline.Pos) {
	if n != nil {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1], pipeline.Pos{Line: n.Content[i].Line, Column: n.Content[i].Column}
			}
		}
	}
	return nil, otherwise
}

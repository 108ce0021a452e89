package deploy

import (
	"fmt"
	"path"
	"strings"

	"hearthline/pipeline"
)

// kafkaSecrets sees to it that every role finds what kafka.tls and kafka.sasl name: the password in its environment,
// from a Secret, and the files in a mount.
func (r *renderer) kafkaSecrets() {
	k := &r.plan.Spec.Kafka
	r.clusterSecrets("kafka", k.At("tls"), k.At("sasl"), k, r.roles)
}

// sourceSecrets does so for the sources that have a cluster of their own.
func (r *renderer) sourceSecrets() {
	for _, one := range r.roles {
		if s := one.source; s != nil && s.Foreign {
			r.clusterSecrets("sources."+s.Name, s.Pos, s.Pos, &s.Kafka, []*role{one})
		}
	}
}

func (r *renderer) clusterSecrets(path string, tlsAt, saslAt pipeline.Pos, k *pipeline.Kafka, roles []*role) {
	if sasl := k.SASL; sasl != nil {
		name := path + ".sasl.password_env"
		r.passwordVariable(saslAt, name, r.valueThere(name, sasl.PasswordEnv), roles)
		r.mounted(saslAt, path+".sasl.password_file", sasl.PasswordFile, roles...)
	}
	if tls := k.TLS; tls != nil {
		r.mounted(tlsAt, path+".tls.ca", tls.CA, roles...)
		r.mounted(tlsAt, path+".tls.certificate", tls.Certificate, roles...)
		r.mounted(tlsAt, path+".tls.key", tls.Key, roles...)
	}
}

// passwordVariable wants a variable to come from a Secret, for each of the roles.
func (r *renderer) passwordVariable(at pipeline.Pos, path, name string, roles []*role) {
	if name == "" {
		return
	}
	hint := fmt.Sprintf("add deploy.env.%s: {secret: NAME, key: KEY}", name)
	for _, one := range roles {
		if _, given := r.envOf(one)[name]; !given && r.target == "compose" {
			one.run.Env[name] = Value{Secret: "env", Key: name} // from the shell or the file .env
		}
		switch v, given := r.envOf(one)[name]; {
		case !given:
			r.find(at, path, hint, "the variable %s has no value for %s", name, one.node)
			return
		case v.Text != "":
			r.find(at, path, hint, "the variable %s holds a password, and stands in the file as text", name)
			return
		}
	}
}

// mounted wants a file to be in a mount of each of the roles.
func (r *renderer) mounted(at pipeline.Pos, name, here string, roles ...*role) {
	file := r.valueThere(name, here)
	if file == "" {
		return
	}
	if !path.IsAbs(file) {
		r.find(at, name, "write its path in the container, such as /etc/hearthline/kafka/"+path.Base(file), "%s is %s, which is relative", name, file)
		return
	}
	for _, one := range roles {
		found := false
		for _, m := range one.run.Mounts {
			found = found || strings.HasPrefix(path.Clean(file), path.Clean(m.At)+"/")
		}
		if !found {
			where := "deploy.defaults"
			if len(roles) == 1 {
				where = "deploy.nodes." + one.node
			}
			r.find(at, name, fmt.Sprintf("add to %s.mounts: {secret: NAME, at: %s}", where, path.Dir(file)), "no mount of %s holds %s (%s)", one.node, file, name)
			return
		}
	}
}

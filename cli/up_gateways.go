package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"hearthline/ingest"
	"hearthline/ingest/identity"
)

// startGateway starts the gateway with a certificate authority and users of its own.
func (u *up) startGateway(ctx context.Context) error {
	dir := filepath.Join(u.data, "gateway")
	certs, err := identity.DevCertificates(dir)
	if err != nil {
		return fmt.Errorf("development certificates: %w", err)
	}
	users := []identity.DevUser{{User: "demo", Home: "demo"}}
	if u.hasHomes() {
		homes := u.sim.HomeNames()
		for _, home := range homes {
			users = append(users, identity.DevUser{User: home, Home: home})
		}
		// Somebody who lives in the first home, and can tell its devices what to do.
		users = append(users, identity.DevUser{User: "phone", Home: homes[0], Role: identity.RoleApp})
	}
	file, passwords, err := identity.DevCredentials(dir, users...)
	if err != nil {
		return fmt.Errorf("development credentials: %w", err)
	}
	u.certs, u.passwords = certs, passwords
	for i := range u.gateways {
		if err := u.startOne(ctx, i, dir, file); err != nil {
			return err
		}
	}
	return nil
}

// startOne starts one of the gateways; those after the first listen on the ports after its own.
func (u *up) startOne(ctx context.Context, i int, dir, credentials string) error {
	plan := u.plan
	if i > 0 {
		var err error
		if plan, err = u.again(ctx); err != nil {
			return err
		}
	}
	name := strconv.Itoa(i)
	g := u.process.gatewayOf(plan, name)
	if err := u.settle(g, i, dir, credentials); err != nil {
		return err
	}
	g.RunID = u.run
	ready := make(chan ingest.Addresses, 1)
	g.Ready = func(at ingest.Addresses) { ready <- at }
	part := "gateway"
	if i > 0 {
		part += " " + name
	}
	u.served = append(u.served, g)
	metrics := prometheus.Registerer(u.registry)
	if u.gateways > 1 {
		metrics = prometheus.WrapRegistererWith(prometheus.Labels{"gateway": name}, u.registry)
	}
	metrics.MustRegister(gatewayCollector{g.Stats})
	u.gws = append(u.gws, u.start(ctx, part, g.Run))
	ctx, cancel := context.WithTimeoutCause(ctx, startWait, fmt.Errorf("%s not ready within %v", part, startWait))
	defer cancel()
	at, err := await(ctx, ready)
	if err != nil {
		return err
	}
	u.doors = append(u.doors, at)
	return nil
}

// live says whether all gateways are worth keeping.
func (u *up) live() error { return u.ofAll((*ingest.Gateway).Health) }

// ready says whether all gateways take what comes in.
func (u *up) ready() error { return u.ofAll((*ingest.Gateway).Readiness) }

func (u *up) ofAll(ask func(*ingest.Gateway) error) error {
	var errs []error
	for i, g := range u.served {
		if err := ask(g); err != nil && len(u.served) > 1 {
			errs = append(errs, fmt.Errorf("gateway %d: %w", i, err))
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// settle gives one of the gateways what pipeline.yaml leaves to `up`: certificates, users, a clock, and ports of its own.
func (u *up) settle(g *ingest.Gateway, i int, dir, credentials string) error {
	if g.Certificate == "" {
		g.Certificate, g.Key = u.certs.Certificate, u.certs.Key
	}
	if g.Credentials == "" {
		g.Credentials = credentials
	}
	if g.Clock == "" {
		g.Clock = filepath.Join(dir, "clock")
	}
	if i > 0 {
		g.Clock += "-" + strconv.Itoa(i)
		g.MQTT, g.HTTP = portAfter(g.MQTT, i), portAfter(g.HTTP, i)
		g.Peers.Listen, g.Peers.Advertise = portAfter(g.Peers.Listen, i), portAfter(g.Peers.Advertise, i)
	}
	g.Peers.AdvertiseAt("127.0.0.1") // the others are on this machine, unless the settings say where it is reached
	if u.gateways > 1 && g.Peers.Listen == "" {
		// An authority of their own: what it signs is a gateway, and nothing else.
		certs, err := identity.DevCertificates(filepath.Join(dir, "peers"))
		if err != nil {
			return fmt.Errorf("development certificates: %w", err)
		}
		g.Peers.Listen, g.Peers.ServerName = "127.0.0.1:0", "localhost"
		g.Peers.Certificate, g.Peers.Key, g.Peers.CA = certs.Certificate, certs.Key, certs.CA
	}
	return nil
}

// portAfter is an address whose port is i higher; any free port stays one.
func portAfter(addr string, i int) string {
	host, port, err := net.SplitHostPort(addr)
	n, bad := strconv.Atoi(port)
	if err != nil || bad != nil || n == 0 {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(n+i))
}

func addrText(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

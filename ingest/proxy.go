package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"
)

// The PROXY protocol, version 2 (HAProxy, doc/proxy-protocol.txt, section 2.2): a header before everything else that says for whom a load balancer
// speaks.
var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// proxyBytesMax bounds a header's addresses and extensions.
const proxyBytesMax = 2048

// proxied is a connection with the address of whom it is made for.
type proxied struct {
	*net.TCPConn
	from net.Addr
}

func (p *proxied) RemoteAddr() net.Addr { return p.from }

// behindProxy says whether a connection is one of a load balancer that the settings name.
func (a *Admission) behindProxy(from net.Addr) bool {
	ap, err := netip.ParseAddrPort(from.String())
	return err == nil && slices.ContainsFunc(a.proxies, func(p netip.Prefix) bool { return p.Contains(ap.Addr().Unmap()) })
}

// origin reads the header of a load balancer's connection. Others, which could claim to be anybody, are left as they are.
func (a *Admission) origin(c net.Conn, timeout time.Duration) (net.Conn, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok || !a.behindProxy(c.RemoteAddr()) {
		return c, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	from, err := readProxy(c)
	if err != nil {
		return nil, fmt.Errorf("PROXY header: %w", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil || from == nil {
		return c, err
	}
	return &proxied{TCPConn: tcp, from: from}, nil
}

// readProxy reads a header, and not a byte more. It gives nil where the balancer speaks for itself (a health check) or says nothing.
func readProxy(r io.Reader) (net.Addr, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(head[14:]))
	switch {
	case !bytes.Equal(head[:12], proxySignature):
		return nil, errors.New("not version 2 of it")
	case head[12]>>4 != 2:
		return nil, fmt.Errorf("version %d; want 2", head[12]>>4)
	case size > proxyBytesMax:
		return nil, fmt.Errorf("%d bytes; at most %d", size, proxyBytesMax)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	switch command, family := head[12]&0x0f, head[13]; {
	case command == 0: // LOCAL
		return nil, nil
	case command != 1:
		return nil, fmt.Errorf("command %d", command)
	case family == 0x11 && size >= 12: // TCP over IPv4
		return tcpAddr(body[:4], body[8:10])
	case family == 0x21 && size >= 36: // TCP over IPv6
		return tcpAddr(body[:16], body[32:34])
	case family == 0: // unspecified
		return nil, nil
	default:
		return nil, fmt.Errorf("address family and protocol %#x of %d bytes; want TCP", family, size)
	}
}

func tcpAddr(ip, port []byte) (net.Addr, error) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return nil, errors.New("no address")
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))), nil
}

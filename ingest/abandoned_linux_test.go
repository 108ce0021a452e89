package ingest

import (
	"net"
	"testing"
)

func TestAbandoned(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := client.Write([]byte("a ClientHello")); err != nil {
		t.Fatal(err)
	}
	if abandoned(c) {
		t.Error("a client that waits is taken for gone")
	}
	client.Close()
	eventually(t, "that it has gone is seen, though what it sent is not read", func() bool { return abandoned(c) })
}

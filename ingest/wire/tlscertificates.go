package wire

import (
	"crypto/tls"
	"crypto/x509"
	"reflect"
	"unsafe"
)

// crypto/tls keeps the certificates that a client has shown, parsed, and the chains it built of them, for as long as the
// connection lives: some 5 KB, twice what all the rest of it holds. They are private fields, found as those of [tlsBuffers] are.
type tlsCertificates struct{ peer, chains uintptr }

var tlsShown = findTLSCertificates(reflect.TypeFor[tls.Conn]())

// findTLSCertificates gives nil when the fields are not what they were.
func findTLSCertificates(conn reflect.Type) *tlsCertificates {
	peer, ok1 := conn.FieldByName("peerCertificates")
	chains, ok2 := conn.FieldByName("verifiedChains")
	if !ok1 || !ok2 || peer.Type != reflect.TypeFor[[]*x509.Certificate]() || chains.Type != reflect.TypeFor[[][]*x509.Certificate]() {
		return nil
	}
	return &tlsCertificates{peer.Offset, chains.Offset}
}

// ForgetCertificates lets go of what the client of a connection has shown. It is called once it is known who that is, when the handshake is
// over and nobody asks for the connection's state any more: crypto/tls looks at these fields nowhere else.
func ForgetCertificates(c *tls.Conn) {
	if tlsShown == nil {
		return
	}
	p := unsafe.Pointer(c)                                          // #nosec G103 -- see tlsCertificates
	*(*[]*x509.Certificate)(unsafe.Add(p, tlsShown.peer)) = nil     // #nosec G103 -- a field that findTLSCertificates found by name and type
	*(*[][]*x509.Certificate)(unsafe.Add(p, tlsShown.chains)) = nil // #nosec G103 -- a field that findTLSCertificates found by name and type
}

package streams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// kafka-go says of a refused login, of a listener that speaks TLS and of one that asks for a login the same: that a
// stream is unknown, or that a connection ended. So the first connection is made here, step by step, and each step has
// an error that says what is wrong and what to do.

// Versions of the requests of a login.
const (
	versionSaslHandshake    = 1
	versionSaslAuthenticate = 0
)

// greet goes through the brokers until one has let this client in. What is wrong with this client's own settings is
// so at all of them: it is final.
func (c *Client) greet(ctx context.Context) error {
	var errs []error
	for _, addr := range c.cfg.Brokers {
		err := c.greetOne(ctx, addr)
		if err == nil {
			return nil
		}
		var last final
		if errors.As(err, &last) || ctx.Err() != nil {
			return fmt.Errorf("streams: Kafka at %s: %w", addr, err)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("streams: no Kafka broker answers at %s: %w: check that it runs and that brokers names its address "+
		"(hearthline up brings its own)", strings.Join(c.cfg.Brokers, ", "), errors.Join(errs...))
}

func (c *Client) greetOne(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	conn, err := c.connect(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := c.checkVersions(conn); err != nil {
		return c.unanswered(ctx, addr, err)
	}
	if c.login != nil {
		if err := c.logIn(ctx, conn); err != nil {
			return err
		}
	}
	if _, err := c.metadataRequest(nil).RawExchange(conn); err != nil {
		if c.login == nil && hungUp(err) && c.hangsUpAgain(ctx, addr) {
			return final{fmt.Errorf("the broker ends the connection after its first answer, as one does that asks for a login: set kafka.sasl (%w)", err)}
		}
		return err
	}
	return nil
}

// hangsUpAgain says whether a broker answers which versions it speaks and then, once more, ends the connection. Once may
// be a broker that stops.
func (c *Client) hangsUpAgain(ctx context.Context, addr string) bool {
	if pause(ctx, 300*time.Millisecond) != nil {
		return false
	}
	conn, err := c.connect(ctx, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	if c.checkVersions(conn) != nil {
		return false
	}
	_, err = c.metadataRequest(nil).RawExchange(conn)
	return err != nil && hungUp(err)
}

// connect gives a connection on which requests can be sent until ctx's deadline, which must be set: TLS is agreed on.
func (c *Client) connect(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := c.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if c.tls == nil {
		return conn, nil
	}
	secured := tls.Client(conn, c.tlsFor(addr))
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, c.handshakeFailed(ctx, addr, err)
	}
	return secured, nil
}

// tlsFor is the TLS configuration for one broker.
func (c *Client) tlsFor(addr string) *tls.Config {
	cfg := c.tls.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return cfg
}

// hungUp says whether the other side ended the connection.
func hungUp(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && !op.Timeout()
}

// handshakeFailed says why TLS was not agreed on.
func (c *Client) handshakeFailed(ctx context.Context, addr string, err error) error {
	var (
		hostname  x509.HostnameError
		authority x509.UnknownAuthorityError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &hostname):
		return final{fmt.Errorf("the broker's certificate is for another name: set kafka.tls.server_name to one that stands in it: %w", err)}
	case errors.As(err, &authority):
		return final{fmt.Errorf("the broker's certificate is not trusted: set kafka.tls.ca to the file of the authority that signed it: %w", err)}
	case errors.As(err, &verify):
		return final{fmt.Errorf("the broker's certificate is not good: %w", err)}
	case errors.As(err, &record), hungUp(err) && c.speaksPlain(ctx, addr):
		return final{fmt.Errorf("the broker does not speak TLS at this address: name its port for TLS, or remove kafka.tls (%w)", err)}
	}
	return fmt.Errorf("agree on TLS: %w", err)
}

// unanswered says why the first request had no answer.
func (c *Client) unanswered(ctx context.Context, addr string, err error) error {
	if c.tls != nil {
		var alert tls.AlertError
		if errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls:") {
			if c.cfg.TLS.Certificate == "" {
				return final{fmt.Errorf("the broker asks for a certificate of this client: set kafka.tls.certificate and kafka.tls.key: %w", err)}
			}
			return final{fmt.Errorf("the broker does not take the certificate of kafka.tls.certificate: %w", err)}
		}
		return err
	}
	if c.speaksTLS(ctx, addr) {
		return final{errors.New("the broker speaks TLS at this address: set kafka.tls (tls: {} if its certificate is signed by an authority of this system)")}
	}
	return err
}

// speaksTLS tries to agree on TLS, for nothing but to know. Nothing is sent over it, so nobody need be trusted.
func (c *Client) speaksTLS(ctx context.Context, addr string) bool {
	conn, err := c.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil // #nosec G402 -- nothing is sent over it
}

// speaksPlain asks for the versions without TLS, for nothing but to know.
func (c *Client) speaksPlain(ctx context.Context, addr string) bool {
	conn, err := c.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	return c.checkVersions(conn) == nil
}

// logIn goes through the login of the connection.
func (c *Client) logIn(ctx context.Context, conn io.ReadWriter) error {
	code, offered, err := c.saslHandshake(conn)
	switch {
	case err != nil:
		return fmt.Errorf("log in: %w", err)
	case code == kafka.IllegalSASLState:
		return final{fmt.Errorf("the broker asks for no login at this address: name its port for logins, or remove kafka.sasl (%w)", code)}
	case code == kafka.UnsupportedSASLMechanism:
		return final{fmt.Errorf("the broker does not take %s: set kafka.sasl.mechanism to one of those it takes: %s (%w)",
			c.login.Name(), strings.Join(offered, ", "), code)}
	case code != 0:
		return final{fmt.Errorf("log in: %w", code)}
	}
	state, say, err := c.login.Start(ctx)
	if err != nil {
		return final{err}
	}
	for {
		code, reason, heard, err := c.saslAuthenticate(conn, say)
		if err != nil {
			return fmt.Errorf("log in as %s: %w", c.cfg.SASL.User, err)
		}
		if code != 0 {
			return final{fmt.Errorf("the broker refuses the login of user %s by %s: check user, password and mechanism of kafka.sasl: %w (%s)",
				c.cfg.SASL.User, c.login.Name(), code, reason)}
		}
		done, next, err := state.Next(ctx, heard)
		if err != nil {
			return final{fmt.Errorf("log in as %s by %s: the broker's answer is wrong: %w", c.cfg.SASL.User, c.login.Name(), err)}
		}
		if done {
			return nil
		}
		say = next
	}
}

func (c *Client) saslHandshake(conn io.ReadWriter) (code kafka.Error, offered []string, err error) {
	b := beginRequest(nil, protocol.SaslHandshake, versionSaslHandshake, c.cfg.ClientID, false)
	req := &raw{api: protocol.SaslHandshake, request: endRequest(appendString(b, c.login.Name())), limit: 1 << 16, parse: func(p *parser) protocol.Message {
		code = kafka.Error(p.int16())
		for range p.array(2) {
			offered = append(offered, p.string())
		}
		return nil
	}}
	_, err = req.RawExchange(conn)
	return code, offered, err
}

func (c *Client) saslAuthenticate(conn io.ReadWriter, say []byte) (code kafka.Error, reason string, heard []byte, err error) {
	b := beginRequest(nil, protocol.SaslAuthenticate, versionSaslAuthenticate, c.cfg.ClientID, false)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(say))), say...)
	req := &raw{api: protocol.SaslAuthenticate, request: endRequest(b), limit: 1 << 16, parse: func(p *parser) protocol.Message {
		code, reason = kafka.Error(p.int16()), p.string()
		heard = append(heard, p.take(max(int(p.int32()), 0))...) // the buffer goes back
		return nil
	}}
	_, err = req.RawExchange(conn)
	return code, reason, heard, err
}

package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/sourcegraph/conc"
	"golang.org/x/net/websocket"
)

// Reason codes of MQTT 5 that a client is to heed.
const (
	codeServerBusy      = 0x89
	codeQuota           = 0x97
	codeUseAnother      = 0x9C
	codeServerMoved     = 0x9D
	codeRateExceeded    = 0x9F
	codeUnspecified     = 0x80
	codeImplementation  = 0x83
	codeSessionTakeover = 0x8E
)

// connectTimeout is for the socket, TLS and CONNECT together.
const connectTimeout = 30 * time.Second

// mqttSender is one MQTT 5 connection. The engine is Eclipse's: what it leaves to others (when to try again, where, and what is
// to be sent again) is this package.
type mqttSender struct {
	c    *Client
	paho *paho.Client
	at   *url.URL
	life context.Context // ends with the connection: the engine would wait for another
	work conc.WaitGroup

	mu    sync.Mutex
	ended error // why the other side ended it
}

func (c *Client) connectMQTT(ctx context.Context, at *url.URL) (sender, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := c.dial(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at.Host, err)
	}
	s := &mqttSender{c: c, at: at}
	s.paho = paho.NewClient(paho.ClientConfig{
		ClientID: c.ClientID, Conn: packets.NewThreadSafeConn(conn), PacketTimeout: c.AckTimeout,
		OnServerDisconnect: s.disconnected,
		OnPublishReceived:  []func(paho.PublishReceived) (bool, error){s.heard},
	})
	connect, err := c.connectPacket()
	if err != nil {
		conn.Close()
		return nil, err
	}
	ack, err := s.paho.Connect(ctx, connect)
	if err != nil {
		conn.Close()
		if ack != nil {
			err = refusedBy(at, ack.ReasonCode, ack.Properties.ServerReference, fmt.Sprintf("refused by %s: %s", at.Host, reasonOf(ack.ReasonCode, ack.Properties.ReasonString)))
		}
		return nil, err
	}
	alive, over := context.WithCancel(context.Background())
	s.life = alive
	s.work.Go(func() { <-s.paho.Done(); over() })
	if err := s.subscribe(ctx); err != nil {
		s.close()
		return nil, err
	}
	c.Logger.Info("hearthline client: connected", "to", at.Host)
	return s, nil
}

func (c *Client) connectPacket() (*paho.Connect, error) {
	p := &paho.Connect{ClientID: c.ClientID, KeepAlive: uint16(c.KeepAlive / time.Second), CleanStart: c.Command == nil}
	user, password := c.User, c.Password
	if c.Token != nil {
		var err error
		if password, err = c.Token(); err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		user = cmp.Or(user, "jwt")
	}
	if user != "" {
		p.UsernameFlag, p.Username = true, user
		p.PasswordFlag, p.Password = true, []byte(password)
	}
	if c.Command != nil { // what is asked while the connection is away waits for it
		expiry := uint32(24 * 60 * 60)
		p.Properties = &paho.ConnectProperties{SessionExpiryInterval: &expiry}
	}
	return p, nil
}

func (c *Client) tlsConfig(at *url.URL) *tls.Config {
	conf := &tls.Config{}
	if c.TLS != nil {
		conf = c.TLS.Clone()
	}
	conf.MinVersion = tls.VersionTLS13
	conf.ServerName = cmp.Or(conf.ServerName, at.Hostname())
	return conf
}

func (c *Client) dial(ctx context.Context, at *url.URL) (net.Conn, error) {
	if at.Scheme == "wss" {
		conf, err := websocket.NewConfig(at.String(), "https://"+at.Host)
		if err != nil {
			return nil, err
		}
		conf.Protocol, conf.TlsConfig = []string{"mqtt"}, c.tlsConfig(at)
		ws, err := conf.DialContext(ctx)
		if err != nil {
			return nil, err
		}
		ws.PayloadType = websocket.BinaryFrame
		return ws, nil
	}
	host := at.Host
	if at.Port() == "" {
		host = net.JoinHostPort(at.Hostname(), "8883")
	}
	d := tls.Dialer{Config: c.tlsConfig(at)}
	d.Config.NextProtos = []string{"mqtt"}
	return d.DialContext(ctx, "tcp", host)
}

// refusedBy says what a reason code asks of the client.
func refusedBy(at *url.URL, code byte, reference, why string) error {
	switch code {
	case codeUseAnother, codeServerMoved:
		if reference == "" {
			break
		}
		next := *at
		next.Host = reference
		if _, _, err := net.SplitHostPort(reference); err != nil && at.Port() != "" {
			next.Host = net.JoinHostPort(reference, at.Port())
		}
		return &elsewhere{&next}
	case codeServerBusy, codeQuota, codeRateExceeded, codeSessionTakeover:
		return &retryLater{after: backoffFirst, why: why}
	}
	return errors.New(why)
}

func reasonOf(code byte, text string) string {
	if text == "" {
		return fmt.Sprintf("reason code %#x", code)
	}
	return fmt.Sprintf("reason code %#x, %s", code, text)
}

// disconnected keeps why the server ends the connection.
func (s *mqttSender) disconnected(d *paho.Disconnect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, reference := "", ""
	if d.Properties != nil {
		text, reference = d.Properties.ReasonString, d.Properties.ServerReference
	}
	s.ended = refusedBy(s.at, d.ReasonCode, reference, "disconnected by "+s.at.Host+": "+reasonOf(d.ReasonCode, text))
}

func (s *mqttSender) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *mqttSender) gone() <-chan struct{} { return s.paho.Done() }

func (s *mqttSender) close() {
	_ = s.paho.Disconnect(&paho.Disconnect{}) // the other side may be gone
	<-s.paho.Done()
	s.work.Wait()
}

// send publishes a message at QoS 1 and waits for its PUBACK.
func (s *mqttSender) send(ctx context.Context, m *message) (*Refusal, error) {
	e := m.entries[0]
	p := &paho.Publish{QoS: 1, Topic: e.Topic, Payload: e.Payload}
	if e.Topic == "" {
		p.Topic, p.Payload = "homes/"+e.Home+"/devices/"+e.Device+"/telemetry", rowsOf(m)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	ack, err := s.paho.Publish(ctx, p)
	if ack == nil {
		return nil, errors.Join(cmp.Or(s.why(), errLost), err)
	}
	text := ""
	if ack.Properties != nil {
		text = ack.Properties.ReasonString
	}
	refusal := &Refusal{Readings: m.rows, Home: e.Home, Device: e.Device, Reason: reasonOf(ack.ReasonCode, text)}
	switch code := ack.ReasonCode; {
	case code < codeUnspecified && text == "":
		return nil, nil
	case code < codeUnspecified:
		return refusal, nil // some of its rows
	case code == codeQuota, code == codeUnspecified, code == codeImplementation:
		return nil, &retryLater{why: refusal.Reason}
	}
	return refusal, nil
}

// rowsOf is a message's rows as a JSON array.
func rowsOf(m *message) []byte {
	b := []byte{'['}
	for _, e := range m.entries {
		for i := range e.Rows {
			if len(b) > 1 {
				b = append(b, ',')
			}
			b = append(b, encode(&e.Rows[i])...)
		}
	}
	return append(b, ']')
}

// linesOf is a message's rows as NDJSON, each with its home and device.
func linesOf(m *message) []byte {
	var b bytes.Buffer
	for _, e := range m.entries {
		for i := range e.Rows {
			r := e.Rows[i]
			r.Home, r.Device = e.Home, e.Device
			b.Write(encode(&r))
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// package ingest is the connection tier: hubs and clouds hand in telemetry over MQTT 3.1.1 and 5 and over HTTP, always
// TLS 1.3; text is parsed once, here, and rows are gathered into record batches of [flow.EventSchema] that a
// [Publisher] makes durable. A PUBACK or a 200 means: the log has it, acks=all.
//
// # Who comes in
//
// A client proves who it is by a user and a password, by a JSON Web Token (MQTT: as the password; HTTP: Bearer), by an API key (HTTP:
// Bearer, or X-API-Key), or by a certificate of a device authority. Each speaks for one home or several, in each with a role and perhaps for some
// of the home's devices: by the entry of the credentials file ([identity.Credential]), by the token's claims ([identity.Issuer]), or by the name
// in the certificate ([identity.ClientCertificates]). A client publishes and subscribes only under homes/{home}/ of a home of its own,
// and no wildcard reaches from one home to another. All these files, the issuers' keys and the server's certificate are read again when
// they change; whoever is revoked, expired, or has another entry now is sent away within a second or two.
//
//	role     publishes                                     subscribes to   may
//	hub      homes/{home}/#, of its devices where bound    the same        send telemetry, hear and acknowledge commands
//	app      homes/{home}/#, but no telemetry              homes/{home}/#  see the live state, send commands
//	viewer   nothing                                       homes/{home}/#  see the live state
//	service  homes/{home}/devices/{device}/telemetry/#     nothing         send telemetry of several homes, over HTTP too
//
// Templates in the entry take the place of its role's topics: topic filters in which {user}, {client} and {device} stand for whole levels.
//
// # How many come in
//
// Before anything is computed for a connection: it is counted (connections_max, address_connections_max, address_handshakes_per_second), and
// waits for the pace (accepts_per_second), so that a storm is stretched instead of refused. Then handshakes_max are computed at a time, with deadlines
// for the handshake, CONNECT, every packet, header and body. Behind a load balancer that speaks PROXY protocol version 2 the limits see the
// client (proxy_protocol). A gateway that drains is not ready, goes on for drain_wait, takes no more connections, and sends evict_per_second of
// its clients away a second, each when what it sent is acknowledged; [Gateway.DrainMax] bounds it.
//
// # MQTT
//
//	homes/{home}/devices/{device}/telemetry        one reading, or an array of them, as JSON
//	homes/{home}/devices/{device}/telemetry/senml  SenML in JSON, RFC 8428
//	homes/{home}/devices/{device}/telemetry/arrow  an Arrow IPC stream
//	homes/{home}/…                                 anything else goes to those of the home's clients that have subscribed
//
// An MQTT 5 content type of application/json, application/x-ndjson, application/senml+json or
// application/vnd.apache.arrow.stream overrules what the topic says. Telemetry goes to subscribers too.
//
// QoS 0, 1 and 2, both ways. A PUBACK or PUBREC of telemetry means that the log has it; a QoS 2 message that is sent again,
// on whatever connection of its session, is not taken again.
//
//	sessions        outlive their connection as long as the client asks for (3.1.1 without clean session: session_expiry_max,
//	                which bounds all), with subscriptions, packet ids of QoS 2, and QoS 1 and 2 messages: up to session_queue_max
//	                that wait. In flight are at most 64, sent again first and in order. They belong to the user: another
//	                user's client id is another session. Gateways that share tables ask each other for them before CONNACK,
//	                connected or not; of one that does not answer they find what it stored when the client had left, a second
//	                old at most. Without tables sessions end with this process
//	subscriptions   no local, retain as published, retain handling, identifiers; a session gets a message once, with all of
//	                these that match. $share/{group}/{filter} within a home: in turn to members that are connected
//	retained        the last of each topic, telemetry too, in bounds for each home ([session.Retained])
//	wills           of any QoS, retained or not, after min(will delay, session expiry); none when the client is back before,
//	                or the gateway goes down; a will is no reading, no command and no
//	                change of a shadow
//	message expiry  counted down, for waiting and retained messages too
//	topic aliases   16 in; out for a connection's first 16 topics, as far as the client allows
//	flow control    receive maximum and maximum packet size, both ways; server keep alive; messages larger than a client takes
//	                are not sent to it
//	request/response  properties are handed on; response information is a topic prefix that nobody else is given
//
// Enhanced authentication (AUTH) is refused (0x8C).
// Messages that arrive while the log does not take more are not read (3.1.1) or held back by the receive maximum (5).
//
//	what is wrong                             MQTT 5                        MQTT 3.1.1
//	user, password, token, certificate        CONNACK 0x86                  CONNACK 5
//	a client id that is not its own           CONNACK 0x85                  CONNACK 2
//	revoked, expired, another entry now       DISCONNECT 0x87               connection closed
//	too many failed attempts, too busy        CONNACK 0x9F, 0x89            CONNACK 3
//	topic of another home, foreign device     PUBACK 0x87 (QoS 0: DISCONNECT 0x87)   connection closed
//	payload: malformed, or no row usable      PUBACK 0x99 and a reason      PUBACK; counted
//	payload: some rows unusable               PUBACK 0x00 and a reason      PUBACK; counted
//	packet over the limit                     DISCONNECT 0x95               connection closed
//	subscription outside the home             SUBACK 0x87                   SUBACK 0x80
//	too many subscriptions                    SUBACK 0x97                   SUBACK 0x80
//	too many retained messages                PUBACK 0x97; telemetry is taken, not retained   sent on, not retained; counted
//	more messages at once than allowed        DISCONNECT 0x93               not read until there is room
//	session cannot be loaded                  CONNACK 0x88                  CONNACK 3
//	command, report, shadow: log away        PUBACK 0x80: send it again    connection closed: send it again
//	same client id again, same user           DISCONNECT 0x8E               connection closed
//	gateway going down                        DISCONNECT 0x8B, or 0x9C with another server   connection closed
//
// # WebSocket
//
// GET /mqtt on the HTTP door is MQTT over wss: subprotocol mqtt, binary frames of at most a packet's size, which need not
// meet packets; no compression. Pings are answered. A web page must be of the same host, or one of websocket_origins: its
// browser says which, other clients say none. What is no WebSocket gets a problem document (403 for a page, 426, 400), what breaks
// RFC 6455 a close code: 1002, 1003 for text frames, 1009 for frames that are too long.
//
// # What a connection costs
//
// One that says nothing has no goroutine and no buffer ([wire.Loop]): docs/connections.md.
//
// # Commands
//
//	homes/{home}/devices/{device}/commands              apps: a request, JSON; hubs are sent commands on it
//	homes/{home}/devices/{device}/commands/{id}/status  hubs: what became of it
//
// and /v1/devices/{device}/commands on the HTTP door; docs/devices.md has the payloads. A PUBACK means that the table of commands
// has it. Gateways that share tables ([Gateway.Logs]) pass on to each other what their clients have subscribed to, hold the same
// retained messages, and leave a session to the gateway that claimed it last. One without them takes no commands.
//
// # Shadows
//
//	homes/{home}/devices/{device}/shadow           the whole document, JSON: apps are sent what stands, as retained, and each change
//	homes/{home}/devices/{device}/shadow/reported  hubs: a merge patch (RFC 7396) of what the device is
//	homes/{home}/devices/{device}/shadow/desired   apps: a merge patch of what it shall be
//	homes/{home}/devices/{device}/shadow/delta     hubs are sent what differs
//
// and /v1/devices/{device}/shadow, /v1/homes/{home}/shadows on the HTTP door, where /v1/homes/{home}/live streams shadows and commands (SSE). A PUBACK means that the table of shadows has it. The first
// and the last are published by gateways alone. Telemetry changes no shadow (decision 29).
//
// # HTTP
//
// POST /v1/telemetry takes application/json (an object or an array), application/x-ndjson, application/senml+json and
// application/vnd.apache.arrow.stream, plain or compressed (Content-Encoding gzip, zstd), with Basic credentials, or
// Bearer with user:password as the token. Rows name their device. Rows that cannot be used are refused one by one and
// the others kept: 200 says {"accepted": n, "refused": m, "rows": [{"row", "reason", "detail"}]}. Only a body that
// cannot be parsed at all is refused as a whole. Credentials of several homes name the home in every row. Errors are problem documents (RFC 9457): 400 malformed or no row
// usable, 401 unknown, wrong, revoked or expired, 403 every row of another home or device, 404, 405, 413, 415, 429 with Retry-After, 503 with Retry-After
// when the log does not take rows in time (they may yet become durable: send them again, with their seq).
//
// Idempotency-Key (a quoted string, or plain) makes a request be written once: the same key and body get the first answer
// again, with Idempotency-Replayed: true; another body under the key gets 422, a key that is still under way 409 with
// Retry-After. A request that was told 503 while its rows were on their way is answered 200 once they are durable. What
// failed before anything was handed in may be sent again. Keys belong to the user, and are remembered for a day
// (IdempotencyTime), within bounds, by all gateways and over restarts: a balancer may give the repeat to any. What a gateway had
// under way when it was killed is taken anew by the next one; repeated rows are then known by their seq alone.
//
// # CloudEvents
//
// POST /v1/telemetry takes CloudEvents 1.0 in all three modes: binary (headers ce-*), structured
// (application/cloudevents+json) and batch (application/cloudevents-batch+json). An event's data is one of the formats above,
// as datacontenttype says (JSON when it says nothing; Arrow in data_base64). Its attributes complete rows that do not say so themselves:
//
//	subject  device, or home/device
//	type     metric: what stands behind the last dot (com.example.temperature)
//	time     time
//	source + id  name the event: one that comes again, in whatever request of the same user, is counted under "repeated" and not
//	             written again. Its bounds are those of Idempotency-Key.
//
// # Webhooks
//
// POST /v1/hooks/{name} is for clouds that push and hold no password: they sign what they send with HMAC-SHA256, and the
// settings ([hook.Hook]) say how and for which homes. Standard Webhooks, GitHub's form and the like are known by name. Bodies are what
// POST /v1/telemetry takes, uncompressed. A delivery that comes again (by its id, else by a signature that holds a time) is
// answered again and not written again. 401 is for signatures that are missing, wrong or more than the tolerance from now.
// An id that is not signed (GitHub's) keeps repeated deliveries apart, but not who replays one under another id.
//
// # A reading
//
//	{"device": "lamp", "metric": "power", "value": 7.5, "unit": "W", "time": "2026-01-31T12:00:00.5Z", "seq": 42,
//	 "attributes": {"firmware": "1.2"}}
//
// metric, and one of value (a number) and text (a string), are required; device is, where no topic names it. time is
// an RFC 3339 string or a number of milliseconds since 1970, and the time of arrival when absent; before 2000 and more
// than 24 h ahead are refused. seq is the device's own rising number, by which repeated readings are dropped later.
// Members that are null count as absent; unknown ones are refused. Names have at most 128 bytes and no control
// characters, / + or #; text at most 4,096 bytes; attributes are at most 32 strings, numbers or booleans.
//
// SenML: the full name is split at its last "/", or else its last ":", into device and metric; under a topic a name
// without either is the metric. v is the value; vs, and vb as "true" or "false", the text; sums and data are refused.
//
// # Batches
//
// A home's rows go to one partition ([flow.PartitionOf]); each partition gathers for Linger, publishes one batch after
// the other, and sends a heartbeat when it has no rows. Batches are numbered from the clock at boot, and watermarks are
// the arrival clock, which never goes back; give the gateway a clock file where the system's clock may be set back
// between two runs.
//
// What units and metrics mean is not known here: that is a stage's work.
package ingest

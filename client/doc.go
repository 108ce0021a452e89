// Package client sends the readings of devices to Hearthline, hears the commands for them, and keeps their shadows: it reports what they
// are, and hears what they shall be. It is for hubs, and for
// gateways and clouds of others that publish events.
//
//	c := client.New("mqtts://gateway.example:8883")
//	c.User, c.Password = "hub-17", os.Getenv("HUB_PASSWORD")
//	c.Home, c.Dir = "home-17", "/var/lib/hub"
//	go c.Run(ctx)
//	err := c.Send(ctx, client.Reading{Device: "lamp", Metric: "power", Value: 7.5, Unit: "W"})
//
// # What it promises
//
// [Client.Send] returns when the readings are in the outbox: in memory, or in files under Dir, which outlive the process.
// [Client.Run] keeps one connection (MQTT 5 over TLS or wss, or HTTP), sends what the outbox holds, and takes it out once
// Hearthline has said that it is durable. What is not acknowledged is sent again, on this connection or another, also after a restart where
// there is a Dir. Readings are numbered by device and metric, so what arrives twice counts once. [Client.Flush] waits until all
// that was sent before it is durable.
//
// The outbox is bounded (OutboxBytes). When it is full, because the other side has been away for long, Send returns
// [ErrFull]: whoever calls decides what to do without.
//
// # When something is wrong
//
// A connection that fails is tried again after a random time between nothing and a limit that doubles from one second to five
// minutes, so that a million hubs do not come back in the same second. What the other side says is honoured: busy (0x89), quota
// (0x97) and Retry-After by waiting, another server (0x9C, 0x9D) by going there. A reading that the other side can never use is
// handed to Refused with the reason, and not sent again.
package client

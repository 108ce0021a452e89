package ingest

import (
	"encoding/json"
	"strings"

	"hearthline/ingest/mqtt"
	"hearthline/ingest/session"
	"hearthline/ingest/table"
)

// sharedRetained keeps retained messages in this process, where they are looked up, and in a table, by which the other gateways
// and later lives of this one have them. Of two gateways that set a topic at once, all come to the later in the log.
type sharedRetained struct {
	*session.Memory
	g     *Gateway
	table *table.Table
}

func (g *Gateway) shareRetained(t *table.Table) session.Retained {
	r := &sharedRetained{Memory: g.retainedMemory(), g: g, table: t}
	t.Changed = r.changed
	return r
}

func (g *Gateway) retainedMemory() *session.Memory {
	return &session.Memory{HomeMax: g.RetainedMax, HomeBytesMax: g.RetainedBytesMax, BytesMax: g.RetainedAllBytesMax}
}

// Set implements session.Retained.
func (r *sharedRetained) Set(home string, m *mqtt.Message) error {
	if err := r.Memory.Set(home, m); err != nil {
		return err
	}
	var value []byte
	if len(m.Payload) > 0 {
		var err error
		if value, err = json.Marshal(m); err != nil {
			return err
		}
	}
	if !r.table.Offer(home+"/"+strings.TrimPrefix(m.Topic, "homes/"+home+"/"), value) {
		return session.ErrRetainedFull
	}
	return nil
}

// changed follows the table.
func (r *sharedRetained) changed(_, rec table.Record) {
	home, rest, _ := strings.Cut(rec.Key, "/")
	m := &mqtt.Message{Topic: "homes/" + home + "/" + rest}
	if rec.Value != nil {
		if err := json.Unmarshal(rec.Value, m); err != nil {
			r.g.Logger.Error("gateway: a retained message cannot be read", "key", rec.Key, "err", err)
			return
		}
	}
	if err := r.Memory.Set(home, m); err != nil {
		r.g.Logger.Warn("gateway: a retained message of another gateway is not kept", "home", home, "err", err)
	}
}

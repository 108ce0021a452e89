package ingest

import (
	"encoding/base64"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hearthline/flow"
	"hearthline/ingest/payload"
	"hearthline/ingest/reason"
)

// CloudEvents 1.0 over HTTP (the HTTP Protocol Binding, 1.0.2). The SDK of the project is not used: of it this door would
// take eight fields of one JSON object, and leave its transports, its reflection and its retries.
const (
	mediaEvent  = "application/cloudevents+json"       // structured mode: one event
	mediaEvents = "application/cloudevents-batch+json" // an array of them
)

// event is a CloudEvent of which nothing is decoded yet.
type event struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        string          `json:"type"`
	Subject     string          `json:"subject"`
	Time        string          `json:"time"`
	ContentType string          `json:"datacontenttype"`
	Data        json.RawMessage `json:"data"`
	Base64      string          `json:"data_base64"`
}

// eventAttributeBytesMax bounds id, source, type and subject.
const eventAttributeBytesMax = 1024

// readEvents gives the events of a request's body, by its mode.
func readEvents(media string, header http.Header, body []byte, most int) ([]event, *reason.Refusal) {
	malformed := func(err error) *reason.Refusal { return reason.Refuse(reason.Malformed, "CloudEvents: %v", err) }
	switch media {
	case mediaEvent:
		var e event
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, malformed(err)
		}
		return []event{e}, nil
	case mediaEvents:
		var raw []json.RawMessage
		if err := json.Unmarshal(body, &raw); err != nil {
			return nil, malformed(err)
		}
		if len(raw) > most {
			return nil, reason.Refuse(reason.Payload, "%d events in one request; at most %d", len(raw), most)
		}
		all := make([]event, len(raw))
		for i := range raw {
			if err := json.Unmarshal(raw[i], &all[i]); err != nil {
				all[i] = event{SpecVersion: "1.0"} // lacks its id: refused by itself
			}
		}
		return all, nil
	}
	return []event{{
		SpecVersion: eventHeader(header, "specversion"), ID: eventHeader(header, "id"), Source: eventHeader(header, "source"), Type: eventHeader(header, "type"),
		Subject: eventHeader(header, "subject"), Time: eventHeader(header, "time"), ContentType: header.Get("Content-Type"), Data: body,
	}}, nil
}

// isEvents says whether a request carries CloudEvents, in any mode.
func isEvents(media string, header http.Header) bool {
	return media == mediaEvent || media == mediaEvents || header.Get("ce-specversion") != ""
}

// eventHeader reads an attribute in binary mode (section 3.1.3.2: what is no visible ASCII is percent-encoded).
func eventHeader(h http.Header, name string) string {
	v := h.Get("ce-" + name)
	if s, err := url.PathUnescape(v); err == nil {
		return s
	}
	return v
}

// key names the event as the specification does: by its source and id together.
func (e *event) key() string { return "event " + e.Source + "\x00" + e.ID }

// scope is what the event says of its rows: its subject is their device ("home/device" where the sender has several
// homes), the last part of its type their metric, its time their time; each where they do not say it themselves.
func (e *event) scope(s payload.Scope) (payload.Scope, *reason.Refusal) {
	wrong := func(format string, args ...any) (payload.Scope, *reason.Refusal) {
		return s, reason.Refuse(reason.Envelope, format, args...)
	}
	if !strings.HasPrefix(e.SpecVersion, "1.") && e.SpecVersion != "1" {
		return wrong("specversion %.20q; want 1.0", e.SpecVersion)
	}
	for _, a := range []struct {
		name, value string
		needed      bool
	}{{"id", e.ID, true}, {"source", e.Source, true}, {"type", e.Type, true}, {"subject", e.Subject, false}} {
		if a.value == "" && a.needed {
			return wrong("attribute %s is missing", a.name)
		}
		if len(a.value) > eventAttributeBytesMax {
			return wrong("attribute %s has %d bytes; at most %d", a.name, len(a.value), eventAttributeBytesMax)
		}
	}
	s.Subject = e.Subject
	if home, device, ok := strings.Cut(e.Subject, "/"); ok {
		if home != s.Home && s.Home != "" {
			return s, reason.Refuse(reason.Home, "subject %.80q names home %.40q; this is of home %q", e.Subject, home, s.Home)
		}
		s.Home, s.Subject = home, device
	}
	s.Metric = e.Type[strings.LastIndexByte(e.Type, '.')+1:]
	if e.Time != "" {
		at, err := time.Parse(time.RFC3339Nano, e.Time)
		if err != nil {
			return wrong("attribute time %.40q is not RFC 3339", e.Time)
		}
		s.Time = flow.MicrosOf(at)
	}
	return s, nil
}

// body is the event's data and how it is written.
func (e *event) body() (payload.Format, []byte, *reason.Refusal) {
	f, known := payload.FormatJSON, true
	if e.ContentType != "" {
		media, _, err := mime.ParseMediaType(e.ContentType)
		if f, known = formatOf(media); err != nil || !known {
			return 0, nil, reason.Refuse(reason.Media, "datacontenttype %.80q; %s", e.ContentType, mediaReason)
		}
	}
	if e.Base64 == "" {
		return f, textOf(f, e.Data), nil
	}
	if len(e.Data) > 0 {
		return 0, nil, reason.Refuse(reason.Envelope, "both data and data_base64")
	}
	data, err := base64.StdEncoding.DecodeString(e.Base64)
	if err != nil {
		return 0, nil, reason.Refuse(reason.Malformed, "data_base64: %v", err)
	}
	return f, data, nil
}

// textOf takes NDJSON out of the string that it is in structured mode.
func textOf(f payload.Format, data []byte) []byte {
	var s string
	if f == payload.FormatLines && len(data) > 0 && data[0] == '"' && json.Unmarshal(data, &s) == nil {
		return []byte(s)
	}
	return data
}

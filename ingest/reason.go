package ingest

import "fmt"

// verdictDetailBytes is how much of what was wrong a refusal quotes.
const verdictDetailBytes = 200

// Reason says why something was refused. Its text is the name under which [Stats] counts it and problem
// documents report it.
type Reason uint8

const (
	ReasonMalformed    Reason = iota // not JSON, not SenML, not Arrow
	ReasonMissing                    // no device or no metric
	ReasonValue                      // neither or both of value and text
	ReasonNotFinite                  // NaN, infinities, numbers beyond float64
	ReasonField                      // a member of a wrong type, unknown, or given twice
	ReasonName                       // a name with control characters, separators, or no UTF-8
	ReasonTooLong                    // a string over its limit, too many attributes
	ReasonTime                       // no time, before 2000, more than 24 h ahead
	ReasonHome                       // names another home
	ReasonDevice                     // names a device that the identity does not hold
	ReasonPayload                    // a payload over its limit
	ReasonTopic                      // a topic outside the own home
	ReasonQoS                        // QoS 2
	ReasonRate                       // over the identity's rate
	ReasonCredentials                // unknown user or wrong password
	ReasonBackPressure               // the log did not take it in time
	ReasonSlowConsumer               // a subscriber that does not read
	ReasonProtocol                   // against MQTT
	ReasonConnections                // over the connection limit
	ReasonDraining                   // the gateway is going down
	ReasonMedia                      // a content type or encoding nobody reads here
	reasons                          // how many there are
)

var reasonNames = [reasons]string{
	"malformed", "missing", "value", "not_finite", "field", "name", "too_long", "time", "home", "device", "payload",
	"topic", "qos", "rate", "credentials", "back_pressure", "slow_consumer", "protocol", "connections", "draining", "media",
}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// refusal is why one row, or a whole payload, is not taken.
type refusal struct {
	Reason Reason
	Detail string
}

func (r *refusal) Error() string { return r.Reason.String() + ": " + r.Detail }

func refuse(reason Reason, format string, args ...any) *refusal {
	d := fmt.Sprintf(format, args...)
	if len(d) > verdictDetailBytes {
		d = d[:verdictDetailBytes] + "…"
	}
	return &refusal{Reason: reason, Detail: d}
}

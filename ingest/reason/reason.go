// Package reason names why something was refused: in counters, problem documents and reason strings alike.
package reason

import "fmt"

// verdictDetailBytes is how much of what was wrong a refusal quotes.
const verdictDetailBytes = 200

// Reason says why something was refused. Its text is the name under which [Stats] counts it and problem
// documents report it.
type Reason uint8

const (
	Malformed    Reason = iota // not JSON, not SenML, not Arrow
	Missing                    // no device or no metric
	Value                      // neither or both of value and text
	NotFinite                  // NaN, infinities, numbers beyond float64
	Field                      // a member of a wrong type, unknown, or given twice
	Name                       // a name with control characters, separators, or no UTF-8
	TooLong                    // a string over its limit, too many attributes
	Time                       // no time, before 2000, more than 24 h ahead
	Home                       // names another home
	Device                     // names a device that the identity does not hold
	Payload                    // a payload over its limit
	Topic                      // a topic outside the own home
	Rate                       // over the identity's rate
	Credentials                // unknown user or wrong password
	BackPressure               // the log did not take it in time
	SlowConsumer               // a subscriber that does not read
	Protocol                   // against MQTT
	Connections                // over the connection limit
	Draining                   // the gateway is going down
	Media                      // a content type or encoding nobody reads here
	Repeated                   // an idempotency key that is in use, or was used for something else
	Signature                  // a webhook's signature that is missing, wrong or too old
	Envelope                   // a CloudEvent whose attributes cannot be used
	Quota                      // as many subscriptions, or retained messages, as there may be
	Count                      // how many there are
)

var reasonNames = [Count]string{
	"malformed", "missing", "value", "not_finite", "field", "name", "too_long", "time", "home", "device", "payload",
	"topic", "rate", "credentials", "back_pressure", "slow_consumer", "protocol", "connections", "draining", "media",
	"idempotency", "signature", "envelope", "quota",
}

func (r Reason) String() string {
	if r < Count {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Refusal is why one row, or a whole payload, is not taken.
type Refusal struct {
	Reason Reason
	Detail string
}

func (r *Refusal) Error() string { return r.Reason.String() + ": " + r.Detail }

func Refuse(reason Reason, format string, args ...any) *Refusal {
	d := fmt.Sprintf(format, args...)
	if len(d) > verdictDetailBytes {
		d = d[:verdictDetailBytes] + "…"
	}
	return &Refusal{Reason: reason, Detail: d}
}

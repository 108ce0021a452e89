package ingest

import (
	"hearthline/ingest/mqtt"
	"hearthline/ingest/reason"
	"hearthline/ingest/session"
)

func (c *connection) subscribe(body []byte) error {
	p, err := mqtt.ParseSubscribe(c.terms.Version, body, false)
	if err != nil {
		return err
	}
	if err := c.answerable(len(p.Filters)); err != nil {
		return err
	}
	codes := make([]byte, len(p.Filters))
	var replay []session.Subscription
	defer func() {
		for i, f := range p.Filters {
			if codes[i] < mqtt.CodeUnspecified {
				c.ready(string(f))
			}
		}
	}()
	for i, f := range p.Filters {
		sub := session.Subscription{Filter: string(f), Options: p.Options[i], ID: p.Props.SubscriptionID}
		var isNew bool
		if codes[i], isNew = c.grant(sub); codes[i] < mqtt.CodeUnspecified && wantsRetained(sub, isNew) {
			replay = append(replay, sub)
		}
	}
	if err := c.answer(16+len(codes), func(b []byte) []byte {
		return mqtt.AppendSuback(b, c.terms.Version, mqtt.TypeSuback, p.ID, codes)
	}); err != nil {
		return err
	}
	for _, sub := range replay {
		home, _ := session.HomeOf(sub.Filter)
		c.g.delivered(c.g.audience.Replay(home, c.session, sub, c.g.Retained))
		c.replayShadows(home, sub)
	}
	return nil
}

// answerable says whether the client takes the answer to so many filters.
func (c *connection) answerable(filters int) error {
	if 8+filters > c.terms.PacketMax {
		return mqtt.Broken(mqtt.CodeTooLarge, "the answer to %d topic filters has more bytes than the client takes", filters)
	}
	return nil
}

// wantsRetained says whether retained messages are sent for a subscription (MQTT 5, sections 3.3.1.3 and 4.8.2).
func wantsRetained(sub session.Subscription, isNew bool) bool {
	group, _, _ := mqtt.Shared(sub.Filter)
	switch handling := sub.Options & mqtt.SubRetainHandling; {
	case group != "" || handling == mqtt.SubRetainNever:
		return false
	case handling == mqtt.SubRetainIfNew:
		return isNew
	}
	return true
}

// grant answers one filter: its QoS, or why not.
func (c *connection) grant(sub session.Subscription) (code byte, isNew bool) {
	_, filter, bad := mqtt.Shared(sub.Filter)
	if bad != "" || mqtt.BadFilter(filter) != "" || mqtt.BadFilter(sub.Filter) != "" {
		return mqtt.CodeTopicFilter, false
	}
	home, no := c.id.MaySubscribe(c.session.Key.Client, filter)
	if no != nil {
		c.g.count.refused[no.Reason].Add(1)
		return mqtt.CodeNotAuthorized, false
	}
	isNew, ok := c.g.audience.Subscribe(home, c.session, sub)
	if !ok {
		c.g.count.refused[reason.Quota].Add(1)
		return mqtt.CodeQuota, false
	}
	return sub.Options & mqtt.SubQoS, isNew
}

func (c *connection) unsubscribe(body []byte) error {
	p, err := mqtt.ParseSubscribe(c.terms.Version, body, true)
	if err != nil {
		return err
	}
	if err := c.answerable(len(p.Filters)); err != nil {
		return err
	}
	codes := make([]byte, len(p.Filters))
	for i, f := range p.Filters {
		_, filter, _ := mqtt.Shared(string(f))
		home, _ := session.HomeOf(filter)
		if !c.g.audience.Unsubscribe(home, c.session, string(f)) {
			codes[i] = mqtt.CodeNoSubscription
		}
	}
	return c.answer(16+len(codes), func(b []byte) []byte {
		return mqtt.AppendSuback(b, c.terms.Version, mqtt.TypeUnsuback, p.ID, codes)
	})
}

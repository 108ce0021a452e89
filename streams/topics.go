package streams

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/segmentio/kafka-go"
)

// Spec is a stream as the plan wants it.
type Spec struct {
	Name           string
	Partitions     int
	Retention      time.Duration // how long rows are kept; 0 is the broker's default, below zero for ever
	RetentionBytes int64         // of one partition; 0 is the broker's default, below zero unlimited
	Compacted      bool          // keep the last message of each key instead
	Rewritten      bool          // of a compacted one: its keys are written over and over, so it is compacted soon
}

// Info is what a broker says of a stream.
type Info struct {
	ID         string // of this incarnation: a stream deleted and made anew has another; 32 hexadecimal digits
	Partitions int
}

// streamName is what Kafka takes for a topic.
var streamName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// Ensure creates the streams that are missing, the schema stream among them, and waits until they can be used.
// A stream that exists must have as many partitions as its spec says; its other settings are left as they are.
func (c *Client) Ensure(ctx context.Context, specs []Spec) error {
	specs = append([]Spec{schemaSpec}, specs...)
	names := make([]string, len(specs))
	for i, s := range specs {
		if !streamName.MatchString(s.Name) || strings.Trim(s.Name, ".") == "" {
			return fmt.Errorf("ensure stream %q: a name has 1 to %d of a–z, A–Z, 0–9, '.', '_' and '-', and not only dots", s.Name, streamBytesMax)
		}
		if s.Partitions < 1 {
			return fmt.Errorf("ensure stream %s: %d partitions; want at least 1", s.Name, s.Partitions)
		}
		names[i] = s.Name
	}
	var known map[string]topicInfo
	err := c.retry(ctx, "ensure streams", func(ctx context.Context) (err error) {
		known, err = c.metadata(ctx, names)
		if err != nil {
			return err
		}
		var missing []Spec
		for _, s := range specs {
			switch t := known[s.Name]; {
			case t.code == kafka.UnknownTopicOrPartition:
				missing = append(missing, s)
			case t.code != 0:
				return fmt.Errorf("stream %s: %w", s.Name, t.code)
			case t.partitions != s.Partitions:
				return final{fmt.Errorf("stream %s has %d partitions, the plan says %d: rows would meet the wrong state. "+
					"Set partitions to %d; `hearthline plan` says what it takes to change them", s.Name, t.partitions, s.Partitions, t.partitions)}
			case t.leaderless > 0:
				return fmt.Errorf("stream %s: %w", s.Name, kafka.LeaderNotAvailable)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		return c.create(ctx, missing)
	})
	if err != nil {
		return err
	}
	c.warnOfThinCopies(ctx, names, known)
	return nil
}

// minInsync is the broker's setting of how many copies a message must have before acks=all is answered.
const minInsync = "min.insync.replicas"

// warnOfThinCopies says where an acknowledgement promises less than its reader would think: a stream of which there is
// one copy in a cluster of several brokers, or whose messages count as durable when only their leader has them.
func (c *Client) warnOfThinCopies(ctx context.Context, names []string, known map[string]topicInfo) {
	var alone, several []string
	for _, name := range names {
		switch t := known[name]; {
		case t.replicas == 1 && t.brokers > 1:
			alone = append(alone, name)
		case t.replicas > 1:
			several = append(several, name)
		}
	}
	if len(alone) > 0 {
		c.log.Warn("streams: one copy in a cluster of several brokers: the loss of a broker's disk loses acknowledged rows; "+
			"set kafka.replication to 3, or reassign the streams' replicas", "streams", strings.Join(alone, " "))
	}
	if len(several) == 0 {
		return
	}
	req := &kafka.DescribeConfigsRequest{}
	for _, name := range several {
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: name, ConfigNames: []string{minInsync}})
	}
	res, err := c.kafka.DescribeConfigs(ctx, req)
	if err != nil {
		c.log.Debug("streams: how many copies an acknowledgement stands for could not be asked", "error", err)
		return
	}
	var thin []string
	for _, r := range res.Resources { // one that may not be asked about has no entries
		for _, e := range r.ConfigEntries {
			if e.ConfigName == minInsync && e.ConfigValue == "1" {
				thin = append(thin, r.ResourceName)
			}
		}
	}
	if len(thin) > 0 {
		c.log.Warn("streams: "+minInsync+" is 1: rows are acknowledged while only the leader has them, and are lost with it; "+
			"set it to 2", "streams", strings.Join(thin, " "))
	}
}

// create asks for streams and returns a passing error, so that Ensure looks again whether they are there.
func (c *Client) create(ctx context.Context, specs []Spec) error {
	req := &kafka.CreateTopicsRequest{}
	for _, s := range specs {
		req.Topics = append(req.Topics, kafka.TopicConfig{
			Topic: s.Name, NumPartitions: s.Partitions, ReplicationFactor: c.cfg.Replication, ConfigEntries: c.settings(s),
		})
	}
	res, err := c.kafka.CreateTopics(ctx, req)
	if err != nil {
		return err
	}
	for name, err := range res.Errors {
		// Somebody else was faster: what they made is checked in the next round.
		if err == nil || errors.Is(err, kafka.TopicAlreadyExists) {
			continue
		}
		if code, ok := asCode(err); ok && !passing(code) {
			return fmt.Errorf("create stream %s (%s): %w", name, wanted(specs, name), err)
		}
		return err
	}
	return fmt.Errorf("streams are being created: %w", kafka.LeaderNotAvailable)
}

// wanted describes a stream for whoever makes it by hand.
func wanted(specs []Spec, name string) string {
	i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == name })
	if i < 0 {
		return "unknown"
	}
	s := fmt.Sprintf("%d partitions", specs[i].Partitions)
	if specs[i].Compacted {
		s += ", compacted"
	}
	return s
}

// How a stream that is rewritten is cut: what has been replaced is gone after twice as long, about.
const (
	rewrittenSegmentBytes = 32 << 20
	rewrittenSegmentTime  = time.Hour
)

// keptSegmentTime is how long the one segment of other compacted streams stays open: for ever. They hold little (schemas, and what runs),
// and the embedded broker deletes a segment before it has written the compacted one.
const keptSegmentTime = 100 * 365 * 24 * time.Hour

func (c *Client) settings(s Spec) []kafka.ConfigEntry {
	var out []kafka.ConfigEntry
	set := func(name, value string) {
		out = append(out, kafka.ConfigEntry{ConfigName: name, ConfigValue: value})
	}
	set("max.message.bytes", strconv.Itoa(c.cfg.MessageBytesMax))
	// Values are compressed already, as this client was told.
	set("compression.type", "producer")
	if c.cfg.Replication >= 3 {
		// acks=all waits for the copies that are in sync, and by Kafka's default one is enough.
		set(minInsync, "2")
	}
	if s.Compacted {
		set("cleanup.policy", "compact")
		// The segment being written is never compacted: with the broker's defaults (1 GiB, a week) a small stream would
		// be only after a week.
		if s.Rewritten {
			set("segment.bytes", strconv.Itoa(rewrittenSegmentBytes))
			set("segment.ms", strconv.FormatInt(rewrittenSegmentTime.Milliseconds(), 10))
		} else {
			set("segment.ms", strconv.FormatInt(keptSegmentTime.Milliseconds(), 10))
		}
		if s.Retention == 0 {
			set("retention.ms", "-1") // the embedded broker would delete what is a week old, compacted or not
		}
	}
	if s.Retention != 0 {
		set("retention.ms", strconv.FormatInt(max(s.Retention.Milliseconds(), -1), 10))
	}
	if s.RetentionBytes != 0 {
		set("retention.bytes", strconv.FormatInt(max(s.RetentionBytes, -1), 10))
	}
	return out
}

// Info describes a stream. An error that Is [ErrNoStream] says that it does not exist.
func (c *Client) Info(ctx context.Context, stream string) (Info, error) {
	infos, err := c.infos(ctx, []string{stream})
	return infos[stream], err
}

// infos describes streams, all of which are to exist.
func (c *Client) infos(ctx context.Context, names []string) (map[string]Info, error) {
	infos, err := c.describe(ctx, names, nil)
	if err != nil {
		return infos, err
	}
	for _, name := range names {
		if _, found := infos[name]; !found {
			return infos, fmt.Errorf("describe streams: %w", noStream(name))
		}
	}
	return infos, nil
}

// describe asks about streams by one request and gives those that exist. A stream that was just made is not known to every broker
// at once: one of awaited is said to be missing when it has been for a while. One of others is when the broker that says so
// knows all of awaited, and so does not lag behind what is known to exist.
func (c *Client) describe(ctx context.Context, awaited, others []string) (infos map[string]Info, err error) {
	names := slices.Concat(awaited, others)
	begun := time.Now()
	err = c.retry(ctx, "describe streams", func(ctx context.Context) error {
		infos = make(map[string]Info, len(names))
		known, err := c.metadata(ctx, names)
		if err != nil {
			return err
		}
		for i, name := range names {
			t, told := known[name]
			switch {
			case !told:
				return fmt.Errorf("stream %s: the broker left it out of its answer", name)
			case t.code == kafka.UnknownTopicOrPartition && (i >= len(awaited) || time.Since(begun) > missingMax):
			case t.code != 0:
				return fmt.Errorf("stream %s: %w", name, t.code)
			default:
				infos[name] = Info{ID: t.id, Partitions: t.partitions}
			}
		}
		return nil
	})
	return infos, err
}

func noStream(stream string) error {
	return final{fmt.Errorf("%w: %s: create it (Ensure does), or correct its name", ErrNoStream, stream)}
}

// Bounds gives the first offset that a partition keeps, and the next that will be written.
func (c *Client) Bounds(ctx context.Context, stream string, partition int32) (first, next int64, err error) {
	at := place{stream, partition}
	lo, err := c.offsets(ctx, timeEarliest, []place{at})
	if err != nil {
		return 0, 0, err
	}
	hi, err := c.offsets(ctx, timeLatest, []place{at})
	if err != nil {
		return 0, 0, err
	}
	return lo[at], hi[at], nil
}

// Extent is a stream and what it holds.
type Extent struct {
	Info
	First []int64 // by partition: the first offset that is kept
	Next  []int64 // and the next that will be written
}

// Extents describes those of some streams that exist, by a few requests for all of them. Written are streams that somebody is known to
// have written, or to have committed offsets of: one that a broker does not know is waited for, as [Client.Info] does, before it
// is taken for missing. The others are taken for missing at once by a broker that knows all of those.
func (c *Client) Extents(ctx context.Context, written, others []string) (map[string]Extent, error) {
	infos, err := c.describe(ctx, written, others)
	if err != nil {
		return nil, err
	}
	var places []place
	for stream, info := range infos {
		for p := range info.Partitions {
			places = append(places, place{stream, int32(p)})
		}
	}
	first, err := c.offsets(ctx, timeEarliest, places)
	if err != nil {
		return nil, err
	}
	next, err := c.offsets(ctx, timeLatest, places)
	if err != nil {
		return nil, err
	}
	all := make(map[string]Extent, len(infos))
	for stream, info := range infos {
		e := Extent{Info: info, First: make([]int64, info.Partitions), Next: make([]int64, info.Partitions)}
		for p := range e.Next {
			at := place{stream, int32(p)}
			e.First[p], e.Next[p] = first[at], next[at]
		}
		all[stream] = e
	}
	return all, nil
}

// Ends gives, for each stream and partition, the next offset that will be written.
func (c *Client) Ends(ctx context.Context, streams []string) (map[string][]int64, error) {
	out := make(map[string][]int64, len(streams))
	var places []place
	infos, err := c.infos(ctx, streams)
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		out[s] = make([]int64, infos[s].Partitions)
		for p := range infos[s].Partitions {
			places = append(places, place{s, int32(p)})
		}
	}
	ends, err := c.offsets(ctx, timeLatest, places)
	if err != nil {
		return nil, err
	}
	for at, next := range ends {
		out[at.stream][at.partition] = next
	}
	return out, nil
}

// OffsetsAt gives, for each partition of a stream, the offset of the first message that was written at a time or later; where there
// is none, the next that will be written.
func (c *Client) OffsetsAt(ctx context.Context, stream string, at time.Time) ([]int64, error) {
	ends, err := c.Ends(ctx, []string{stream})
	if err != nil {
		return nil, err
	}
	out := ends[stream]
	var places []place
	for p := range out {
		places = append(places, place{stream, int32(p)})
	}
	found, err := c.offsets(ctx, max(0, at.UnixMilli()), places)
	if err != nil {
		return nil, err
	}
	for at, offset := range found {
		if offset >= 0 { // -1: nothing is as young
			out[at.partition] = offset
		}
	}
	return out, nil
}

// retryMax is how long a question about streams or groups is asked again before its error is handed on.
const retryMax = 15 * time.Second

// retry calls f until it succeeds, its error does not mend by trying again, or retryMax has passed.
func (c *Client) retry(ctx context.Context, op string, f func(context.Context) error) error {
	wait := newBackOff()
	deadline := time.Now().Add(retryMax)
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if !mends(ctx, err) || time.Now().After(deadline) {
			if code, ok := asCode(err); ok && code == kafka.UnknownTopicOrPartition {
				err = fmt.Errorf("%w: %w", ErrNoStream, err)
			}
			return fmt.Errorf("%s: %w", op, hinted(err))
		}
		c.count.retries.Add(1)
		c.refresh(err)
		if err := pause(ctx, wait.NextBackOff()); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = 5*time.Millisecond, time.Second, 2
	b.Reset()
	return b
}

// pause waits for d or the end of ctx, whose error it returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

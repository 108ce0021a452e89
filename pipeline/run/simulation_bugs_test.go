package run

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"hearthline/flow"
	"hearthline/streams"
)

// bug is what is wrong with a world, or with what the product leaves in it. The zero bug is none.
type bug struct {
	first    uint64                                                 // schedule to begin with, of a bug that is seldom seen: saves time
	read     func(*simulation, *streams.Message)                    // changes what a reader gets
	publish  func(s *simulation, r *request, to at, b []flow.Batch) // instead of appending
	rewrite  func(*checkpoint)                                      // of every checkpoint kept, wherever it is kept
	put      func(s *simulation, name string)                       // before an object is kept
	skip     func([]streams.Commit) bool                            // commits that are said to be kept and are not
	unfenced bool                                                   // members of old generations may commit
	echo     bool                                                   // a commit may arrive once more, later
}

// kept is what a store keeps of an object.
func (b bug) kept(s *simulation, name string, object []byte) []byte {
	if b.put != nil {
		b.put(s, name)
	}
	if c, err := decodeCheckpoint(object); err == nil && b.rewrite != nil {
		b.rewrite(c)
		pieces, _ := c.encode()
		object = bytes.Join(pieces, nil)
	}
	return object
}

// metadata is what Kafka keeps of a commit's.
func (b bug) metadata(m string) string {
	if c, err := decodeHeader([]byte(m)); err == nil && b.rewrite != nil && !strings.HasPrefix(m, blobPrefix) {
		b.rewrite(c)
		changed, _ := json.Marshal(c)
		return string(changed)
	}
	return m
}

// The simulation can fail: whatever is broken of what the protocol rests on, it finds within a few schedules.
func TestSimulationFindsPlantedBugs(t *testing.T) {
	const seedsMax = 2000
	arrivals := flow.Micros(0)
	states := map[string]map[string][]byte{}
	for _, b := range []struct {
		name string
		bug  bug
	}{
		{"readers do not drop what they have taken", bug{read: func(_ *simulation, m *streams.Message) {
			m.Batch.Lineage.Position = flow.Position{Offset: m.Offset}
		}}},
		{"a publish is acknowledged, and a checkpoint behind it saved, before it is durable", bug{publish: func(s *simulation, r *request, _ at, _ []flow.Batch) {
			s.giveUp(r)
			r.drop() // once for the effect, which holds too
		}}},
		{"two requests of a producer for a partition are on their way at once", bug{publish: func(s *simulation, _ *request, to at, b []flow.Batch) {
			slices.Reverse(b)
			s.append(to, b...)
		}}},
		{"a sink commits no intent", bug{skip: func(c []streams.Commit) bool {
			h, err := decodeHeader([]byte(c[0].Metadata))
			return err == nil && h.Intent != nil
		}}},
		{"a range is cut shorter when it is written again", bug{rewrite: func(c *checkpoint) {
			if c.Intent != nil && c.Intent.Last > c.Intent.First {
				c.Intent.Last--
			}
		}}},
		{"commits of those who were replaced are not refused", bug{unfenced: true}},
		{"a commit arrives a second time, behind the next one", bug{echo: true}},
		{"the checkpoint before is deleted before the new one is committed", bug{put: func(s *simulation, name string) {
			for other := range s.blobs {
				if blobPlace(other) == blobPlace(name) {
					delete(s.blobs, other)
				}
			}
		}}},
		{"a checkpoint holds the state of the one before", bug{rewrite: func(c *checkpoint) {
			if len(c.state) == 0 {
				return
			}
			key := c.Inputs[0].Stream
			before := states[key]
			states[key] = c.state
			if before != nil {
				c.state = before
			}
		}}},
		{"marks are lost at a restart", bug{rewrite: func(c *checkpoint) {
			for i := range c.Inputs {
				c.Inputs[i].Marks = nil
			}
		}}},
		{"the watermark is lost at a restart", bug{rewrite: func(c *checkpoint) {
			c.Watermark = 0
			for i := range c.Inputs {
				c.Inputs[i].Watermark = 0
			}
		}}},
		{"what has been told is lost at a restart", bug{first: 260, rewrite: func(c *checkpoint) { c.Told = nil }}},
		{"the tasks that write a stream with a key are taken for one", bug{read: func(_ *simulation, m *streams.Message) {
			if m.Stream == "shares" {
				m.Batch.Lineage.Partition = 0
			}
		}}},
		{"inputs are merged as they arrive", bug{read: func(_ *simulation, m *streams.Message) {
			arrivals += 1000
			m.Batch.Watermark = arrivals
		}}},
	} {
		t.Run(b.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := newCampaign()
				defer c.forget()
				for n := range uint64(seedsMax) {
					if _, err := c.run((b.bug.first+n)*37, b.bug, false); err != nil {
						t.Logf("found by schedule %d: %.300v", n+1, err)
						return
					}
				}
				t.Errorf("%d schedules did not find it", seedsMax)
			})
		})
	}
}

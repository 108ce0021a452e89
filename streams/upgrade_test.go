package streams_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"

	"hearthline/streams"
	"hearthline/streams/streamstest"
)

// TestOldAndNewMembersShareAGroup is a rolling upgrade: members that know eager rebalancing only, and those that know both.
// Each partition's commits count up all the time; what one commits whom the partition has left would set them back.
func TestOldAndNewMembersShareAGroup(t *testing.T) {
	t.Parallel() // most of it is waiting
	oldAndNew(t, streamstest.Cluster{Brokers: []string{start(t, nil)}})
}

func oldAndNew(t *testing.T, cl streamstest.Cluster) {
	const partitions = 4
	c := cl.Dial(t)
	stream := streamstest.Stream(t, c, partitions)
	group := streams.GroupConfig{ID: "g", Streams: []string{stream}}
	var mu sync.Mutex
	at, by := map[int32]int64{}, map[int32]string{}
	work := pool.New().WithErrors()
	join := func(who string, group streams.GroupConfig) context.CancelFunc {
		ctx, leave := context.WithCancel(streamstest.Context(t))
		member := cl.Dial(t)
		work.Go(func() error {
			return member.Join(ctx, group, func(live context.Context, a *streams.Assignment) error {
				for n := a.Committed()[stream].Offset + 1; live.Err() == nil; n++ {
					err := a.Commit(live, []streams.Commit{{Stream: stream, Partition: a.Partition(), Offset: n}})
					if err != nil {
						return err
					}
					mu.Lock()
					if n <= at[a.Partition()] {
						t.Errorf("partition %d: %s commits %d after %s has committed %d", a.Partition(), who, n, by[a.Partition()], at[a.Partition()])
					}
					at[a.Partition()], by[a.Partition()] = n, who
					mu.Unlock()
				}
				return nil
			})
		})
		return leave
	}
	until := func(members int) {
		t.Helper()
		for ctx := streamstest.Context(t); ; time.Sleep(20 * time.Millisecond) {
			mu.Lock()
			each := map[string]int{}
			for _, who := range by {
				each[who]++
			}
			done := len(by) == partitions && len(each) == members
			clear(by) // who commits from now on
			mu.Unlock()
			if done {
				return
			}
			time.Sleep(100 * time.Millisecond)
			if ctx.Err() != nil {
				t.Fatalf("%v; want %d members that share %d partitions", each, members, partitions)
			}
		}
	}
	leaveOld := join("old", group.Eager())
	until(1)
	leaveNew := join("new", group)
	until(2)
	leaveThird := join("third, new", group)
	until(3)
	leaveOld()
	until(2)
	leaveOld = join("old again", group.Eager()) // rolled back
	until(3)
	leaveNew()
	leaveThird()
	until(1)
	leaveOld()
	if err := work.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

package embedded_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"hearthline/blobs/disktest"
	"hearthline/streams/streamstest"
)

// TestFullDisk fills the disk under a broker again and again, and kills it. The last commit that it said yes to is there when
// it is started again.
func TestFullDisk(t *testing.T) {
	disk := disktest.NewMemory(t, t.TempDir(), 64)
	dir := filepath.Join(disk.Dir, "kafka")
	kill, addr := child(t, dir, "127.0.0.1:0")
	stream := streamstest.Stream(t, streamstest.Cluster{Brokers: []string{addr}}.Dial(t), 1)
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RequestRetries(0), byName)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	enough := disk.FillAgain(200*time.Millisecond, 200*time.Millisecond)
	committed, refused := int64(0), 0
	for begun, offset := time.Now(), int64(1); time.Since(begun) < 6*time.Second; offset++ {
		if commit(t, cl, stream, offset) {
			committed = offset
		} else {
			refused++
			time.Sleep(5 * time.Millisecond)
		}
	}
	enough()
	for offset := committed + 1; offset <= committed+20; offset++ { // the disk has room again
		if commit(t, cl, stream, offset) && offset == committed+20 {
			committed = offset
			break
		}
	}
	kill()
	_, addr = child(t, dir, addr)
	again, err := kgo.NewClient(kgo.SeedBrokers(addr), byName)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := fetch(t, again, stream); got < committed {
		t.Errorf("the last commit is %d; %d was said to be taken", got, committed)
	}
	if refused == 0 {
		t.Error("nothing was refused: the disk was never full")
	}
	t.Logf("%d commits, %d refused", committed, refused)
}

// byName has requests name their topics; newer ones know them by their ids.
var byName = kgo.MaxVersions(kversion.V3_0_0())

// commit says whether the broker took a commit.
func commit(t *testing.T, cl *kgo.Client, stream string, offset int64) bool {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = "g", -1
	metadata := fmt.Sprint(offset, strings.Repeat(" a checkpoint's name", 100))
	part := kmsg.NewOffsetCommitRequestTopicPartition()
	part.Offset, part.Metadata = offset, &metadata
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic, topic.Partitions = stream, append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(streamstest.Context(t), cl)
	return err == nil && res.Topics[0].Partitions[0].ErrorCode == 0
}

func fetch(t *testing.T, cl *kgo.Client, stream string) int64 {
	t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = "g"
	topic := kmsg.NewOffsetFetchRequestTopic()
	topic.Topic, topic.Partitions = stream, []int32{0}
	req.Topics = append(req.Topics, topic)
	group := kmsg.NewOffsetFetchRequestGroup()
	gt := kmsg.NewOffsetFetchRequestGroupTopic()
	gt.Topic, gt.Partitions = stream, []int32{0}
	group.Group, group.Topics = "g", append(group.Topics, gt)
	req.Groups = append(req.Groups, group)
	res, err := req.RequestWith(streamstest.Context(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Groups) > 0 && len(res.Groups[0].Topics) > 0 {
		return res.Groups[0].Topics[0].Partitions[0].Offset
	}
	if len(res.Topics) > 0 {
		return res.Topics[0].Partitions[0].Offset
	}
	return -1
}

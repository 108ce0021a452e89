package embedded

import (
	"errors"
	"slices"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// keepFree is how many bytes of a disk the broker leaves alone: a sixteenth of it, at most 64 MiB. kfake must not find the disk
// full: it says yes to a commit that it could not write, and what it appends to groups.log behind one that was written in
// part is thrown away when the log is read again.
func keepFree(size uint64) uint64 { return min(size/16, 64<<20) }

// writing are the requests that make kfake write, beside Produce and OffsetCommit.
var writing = []kmsg.Key{
	kmsg.JoinGroup, kmsg.LeaveGroup, kmsg.SyncGroup, kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.DeleteRecords, kmsg.InitProducerID,
	kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.TxnOffsetCommit, kmsg.CreatePartitions, kmsg.DeleteGroups, kmsg.OffsetDelete,
}

var errFull = errors.New("the disk has too little room")

// Error codes that clients take for passing.
const (
	coordinatorNotAvailable = 15
	kafkaStorageError       = 56
)

// refuseWhenFull refuses what would write while the disk has too little room. It is asked right before each such request.
func refuseWhenFull(c *kfake.Cluster, dir string) {
	c.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
		key := kmsg.Key(req.Key())
		if key != kmsg.Produce && key != kmsg.OffsetCommit && !slices.Contains(writing, key) {
			return nil, nil, false
		}
		if free, size, err := diskSpace(dir); err != nil || free >= keepFree(size) {
			return nil, nil, false // where it cannot be asked, kfake tries
		}
		c.KeepControl()
		switch r := req.(type) {
		case *kmsg.ProduceRequest:
			return refusedProduce(r), nil, true
		case *kmsg.OffsetCommitRequest:
			return refusedCommit(r), nil, true
		}
		return nil, errFull, true // closes the connection
	})
}

func refusedProduce(req *kmsg.ProduceRequest) kmsg.Response {
	res := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		out := kmsg.NewProduceResponseTopic()
		out.Topic, out.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			part := kmsg.NewProduceResponseTopicPartition()
			part.Partition, part.ErrorCode = p.Partition, kafkaStorageError
			out.Partitions = append(out.Partitions, part)
		}
		res.Topics = append(res.Topics, out)
	}
	return res
}

func refusedCommit(req *kmsg.OffsetCommitRequest) kmsg.Response {
	res := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, t := range req.Topics {
		out := kmsg.NewOffsetCommitResponseTopic()
		out.Topic, out.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			part := kmsg.NewOffsetCommitResponseTopicPartition()
			part.Partition, part.ErrorCode = p.Partition, coordinatorNotAvailable
			out.Partitions = append(out.Partitions, part)
		}
		res.Topics = append(res.Topics, out)
	}
	return res
}

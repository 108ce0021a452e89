package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"
)

var (
	// ErrNoStream is a stream that does not exist.
	ErrNoStream = errors.New("no such stream")
	// ErrTooLarge is a batch that the broker will never take in one message. The caller publishes it in parts.
	ErrTooLarge = errors.New("batch is too large for one message")
	// ErrOutOfRange is an offset that is not kept any more, or not written yet. See [OutOfRangeError].
	ErrOutOfRange = errors.New("offset is out of range")
	// ErrFenced is a commit of a generation that is over: another member may own the partition by now.
	// It may have been recorded all the same, if an attempt at it had no answer.
	ErrFenced = errors.New("fenced: the group has gone on to a newer generation")
	// ErrNewer is a batch that a newer version of this program wrote. Reading stops there: set aside, every one of them
	// would be a dead letter.
	ErrNewer = errors.New("a newer version of hearthline wrote this; run that version here, too")
	// ErrClosed is a reader used after Close.
	ErrClosed = errors.New("reader is closed")
)

// OutOfRangeError says what is kept of a partition that was read at an offset outside of it.
type OutOfRangeError struct {
	Stream      string
	Partition   int32
	Offset      int64 // asked for
	First, Next int64 // first offset kept; next offset to be written
}

func (e *OutOfRangeError) Error() string {
	hint := "what was there has been deleted by retention"
	if e.Offset > e.Next {
		hint = "the stream was truncated or made anew"
	}
	return fmt.Sprintf("read %s/%d at offset %d: %v: it keeps %d up to, but not including, %d: %s",
		e.Stream, e.Partition, e.Offset, ErrOutOfRange, e.First, e.Next, hint)
}

// Is makes errors.Is(e, ErrOutOfRange) true.
func (e *OutOfRangeError) Is(target error) bool { return target == ErrOutOfRange }

// DecodeError is a message that is no batch of ours, or a damaged one. Reading goes on after it.
type DecodeError struct {
	Stream    string
	Partition int32
	Offset    int64
	Err       error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode message %s/%d at offset %d: %v", e.Stream, e.Partition, e.Offset, e.Err)
}

func (e *DecodeError) Unwrap() error { return e.Err }

// passing says whether a broker's error code goes away by itself: sending the same request again is right.
func passing(code kafka.Error) bool {
	switch code {
	case kafka.LeaderNotAvailable, kafka.NotLeaderForPartition, kafka.RequestTimedOut, kafka.BrokerNotAvailable,
		kafka.ReplicaNotAvailable, kafka.NetworkException, kafka.GroupLoadInProgress, kafka.GroupCoordinatorNotAvailable,
		kafka.NotCoordinatorForGroup, kafka.NotEnoughReplicas, kafka.NotEnoughReplicasAfterAppend, kafka.NotController,
		kafka.KafkaStorageError, kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.OffsetNotAvailable,
		kafka.UnknownTopicOrPartition, kafka.ConcurrentTransactions, kafka.InvalidMessage, kafka.ThrottlingQuotaExceeded,
		kafka.InvalidTimestamp:
		return true
	}
	return false
}

// asCode gives the broker's error code that err carries, if it does. kafka-go wraps what happens to a connection in
// its own types; only codes that a broker answered count.
func asCode(err error) (kafka.Error, bool) {
	var code kafka.Error
	if errors.As(err, &code) && code != 0 {
		return code, true
	}
	return 0, false
}

// final is an error that trying again does not mend, though no broker's code says so.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Permanent says whether trying again will not mend err: a stream with another number of partitions, say, or a right
// that this client's user lacks.
func Permanent(err error) bool {
	var f final
	code, _ := asCode(err)
	return errors.As(err, &f) || denied(code)
}

// denied says whether a code is about who this client is and what it may do.
func denied(code kafka.Error) bool {
	switch code {
	case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.TransactionalIDAuthorizationFailed, kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism,
		kafka.IllegalSASLState, kafka.SecurityDisabled, kafka.PolicyViolation:
		return true
	}
	return false
}

// mends says whether trying again may help after err: the connection was lost, or the broker said so.
func mends(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	if code, ok := asCode(err); ok {
		return passing(code)
	}
	var last final
	return !errors.As(err, &last)
}

// stale says whether err hints that connections are dead, or that others lead by now.
func stale(err error) bool {
	code, ok := asCode(err)
	if !ok {
		return true
	}
	switch code {
	case kafka.LeaderNotAvailable, kafka.NotLeaderForPartition, kafka.BrokerNotAvailable, kafka.ReplicaNotAvailable,
		kafka.UnknownTopicOrPartition, kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.KafkaStorageError,
		kafka.NotController, kafka.NotCoordinatorForGroup, kafka.GroupCoordinatorNotAvailable:
		return true
	}
	return false
}

// hinted adds to an error what to do about it, where that is known. What gives an error up calls it.
func hinted(err error) error {
	code, _ := asCode(err)
	if hint := remedy(code); hint != "" && !strings.Contains(err.Error(), hint) {
		return fmt.Errorf("%w: %s", err, hint)
	}
	return err
}

// remedy says what to do about a code, "" when that is not known. docs/operations.md lists the rights.
func remedy(code kafka.Error) string {
	switch code {
	case kafka.TopicAuthorizationFailed:
		return "this client's user lacks a right on the topic: Describe and Read to read it, Describe and Write to write it, Create to make it (kafka-acls)"
	case kafka.GroupAuthorizationFailed:
		return "this client's user lacks the right Read on the consumer group (kafka-acls)"
	case kafka.ClusterAuthorizationFailed:
		return "this client's user lacks a right on the cluster, or Write on any topic (kafka-acls)"
	case kafka.SASLAuthenticationFailed:
		return "check user, password and mechanism of kafka.sasl"
	case kafka.PolicyViolation:
		return "the broker's policy forbids it; create the stream by hand"
	case kafka.InvalidTimestamp:
		return "this machine's clock and the broker's are further apart than message.timestamp.after.max.ms of the topic allows (an hour by default): set the one that is wrong"
	}
	return ""
}

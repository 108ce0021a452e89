package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// stateVersion is the layout below; it is the first byte. It is not [Version]: the arithmetic may change and the layout stay.
const stateVersion = 1

// ErrState marks bytes that are no state of a scorer.
var ErrState = errors.New("not the state of an anomaly scorer")

// AppendBinary appends the state to b: 300 to 1,000 bytes, the same state always the same. The error is always nil.
func (s *Scorer) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, stateVersion)
	b = binary.AppendUvarint(b, uint64(s.n))
	for _, f := range s.floats() {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(*f))
	}
	for i, seen := range s.seasonSeen {
		b = append(b, seen)
		if seen > 0 {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(s.season[i]))
		}
	}
	for i := range s.ranks {
		b = s.ranks[i].append(b)
	}
	return b, nil
}

// UnmarshalBinary replaces the state by what AppendBinary wrote. On an error, which is an [ErrState], it is unchanged.
func (s *Scorer) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0] != stateVersion {
		return fmt.Errorf("%w: it begins with %.1x; layout %d is the one known", ErrState, b, stateVersion)
	}
	d := decoder{b: b[1:]}
	var to Scorer
	n := d.uint(math.MaxUint32)
	to.n = uint32(n)
	for _, f := range to.floats() {
		*f = math.Float64frombits(binary.LittleEndian.Uint64(d.take(8)))
		if math.IsNaN(*f) || math.IsInf(*f, 0) {
			d.bad = true
		}
	}
	for i := range to.seasonSeen {
		if to.seasonSeen[i] = d.take(1)[0]; to.seasonSeen[i] > 0 {
			to.season[i] = math.Float32frombits(binary.LittleEndian.Uint32(d.take(4)))
		}
	}
	for i := range to.ranks {
		to.ranks[i].decode(&d)
	}
	if d.bad || len(d.b) > 0 {
		return fmt.Errorf("%w: it is cut short or damaged", ErrState)
	}
	*s = to
	return nil
}

// floats lists the float64 fields in the order of the layout.
func (s *Scorer) floats() []*float64 {
	return []*float64{
		&s.long.mean, &s.long.variance, &s.level.mean, &s.level.variance, &s.fastLevel.mean, &s.fastLevel.variance,
		&s.spikeMean, &s.spikeScale, &s.low, &s.high, &s.seasonScale, &s.seasonLevel, &s.peak, &s.leak,
	}
}

// append writes largest, and the buckets that are not zero as (how many zeros before it, count).
func (k *ranker) append(b []byte) []byte {
	b = append(b, byte(k.largest))
	used := 0
	for _, n := range k.count {
		if n > 0 {
			used++
		}
	}
	b = append(b, byte(used))
	zeros := 0
	for _, n := range k.count {
		if n == 0 {
			zeros++
			continue
		}
		b = append(b, byte(zeros))
		b = binary.AppendUvarint(b, uint64(n))
		zeros = 0
	}
	return b
}

func (k *ranker) decode(d *decoder) {
	k.largest = int16(d.take(1)[0])
	used, at := int(d.take(1)[0]), -1
	if k.largest >= buckets || used > buckets {
		d.bad = true
		return
	}
	for range used {
		at += int(d.take(1)[0]) + 1
		n := d.uint(math.MaxUint16)
		if at >= buckets || d.bad {
			d.bad = true
			return
		}
		k.count[at] = uint16(n)
		k.block[at/perBlock] += uint32(n)
		k.total += uint32(n)
	}
	if k.total >= rankTotal {
		d.bad = true
	}
}

// decoder cuts pieces off b. Once too little is left, it is bad and gives zeros.
type decoder struct {
	b   []byte
	bad bool
}

var zeros [8]byte

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.bad, d.b = true, nil
		return zeros[:n]
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) uint(most uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > most {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

package peers

import (
	"context"
	"time"
)

// Sure says whether this gateway knows which sessions are its own: it sees its own signs of life in the log, and if it did not for so long that the
// others may have taken it for gone, it has read since what they made of that. It is not sure while the log is away, and when it goes on after it
// has stood still.
func (p *Peers) Sure() bool { return !p.unsure.Load() && !p.silent() }

// silent says whether this gateway has not seen a sign of its own life for longer than others wait for one.
func (p *Peers) silent() bool {
	at := p.beaten.Load()
	return at != 0 && time.Since(time.Unix(0, at)) > time.Duration(p.MissedMax-1)*p.Heartbeat
}

// beatBack notes that a sign of life of this gateway has come back out of the log.
func (p *Peers) beatBack() {
	if p.silent() {
		p.doubt()
	}
	p.beaten.Store(time.Now().UnixNano())
}

// doubt has it find out which sessions are its own.
func (p *Peers) doubt() {
	p.unsure.Store(true)
	signal(p.doubts)
}

// makeSure reads what was written while this gateway stood still, and then claims again what is its own yet: not before, or it would take
// away what others have claimed meanwhile.
func (p *Peers) makeSure(ctx context.Context) error {
	for {
		select {
		case <-p.doubts:
		case <-ctx.Done():
			return nil
		}
		read, cancel := context.WithTimeout(ctx, p.CallTimeout)
		err := p.Tables.Sessions.Sync(read)
		cancel()
		if err != nil {
			time.AfterFunc(offerWait, func() { signal(p.doubts) })
			continue
		}
		if p.taken.Swap(false) {
			p.claimAgain()
		}
		p.unsure.Store(false)
	}
}

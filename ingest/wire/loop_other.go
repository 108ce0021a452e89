//go:build !linux

package wire

import "errors"

// Best is the loop to take where nothing else is said.
const Best = Goroutines

// NewLoop gives the loop of this name: Goroutines, outside Linux.
func NewLoop(name string, s Settings) (Loop, error) {
	if name != Goroutines {
		return nil, errors.New("loop: epoll is of Linux; set it to goroutines")
	}
	return &GoroutineLoop{Settings: s}, nil
}

package wire

// Best is the loop to take where nothing else is said.
const Best = Epoll

// NewLoop gives the loop of this name, Epoll or Goroutines.
func NewLoop(name string, s Settings) (Loop, error) {
	if name == Goroutines {
		return &GoroutineLoop{Settings: s}, nil
	}
	return newEpollLoop(s)
}

package flow

import (
	"errors"
	"fmt"
	"time"
)

// Workers is `workers:` of a stage that runs in processes of its own, such as one in Python. What is 0 is the default.
type Workers struct {
	// Processes is how many of them work at once in a role, for all of its partitions; 0 is one a core.
	Processes int `yaml:"processes"`
	// Timeout is how long a process may take for a batch before it is killed and replaced; 0 is a minute.
	Timeout time.Duration `yaml:"timeout"`
	// Attempts is how many processes may die of a batch before it goes to the dead letters; 0 is 3.
	Attempts int `yaml:"attempts"`
	// MemoryBytesMax is the most memory that a process may use before it is killed and replaced; 0 is half of the machine's, or of its
	// container's. Linux alone.
	MemoryBytesMax int64 `yaml:"memory_bytes_max"`
}

// InWorkers is a stage that runs in processes of its own.
type InWorkers interface {
	Stage
	// UseWorkers says how they are run. It is called before Open.
	UseWorkers(Workers)
}

// Validate checks the settings, where 0 is a default.
func (w *Workers) Validate() error {
	const processesMost, attemptsMost, memoryLeast, timeMost = 1024, 100, 64 << 20, 24 * time.Hour
	var errs []error
	if w.Processes < 0 || w.Processes > processesMost {
		errs = append(errs, fmt.Errorf("processes is %d; want 1 to %d, or 0 for one a core", w.Processes, processesMost))
	}
	if w.Timeout != 0 && (w.Timeout < 100*time.Millisecond || w.Timeout > timeMost) {
		errs = append(errs, fmt.Errorf("timeout is %v; want 100ms to %v", w.Timeout, timeMost))
	}
	if w.Attempts < 0 || w.Attempts > attemptsMost {
		errs = append(errs, fmt.Errorf("attempts is %d; want 1 to %d, or 0 for 3", w.Attempts, attemptsMost))
	}
	if w.MemoryBytesMax != 0 && w.MemoryBytesMax < memoryLeast {
		errs = append(errs, fmt.Errorf("memory_bytes_max is %d; a process needs 64MiB at least", w.MemoryBytesMax))
	}
	return errors.Join(errs...)
}

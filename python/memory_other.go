//go:build !linux

package python

// canMeasure says whether memoryOf knows.
const canMeasure = false

func memoryOf(int) int64 { return 0 }

func machineMemory() int64 { return 0 }

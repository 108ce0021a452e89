//go:build !linux && !darwin && !freebsd

package embedded

import "errors"

// diskSpace is not asked here.
func diskSpace(string) (free, size uint64, err error) { return 0, 0, errors.ErrUnsupported }

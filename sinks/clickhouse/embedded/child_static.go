//go:build static

package embedded

import (
	"context"
	"errors"
)

// runLibrary cannot load anything in a binary that is tied to no libc, as those of container images are.
func runLibrary(context.Context, string, string) error {
	return errors.New("this build is static and cannot run ClickHouse itself; set the address of a ClickHouse server")
}

// Package cachedir says where this machine keeps what was fetched for Hearthline: engines, jars, Python environments.
package cachedir

import (
	"fmt"
	"os"
	"path/filepath"
)

// Find gives $HEARTHLINE_CACHE, else hearthline in the user's cache directory.
func Find() (string, error) {
	if dir := os.Getenv("HEARTHLINE_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: %w; set HEARTHLINE_CACHE", err)
	}
	return filepath.Join(dir, "hearthline"), nil
}

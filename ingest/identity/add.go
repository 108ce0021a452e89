package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.yaml.in/yaml/v3"

	"hearthline/flow/secret"
)

// Add puts an entry at the end of a credentials file, which is made when it is not there. What stands in it stays as it is, comments too; the
// file is replaced at once, and only where the whole of it is good.
func Add(file string, c Credential) error {
	data, err := os.ReadFile(file) // #nosec G304 -- the operator names the file
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("credentials: %w", err)
	}
	if err == nil {
		if err := secret.Private(file); err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	var entry []byte
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		entry, err = json.Marshal(c)
		entry = append(entry, '\n')
	} else {
		entry, err = yaml.Marshal([]Credential{c})
	}
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	data = append(data, entry...)
	if _, err := ReadCredentials(bytes.NewReader(data)); err != nil {
		return fmt.Errorf("%s with the new entry: %w", file, err)
	}
	return WriteFile(file, data, 0o600)
}

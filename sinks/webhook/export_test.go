package webhook

import "time"

// Sign signs as the sink does, for a test against the specification's example.
func Sign(secret, id string, at time.Time, body []byte) string {
	keys, err := decodeSecrets([]string{secret})
	if err != nil {
		return err.Error()
	}
	return sign(keys, id, at, body)
}

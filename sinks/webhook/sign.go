package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hearthline/flow"
)

// messageID is the webhook-id of the request whose first row is row first of the range. It is a digest, since an id must
// have no dot in it and a stream's name may.
func messageID(r flow.Range, first int64) string {
	sum := sha256.Sum256([]byte(r.String() + "/" + strconv.FormatInt(first, 10)))
	return "msg_" + hex.EncodeToString(sum[:16])
}

// sign gives the webhook-signature: for each key, "v1," and the base64 of the HMAC-SHA256 of id, time in seconds and
// body, joined by dots (Standard Webhooks, "Signature scheme").
func sign(keys [][]byte, id string, at time.Time, body []byte) string {
	signatures := make([]string, len(keys))
	for i, key := range keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
		mac.Write(body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " ")
}

// Sizes of a secret, bytes, after the specification.
const (
	secretMin = 24
	secretMax = 64
)

// decodeSecrets never puts a secret into its error.
func decodeSecrets(secrets []string) ([][]byte, error) {
	var keys [][]byte
	for i, s := range secrets {
		rest, ok := strings.CutPrefix(s, "whsec_")
		if !ok {
			return nil, fmt.Errorf("setting secrets: number %d does not begin with whsec_", i+1)
		}
		key, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return nil, fmt.Errorf("setting secrets: number %d is not base64 after whsec_", i+1)
		}
		if len(key) < secretMin || len(key) > secretMax {
			return nil, fmt.Errorf("setting secrets: number %d has %d bytes; want %d to %d (openssl rand -base64 32 makes one)", i+1, len(key), secretMin, secretMax)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

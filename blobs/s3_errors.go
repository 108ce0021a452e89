package blobs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"
)

// codeOf is the code of an S3 server's answer, "" for other errors.
func codeOf(err error) string {
	if err == nil {
		return ""
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

// fail wraps an error with what was done, and says what to do about it where that is known.
func (b *Bucket) fail(op, name string, err error) error {
	switch codeOf(err) {
	case minio.NoSuchKey:
		if !errors.Is(err, ErrChanged) {
			err = notExist("open", name)
		}
	}
	if name != "" {
		name = fmt.Sprintf(" %q", name)
	}
	return fmt.Errorf("%s%s in %s: %w%s", op, name, b.where, err, b.hint(err))
}

// hint says what to do about an error of the server or of the way to it; "" where we do not know.
func (b *Bucket) hint(err error) string {
	switch codeOf(err) {
	case minio.NoSuchBucket:
		return fmt.Sprintf(" (the server has no bucket %s: make it, or correct the address)", b.bucket)
	case minio.AccessDenied, "AllAccessDisabled":
		return " (the keys may not do that, or there are none: s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload and ListBucket are needed)"
	case "InvalidAccessKeyId", "InvalidAccessKeyID", "XAdminUserNotFound", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken":
		return " (the server does not take these keys: see access_key_env, secret_key_env and their files)"
	case "RequestTimeTooSkewed":
		return " (this machine's clock is wrong)"
	case "AuthorizationHeaderMalformed", "InvalidRegion", "PermanentRedirect":
		return " (set region to the bucket's)"
	case "SlowDown", "SlowDownWrite", "SlowDownRead", "ServiceUnavailable", "TooManyRequests":
		return " (the server asks for fewer requests)"
	case "InsufficientCapacity", "XMinioStorageFull", "EntityTooLarge", "QuotaExceeded":
		return " (the server has no room for it)"
	}
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return " (set ca to the file of the server's certificate authority)"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return " (the server speaks no TLS: write http:// in endpoint)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return " (nobody listens there: see endpoint)"
	}
	return ""
}

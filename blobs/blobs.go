// Package blobs keeps objects: bytes under a name, put whole or not at all. Checkpoints, Parquet files and model
// files are kept in it. A store is a directory, or a bucket of an S3 server.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Store keeps objects by name. All methods may be called by many goroutines, and several processes may hold stores
// over the same place. blobs/blobstest holds every Store to this contract.
type Store interface {
	// Put keeps what r gives, up to its end, as the object called name, replacing one that is there. It is
	// atomic: a reader sees the old object, or the new one, never a part. When it returns nil the object is
	// durable. When it returns an error the old object is still there, unless the error came after the
	// replacement, from making it durable; put it again then. Of two Puts at once to one name, one stays, whole.
	Put(ctx context.Context, name string, r io.Reader) error

	// Get opens an object. The caller closes it. A missing one is [fs.ErrNotExist]. While it is replaced or deleted
	// it is readable as it was, or gives [ErrChanged] where the store cannot do that; never other bytes. A reader
	// that can be read at random is an [io.ReaderAt] too. It is good as long as ctx is.
	Get(ctx context.Context, name string) (io.ReadCloser, error)

	// List gives the objects whose names begin with prefix, in the order of their names' bytes. The prefix need not
	// end at a slash; "" lists all. Nothing there is an empty list, not an error.
	List(ctx context.Context, prefix string) ([]Info, error)

	// Delete removes an object, durably. Deleting one that is not there is no error: a delete may be repeated.
	Delete(ctx context.Context, name string) error
}

// Info is an object in a list.
type Info struct {
	Name string
	Size int64 // bytes
}

// NameMax is the length of the longest name, in bytes: what S3 allows. A single part between slashes may have
// [PartMax], what file systems allow.
const (
	NameMax = 1024
	PartMax = 255
)

// ErrName marks a name or prefix that no store takes.
var ErrName = errors.New("bad object name")

// ErrChanged marks the reading of an object that was replaced or deleted meanwhile. Get it again.
var ErrChanged = errors.New("the object was replaced or deleted while it was read")

// CheckName says what is wrong with an object's name; nil if nothing is. Names are parts joined by slashes. A part is
// not empty and does not begin with a dot (so there is no "..", and a store may keep files of its own under such
// names); it has no control characters, no backslash, and is valid UTF-8.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrName)
	case len(name) > NameMax:
		return fmt.Errorf("%w: %d bytes are too long; at most %d", ErrName, len(name), NameMax)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: %q is not UTF-8", ErrName, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return fmt.Errorf("%w: %q has an empty part (a slash at its start, at its end or doubled)", ErrName, name)
		case part[0] == '.':
			return fmt.Errorf("%w: %q has a part that begins with a dot", ErrName, name)
		case len(part) > PartMax:
			return fmt.Errorf("%w: a part of %q has %d bytes; at most %d", ErrName, name, len(part), PartMax)
		case strings.ContainsFunc(part, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }):
			return fmt.Errorf("%w: %q has a backslash or a control character", ErrName, name)
		}
	}
	return nil
}

// CheckPrefix says what is wrong with the prefix of a List; nil if nothing is. It is a name that may be cut off anywhere.
func CheckPrefix(prefix string) error {
	if whole := strings.TrimSuffix(prefix, "/"); whole != "" {
		return CheckName(whole)
	}
	if prefix != "" {
		return fmt.Errorf("%w: prefix %q; want %q for everything", ErrName, prefix, "")
	}
	return nil
}

// Open opens the store that where names: a directory's path, a file URL (file:///var/lib/hearthline), or a bucket,
// with a prefix or without one (s3://bucket/prefix), which is reached as s3 says. A bucket is not talked to yet.
func Open(where string, s3 S3) (Store, error) {
	p, err := parsePlace(where)
	switch {
	case err != nil:
		return nil, err
	case p.bucket != "":
		return OpenS3(p.bucket, p.path, s3)
	}
	return Dir(p.path)
}

// Check says what is wrong with the address of a store without opening it; nil if nothing is.
func Check(where string) error {
	_, err := parsePlace(where)
	return err
}

// IsShared says whether the store that where names is reached from every machine alike, as a bucket is.
func IsShared(where string) bool { return strings.HasPrefix(where, "s3://") }

// place is the address of a store, taken apart.
type place struct {
	bucket string // "" for a directory
	path   string // of the directory, or the prefix in the bucket
}

func parsePlace(where string) (place, error) {
	if where == "" {
		return place{}, errors.New("open blob store: no directory given")
	}
	scheme, rest, ok := strings.Cut(where, "://")
	if !ok {
		return place{path: where}, nil
	}
	fail := func(format string, args ...any) (place, error) {
		return place{}, fmt.Errorf("open blob store %q: "+format, append([]any{where}, args...)...)
	}
	switch scheme {
	case "s3":
		bucket, prefix, _ := strings.Cut(rest, "/")
		prefix = strings.TrimSuffix(prefix, "/")
		if err := checkBucket(bucket, prefix); err != nil {
			return fail("want s3://bucket/prefix: %w", err)
		}
		return place{bucket, prefix}, nil
	case "file":
		u, err := url.Parse(where)
		if err != nil {
			return fail("%w", err)
		}
		if u.Host != "" && u.Host != "localhost" || u.Path == "" {
			return fail("want three slashes before the path: file:///path")
		}
		return place{path: filepath.FromSlash(u.Path)}, nil
	}
	return fail("%s is not supported; want a directory, a file URL or s3://bucket/prefix", scheme)
}

// inOrder sorts a list as List gives it.
func inOrder(list []Info) []Info {
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func notExist(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

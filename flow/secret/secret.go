// Package secret reads passwords, tokens and keys from where they may stand: an environment variable, or a file that
// only its owner (and perhaps its group) can read. pipeline.yaml names the place and never holds the secret, so it can be
// shown, kept in version control and put into a ConfigMap. No error of this package holds one.
package secret

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// bytesMax bounds a file: what is larger is no password, and no chain of certificates either.
const bytesMax = 1 << 20

// Read gives the secret that stands in the environment variable env or in the file, whichever is named; "" where
// neither is. Of a file, line breaks at the end do not belong to it.
func Read(env, file string) (string, error) {
	switch {
	case env != "" && file != "":
		return "", errors.New("an environment variable and a file are both named; name one")
	case env != "":
		v, ok := os.LookupEnv(env)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", env)
		}
		return v, nil
	case file != "":
		b, err := File(file)
		return strings.TrimRight(string(b), "\r\n"), err
	}
	return "", nil
}

// File reads a file that holds secrets, if it is [Private].
func File(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat() // of what was opened: the name may lead elsewhere by now
	if err != nil {
		return nil, err
	}
	if err := private(path, st.Mode()); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, bytesMax+1))
	if err == nil && len(b) > bytesMax {
		err = fmt.Errorf("%s is larger than %d bytes: is it the right file?", path, bytesMax)
	}
	return b, err
}

// Private is an error where every user of the machine may read or change the file, or its group may change it. That the
// group may read it is well: so Kubernetes gives Secrets to a pod (fsGroup, mode 0440).
func Private(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return private(path, st.Mode())
}

func private(path string, mode fs.FileMode) error {
	if open := mode.Perm() & 0o027; mode.IsRegular() && open != 0 {
		return fmt.Errorf("%s holds secrets, and others than its owner may read or change it (mode %04o): chmod 600 %s, and change what it holds if others use this machine",
			path, mode.Perm(), path)
	}
	return nil
}

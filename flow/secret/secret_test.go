package secret_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearthline/flow/secret"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SECRET_TEST", "of the environment")
	if got, err := secret.Read("SECRET_TEST", ""); got != "of the environment" || err != nil {
		t.Error(got, err)
	}
	if got, err := secret.Read("", ""); got != "" || err != nil {
		t.Error(got, err)
	}
	if _, err := secret.Read("SECRET_TEST_UNSET", ""); err == nil || !strings.Contains(err.Error(), "SECRET_TEST_UNSET") {
		t.Error(err)
	}
	if _, err := secret.Read("SECRET_TEST", file); err == nil {
		t.Error("two places for one secret")
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o640: true, 0o644: false, 0o604: false, 0o660: false, 0o602: false, 0o777: false} {
		write("hunter2\r\n", mode)
		got, err := secret.Read("", file)
		if ok && (got != "hunter2" || err != nil) {
			t.Errorf("mode %04o: %q, %v", mode, got, err)
		}
		if !ok && (err == nil || got != "" || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "chmod 600")) {
			t.Errorf("mode %04o: %q, %v; want it refused, with what to do", mode, got, err)
		}
		if (secret.Private(file) == nil) != ok {
			t.Errorf("mode %04o: Private says %v", mode, secret.Private(file))
		}
	}
	write(strings.Repeat("x", 2<<20), 0o600)
	if _, err := secret.Read("", file); err == nil || len(err.Error()) > 300 {
		t.Error("2 MB are no password")
	}
	// As Kubernetes mounts Secrets: a link to the file.
	write("linked", 0o440)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if got, err := secret.Read("", link); got != "linked" || err != nil {
		t.Error(got, err)
	}
}

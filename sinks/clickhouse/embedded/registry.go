package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const defaultRegistry = "https://registry.npmjs.org/"

// registry is the npm registry by npm's own settings: npm_config_registry, else `registry` in ~/.npmrc, else npm's
// default. Someone behind a mirror has told npm already.
func registry() (string, error) {
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v := os.Getenv(name); v != "" {
			return checkRegistry(v, name)
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return defaultRegistry, nil // no home, no settings in it
	}
	path := filepath.Join(home, ".npmrc")
	f, err := os.Open(path) // #nosec G304 -- the user's own npm settings
	if errors.Is(err, fs.ErrNotExist) {
		return defaultRegistry, nil
	}
	if err != nil {
		return "", fmt.Errorf("clickhouse: npm settings: %w", err)
	}
	defer f.Close()
	v, err := npmrcRegistry(f)
	if err != nil {
		return "", fmt.Errorf("clickhouse: npm settings: %s: %w", path, err)
	}
	if v == "" {
		return defaultRegistry, nil
	}
	return checkRegistry(v, path)
}

// npmrcRegistry reads `registry = URL` from an npmrc, an ini file whose values may be quoted and may name
// ${VARIABLES}; "" when it has none. The registry of the @chdb scope goes before the general one, the last line wins.
func npmrcRegistry(r io.Reader) (string, error) {
	var general, scoped string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		value = os.Expand(strings.Trim(strings.TrimSpace(value), `"'`), os.Getenv)
		switch strings.TrimSpace(key) {
		case "registry":
			general = value
		case "@chdb:registry":
			scoped = value
		}
	}
	if scoped != "" {
		return scoped, lines.Err()
	}
	return general, lines.Err()
}

func checkRegistry(v, from string) (string, error) {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "", fmt.Errorf("clickhouse: %s says the npm registry is %q, which is no http address", from, withoutPassword(v))
	}
	return v, nil
}

// withoutPassword is an address as logs and errors may show it: a mirror's may hold a user and a password.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "…"
	case u.User != nil:
		u.User = url.User("hidden")
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String()
}

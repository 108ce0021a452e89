package apache

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"hearthline/flow/cachedir"

	"github.com/gofrs/flock"
)

//go:embed pom.xml
var pom []byte

// plugin copies what pom.xml names, with all that those need.
const plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.11.0:copy-dependencies"

const (
	javaMin = 17 // Kafka 4 brokers need it
	// lockStep is how often a process looks whether another has done fetching.
	lockStep = 100 * time.Millisecond
	// fetchMax bounds one run of Maven, which itself waits for ever on a dead mirror.
	fetchMax = 10 * time.Minute
)

// ErrMissing is a program that Kafka needs and that is not installed.
var ErrMissing = errors.New("not installed")

// Fetch returns the directory of Kafka's jars within the cache directory ("" is [cachedir.Find]). Jars that are not there
// yet are fetched by Maven (44 MB from Maven Central, checked against its checksums). The directory gets its
// name when it is whole, and the name is that of pom.xml's content. Processes that fetch at once wait for the first.
func Fetch(ctx context.Context, cache string) (string, error) {
	if cache == "" {
		dir, err := cachedir.Find()
		if err != nil {
			return "", err
		}
		cache = dir
	}
	sum := sha256.Sum256(pom)
	jars := filepath.Join(cache, "kafka-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(jars); err == nil {
		return jars, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("kafka: cache: %w; set HEARTHLINE_CACHE to a directory that can be written", err)
	}
	lock := flock.New(jars + ".lock")
	if ok, err := lock.TryLockContext(ctx, lockStep); !ok {
		return "", fmt.Errorf("kafka: cache %s: %w", cache, err)
	}
	defer lock.Close()
	if _, err := os.Stat(jars); err == nil {
		return jars, nil
	}
	part := jars + ".part" // one name, under the lock: what a killed process left is taken away
	if err := os.RemoveAll(part); err != nil {
		return "", fmt.Errorf("kafka: cache: %w", err)
	}
	if err := maven(ctx, part); err != nil {
		return "", fmt.Errorf("kafka: fetch the jars from Maven Central: %w; behind a proxy or a mirror, name it in Maven's settings.xml", err)
	}
	if err := os.Rename(part, jars); err != nil {
		return "", fmt.Errorf("kafka: cache: %w", err)
	}
	return jars, nil
}

// maven leaves the jars in dir/jars; what it wrote is removed by the next attempt.
func maven(ctx context.Context, dir string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("mvn is %w (on Debian: apt-get install maven)", ErrMissing)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, "pom.xml")
	if err := os.WriteFile(path, pom, 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, mvn, "-B", "-q", "--strict-checksums", "-f", path, plugin, "-DoutputDirectory="+dir, "-DincludeScope=runtime")
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", errors.Join(err, ctx.Err()), bytes.TrimSpace(out[max(0, len(out)-2000):]))
	}
	return nil
}

// java finds a Java that is new enough: $JAVA_HOME's, else the one on PATH.
func java(ctx context.Context) (string, error) {
	name := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		name = filepath.Join(home, "bin", "java")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("kafka: %s is %w: Kafka needs Java %d or newer (on Debian: apt-get install openjdk-17-jre-headless)", name, ErrMissing, javaMin)
	}
	out, err := exec.CommandContext(ctx, path, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kafka: %s -version: %w", path, err)
	}
	major := regexp.MustCompile(`version "(\d+)`).FindSubmatch(out)
	if major == nil {
		return "", fmt.Errorf("kafka: %s -version says %q: want Java %d or newer", path, out, javaMin)
	}
	if v, _ := strconv.Atoi(string(major[1])); v < javaMin {
		return "", fmt.Errorf("kafka: Java %d or newer is %w: %s is Java %d (on Debian: apt-get install openjdk-17-jre-headless)", javaMin, ErrMissing, path, v)
	}
	return path, nil
}

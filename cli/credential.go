package cli

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"hearthline/ingest/identity"
)

func newCredential(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credential",
		Short: "Make entries of a gateway's credentials file",
		Long: `The credentials file says who may come in to a gateway, and for which homes each speaks. A running gateway
reads it again when it changes.`,
	}
	cmd.AddCommand(newCredentialAdd(o), newCredentialHash())
	return cmd
}

// credential is what `credential add` is told.
type credential struct {
	file  string
	entry identity.Credential
	homes []string
	read  bool // the password is read, not made
	key   bool
}

func newCredentialAdd(o *options) *cobra.Command {
	c := &credential{}
	cmd := &cobra.Command{
		Use:   "add USER",
		Short: "Add a user, and print the password or API key made for it",
		Long: `Adds an entry to the credentials file. A password is made and printed, once: the file keeps its hash alone. With
--password it is read from the terminal or standard input; with --key an API key for HTTP is made instead; with --certificate
or --token the entry is found by the name in a client certificate, or by the sub of a token, and has no password.`,
		Example: `  hearthline credential add hub-17 --home h17
  hearthline credential add anna --homes h17=app,h4=viewer
  hearthline credential add cloud --homes h1=service,h2=service --key
  hearthline credential add hub-18 --home h18 --certificate hub-18`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.file == "" {
				c.file = filepath.Join(o.data, "gateway", "credentials.yaml")
			}
			c.entry.User = args[0]
			return c.add(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.file, "file", "", "the credentials file (default: the development one of --data)")
	f.StringVar(&c.entry.Home, "home", "", "the home it speaks for")
	f.StringVar(&c.entry.Role, "role", "", "what it does there: hub (default), app, viewer or service")
	f.StringSliceVar(&c.entry.Devices, "device", nil, "the devices of the home it is bound to (default: all)")
	f.StringSliceVar(&c.homes, "homes", nil, "several homes with a role each, instead of --home: h1=app,h2=viewer")
	f.StringVar(&c.entry.Certificate, "certificate", "", "the name in its client certificate")
	f.StringVar(&c.entry.Token, "token", "", "the sub of its tokens")
	f.BoolVar(&c.key, "key", false, "make an API key instead of a password")
	f.BoolVar(&c.read, "password", false, "read the password instead of making one")
	return cmd
}

func (c *credential) add(cmd *cobra.Command) error {
	for _, h := range c.homes {
		home, role, ok := strings.Cut(h, "=")
		if !ok {
			return usagef("--homes: %q; want HOME=ROLE", h)
		}
		c.entry.Homes = append(c.entry.Homes, identity.Grant{Home: home, Role: role})
	}
	said := ""
	switch {
	case c.key:
		key := identity.NewKey()
		c.entry.Keys = []string{identity.HashKey(key)}
		said = "API key: " + key
	case c.read:
		password, err := readPassword(cmd)
		if err != nil {
			return err
		}
		c.entry.Hash = identity.HashPassword(password)
	case c.entry.Certificate == "" && c.entry.Token == "":
		password := rand.Text()
		c.entry.Hash = identity.HashPassword(password)
		said = "password: " + password
	}
	if err := identity.Add(c.file, c.entry); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s is in %s; a gateway that runs reads it within a second\n", c.entry.User, c.file)
	if said != "" {
		fmt.Fprintln(cmd.OutOrStdout(), said)
	}
	return nil
}

func newCredentialHash() *cobra.Command {
	return &cobra.Command{
		Use:     "hash",
		Short:   "Read a password and print what the credentials file holds of it",
		Example: `  printf %s "$PASSWORD" | hearthline credential hash`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := readPassword(cmd)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), identity.HashPassword(password))
			return nil
		},
	}
}

// passwordBytesMin is how long a password must be that somebody chose.
const passwordBytesMin = 8

// readPassword reads one line, without an echo where somebody types it.
func readPassword(cmd *cobra.Command) (string, error) {
	var line string
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), "password: ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		line = string(b)
	} else {
		var err error
		line, err = bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
	}
	if line = strings.TrimRight(line, "\r\n"); len(line) < passwordBytesMin {
		return "", usagef("a password of %d bytes; want %d or more", len(line), passwordBytesMin)
	}
	return line, nil
}

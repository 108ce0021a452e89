package cli

import (
	"fmt"
	"net/http"
	"os"

	"hearthline/console"
	"hearthline/flow/secret"
	"hearthline/pipeline"
)

// consoleToken reads the token that pipeline.yaml names; "" for none. A variable that is not set is none: the same file
// serves a laptop, where nobody needs one, and a server.
func consoleToken(c pipeline.Console) (string, error) {
	if c.TokenEnv != "" {
		token := os.Getenv(c.TokenEnv)
		if err := console.CheckToken(token); err != nil {
			return "", usagef("%w (in %s)", err, c.TokenEnv)
		}
		return token, nil
	}
	token, err := secret.Read("", c.TokenFile)
	if err == nil && token == "" && c.TokenFile != "" {
		err = fmt.Errorf("%s is empty", c.TokenFile)
	}
	if err == nil {
		err = console.CheckToken(token)
	}
	if err != nil {
		return "", usagef("console.token_file: %w", err)
	}
	return token, nil
}

// mayListen refuses a console that others would see without being asked who they are.
func mayListen(c pipeline.Console, token string) error {
	if token != "" || c.Insecure || pipeline.Loopback(c.Listen) {
		return nil
	}
	if c.TokenEnv != "" {
		return usagef("console.listen is %s, which others than this machine reach, and there is no token: set %s (openssl rand -hex 32 makes one), or listen on 127.0.0.1", c.Listen, c.TokenEnv)
	}
	return usagef("console.listen is %s, which others than this machine reach: set console.token_env or console.token_file, or listen on 127.0.0.1", c.Listen)
}

// askConsole adds the token of pipeline.yaml to a request, where it has one.
func askConsole(req *http.Request, c pipeline.Console) error {
	token, err := consoleToken(c)
	if err == nil && token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return err
}

// Hearthline is a telemetry pipeline for smart homes: one binary, whose verbs are its roles. See README.md.
package main

import (
	"os"

	"hearthline/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }

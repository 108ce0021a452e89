package cli

import (
	"testing"

	"hearthline/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m) }

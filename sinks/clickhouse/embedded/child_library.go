//go:build !static

package embedded

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// The engine's command line entry blocks until its last query ends. This one lasts for ages; stopLibrary kills it.
const holdQueries = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; " +
	"SELECT count() FROM numbers(1000000000000000) WHERE NOT ignore(sleepEachRow(0.5)) " +
	"SETTINGS max_block_size = 1, max_threads = 1, log_queries = 0, max_execution_time = 0 FORMAT Null"

// runLibrary loads the library and serves until stopLibrary is called.
func runLibrary(ctx context.Context, library, config string) error {
	lib, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return fmt.Errorf("load %s: %w; delete the file to have it fetched again", library, err)
	}
	var (
		cmdline    func(argc int32, argv unsafe.Pointer) uintptr
		resultErr  func(result uintptr) string
		setSignals func(enabled int32)
	)
	purego.RegisterLibFunc(&cmdline, lib, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultErr, lib, "chdb_result_error")
	purego.RegisterLibFunc(&setSignals, lib, "chdb_set_signal_handlers_enabled")
	setSignals(0) // signals are Go's

	argv := cStrings("clickhouse", "--config-file="+config, "--query", holdQueries)
	var pin runtime.Pinner
	defer pin.Unpin()
	for _, p := range argv[:len(argv)-1] {
		pin.Pin(p)
	}
	pin.Pin(&argv[0])
	result := cmdline(int32(len(argv)-1), unsafe.Pointer(&argv[0])) // #nosec G103 -- arguments of a C function
	if msg := resultErr(result); msg != "" && ctx.Err() == nil {
		return errors.New(msg)
	}
	return nil
}

// cStrings is an argv: strings that end in a zero byte, and a nil at the end.
func cStrings(args ...string) []*byte {
	argv := make([]*byte, len(args)+1)
	for i, a := range args {
		argv[i] = &append([]byte(a), 0)[0]
	}
	return argv
}

package clickhouse

import (
	"errors"
	"net"
	"regexp"
	"slices"
	"strconv"
	"syscall"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"hearthline/flow"
)

// errSchema marks a database that this version cannot work with.
var errSchema = errors.New("the database does not fit")

// Codes of ClickHouse's errors (src/Common/ErrorCodes.cpp).
const (
	codeNoSuchColumnInTable  = 16
	codeIllegalColumn        = 44
	codeUnknownIdentifier    = 47
	codeTypeMismatch         = 53
	codeUnknownTable         = 60
	codeCannotConvertType    = 70
	codeUnknownDatabase      = 81
	codeIncorrectData        = 117
	codeUnknownUser          = 192
	codeWrongPassword        = 193
	codeRequiredPassword     = 194
	codeCannotInsertNull     = 349
	codeViolatedConstraint   = 469
	codeAccessDenied         = 497
	codeAuthenticationFailed = 516
	codeMemoryLimit          = 241
	codeTooManyParts         = 252
	codeNotEnoughSpace       = 243
	codeReadonly             = 164
	codeTableIsReadOnly      = 242
	codeTooManyQueries       = 202
	codeUnknownSetting       = 115
)

// badCodes are refusals of the rows themselves: the same rows will be refused for ever. Refusals of columns and types are
// none of them: that the rows fit the table was found out before they were sent, so somebody has changed it since.
var badCodes = []int{codeIncorrectData, codeCannotInsertNull, codeViolatedConstraint}

// code is the server's error code in err, 0 when it holds none.
func code(err error) int {
	if e, ok := errors.AsType[*ch.Exception](err); ok {
		return int(e.Code)
	}
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return int(e.Code)
	}
	if e, ok := errors.AsType[proto.Error](err); ok {
		return int(e)
	}
	return 0
}

func isBad(err error) bool { return errors.Is(err, flow.ErrBad) }

// badOrWorld marks err as ErrBad where no retry mends it. Everything that is not known to be the data's fault is the world's: a
// missing table, too many parts, no memory, no network. These are mended by someone, or by waiting.
//
// Nor is it the rows' fault when a materialized view fails on them: they may be in the table already, and in other views.
func badOrWorld(err error) error {
	if !isBad(err) && slices.Contains(badCodes, code(err)) && failedView(err) == "" {
		return flow.Badf("%v", err)
	}
	return err
}

// message is what the server says in err: what rows hold is part of it, further on.
func message(err error) string {
	if e, ok := errors.AsType[*ch.Exception](err); ok {
		return e.Message
	}
	if e, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return e.Message
	}
	return err.Error()
}

// violating is how the server says which row of an insert breaks a constraint, counted from 1.
var violating = regexp.MustCompile("^(?:DB::Exception: )?Constraint (?:`[^`]+`|\\S+) for table \\S+(?: \\([0-9a-f-]+\\))? is violated at row (\\d+)\\.")

// violatedRow is the row of an insert, from 0, that breaks a constraint of its table; -1 if err names none.
func violatedRow(err error) int {
	if code(err) != codeViolatedConstraint {
		return -1
	}
	if m := violating.FindStringSubmatch(message(err)); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return n - 1
		}
	}
	return -1
}

// lacking is how the server names the right that a user lacks.
var lacking = regexp.MustCompile(`necessary to have the grant (.+? ON [^\s,;]+)`)

// pushing is how the server says, at the end, in which view an insert failed. Texts that rows hold stand before it, in quotes.
var pushing = regexp.MustCompile(`: while pushing to view ([^\s']+)(?: \([0-9a-f-]+\))?$`)

// failedView is the materialized view that an insert failed in, "" when it was not a view's fault.
func failedView(err error) string {
	if err == nil {
		return ""
	}
	if m := pushing.FindStringSubmatch(message(err)); m != nil {
		return m[1]
	}
	return ""
}

// staleTable says whether an insert failed because the table is not what it was.
func staleTable(err error) bool {
	switch code(err) {
	case codeNoSuchColumnInTable, codeUnknownIdentifier, codeTypeMismatch, codeUnknownTable, codeCannotConvertType, codeIllegalColumn:
		return failedView(err) == ""
	}
	return false
}

// fatal errors of Open are not mended by waiting: a person must change something.
func fatal(err error) bool {
	if errors.Is(err, errSchema) || isBad(err) {
		return true
	}
	switch code(err) {
	case codeUnknownUser, codeWrongPassword, codeRequiredPassword, codeAuthenticationFailed, codeAccessDenied, codeReadonly, codeUnknownSetting:
		return true
	}
	return false
}

// hint says what to do about err, where that is known.
func hint(err error) string {
	if view := failedView(err); view != "" && code(err) != codeMemoryLimit {
		return "; the materialized view " + view + " fails on these rows, which wait: mend it, or drop it"
	}
	switch code(err) {
	case codeUnknownUser, codeWrongPassword, codeRequiredPassword, codeAuthenticationFailed:
		return "; check user, and password_env or password_file"
	case codeAccessDenied:
		if m := lacking.FindStringSubmatch(err.Error()); m != nil {
			return "; an administrator can say: GRANT " + m[1] + " TO the sink's user (docs/operations.md has all that it needs)"
		}
		return "; the user lacks a right (docs/operations.md has all that it needs)"
	case codeTooManyParts:
		return "; the server merges slower than it is filled: it will catch up, or raise flush_rows and flush_wait"
	case codeTooManyQueries:
		return "; the server runs as many queries as it may: lower connections, or raise its max_concurrent_queries"
	case codeReadonly, codeTableIsReadOnly:
		return "; the server or the user may only read at the moment"
	case codeUnknownSetting:
		return "; this server does not know a setting that counting every row once rests on: use ClickHouse 24.8 or newer"
	case codeMemoryLimit:
		return "; the server is short of memory: lower flush_rows, or give it more"
	case codeNotEnoughSpace:
		return "; the server's disk is full: free space, or set retention_days"
	case codeUnknownDatabase, codeUnknownTable:
		return "; the sink makes it again when it is restarted, which it does by itself after a while"
	case 0:
	default:
		return ""
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "; is the server running, and is address its native port (9000), not HTTP (8123)?"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "; check the host name in address"
	}
	return ""
}

"""The process that runs a stage's SQL: python -m hearthline._sql FD. Only the runtime starts it.

The engine is DuckDB, in memory, on one thread, without files, network or extensions. A query reads one table, the batch. What it
gives depends on the batch and the settings alone: functions of clock and chance are refused, and rows come in an order that is
defined (see Query.order).
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from . import _frames as frames
from ._settings import SettingsError
from ._worker import OUTPUT, StageError, decoded, encoded, said

FILE = "stage.sql"
TABLE = "input"  # the name that the batch has in every query
MEMORY_MAX = "1GB"  # what a query may hold beside its batch; then it fails
TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
TABLES = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST"}
CLOCK_WORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
NOWHERE = 2**64 - 1  # the engine's place of what the text does not say


class QueryError(StageError):
    """Something is wrong with the query, at a byte of its text, or at -1 where nobody knows."""

    def __init__(self, message: str, place: int = -1) -> None:
        super().__init__(message)
        self.place = place


# It advises a way that is slower for batches, where most of the time is the query's planning.
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result")


def connect() -> duckdb.DuckDBPyConnection:
    closed = {"enable_external_access": "false", "autoload_known_extensions": "false", "autoinstall_known_extensions": "false", "temp_directory": ""}
    con = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": MEMORY_MAX} | closed)
    for setting in ("python_enable_replacements = false", "TimeZone = 'UTC'", "errors_as_json = true", "lock_configuration = true"):
        con.execute("SET " + setting)
    return con


class Batch:
    """The table of a query: the engine asks it for the batch in hand each time that it runs."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return pa.RecordBatchReader.from_batches(self.batch.schema, [self.batch]).__arrow_c_stream__(requested_schema)


class Query:
    """A query, with its settings as parameters."""

    def __init__(self, text: str, settings: dict[str, Any], streams: list[str]) -> None:
        self.text, self.settings, self.streams = text, settings, streams
        self.con = connect()
        self.functions = Functions(self.con)
        self.tree = self.parsed()
        self.tables = self.checked()
        self.parameters()
        self.bound: pa.Schema | None = None  # of the batches that it was bound to

    def parsed(self) -> dict[str, Any]:
        tree = json.loads(self.one("SELECT json_serialize_sql($1)", self.text))
        if tree.get("error"):
            message = tree.get("error_message", "this is no query")
            if tree.get("error_type") == "not implemented":
                message = "want one query: SELECT … FROM input …"
            raise QueryError(message, int(tree.get("position", -1)))
        if len(tree["statements"]) != 1:
            raise QueryError(f"want one query; these are {len(tree['statements'])}")
        statement: dict[str, Any] = tree["statements"][0]
        return statement

    def one(self, text: str, argument: str) -> str:
        """The one value of a query of ours."""
        return str(self.con.execute(text, [argument]).fetchall()[0][0])

    def checked(self) -> set[str]:
        """Looks at all that the query names, and gives the tables that stand for the batch."""
        ctes = {entry["key"].lower() for node in walk(self.tree) for entry in (node.get("cte_map") or {}).get("map", [])}
        tables: set[str] = set()
        for node in walk(self.tree):
            place = placed(node)
            if node.get("sample"):
                raise QueryError("a sample is drawn by chance; after a crash it would be another", place)
            if "function_name" in node and (why := self.functions.refused(node)):
                raise QueryError(why, place)
            if node.get("class") == "COLUMN_REF" and len(names := node["column_names"]) == 1 and names[0].lower() in CLOCK_WORDS:
                raise QueryError(f"{names[0]} is the clock's; after a crash it would be another: rows bring their time with them", place)
            if "sample" in node and "from_table" not in node and node["type"] not in TABLES:
                raise QueryError(f"{node['type']} has no place in a stage: want SELECT … FROM {TABLE} …", place)
            if node.get("type") == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in TABLE_FUNCTIONS:
                raise QueryError(f"{name}() is not for stages: a query reads {TABLE}", place)
            if node.get("type") == "BASE_TABLE" and (name := node["table_name"].lower()) not in ctes:
                tables.add(name)
                known = {TABLE, *self.streams} if self.streams else {TABLE, next(iter(sorted(tables - {TABLE})), TABLE)}
                if name not in known or node["schema_name"] or node["catalog_name"]:
                    raise QueryError(f"there is no table {name}: the batch is called {' or '.join([TABLE, *self.streams])}", place)
        return tables or {TABLE}

    def parameters(self) -> None:
        used = {node["identifier"]: placed(node) for node in walk(self.tree) if node.get("class") == "PARAMETER"}
        for name in self.settings:
            if name not in used:
                raise SettingsError(f"{name} is no setting of this query; it has: {', '.join(used) or 'none'}")
        for name, place in used.items():
            if name.isdigit():
                raise QueryError("parameters have names, such as $above: settings are given by name", place)
            if name not in self.settings:
                raise SettingsError(f"{name} must be set: the query uses ${name}")
            if isinstance(self.settings[name], dict):
                raise SettingsError(f"{name} is a mapping; want a text, a number, true or false, or a list of them")

    def run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What the query makes of a batch. Its schema is the same for all batches of a schema."""
        if self.bound is None or not batch.schema.equals(self.bound):
            self.bind(batch.schema)
        self.source.batch = batch
        return settled(self.executed(self.ordered), self.schema)

    def bind(self, schema: pa.Schema) -> None:
        self.bound = None
        self.source = Batch(pa.RecordBatch.from_pylist([], schema=schema))
        for name in self.tables:
            self.con.register(name, self.source)
        made = self.executed(self.text).schema
        self.schema = self.typed(made, schema)
        self.ordered = self.order(len(made.names))
        self.bound = schema

    def executed(self, text: str) -> pa.Table:
        try:
            return self.con.execute(text, self.settings or None).to_arrow_table()
        except duckdb.Error as e:
            raise told(e, text == self.text) from None

    def order(self, columns: int) -> str:
        """The query with its rows in an order that is defined. What filters and computes keeps the order of the batch. Groups, joins,
        windows and the like have none: they come sorted by all of their columns, or by what the query says and then by all, so that
        no two rows that differ may change places."""
        tree = copy.deepcopy(self.tree)
        node, modifiers = tree["node"], tree["node"]["modifiers"]
        said_so = next((m for m in modifiers if m["type"] == "ORDER_MODIFIER"), None)
        if all(m["type"] == "LIMIT_MODIFIER" for m in modifiers) and self.streaming(node):
            return self.text
        every = "SELECT " + ", ".join("1" for _ in range(columns)) + " ORDER BY " + ", ".join(str(i + 1) for i in range(columns))
        by_all = json.loads(self.one("SELECT json_serialize_sql($1)", every))["statements"][0]["node"]["modifiers"][0]
        if said_so is not None:
            said_so["orders"] += by_all["orders"]
        else:
            at = next((i for i, m in enumerate(modifiers) if m["type"] == "LIMIT_MODIFIER"), len(modifiers))
            modifiers.insert(at, by_all)
        return self.one("SELECT json_deserialize_sql($1)", json.dumps({"error": False, "statements": [tree]}))

    def streaming(self, node: dict[str, Any]) -> bool:
        """Whether a node looks at one row of the batch after the other."""
        if node["type"] != "SELECT_NODE" or node["group_expressions"] or node["qualify"] or (node["cte_map"] or {}).get("map"):
            return False
        if node["aggregate_handling"] != "STANDARD_HANDLING" or node["from_table"]["type"] != "BASE_TABLE":
            return False
        inner = [n for n in walk([node["select_list"], node["where_clause"], node["having"]]) if n.get("class")]
        return all(n["class"] not in ("WINDOW", "SUBQUERY") and self.functions.scalar(n) for n in inner)

    def typed(self, made: pa.Schema, given: pa.Schema) -> pa.Schema:
        """The columns of the result as the pipeline has them. One that is a column of the batch, and no more, is what it was there: a
        key, or never null."""
        items = self.tree["node"].get("select_list", [])
        placeable = len(items) == len(made.names) and all(i["class"] != "STAR" for i in items)
        origins = self.origins(given)
        if len(origins) != len(made.names):
            origins = [None] * len(made.names)
        fields: list[pa.Field] = []
        for i, f in enumerate(made):
            place = placed(items[i]) if placeable else -1
            if f.name in (other.name for other in fields):
                raise QueryError(f"two columns are called {f.name}: name one with AS", place)
            if (origin := origins[i]) is not None:
                fields.append(origin.with_name(f.name))
                continue
            t, hint = as_the_pipeline_has_it(f.type)
            if t is None:
                raise QueryError(f"column {f.name} is a {f.type}, which streams do not carry: {hint}", place)
            like = given.field(f.name).type if given.names.count(f.name) == 1 else None
            fields.append(pa.field(f.name, like if pa.types.is_string(t) and like is not None and pa.types.is_dictionary(like) else t))
        return pa.schema(fields)

    def origins(self, given: pa.Schema) -> list[pa.Field | None]:
        """For each column of the result the column of the batch that it is, where the query says no more than its name."""
        node = self.tree["node"]
        if node["type"] != "SELECT_NODE" or node["from_table"]["type"] != "BASE_TABLE" or node["from_table"]["column_name_alias"]:
            return []
        if node["from_table"]["table_name"].lower() not in self.tables or len(node["group_sets"]) > 1:
            return []  # of a table that the query made; a column of grouping sets may be null
        by_name = {f.name.lower(): f for f in given}
        found: list[pa.Field | None] = []
        for item in node["select_list"]:
            if item["class"] == "COLUMN_REF":
                *path, name = item["column_names"]
                found.append(None if path and path[0].lower() in by_name else by_name.get(name.lower()))
            elif item["class"] != "STAR":
                found.append(None)
            elif item["replace_list"] or item["rename_list"] or item["columns"] or item["qualified_exclude_list"]:
                return []
            else:
                left_out = {name.lower() for name in item["exclude_list"]}
                found += [f for f in given if f.name.lower() not in left_out]
        return found


class Functions:
    """What the engine says of its functions: which give the same for the same."""

    # Marked as steady, and not: the first asks the engine, the second draws.
    ALSO = {"version": "tells of the engine", "reservoir_quantile": "draws a sample by chance"}

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        rows = con.execute("SELECT lower(function_name), function_type, stability, macro_definition FROM duckdb_functions()").fetchall()
        self.unsteady = {name for name, kind, stability, _ in rows if kind in ("scalar", "aggregate") and stability not in ("CONSISTENT", None)} - {"error"}
        self.scalars = {name for name, kind, _, _ in rows if kind == "scalar"} - {name for name, kind, _, _ in rows if kind in ("aggregate", "table")}
        words = self.unsteady | CLOCK_WORDS
        for name, kind, _, definition in rows:
            if kind in ("macro", "table_macro") and (name.startswith(("pg_", "duckdb_", "has_", "inet_")) or words & set(re.findall(r"\w+", (definition or "").lower()))):
                self.unsteady.add(name)

    def refused(self, node: dict[str, Any]) -> str:
        name = node["function_name"].lower()
        if node.get("schema") or node.get("catalog"):
            return f"{name} is named with a schema; leave it out"
        if name in self.ALSO:
            return f"{name}() {self.ALSO[name]}; after a crash it may give something else"
        if name in self.unsteady or name == "age" and len(node.get("arguments", [])) == 1:
            return f"{name}() depends on more than its rows (the clock, chance, the engine); after a crash it would give something else"
        return ""

    def scalar(self, node: dict[str, Any]) -> bool:
        return "function_name" not in node or node["function_name"].lower() in self.scalars


def walk(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


def placed(node: dict[str, Any]) -> int:
    place = int(node.get("query_location", NOWHERE))
    return -1 if place == NOWHERE else place


def told(e: duckdb.Error, as_written: bool) -> Exception:
    """What the engine said, for the author of the query."""
    _, _, text = str(e).partition(": ")
    try:
        report = json.loads(text)
    except ValueError:
        return QueryError(text or str(e))
    place = int(report.get("position", -1)) if as_written else -1
    return QueryError(re.sub(r"[!.]?\n+", "; ", report.get("exception_message", text).strip()), place)


WIDER = {pa.int8(): pa.int32(), pa.int16(): pa.int32(), pa.uint8(): pa.int32(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.float32(): pa.float64()}
AS_THEY_ARE = {pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.string()}
INSTANT = pa.timestamp("us", "UTC")


def as_the_pipeline_has_it(t: pa.DataType) -> tuple[pa.DataType | None, str]:
    """The type of a column of a stream, or None and what to write instead."""
    if t in AS_THEY_ARE:
        return t, ""
    if t in WIDER:
        return WIDER[t], ""
    if pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.string(), ""
    if pa.types.is_timestamp(t):
        return (INSTANT, "") if t.unit != "ns" else (None, "write CAST(… AS TIMESTAMPTZ)")
    if pa.types.is_map(t) and pa.types.is_string(t.key_type) and pa.types.is_string(t.item_type):
        return pa.map_(pa.string(), pa.string()), ""
    if pa.types.is_decimal(t) or pa.types.is_integer(t):
        return None, "write CAST(… AS BIGINT) or CAST(… AS DOUBLE)"
    if pa.types.is_date(t):
        return None, "write CAST(… AS TIMESTAMPTZ)"
    if pa.types.is_null(t):
        return None, "write CAST(NULL AS DOUBLE), or another type"
    return None, "write CAST(… AS VARCHAR), or take it apart into columns"


def settled(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """A result with the types of a schema."""
    columns = []
    for column, f in zip(table.columns, schema, strict=True):
        whole = column.combine_chunks()
        if isinstance(whole, pa.ChunkedArray):
            whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], type=whole.type)
        if pa.types.is_dictionary(f.type):
            whole = pc.dictionary_encode(whole.cast(pa.string()))
        columns.append(blanked(whole if whole.type == f.type else whole.cast(f.type)))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def blanked(column: pa.Array) -> pa.Array:
    """The column with zeros where there are no values: the engine leaves there what stood in its memory, which is another each time."""
    if column.null_count == 0 or not pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type):
        return column
    values = pc.fill_null(column, pa.scalar(0, column.type))
    return pa.Array.from_buffers(column.type, len(column), [pc.is_valid(column).buffers()[1], values.buffers()[1]], column.null_count)


def located(e: QueryError, text: str, file: str) -> QueryError:
    """The error with the line and column that it is about, counted in characters."""
    if e.place < 0:
        return QueryError(f"{file}: {e}" if file == FILE else str(e))
    before = text.encode()[: e.place].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return QueryError(f"{file}, line {line}, column {column}: {e}", e.place)


def main() -> None:
    wire = frames.Wire(socket.socket(fileno=int(sys.argv[1])))
    first = wire.read()
    if first is None:
        return
    task = json.loads(first[1])
    text, file = task.get("sql") or "", "sql"
    try:
        if not text:
            text, file = (Path(task["folder"]) / FILE).read_text(encoding="utf-8"), FILE
        query = Query(text, task["settings"], task.get("streams") or [])
    except BaseException as e:
        e = located(e, text, file) if isinstance(e, QueryError) else e
        wire.write(frames.FAILED, said(e, isinstance(e, (StageError, SettingsError))) | {"settings": isinstance(e, SettingsError)})
        return

    wire.write(frames.READY, {"pid": os.getpid(), "frame": "arrow", "state": None})
    while (frame := wire.read()) is not None:
        try:
            body = encoded(query.run(decoded(frame[1])))
        except Exception as e:
            e = located(e, text, file) if isinstance(e, QueryError) else e
            wire.write(frames.RAISED, said(e, isinstance(e, StageError)))
            continue
        wire.write(frames.RESULT, {"outputs": [OUTPUT], "rows": [], "reasons": []})
        wire.write(frames.ARROW, memoryview(body))


if __name__ == "__main__":
    main()
    os._exit(0)  # the engine says much of what it has not given back when it is ended in order

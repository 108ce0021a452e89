"""The process that runs a stage's function: python -m hearthline._worker FD. Only the runtime starts it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import socket
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from . import _frames as frames
from ._rows import Bad, _rejected
from ._settings import SettingsError, bind

OUTPUT = "out"  # the name of the one output of a stage that returns no dict


class StageError(Exception):
    """The stage itself is wrong: it says what its author is to mend."""


class _LogLines(logging.Handler):
    """A record is a line that begins with a separator no text has; the runtime gives it its level."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = {"level": record.levelname, "logger": record.name, "message": self.format(record)}
            sys.__stderr__.write("\x1e" + json.dumps(said) + "\n")
            sys.__stderr__.flush()
        except Exception:  # a log line is not worth a batch
            self.handleError(record)


def load(folder: Path) -> Callable[..., Any]:
    """The function process of folder/stage.py."""
    file = folder / "stage.py"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("stage", file)
    if spec is None or spec.loader is None:
        raise StageError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["stage"] = module
    spec.loader.exec_module(module)
    function = getattr(module, "process", None)
    if not callable(function):
        raise StageError(f"{file} has no function process(batch, …)")
    return function


def frame_of(function: Callable[..., Any]) -> str:
    """Which kind of batch the function wants: arrow, pandas or polars, by the annotation of its first parameter."""
    names = list(function.__code__.co_varnames[: function.__code__.co_argcount]) if hasattr(function, "__code__") else []
    if not names:
        raise StageError("process must take a batch as its first parameter")
    hint = typing.get_type_hints(function).get(names[0])
    module = getattr(hint, "__module__", "") or ""
    return next((kind for kind in ("pandas", "polars") if module.split(".")[0] == kind), "arrow")


def given(batch: pa.RecordBatch, kind: str) -> Any:
    if kind == "pandas":  # texts as pandas users know them: a categorical of no rows does not even know that it holds texts
        texts = pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in batch.schema])
        return pa.Table.from_batches([batch]).cast(texts).to_pandas()
    if kind == "polars":
        import polars

        return polars.from_arrow(pa.Table.from_batches([batch]))
    return batch


def plain(t: pa.DataType) -> pa.DataType:
    """The type as the pipeline has it: pandas and polars make variants of text and lists that mean the same."""
    if pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.string()
    if pa.types.is_large_binary(t) or pa.types.is_binary_view(t):
        return pa.binary()
    if pa.types.is_large_list(t):
        return pa.list_(plain(t.value_type))
    if pa.types.is_dictionary(t):
        return pa.dictionary(t.index_type, plain(t.value_type))
    return t


def returned(value: Any, name: str, given: pa.Schema) -> pa.RecordBatch:
    """What a stage returned, as one record batch. A column that lost its type (pandas, without rows) has that of the same
    name in the batch given."""
    module = type(value).__module__.split(".")[0]
    if isinstance(value, pa.RecordBatch):
        table = pa.Table.from_batches([value])
    elif isinstance(value, pa.Table):
        table = value
    elif module == "pandas":
        table = pa.Table.from_pandas(value, preserve_index=False)
    elif module == "polars":
        table = value.to_arrow()
    else:
        raise StageError(f"process returned {type(value).__name__} as {name}; want a batch, or a dict of batches")
    fields = [pa.field(f.name, plain(f.type), f.nullable) for f in table.schema]
    for i, f in enumerate(fields):
        if pa.types.is_null(f.type) and given.get_field_index(f.name) >= 0:
            t = given.field(f.name).type
            fields[i] = f.with_type(t.value_type if pa.types.is_dictionary(t) else t)
    wanted = pa.schema(fields)
    for f in wanted:
        if pa.types.is_null(f.type):
            raise StageError(f"column {f.name} of {name} has no type: give it one, also when there are no rows (astype, or pa.array(…, type))")
    table = table.cast(wanted).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_arrays([pa.array([], type=f.type) for f in wanted], schema=wanted)


def encoded(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Worker:
    def __init__(self, wire: frames.Wire, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.wire, self.function, self.arguments = wire, function, arguments
        self.kind = frame_of(function)

    def process(self, body: bytes) -> None:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            batch = reader.read_next_batch()
        bad: dict[int, str] = {}
        token = _rejected.set(bad)
        try:
            made = self.function(given(batch, self.kind), **self.arguments)
            outputs = made if isinstance(made, Mapping) else {OUTPUT: made}
            ready = [(str(name), encoded(returned(value, str(name), batch.schema))) for name, value in outputs.items()]
            wrong = [i for i in bad if not 0 <= i < batch.num_rows]
            if wrong:
                raise StageError(f"row {wrong[0]} was rejected; the batch has rows 0 to {batch.num_rows - 1}")
        except BaseException as e:  # a stage that calls exit has not answered for this batch either
            self.wire.write(frames.RAISED, said(e, isinstance(e, (Bad, StageError))))
            return
        finally:
            _rejected.reset(token)
        rows = sorted(bad)
        self.wire.write(frames.RESULT, {"outputs": [name for name, _ in ready], "rows": rows, "reasons": [bad[i] for i in rows]})
        for _, data in ready:
            self.wire.write(frames.ARROW, memoryview(data))


def said(e: BaseException, plain: bool) -> dict[str, Any]:
    """What is to be known of an exception: its traceback from the stage's own file on, and the last line of that file in it. Plain
    is one whose text says all."""
    steps = traceback.extract_tb(e.__traceback__)
    here = str(Path(__file__).parent)
    while steps and (steps[0].filename.startswith(here) or "importlib" in steps[0].filename):
        steps.pop(0)
    lines = [f"stage.py, line {s.lineno}" for s in steps if s.filename.endswith("/stage.py")]
    if isinstance(e, SyntaxError) and e.filename and e.filename.endswith("/stage.py"):
        lines = [f"stage.py, line {e.lineno}"]
    text = "".join(traceback.format_list(steps) + traceback.format_exception_only(type(e), e))[-4000:]
    return {"kind": type(e).__name__, "said": str(e), "plain": plain, "at": lines[-1] if lines else "", "trace": text}


def main() -> None:
    wire = frames.Wire(socket.socket(fileno=int(sys.argv[1])))
    # What a stage prints is for its author to read: it must never get between the frames, and has its own way.
    logging.basicConfig(level=logging.INFO, handlers=[_LogLines()])
    first = wire.read()
    if first is None:
        return
    task = json.loads(first[1])
    if task.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (task["memory"], task["memory"]))
    try:
        function = load(Path(task["folder"]))
        worker = Worker(wire, function, bind(function, task["settings"]))
    except BaseException as e:  # SystemExit too: whoever calls exit in a stage is to be told
        wire.write(frames.FAILED, said(e, isinstance(e, (StageError, SettingsError))) | {"settings": isinstance(e, SettingsError)})
        return
    wire.write(frames.READY, {"pid": os.getpid(), "frame": worker.kind})
    while (frame := wire.read()) is not None:
        worker.process(frame[1])


if __name__ == "__main__":
    main()

"""The process that runs a stage's function: python -m hearthline._worker FD. Only the runtime starts it."""

from __future__ import annotations

import datetime
import importlib.util
import json
import logging
import os
import socket
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from . import _frames as frames
from ._rows import Bad, _rejected
from ._settings import SettingsError, bind
from ._state import EPOCH, MICROSECOND, Keyed, State, StateError, declaration

OUTPUT = "out"  # the name of the one output of a stage that returns no dict


class StageError(Exception):
    """The stage itself is wrong: it says what its author is to mend."""


class _LogLines(logging.Handler):
    """A record is a line that begins with a separator no text has; the runtime gives it its level."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.__stderr__ is None:
            return
        try:
            said = {"level": record.levelname, "logger": record.name, "message": self.format(record)}
            sys.__stderr__.write("\x1e" + json.dumps(said) + "\n")
            sys.__stderr__.flush()
        except Exception:  # a log line is not worth a batch
            self.handleError(record)


def load(folder: Path) -> types.ModuleType:
    """The module folder/stage.py, which has a function process."""
    file = folder / "stage.py"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("stage", file)
    if spec is None or spec.loader is None:
        raise StageError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["stage"] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "process", None)):
        raise StageError(f"{file} has no function process(batch, …)")
    return module


def frame_of(function: Callable[..., Any]) -> str:
    """Which kind of batch the function wants: arrow, pandas or polars, by the annotation of its first parameter."""
    names = _positional(function)
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


def returned(value: Any, name: str, given: pa.Schema, function: str) -> pa.RecordBatch:
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
        raise StageError(f"{function} returned {type(value).__name__} as {name}; want a batch, or a dict of batches")
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


def decoded(body: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        return reader.read_next_batch()


def encoded(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Stage:
    """The functions of a stage, and what it keeps."""

    def __init__(self, folder: Path) -> None:
        module = load(folder)
        self.process: Callable[..., Any] = module.process
        self.advance: Callable[..., Any] | None = getattr(module, "advance", None)
        self.kind = frame_of(self.process)
        self.keyed, self.state = keyed_of(self.process, 1)
        self.keyed_advance = ""
        if self.advance is not None:
            self.keyed_advance, state = keyed_of(self.advance, 1)
            if self.state is None or state is not self.state:
                raise StageError("advance(watermark, states, …) is called for keys: both it and process need a parameter of one hearthline.Keyed[…]")
        self.declared = None if self.state is None else declaration(self.state)
        if self.advance is None and self.declared is not None and self.declared.timer:
            raise StageError(f"{self.declared.name} has a timer, {self.declared.timer}: write advance(watermark, states, …), which it calls")
        if self.advance is not None and self.declared is not None and not self.declared.timer:
            raise StageError(f"advance is called for keys whose timer has passed: {self.declared.name} needs one, timer=\"…\"")

    def bind(self, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings as arguments of process, and of advance."""
        functions, own = [self.process], [[*_positional(self.process)[:1], self.keyed]]
        if self.advance is not None:
            functions.append(self.advance)
            own.append([*_positional(self.advance)[:1], self.keyed_advance])
        bound = bind(functions, own, settings)
        return bound[0], bound[-1]

    def told(self) -> dict[str, Any]:
        state = None if self.declared is None else self.declared.told()
        return {"pid": os.getpid(), "frame": self.kind, "state": state}


def _positional(function: Callable[..., Any]) -> list[str]:
    return list(function.__code__.co_varnames[: function.__code__.co_argcount]) if hasattr(function, "__code__") else []


def keyed_of(function: Callable[..., Any], after: int) -> tuple[str, type[State] | None]:
    """The parameter that is to have the states, and their class."""
    hints = typing.get_type_hints(function)
    found = [(name, typing.get_args(hint)) for name, hint in hints.items() if typing.get_origin(hint) is Keyed and name != "return"]
    if len(found) > 1:
        raise StageError(f"{function.__name__} has {len(found)} parameters of hearthline.Keyed; a stage has one state")
    if not found:
        return "", None
    name, (of,) = found[0]
    if name in _positional(function)[:after]:
        raise StageError(f"{function.__name__}: {name} comes after the batch, or the watermark")
    if not (isinstance(of, type) and issubclass(of, State) and of is not State):
        raise StageError(f"{function.__name__}: {name} is hearthline.Keyed of {of}; want a class of yours: class Room(hearthline.State, key=…)")
    return name, of


class Worker:
    def __init__(self, wire: frames.Wire, stage: Stage, settings: dict[str, Any]) -> None:
        self.wire, self.stage = wire, stage
        self.arguments, self.arguments_advance = stage.bind(settings)

    def body(self, kind: bytes) -> bytes:
        frame = self.wire.read()
        if frame is None or frame[0] != kind:
            raise SystemExit(f"the runtime sent {frame and frame[0]!r}; want {kind!r}")
        return frame[1]

    def states(self, index: bool) -> Keyed[Any]:
        """The states that come after a batch, or a watermark."""
        stage = self.stage
        assert stage.state is not None and stage.declared is not None
        taken = decoded(self.body(frames.STATE))
        rows = None
        if index:
            body = self.body(frames.INDEX)
            rows = pa.Array.from_buffers(pa.int32(), len(body) // 4, [None, pa.py_buffer(body)])
        return Keyed(stage.state, stage.declared.fields, taken, rows)

    def process(self, body: bytes) -> None:
        batch = decoded(body)
        states = self.states(True) if self.stage.state else None
        self.answer(batch, states, lambda: self.made(batch, states))

    def made(self, batch: pa.RecordBatch, states: Keyed[Any] | None) -> dict[str, pa.RecordBatch]:
        keyed = {self.stage.keyed: states} if states is not None else {}
        made = outputs(self.stage.process(given(batch, self.stage.kind), **keyed, **self.arguments), "process", batch.schema)
        if batch.num_rows == 0 and self.stage.advance is not None and states is not None:  # lint asks, and is to hear of all outputs
            for name, other in self.advanced(datetime.datetime.max.replace(tzinfo=datetime.timezone.utc), states).items():
                if name in made and made[name].schema != other.schema:
                    raise StageError(f"advance makes other columns of {name} than process does, ({shown(other.schema)}) instead of ({shown(made[name].schema)})")
                made.setdefault(name, other.slice(0, 0))
        return made

    def advance(self, body: bytes) -> None:
        told = json.loads(body)["watermark"]
        try:
            watermark = EPOCH + told * MICROSECOND
        except OverflowError:  # the end of time
            watermark = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)
        states = self.states(False)
        self.answer(None, states, lambda: self.advanced(watermark, states))

    def advanced(self, watermark: datetime.datetime, states: Keyed[Any]) -> dict[str, pa.RecordBatch]:
        assert self.stage.advance is not None
        keyed = {self.stage.keyed_advance: states}
        return outputs(self.stage.advance(watermark, **keyed, **self.arguments_advance), "advance", pa.schema([]))

    def answer(self, batch: pa.RecordBatch | None, states: Keyed[Any] | None, make: Callable[[], dict[str, pa.RecordBatch]]) -> None:
        bad: dict[int, str] = {}
        token = _rejected.set(bad) if batch is not None else None
        try:
            ready = [(name, encoded(made)) for name, made in make().items()]
            wrong = [i for i in bad if batch is None or not 0 <= i < batch.num_rows]
            if wrong and batch is not None:
                raise StageError(f"row {wrong[0]} was rejected; the batch has rows 0 to {batch.num_rows - 1}")
            data = [body for _, body in ready]
            if states is not None:
                data.append(encoded(states._put()))
        except BaseException as e:  # a stage that calls exit has not answered for this batch either
            self.wire.write(frames.RAISED, said(e, isinstance(e, (Bad, StageError))))
            return
        finally:
            if token is not None:
                _rejected.reset(token)
        rows = sorted(bad)
        self.wire.write(frames.RESULT, {"outputs": [name for name, _ in ready], "rows": rows, "reasons": [bad[i] for i in rows]})
        for body in data:
            self.wire.write(frames.ARROW, memoryview(body))


def outputs(value: Any, function: str, schema: pa.Schema) -> dict[str, pa.RecordBatch]:
    """What a function returned, by the names of the outputs."""
    named = value if isinstance(value, Mapping) else {OUTPUT: value}
    return {str(name): returned(one, str(name), schema, function) for name, one in named.items()}


def shown(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in schema)


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
    return {"kind": type(e).__name__, "said": str(e), "plain": plain, "at": lines[-1] if lines else "", "trace": text,
            "place": getattr(e, "place", None)}


def main() -> None:
    wire = frames.Wire(socket.socket(fileno=int(sys.argv[1])))
    try:  # where memory ends, the kernel is to take a worker, which is replaced, and not the runtime
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass
    # What a stage prints is for its author to read: it must never get between the frames, and has its own way.
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_LogLines()])  # level and logger stand beside it
    first = wire.read()
    if first is None:
        return
    task = json.loads(first[1])
    try:
        stage = Stage(Path(task["folder"]))
        if task.get("describe"):  # its settings come when they are known
            wire.write(frames.READY, stage.told())
            if (first := wire.read()) is None:
                return
            task = json.loads(first[1])
        worker = Worker(wire, stage, task["settings"])
    except BaseException as e:  # SystemExit too: whoever calls exit in a stage is to be told
        wire.write(frames.FAILED, said(e, isinstance(e, (StageError, SettingsError, StateError))) | {"settings": isinstance(e, SettingsError)})
        return
    wire.write(frames.READY, stage.told())
    while (frame := wire.read()) is not None:
        if frame[0] == frames.TIME:
            worker.advance(frame[1])
        else:
            worker.process(frame[1])


if __name__ == "__main__":
    main()

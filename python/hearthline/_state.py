"""What a stage remembers: typed values for each key, which the runtime keeps and sends along with the batches."""

from __future__ import annotations

import dataclasses
import datetime
import types
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ._settings import SettingsError, converted

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # what it says is for type checkers alone

    def dataclass_transform(**_: Any) -> Any:
        return lambda cls: cls


ENTRY, KNOWN = "_entry", "_known"

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
MICROSECOND = datetime.timedelta(microseconds=1)
INSTANT = pa.timestamp("us", tz="UTC")

# The types of fields: what the runtime calls them, and their Arrow types.
KINDS: dict[type, tuple[str, pa.DataType]] = {
    bool: ("bool", pa.bool_()),
    int: ("int64", pa.int64()),
    float: ("float64", pa.float64()),
    str: ("text", pa.string()),
    bytes: ("bytes", pa.binary()),
    datetime.datetime: ("instant", INSTANT),
}


class StateError(Exception):
    """A state is declared or used in a way that cannot be. Its text says what to mend."""


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    kind: str
    arrow: pa.DataType
    nullable: bool
    default: Any


@dataclasses.dataclass(frozen=True)
class Declaration:
    name: str
    key: tuple[str, ...]
    ttl: datetime.timedelta
    limit: int
    timer: str
    fields: tuple[Field, ...]

    def told(self) -> dict[str, Any]:
        """As the runtime reads it. Defaults are texts, which say every number as it is."""
        return {
            "name": self.name,
            "key": list(self.key),
            "ttl": self.ttl // MICROSECOND,
            "limit": self.limit,
            "timer": self.timer,
            "fields": [{"name": f.name, "kind": f.kind, "nullable": f.nullable, "default": _text(f.default)} for f in self.fields],
        }


def _text(default: Any) -> str | None:
    if default is None:
        return None
    if isinstance(default, bool):
        return "1" if default else "0"
    if isinstance(default, datetime.datetime):
        return str(micros(default))
    return default.hex() if isinstance(default, bytes) else repr(default) if isinstance(default, float) else str(default)


def micros(at: datetime.datetime) -> int:
    """Microseconds since 1970. A time without a zone could be any."""
    if at.tzinfo is None:
        raise StateError(f"{at} has no time zone: state holds instants, such as datetime.now(timezone.utc) or a batch's own")
    return (at - EPOCH) // MICROSECOND


@dataclass_transform(eq_default=True)
class State:
    """What is remembered for each key. A stage declares its own:

        class Room(hearthline.State, key=("home", "room"), ttl="2h"):
            occupied: bool = False
            since: datetime | None = None
            mean: float = 0.0

    key: columns of the batch. ttl: a key that had no row for so long, by the rows' received times, is forgotten; None is never.
    limit: keys in a partition; rows of more go to the dead letters. timer: a field, datetime | None, that says when advance is to be
    called for the key.

    Fields are bool, int, float, str, bytes (64 KB at most) or datetime (in UTC), or one of them or None. Each has a default, which is what
    a key that is new has, and what keys that are known have of a field that is new.
    """

    _settings: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(
        cls, *, key: str | Sequence[str] = (), ttl: str | datetime.timedelta | None = None, limit: int = 0, timer: str | None = None
    ) -> None:
        super().__init_subclass__()
        cls._settings = {"key": (key,) if isinstance(key, str) else tuple(key), "ttl": ttl, "limit": limit, "timer": timer or ""}
        dataclasses.dataclass(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__dict__["__dataclass_fields__"]:
            raise AttributeError(f"{type(self).__name__} has no field {name}")
        super().__setattr__(name, value)


S = TypeVar("S", bound=State)


def declaration(cls: type[State]) -> Declaration:
    """What a class declares, checked."""
    name = cls.__name__
    ttl = cls._settings["ttl"]
    try:
        ttl = datetime.timedelta(0) if ttl is None else converted(ttl, datetime.timedelta, "ttl")
    except SettingsError as e:
        raise StateError(f"{name}: {e}") from None
    hints = typing.get_type_hints(cls)
    fields = []
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        of, nullable = hints[f.name], False
        if typing.get_origin(of) in (typing.Union, types.UnionType):
            others = [a for a in typing.get_args(of) if a is not type(None)]
            of, nullable = (others[0] if len(others) == 1 else None), type(None) in typing.get_args(of)
        if of not in KINDS:
            raise StateError(f"{name}.{f.name} is {hints[f.name]}; state is of {', '.join(k.__name__ for k in KINDS)}, or one of them or None")
        if f.default is dataclasses.MISSING:
            raise StateError(f"{name}.{f.name} needs a default: it is what a key that is new has")
        if f.default is None and not nullable or f.default is not None and not (isinstance(f.default, of) or of is float and isinstance(f.default, int)):
            raise StateError(f"{name}.{f.name} is {of.__name__}, and its default is {f.default!r}")
        if isinstance(f.default, bool) and of is not bool:
            raise StateError(f"{name}.{f.name} is {of.__name__}, and its default is {f.default!r}")
        default = float(f.default) if of is float and f.default is not None else f.default
        fields.append(Field(f.name, *KINDS[of], nullable, default))
    if not cls._settings["key"]:
        raise StateError(f"{name} needs a key: class {name}(hearthline.State, key=(\"home\", \"device\"))")
    return Declaration(name, cls._settings["key"], ttl, cls._settings["limit"], cls._settings["timer"], tuple(fields))


class Keyed(Generic[S]):
    """The states of a batch's keys. Each distinct key has an entry, and each row of the batch one of them.

    By row: rooms[row] is the state of a row's key, to be changed in place or replaced; del rooms[row] forgets the key.
    By key: rooms.at("home1", "kitchen"), for keys of the batch.
    In columns: rooms.column("mean") has a value for each entry, rooms.index the entry of each row, and
    rooms.set(mean=...) puts a column back, with a value for each entry.

    In advance there is no batch: the rows are the entries themselves.
    """

    def __init__(self, state: type[S], fields: Sequence[Field], taken: pa.RecordBatch, index: pa.Array | None = None) -> None:
        self._state, self._fields = state, {f.name: f for f in fields}
        self._entries: int = taken.num_rows
        self._rows: list[int] | None = None  # index as a list, when it was asked for
        self._index: pa.Array = pa.array(range(self._entries), pa.int32()) if index is None else index
        n = taken.schema.get_field_index(KNOWN)
        self._keys: pa.RecordBatch = taken.select(taken.schema.names[:n])
        self._known: list[bool] = taken.column(n).to_pylist()
        self._columns: dict[str, pa.Array] = {name: taken.column(n + 1 + i) for i, name in enumerate(self._fields)}
        self._lists: list[list[Any]] | None = None  # of the columns
        self._given: dict[int, tuple[S, tuple[Any, ...]]] = {}  # the states that were asked for, and what they were
        self._changed: set[int] = set()
        self._by_key: dict[tuple[Any, ...], int] | None = None

    def __len__(self) -> int:
        """The number of entries."""
        return self._entries

    # By row

    def _entry(self, row: int) -> int:
        if self._rows is None:
            self._rows = self._index.to_pylist()
        return self._rows[row]

    def _get(self, entry: int) -> S:
        if (known := self._given.get(entry)) is not None:
            return known[0]
        if self._lists is None:
            self._lists = [_values(a, f) for a, f in zip(self._columns.values(), self._fields.values())]
        values = tuple(column[entry] for column in self._lists)
        state = self._state.__new__(self._state)
        state.__dict__.update(zip(self._fields, values))
        self._given[entry] = (state, values)
        return state

    def __getitem__(self, row: int) -> S:
        """The state of a row's key. What is changed in it is kept."""
        return self._get(self._entry(row))

    def __setitem__(self, row: int, state: S) -> None:
        if type(state) is not self._state:
            raise StateError(f"{type(state).__name__} is not {self._state.__name__}, the state of this stage")
        self._given[self._entry(row)] = (state, ())

    def __delitem__(self, row: int) -> None:
        self._forget(self._entry(row))

    def _forget(self, entry: int) -> None:
        defaults = tuple(f.default for f in self._fields.values())
        state = self._state.__new__(self._state)
        state.__dict__.update(zip(self._fields, defaults))
        self._given[entry] = (state, defaults)
        self._known[entry] = False
        self._changed.add(entry)

    # By key

    def at(self, *key: Any) -> S:
        """The state of a key of the batch, by the values of its columns. KeyError says that the batch has no row of it."""
        if self._by_key is None:
            columns = [c.to_pylist() for c in self._keys.columns]
            self._by_key = {k: entry for entry, k in enumerate(zip(*columns))}
        return self._get(self._by_key[key])

    def items(self) -> Iterator[tuple[tuple[Any, ...], S]]:
        """All entries: the values of the key's columns, and the state."""
        for entry, key in enumerate(zip(*(c.to_pylist() for c in self._keys.columns))):
            yield key, self._get(entry)

    # In columns

    @property
    def index(self) -> pa.Array:
        """int32, one a row of the batch: its entry. rooms.column("mean").take(rooms.index) has a value for each row."""
        return self._index

    @property
    def keys(self) -> pa.RecordBatch:
        """The columns of the key, one row an entry."""
        return self._keys

    @property
    def known(self) -> pa.Array:
        """bool, one an entry: the key has a state. The others have the defaults."""
        return pa.array(self._known, pa.bool_())

    def column(self, name: str) -> pa.Array:
        """The values of a field, one an entry."""
        self._settle()
        if name not in self._columns:
            raise StateError(f"{self._state.__name__} has no field {name}; it has {', '.join(self._fields)}")
        return self._columns[name]

    def set(self, where: Any = None, /, **columns: Any) -> None:
        """Puts columns back, each with one value an entry. where (bool, one an entry) leaves the others as they are."""
        self._settle()
        mask = None if where is None else _array(where, pa.bool_(), "where")
        for name, values in columns.items():
            was = self.column(name)
            f = self._fields[name]
            made = _array(values, f.arrow, f"{self._state.__name__}.{name}")
            if len(made) != self._entries or mask is not None and len(mask) != self._entries:
                raise StateError(f"{name} has {len(made)} values; there are {self._entries} entries")
            self._columns[name] = made if mask is None else pc.if_else(pc.fill_null(mask, False), made, was)
        changed = range(self._entries) if mask is None else (i for i, x in enumerate(mask.to_pylist()) if x)
        for entry in changed:
            self._known[entry] = True
            self._changed.add(entry)

    def delete(self, where: Any) -> None:
        """Forgets keys. where: bool, one an entry."""
        self._settle()
        for entry, gone in enumerate(_array(where, pa.bool_(), "where").to_pylist()):
            if gone:
                self._forget(entry)

    # For the worker

    def _settle(self) -> None:
        """Writes the states that were given out into the columns."""
        edits: dict[str, dict[int, Any]] = {name: {} for name in self._fields}
        for entry, (state, was) in self._given.items():
            values = tuple(state.__dict__[name] for name in self._fields)
            if values != was:
                self._changed.add(entry)
                self._known[entry] = True
            if entry in self._changed:
                for name, value in zip(self._fields, values):
                    edits[name][entry] = value
        for name, changes in edits.items():
            if changes:
                self._columns[name] = _replaced(self._columns[name], self._fields[name], changes)
        self._given.clear()
        self._lists = None

    def _put(self) -> pa.RecordBatch:
        """What has changed, as the runtime stores it."""
        self._settle()
        entries = pa.array(sorted(self._changed), pa.int32())
        arrays = [entries, self.known.take(entries)]
        for name, f in self._fields.items():
            column = self._columns[name].take(entries)
            if column.null_count and not f.nullable:
                raise StateError(f"{self._state.__name__}.{name} would be None; declare it as {name}: … | None")
            arrays.append(column)
        return pa.RecordBatch.from_arrays(arrays, [ENTRY, KNOWN, *self._fields])


def _values(a: pa.Array, f: Field) -> list[Any]:
    if f.kind != "instant":
        listed: list[Any] = a.to_pylist()
        return listed
    return [None if v is None else EPOCH + v * MICROSECOND for v in a.cast(pa.int64()).to_pylist()]


def _replaced(a: pa.Array, f: Field, changes: dict[int, Any]) -> pa.Array:
    """a with other values at some places."""
    if f.kind == "instant":
        changes = {i: v if v is None else micros(v) for i, v in changes.items()}
        values = a.cast(pa.int64()).to_pylist()
    else:
        values = a.to_pylist()
    for i, v in changes.items():
        values[i] = v
    try:
        return pa.array(values, pa.int64()).cast(f.arrow) if f.kind == "instant" else pa.array(values, f.arrow)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
        raise StateError(f"field {f.name} of the state: {e}") from None


def _array(values: Any, of: pa.DataType, name: str) -> pa.Array:
    """An array of anything that is like one: of pyarrow, numpy, pandas, polars, or a list."""
    try:
        if hasattr(values, "to_arrow"):
            values = values.to_arrow()
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        made = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
        return made if made.type == of else made.cast(of)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
        raise StateError(f"{name}: {e}") from None

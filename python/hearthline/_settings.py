"""Settings of pipeline.yaml as the arguments of a stage's function."""

from __future__ import annotations

import datetime
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any


class SettingsError(Exception):
    """Something is wrong with a setting. Its text begins with the setting's name."""


def bind(functions: Sequence[Callable[..., Any]], own: Sequence[Sequence[str]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The keyword arguments of each function for settings, checked against its annotations. own are the names of each one's
    parameters that are no settings. A setting belongs to one of the functions at least."""
    named = [_named(f, not_these) for f, not_these in zip(functions, own)]
    anything = [f for f, (_, rest) in enumerate(named) if rest]
    known = list(dict.fromkeys(name for parameters, _ in named for name in parameters))
    for name in settings:
        if name not in known and not anything:
            raise SettingsError(f"{name} is no setting of this stage; it has: {', '.join(known) or 'none'}")
    return [
        _bound(function, parameters, {n: v for n, v in settings.items() if n in parameters or n not in known and rest})
        for function, (parameters, rest) in zip(functions, named)
    ]


def _named(function: Callable[..., Any], own: Sequence[str]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a function that are settings, and whether it takes any others."""
    named: dict[str, inspect.Parameter] = {}
    anything = False
    for p in inspect.signature(function).parameters.values():
        if p.name in own:
            continue
        if p.kind is inspect.Parameter.VAR_KEYWORD:
            anything = True
        elif p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            named[p.name] = p
        else:
            raise SettingsError(f"{p.name} cannot be set: settings are given by name")
    return named, anything


def _bound(function: Callable[..., Any], named: dict[str, inspect.Parameter], settings: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    bound = {name: converted(value, hints.get(name, Any) if name in named else Any, name) for name, value in settings.items()}
    for name, p in named.items():
        if name not in bound and p.default is inspect.Parameter.empty:
            raise SettingsError(f"{name} must be set: it has no default")
    return bound


_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def converted(value: Any, to: Any, name: str) -> Any:
    """value as the type of an annotation; no text becomes a number, and no number a text."""
    origin, args = typing.get_origin(to), typing.get_args(to)
    if to is Any or to is inspect.Parameter.empty:
        return value
    if origin in (typing.Union, types.UnionType):
        errors = []
        for one in args:
            try:
                return converted(value, one, name)
            except SettingsError as e:
                errors.append(e)
        raise SettingsError(f"{name} is {shown(value)}; want {typename(to)}")
    if origin is typing.Literal:
        if value in args and any(type(value) is type(a) and value == a for a in args):
            return value
        raise SettingsError(f"{name} is {shown(value)}; want one of {', '.join(map(str, args))}")
    if origin in (list, tuple, set, frozenset) and isinstance(value, list):
        of = args[0] if args else Any
        return origin(converted(v, of, f"{name}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: converted(v, args[1] if len(args) == 2 else Any, f"{name}.{k}") for k, v in value.items()}
    if to is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if to is datetime.timedelta and isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", value)
        if parts and "".join(n + u for n, u in parts) == value:
            return datetime.timedelta(**{_UNITS[u]: float(n) for n, u in parts})
    if to is type(None) and value is None:
        return None
    if isinstance(to, type) and isinstance(value, to) and not (to is int and isinstance(value, bool)):
        return value
    raise SettingsError(f"{name} is {shown(value)}; want {typename(to)}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def typename(t: Any) -> str:
    known = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", datetime.timedelta: "a time such as 30s or 5m",
             type(None): "nothing"}
    if t in known:
        return known[t]
    args = typing.get_args(t)
    if typing.get_origin(t) in (typing.Union, types.UnionType):
        return " or ".join(typename(a) for a in args)
    if typing.get_origin(t) in (list, tuple, set, frozenset):
        return "a list" + (" of " + typename(args[0]).removeprefix("a ") + "s" if args and args[0] in (float, int, str) else "")
    return getattr(t, "__name__", str(t))

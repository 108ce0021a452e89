"""Settings of pipeline.yaml as the arguments of a stage's function."""

from __future__ import annotations

import datetime
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any


class SettingsError(Exception):
    """Something is wrong with a setting. Its text begins with the setting's name."""


def bind(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for settings, checked against the function's annotations."""
    parameters = list(inspect.signature(function).parameters.values())
    hints = typing.get_type_hints(function)
    named: dict[str, inspect.Parameter] = {}
    anything = False
    for p in parameters[1:]:
        if p.kind is inspect.Parameter.VAR_KEYWORD:
            anything = True
        elif p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            named[p.name] = p
        else:
            raise SettingsError(f"{p.name} cannot be set: settings are given by name")
    bound = {}
    for name, value in settings.items():
        if name not in named and not anything:
            known = ", ".join(named) or "none"
            raise SettingsError(f"{name} is no setting of this stage; it has: {known}")
        bound[name] = converted(value, hints.get(name, Any) if name in named else Any, name)
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

"""Rows that a stage cannot use."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class Bad(Exception):
    """Raised by a stage that can use nothing of a batch. The batch goes to the stage's dead letters, with the reason, and
    the stage goes on with the next. Any other exception does the same, and brings its traceback along."""


_rejected: contextvars.ContextVar[dict[int, str]] = contextvars.ContextVar("rejected")


def reject(rows: pa.BooleanArray | pa.ChunkedArray | Iterable[Any], reason: str) -> None:
    """Sends rows of the batch in hand to the stage's dead letters, each with the reason.

    rows: a mask (booleans, one a row of the batch; null is false), or the rows' indices. What the stage returns is no
    other for it: leave them out there.
    """
    try:
        bad = _rejected.get()
    except LookupError:
        raise RuntimeError("reject is called while a batch is processed") from None
    if isinstance(rows, (pa.Array, pa.ChunkedArray)):
        indices = pc.indices_nonzero(pc.fill_null(rows, False)).to_pylist() if pa.types.is_boolean(rows.type) else rows.to_pylist()
    else:
        listed = rows.tolist() if hasattr(rows, "tolist") else list(rows)
        masks = bool(listed) and all(isinstance(x, bool) for x in listed)
        indices = [i for i, x in enumerate(listed) if x] if masks else listed
    for i in indices:
        bad.setdefault(int(i), str(reason))

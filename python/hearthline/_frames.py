"""How the runtime and a worker talk: frames of one byte that says what it is, four that say how long, little endian."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct("<cI")

# From the runtime.
OPEN = b"O"  # JSON: what to be
BATCH = b"B"  # an Arrow IPC stream of one record batch; where the stage keeps state, STATE and INDEX follow
TIME = b"T"  # JSON: the watermark; STATE follows
STATE = b"S"  # an Arrow IPC stream: the states of some keys
INDEX = b"I"  # int32, little endian: for each row of the batch, its key's row in STATE

# From a worker.
READY = b"Y"  # JSON: it can work
FAILED = b"F"  # JSON: it cannot
RESULT = b"R"  # JSON: outputs, in order, each followed by a frame ARROW; rejected rows; where the stage keeps state, a last ARROW has it
ARROW = b"A"  # an Arrow IPC stream
RAISED = b"X"  # JSON: the function raised


class Wire:
    """One end of a socket. It is used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in = sock.makefile("rb", buffering=1 << 16)

    def read(self) -> tuple[bytes, bytes] | None:
        """The next frame, or None when the other end is closed."""
        head = self._in.read(HEADER.size)
        if len(head) < HEADER.size:
            return None
        kind, size = HEADER.unpack(head)
        body = self._in.read(size)
        return None if len(body) < size else (kind, body)

    def write(self, kind: bytes, body: Any) -> None:
        """body: bytes, or what JSON can say."""
        if not isinstance(body, (bytes, memoryview)) and not hasattr(body, "to_pybytes"):
            body = json.dumps(body).encode()
        view = memoryview(body)
        self._sock.sendall(HEADER.pack(kind, view.nbytes))
        self._sock.sendall(view)

"""Says when a room becomes occupied, and when nobody has moved for a while."""

from datetime import datetime, timedelta

import hearthline
import pyarrow as pa


class Room(hearthline.State, key=("home", "device"), ttl="2h", timer="quiet_at"):
    occupied: bool = False
    since: datetime | None = None
    quiet_at: datetime | None = None
    moves: int = 0
    mean: float = 0.0
    label: str = "room"
    raw: bytes = b"\x00"


INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema([("time", INSTANT), ("home", pa.string()), ("device", pa.string()), ("metric", pa.string()), ("occupied", pa.bool_()), ("moves", pa.int64())])


def process(readings: pa.RecordBatch, rooms: hearthline.Keyed[Room], quiet: timedelta = timedelta(minutes=10)) -> pa.RecordBatch:
    out = []
    for row, r in enumerate(readings.to_pylist()):
        room = rooms[row]
        if room.quiet_at and r["received"] > room.quiet_at:  # time has not been told yet, and had passed
            out.append(left(r["home"], r["device"], room))
        if not r["value"]:
            continue
        if r["value"] < 0:
            del rooms[row]
            continue
        room.moves += 1
        room.mean += (r["value"] - room.mean) / room.moves
        if not room.occupied:
            room.occupied, room.since = True, r["time"]
            out.append({"time": r["time"], "home": r["home"], "device": r["device"], "metric": r["metric"], "occupied": True, "moves": room.moves})
        room.quiet_at = r["received"] + quiet
    return pa.RecordBatch.from_pylist(out, SCHEMA)


def advance(watermark: datetime, rooms: hearthline.Keyed[Room]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([left(home, device, room) for (home, device), room in rooms.items()], SCHEMA)


def left(home: str, device: str, room: Room) -> dict:
    at, room.quiet_at, room.occupied, room.since = room.quiet_at, None, False, None
    return {"time": at, "home": home, "device": device, "metric": "motion", "occupied": False, "moves": room.moves}

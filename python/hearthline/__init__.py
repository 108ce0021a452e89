"""What a Python stage of a Hearthline pipeline may use. A stage is a file, stages/<name>/stage.py, with one function:

    import pyarrow as pa
    import pyarrow.compute as pc

    def process(readings: pa.RecordBatch, above: float = 30.0) -> pa.RecordBatch:
        return readings.filter(pc.greater(readings["value"], above))

Its first parameter is a batch: a pyarrow.RecordBatch, or a pandas.DataFrame or a polars.DataFrame where it is annotated as
one. The others are its settings in pipeline.yaml, checked against their annotations. It returns a batch, or a dict
of them by the names of its outputs. Given a batch without rows it returns one without rows: so the pipeline learns the
schema. What it returns depends on nothing but what it is given: no clock, no chance, no files that change.

What it is to remember it declares, and gets with each batch for the batch's keys:

    class Room(hearthline.State, key=("home", "device"), ttl="2h"):
        last: float = 0.0

    def process(readings: pa.RecordBatch, rooms: hearthline.Keyed[Room], above: float = 30.0) -> pa.RecordBatch:
"""

from ._rows import Bad, reject
from ._state import Keyed, State, StateError

__all__ = ["Bad", "Keyed", "State", "StateError", "reject"]

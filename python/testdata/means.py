"""A running mean of each device, in columns."""

import hearthline
import pyarrow as pa
import pyarrow.compute as pc


class Mean(hearthline.State, key=("home", "device"), ttl="1h"):
    n: int = 0
    sum: float = 0.0


def process(readings: pa.RecordBatch, means: hearthline.Keyed[Mean]) -> pa.RecordBatch:
    rows = pa.table({"entry": means.index, "value": readings["value"]})
    by = rows.group_by("entry").aggregate([("value", "sum"), ("value", "count")]).sort_by("entry").combine_chunks()
    means.set(n=pc.add(means.column("n"), by["value_count"].combine_chunks()), sum=pc.add(means.column("sum"), by["value_sum"].combine_chunks()))
    out = means.keys.set_column(0, "home", means.keys["home"]).append_column("n", means.column("n"))
    return out.append_column("mean", pc.divide(means.column("sum"), pc.cast(means.column("n"), pa.float64())))

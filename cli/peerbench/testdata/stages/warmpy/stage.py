import pyarrow as pa
import pyarrow.compute as pc


def process(raw: pa.RecordBatch) -> pa.RecordBatch:
    warm = raw.filter(pc.equal(raw["metric"], "temperature"))
    fahrenheit = pc.add(pc.multiply(warm["value"], 1.8), 32.0)
    columns = [warm["time"], warm["home"], warm["device"], fahrenheit]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([raw.schema.field(n) for n in ("time", "home", "device", "value")]))

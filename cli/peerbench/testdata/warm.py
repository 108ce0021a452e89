"""Quix Streams doing the work: temperatures, in Fahrenheit. Arguments: brokers, guarantee."""

import sys

from quixstreams import Application

app = Application(
    broker_address=sys.argv[1],
    consumer_group="quix-" + sys.argv[2],
    auto_offset_reset="earliest",
    processing_guarantee=sys.argv[2],
    loglevel="WARNING",
)
events = app.dataframe(app.topic("json", value_deserializer="json"))
events = events[events["metric"] == "temperature"]
events = events.apply(lambda e: {"time": e["time"], "home": e["home"], "device": e["device"], "value": e["value"] * 1.8 + 32.0})
events.to_topic(app.topic("out-quix-" + sys.argv[2], value_serializer="json"))
app.run()

-- What dashboards ask for most, kept ready by views that see each insert once. Read the rollups through their views of
-- 0003: a rollup's rows are parts of sums until a merge has joined them.

CREATE TABLE IF NOT EXISTS readings_1m (
    start    DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    home     LowCardinality(String),
    device   LowCardinality(String),
    metric   LowCardinality(String),
    room     SimpleAggregateFunction(anyLast, LowCardinality(String)),
    rows     SimpleAggregateFunction(sum, UInt64) CODEC(ZSTD(1)),
    total    SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    lowest   SimpleAggregateFunction(min, Float64) CODEC(ZSTD(1)),
    highest  SimpleAggregateFunction(max, Float64) CODEC(ZSTD(1)),
    newest   AggregateFunction(argMax, Float64, DateTime64(6, 'UTC')) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(start)
ORDER BY (home, device, metric, start)
SETTINGS {{settings}};

CREATE TABLE IF NOT EXISTS readings_1h AS readings_1m;

CREATE MATERIALIZED VIEW IF NOT EXISTS readings_1m_mv TO readings_1m AS
SELECT
    toStartOfMinute(time) AS start, home, device, metric,
    anyLast(room) AS room,
    count() AS rows,
    sum(assumeNotNull(value)) AS total,
    min(assumeNotNull(value)) AS lowest,
    max(assumeNotNull(value)) AS highest,
    argMaxState(assumeNotNull(value), time) AS newest
FROM readings
WHERE isFinite(value)
GROUP BY start, home, device, metric;

CREATE MATERIALIZED VIEW IF NOT EXISTS readings_1h_mv TO readings_1h AS
SELECT
    toStartOfHour(time) AS start, home, device, metric,
    anyLast(room) AS room,
    count() AS rows,
    sum(assumeNotNull(value)) AS total,
    min(assumeNotNull(value)) AS lowest,
    max(assumeNotNull(value)) AS highest,
    argMaxState(assumeNotNull(value), time) AS newest
FROM readings
WHERE isFinite(value)
GROUP BY start, home, device, metric;

-- The latest state of every series: a row for each series of an insert, of which a merge keeps the newest.
CREATE TABLE IF NOT EXISTS latest (
    home      LowCardinality(String),
    device    LowCardinality(String),
    metric    LowCardinality(String),
    time      DateTime64(6, 'UTC'),
    received  DateTime64(6, 'UTC'),
    value     Nullable(Float64),
    text      LowCardinality(String),
    unit      LowCardinality(String),
    room      LowCardinality(String),
    kind      LowCardinality(String),
    model     LowCardinality(String),
    zone      LowCardinality(String)
) ENGINE = ReplacingMergeTree(time)
ORDER BY (home, device, metric)
SETTINGS {{settings}};

CREATE MATERIALIZED VIEW IF NOT EXISTS latest_mv TO latest AS
SELECT
    home, device, metric,
    newest.1 AS time, newest.2 AS received, newest.3 AS value, newest.4 AS text, newest.5 AS unit,
    newest.6 AS room, newest.7 AS kind, newest.8 AS model, newest.9 AS zone
FROM (
    SELECT home, device, metric,
        argMax((time, received, value, text, unit, room, kind, model, zone), (time, received)) AS newest
    FROM readings
    GROUP BY home, device, metric
);

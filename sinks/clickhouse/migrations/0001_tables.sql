-- The streams of the default pipeline, a row each. Sorted by series, so that the columns of a series compress as one and
-- a home's rows stand together; a partition a day, so that old days are dropped whole. Every table
-- remembers the tokens of its last inserts: a range that is written again changes nothing.

CREATE TABLE IF NOT EXISTS readings (
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    received    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    home        LowCardinality(String),
    device      LowCardinality(String),
    metric      LowCardinality(String),
    value       Nullable(Float64) CODEC(ZSTD(1)),
    text        LowCardinality(String),
    unit        LowCardinality(String),
    seq         Nullable(Int64) CODEC(Delta(8), ZSTD(1)),
    attributes  Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    room        LowCardinality(String),
    kind        LowCardinality(String),
    model       LowCardinality(String),
    zone        LowCardinality(String)
) ENGINE = MergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (home, device, metric, time)
SETTINGS {{settings}};

-- Readings that came after their window was closed.
CREATE TABLE IF NOT EXISTS late AS readings;

CREATE TABLE IF NOT EXISTS features (
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    received    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    home        LowCardinality(String),
    device      LowCardinality(String),
    metric      LowCardinality(String),
    window      LowCardinality(String),
    window_end  DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    count       Int64 CODEC(ZSTD(1)),
    mean        Nullable(Float64) CODEC(ZSTD(1)),
    std         Nullable(Float64) CODEC(ZSTD(1)),
    min         Nullable(Float64) CODEC(ZSTD(1)),
    max         Nullable(Float64) CODEC(ZSTD(1)),
    last        Nullable(Float64) CODEC(ZSTD(1)),
    slope       Nullable(Float64) CODEC(ZSTD(1)),
    rate        Nullable(Float64) CODEC(ZSTD(1)),
    since_last  Nullable(Float64) CODEC(ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (home, device, metric, window, time)
SETTINGS {{settings}};

CREATE TABLE IF NOT EXISTS scores (
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    received    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    home        LowCardinality(String),
    device      LowCardinality(String),
    metric      LowCardinality(String),
    value       Nullable(Float64) CODEC(ZSTD(1)),
    seq         Nullable(Int64) CODEC(Delta(8), ZSTD(1)),
    score       Nullable(Float64) CODEC(ZSTD(1)),
    model       LowCardinality(String)
) ENGINE = MergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (home, device, metric, time)
SETTINGS {{settings}};

-- Few rows that are kept for long: a partition a month.
CREATE TABLE IF NOT EXISTS alerts (
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    received    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    home        LowCardinality(String),
    device      LowCardinality(String),
    metric      LowCardinality(String),
    id          String,
    state       LowCardinality(String),
    severity    LowCardinality(String),
    score       Nullable(Float64),
    value       Nullable(Float64),
    threshold   Nullable(Float64),
    started     DateTime64(6, 'UTC')
) ENGINE = MergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (home, device, metric, time)
SETTINGS {{settings}};

-- The dead letters of all stages. By the day they came: the event time of a row that was refused may be any year.
CREATE TABLE IF NOT EXISTS dead (
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    received    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    stage       LowCardinality(String),
    reason      LowCardinality(String),
    stream      LowCardinality(String),
    partition   Int32,
    offset      Int64,
    row         Int32,
    home        LowCardinality(String),
    device      LowCardinality(String),
    body        String CODEC(ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toYYYYMMDD(received)
ORDER BY (stage, received, home, device)
SETTINGS {{settings}};

-- Plain rows for people and dashboards.

CREATE OR REPLACE VIEW readings_1m_view AS
SELECT
    start AS time, home, device, metric, anyLast(room) AS room,
    sum(rows) AS count, sum(total) / sum(rows) AS mean,
    min(lowest) AS min, max(highest) AS max, argMaxMerge(newest) AS last
FROM readings_1m
GROUP BY start, home, device, metric;

CREATE OR REPLACE VIEW readings_1h_view AS
SELECT
    start AS time, home, device, metric, anyLast(room) AS room,
    sum(rows) AS count, sum(total) / sum(rows) AS mean,
    min(lowest) AS min, max(highest) AS max, argMaxMerge(newest) AS last
FROM readings_1h
GROUP BY start, home, device, metric;

CREATE OR REPLACE VIEW latest_view AS
SELECT time, home, device, metric, value, text, unit, room, kind, model, zone, received
FROM latest FINAL;

-- The last word of every series that ever had an alert; state says whether it still stands.
CREATE OR REPLACE VIEW alerts_view AS
SELECT
    home, device, metric,
    newest.1 AS time, newest.2 AS state, newest.3 AS severity, newest.4 AS id, newest.5 AS started,
    newest.6 AS score, newest.7 AS value, newest.8 AS threshold
FROM (
    SELECT home, device, metric,
        argMax((time, state, severity, id, started, score, value, threshold), (time, received, state)) AS newest
    FROM alerts
    GROUP BY home, device, metric
);

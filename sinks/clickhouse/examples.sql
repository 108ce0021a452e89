-- last_temperature_by_room: The last temperature in every room
SELECT home, room, argMax(value, time) AS celsius, max(time) AS measured
FROM latest_view
WHERE metric = 'temperature'
GROUP BY home, room
ORDER BY home, room
LIMIT 50;

-- hourly_mean: Hourly means of every metric
SELECT time, metric, sum(mean * count) / sum(count) AS mean, min(min) AS min, max(max) AS max, sum(count) AS readings
FROM readings_1h_view
GROUP BY time, metric
ORDER BY time DESC, metric
LIMIT 50;

-- top_anomalies: The readings that surprised the model most
SELECT time, home, device, metric, value, round(score, 3) AS score, model
FROM scores
ORDER BY score DESC, time
LIMIT 20;

-- firing_alerts: Alerts that stand now
SELECT started, home, device, metric, severity, value, round(score, 3) AS score, threshold
FROM alerts_view
WHERE state = 'firing'
ORDER BY started DESC
LIMIT 50;

-- one_series: One device, minute by minute
SELECT time, mean, min, max, last
FROM readings_1m_view
WHERE (home, device, metric) = (SELECT home, device, metric FROM latest_view ORDER BY time DESC LIMIT 1)
ORDER BY time DESC
LIMIT 60;

-- why_dead: What was refused, and why
SELECT stage, reason, count() AS rows, max(received) AS last, anyLast(body) AS example
FROM dead
GROUP BY stage, reason
ORDER BY rows DESC
LIMIT 20;

-- where_the_room_goes: Bytes on disk, a table and a row
SELECT table, sum(p.rows) AS rows, formatReadableSize(sum(bytes_on_disk)) AS disk, round(sum(bytes_on_disk) / sum(p.rows), 2) AS bytes_a_row
FROM system.parts AS p
WHERE active AND database = currentDatabase()
GROUP BY table
ORDER BY sum(bytes_on_disk) DESC;

-- From commit at the source to readable in the lake, per minute of commit time: half, 90 % and 99 % of the row changes took at most so long.
SELECT
    toStartOfMinute(committed) AS minute,
    sum(`rows`) AS changes,
    quantilesTDigestWeighted(0.5, 0.9, 0.99)(date_diff('microsecond', committed, readable) / 1000, toUInt64(`rows`)) AS p50_p90_p99_ms
FROM lakesync_times
WHERE pipeline = {pipeline:String} AND committed >= now() - INTERVAL 1 HOUR AND readable > '1971-01-01' AND `rows` > 0
GROUP BY minute
ORDER BY minute

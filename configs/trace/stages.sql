-- Where the time goes: the median row change's way from stage to stage, ms, table by table, over a day.
SELECT
    `table`,
    sum(`rows`) AS changes,
    round(quantileTDigestWeighted(0.5)(date_diff('microsecond', committed, captured) / 1000, toUInt64(`rows`)), 1) AS to_captured_ms,
    round(quantileTDigestWeighted(0.5)(date_diff('microsecond', captured, logged) / 1000, toUInt64(`rows`)), 1) AS to_logged_ms,
    round(quantileTDigestWeighted(0.5)(date_diff('microsecond', logged, merged) / 1000, toUInt64(`rows`)), 1) AS to_merged_ms,
    round(quantileTDigestWeighted(0.5)(date_diff('microsecond', merged, readable) / 1000, toUInt64(`rows`)), 1) AS to_readable_ms
FROM lakesync_times
WHERE pipeline = {pipeline:String} AND committed >= now() - INTERVAL 1 DAY AND readable > '1971-01-01' AND `rows` > 0
GROUP BY `table`
ORDER BY changes DESC

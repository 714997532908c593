-- What is in the log and not yet in the lake, by table: row changes, and since when the oldest of them was committed.
SELECT
    `table`,
    sum(`rows`) AS changes,
    min(committed) AS oldest,
    date_diff('second', min(committed), now()) AS seconds
FROM lakesync_times
WHERE pipeline = {pipeline:String} AND committed >= now() - INTERVAL 1 DAY AND readable < '1971-01-01'
GROUP BY `table`
ORDER BY oldest

-- Row changes and bytes per minute of commit time, table by table, as the log has them.
SELECT
    minute,
    `table`,
    sum(rows_out) AS changes,
    sum(inserts) AS inserted,
    sum(updates) AS updated,
    sum(deletes) AS deleted,
    sum(bytes_out) AS bytes
FROM lakesync_minutes
WHERE pipeline = {pipeline:String} AND node = 'log' AND minute >= now() - INTERVAL 1 HOUR
GROUP BY minute, `table`
ORDER BY minute, `table`

-- What went into and out of every node in a day. Between two nodes nothing may be lost: out of capture is into log.
SELECT
    node,
    `table`,
    sum(rows_in) AS into_rows,
    sum(rows_out) AS out_rows,
    formatReadableSize(sum(bytes_in)) AS into_bytes,
    formatReadableSize(sum(bytes_out)) AS out_bytes
FROM lakesync_minutes
WHERE pipeline = {pipeline:String} AND minute >= now() - INTERVAL 1 DAY
GROUP BY node, `table`
ORDER BY indexOf(['source', 'capture', 'window', 'log', 'merge', 'snapshot'], node), `table`

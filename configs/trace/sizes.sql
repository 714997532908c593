-- Rows that every table of the lake has, and when it was written to last.
SELECT
    `table`,
    argMax(live_after, done) AS live_rows,
    max(version) AS newest_version,
    max(done) AS written
FROM lakesync_ledger
WHERE pipeline = {pipeline:String} AND node IN ('merge', 'snapshot')
GROUP BY `table`
ORDER BY live_rows DESC

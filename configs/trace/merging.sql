-- What merging did with the changes it took in, in a day: how many a later one of the same commit replaced, how many the table had already, and
-- what the others did to it.
SELECT
    `table`,
    sum(rows_in) AS merged,
    sum(superseded) AS replaced_before,
    sum(duplicate) AS had_already,
    sum(inserted) AS rows_inserted,
    sum(replaced) AS rows_replaced,
    sum(removed) AS rows_removed
FROM lakesync_minutes
WHERE pipeline = {pipeline:String} AND node = 'merge' AND minute >= now() - INTERVAL 1 DAY
GROUP BY `table`
ORDER BY merged DESC

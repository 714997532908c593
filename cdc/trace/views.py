"""The trace's views: plain ones, made of what is in the tables at the moment that they are asked. A row that was written twice counts once.

`lakesync_ledger` has every row once, and the newest of every node and table for good. `lakesync_minutes` adds rows and bytes up by minute of
commit time, `lakesync_times` says when each epoch's changes of a table were where.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cdc.trace.tables import NEWEST, NODES

LEDGER: Final = "lakesync_ledger"
MINUTES: Final = "lakesync_minutes"
TIMES: Final = "lakesync_times"

_KEY = "pipeline, node, `table`, hash"

_SUMS = (
    "rows_in, rows_out, bytes_in, bytes_out, inserts, updates, deletes, key_changes, reads, inserted, replaced, removed, absent, superseded,"
    " duplicate, effective, transactions, events"
)

_SELECTS: Final = {
    # A row that both have is taken from lakesync_nodes: that is where a rebuilt one comes first.
    LEDGER: f"""
SELECT * FROM {NODES} FINAL
UNION ALL
SELECT * FROM {NEWEST} FINAL
WHERE ({_KEY}) NOT IN (SELECT {_KEY} FROM {NODES} WHERE ({_KEY}) IN (SELECT {_KEY} FROM {NEWEST} FINAL))
""",
    MINUTES: f"""
SELECT
    pipeline, node, `table`, toStartOfMinute(committed) AS minute,
    count() AS entries, {", ".join(f"sum({name.strip()}) AS {name.strip()}" for name in _SUMS.split(","))}
FROM {NODES} FINAL
GROUP BY pipeline, node, `table`, minute
""",
    # Rows of windowed reads are no changes of that time, and are left out.
    # The first commit of the lake that has the epoch is the one with the lowest number at or above the epoch's. A table that was begun anew
    # has commits of another lake_id: only the newest one's can be read. 1970 stands for: not yet.
    TIMES: f"""
SELECT
    l.pipeline AS pipeline, l.`table` AS `table`, l.number AS number, l.hash AS hash,
    l.inserts + l.updates + l.deletes + l.reads - l.windowed AS `rows`, l.bytes_out AS bytes,
    l.committed AS committed, l.captured AS captured, l.logged AS logged,
    if(m.first_number <= l.number, m.merged, toDateTime64(0, 6, 'UTC')) AS merged,
    if(m.first_number <= l.number, m.readable, toDateTime64(0, 6, 'UTC')) AS readable
FROM (SELECT * FROM {NODES} FINAL WHERE node = 'log') AS l
ASOF LEFT JOIN (
    SELECT pipeline, `table`, log, number, first_number, merged, readable FROM {NODES} FINAL
    WHERE node = 'merge' AND kind = 'merge' AND (pipeline, `table`, lake_id) IN (
        SELECT pipeline, `table`, argMax(lake_id, done) FROM {NODES}
        WHERE node IN ('merge', 'snapshot') GROUP BY pipeline, `table`)
) AS m ON l.pipeline = m.pipeline AND l.`table` = m.`table` AND l.log = m.log AND l.number <= m.number
""",
}


def views() -> dict[str, tuple[str, str]]:
    """By name: the mark that its comment bears, and the statement that makes or replaces it."""
    found = {}
    for name, select in _SELECTS.items():
        mark = f"lakesync {hashlib.sha256(select.encode()).hexdigest()[:16]}"
        found[name] = mark, f"CREATE OR REPLACE VIEW {name} AS {select.strip()} COMMENT '{mark}'"
    return found

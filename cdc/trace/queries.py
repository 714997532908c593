"""What reports ask the trace: how many rows went through which node, and how long they took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from cdc.trace.tables import NODES
from cdc.trace.views import TIMES

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Stage = Literal["captured", "logged", "merged", "readable"]
STAGES: Final[tuple[Stage, ...]] = ("captured", "logged", "merged", "readable")


@dataclass(frozen=True)
class Flow:
    """Rows and bytes into and out of one node, of one table (its id; empty at the source, which counts no rows). At node `lake` what
    went in are rows of files that were added, and out those that were deleted, both as the files have them."""

    node: str
    table: str
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    inserts: int
    updates: int
    deletes: int
    reads: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """How long row changes with a commit time from `at_us` on took from there to a stage, ms: half, 90 % and 99 % of them at most so long.
    `table` is its id; empty: all of them. `rows` have come so far."""

    at_us: int
    table: str
    stage: Stage
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_SUMS = ", ".join(
    f"sum({name})"
    for name in ("rows_in", "rows_out", "bytes_in", "bytes_out", "inserts", "updates", "deletes", "reads")
)
_SINCE = "pipeline = {p:String} AND committed >= fromUnixTimestamp64Micro({since:Int64})"
_NEWEST_LAKE = (
    f"(`table`, lake_id) IN (SELECT `table`, argMax(lake_id, done) FROM {NODES} WHERE pipeline = {{p:String}} AND node IN ('merge', 'snapshot')"
    " GROUP BY `table`)"
)


def flow(client: Client, pipeline: str, since_us: int = 0) -> list[Flow]:
    """Per node and table, of epochs with a commit time from `since_us` on. What a merge took in has the bytes that the log has of these
    epochs. Of a table whose folder was begun anew only the newest one's commits count. Raises as the client."""
    asked = {"p": pipeline, "since": since_us}
    rows = client.query(
        f"SELECT node, `table`, {_SUMS} FROM {NODES} FINAL WHERE {_SINCE} AND (lake_id = '' OR {_NEWEST_LAKE})"
        " GROUP BY node, `table` ORDER BY node, `table`",
        parameters=asked,
    ).result_rows
    merged = client.query(
        f"SELECT `table`, sum(bytes) FROM {TIMES} WHERE {_SINCE} AND merged > '1971-01-01' GROUP BY `table`",
        parameters=asked,
    ).result_rows
    held = {str(table): int(size) for table, size in merged}
    found = [Flow(str(row[0]), str(row[1]), *map(int, row[2:])) for row in rows]
    found = [replace(f, bytes_in=held.get(f.table, 0)) if f.node == "merge" else f for f in found]
    files = client.query(
        f"SELECT `table`, sum(rows_added), sum(rows_deleted), sum(bytes) FROM {NODES} FINAL WHERE {_SINCE}"
        f" AND node IN ('merge', 'snapshot') AND {_NEWEST_LAKE} GROUP BY `table` ORDER BY `table`",
        parameters=asked,
    ).result_rows
    found += [
        Flow("lake", str(table), int(added), int(deleted), int(size), 0, 0, 0, 0, 0)
        for table, added, deleted, size in files
    ]
    return found


def latency(client: Client, pipeline: str, since_us: int, bucket_s: int) -> list[Latency]:
    """By stage and `bucket_s` seconds of commit time, of each table and of all (`table` empty), oldest first. Raises as the client."""
    query = (
        "SELECT toInt64(toUnixTimestamp(toStartOfInterval(committed, toIntervalSecond({b:UInt32})))) AS at, `table`,"
        + ", ".join(
            f"quantilesTDigestWeightedIf(0.5, 0.9, 0.99)(greatest(0, date_diff('microsecond', committed, {stage})) / 1000, toUInt64(`rows`),"
            f" {stage} > '1971-01-01' AND `rows` > 0), sumIf(`rows`, {stage} > '1971-01-01')"
            for stage in STAGES
        )
        + f" FROM {TIMES} WHERE {_SINCE} AND committed > '1971-01-01' GROUP BY GROUPING SETS ((at, `table`), (at)) ORDER BY at, `table`"
    )
    found = []
    answer = client.query(query, parameters={"p": pipeline, "since": since_us, "b": max(1, bucket_s)})
    for at, table, *stages in answer.result_rows:
        for stage, quantiles, rows in zip(STAGES, stages[::2], stages[1::2], strict=True):
            if rows:
                p50, p90, p99 = (round(float(ms), 1) for ms in quantiles)
                found.append(Latency(int(at) * 1_000_000, str(table), stage, p50, p90, p99, int(rows)))
    return found

"""The trace's rows: what a commit record and a lake commit say of every node, and what the log's data holds when it is read back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from cdc.epoch import CommitRecord, Counts
from cdc.lake.changes import Effects
from cdc.lake.info import FOLLOWING
from cdc.log.base import Log
from cdc.trace import framing
from cdc.trace.counting import ShortError, count
from cdc.trace.lake import LakeCommit
from cdc.trace.tables import ARROW, NEWEST, NODES
from cdc.trace.views import LEDGER

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Row = Mapping[str, Any]

HEAD = 64 * 1024
"""Bytes of a record that are read at first: of some ten thousand rows the operations are among them."""
_MEASURED = ("rows_added", "rows_deleted", "live_before", "live_after")
_OUT = ("inserted", "replaced", "removed")
"""What a merge did to rows of the table, by looking their keys up."""
_TIMES = frozenset(field.name for field in ARROW if pa.types.is_timestamp(field.type))


class Rows:
    """Rows that wait for an INSERT, and the newest of every node and table among them. As JSON, since a row names a third of the columns, and
    Arrow's arrays of Python's objects bring pandas in, which takes a quarter of a second."""

    def __init__(self) -> None:
        self.written = 0
        self._rows: list[bytes] = []
        self._newest: dict[tuple[str, str], bytes] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        """One more; times are µs since 1970. Columns that it does not name are 0, empty or 1970, `version` -1."""
        line = orjson.dumps(_NO_VERSION | {n: v / 1_000_000 if n in _TIMES else v for n, v in row.items()})
        self._rows.append(line)
        self._newest[row["node"], row.get("table", "")] = line

    def write(self, client: Client) -> None:
        """Insert all of them, then the newest. Raises as the client."""
        for table, rows in ((NODES, self._rows), (NEWEST, [*self._newest.values()])):
            client.raw_insert(table, insert_block=b"\n".join(rows), fmt="JSONEachRow", settings=_SETTINGS)
        self.written += len(self._rows)
        self._rows.clear()
        self._newest.clear()


_NO_VERSION = {"version": -1}
_SETTINGS = {"input_format_defaults_for_omitted_fields": 1, "date_time_input_format": "basic"}


def record_rows(pipeline: str, record: CommitRecord, log: Log) -> Iterator[Row]:
    """Of an epoch: nodes source, capture, window, log. Raises `LogError`."""
    common = {
        "pipeline": pipeline,
        "hash": record.hash,
        "log": record.log,
        "number": record.number,
        "first_number": record.number,
        "before": record.before or "",
        "committed": record.raw_us,
        "done": record.written_us,
        "captured": record.captured_us,
        "logged": record.written_us,
    }
    counts = record.framing
    yield common | {
        "node": "source",
        "transactions": counts.get("transactions", 0),
        "gtids": len(record.end.gtids.subtract(record.start.gtids)),
        "events": counts.get("events", 0),
        "bytes": counts.get("bytes", 0),
        "bytes_out": counts.get("bytes", 0),
        "total": record.framing_totals.get("transactions", 0),
        **framing.source(record),
    }
    for table, entry in record.tables.items():
        yield common | {
            "node": "capture",
            "table": table,
            **entry.rows._asdict(),
            "total": entry.totals.changes,
            "totals": entry.totals._asdict(),
            "bytes": entry.extent.bytes,
            "rows_in": entry.rows.changes,
            "rows_out": entry.rows.changes,
            "bytes_out": entry.extent.bytes,
        }
        if windows := record.windows.get(table):
            read, emitted = sum(w.read for w in windows), sum(w.emitted for w in windows)
            yield common | {
                "node": "window",
                "table": table,
                "total": read,
                "windowed": emitted,
                "superseded": read - emitted,
                "rows_in": read,
                "rows_out": emitted,
            }
        heads = log.heads(table, entry.extent, HEAD)
        try:
            counted = count((head for head, _ in heads), whole=False)
        except ShortError:
            counted = count(log.data(table, entry.extent))
        yield common | {
            "node": "log",
            "table": table,
            **counted,
            "bytes": entry.extent.bytes,
            "events": entry.extent.records,
            "rows_in": entry.rows.changes,
            "rows_out": sum(counted[operation] for operation in Counts._fields),
            "bytes_in": entry.extent.bytes,
            "bytes_out": sum(length for _, length in heads),
        }


def lake_row(pipeline: str, table: str, commit: LakeCommit) -> Row:
    """Of a lake commit: node merge, or snapshot where it does not go on from what was before."""
    info, counts, totals = commit.info, commit.info["counts"], commit.info["totals"]
    effects = ("key_changes", *Effects._fields)
    merged = Counts(*counts["logged"])
    follows = info["kind"] in FOLLOWING
    added = counts.get("rows_added", 0)
    return {
        "pipeline": pipeline,
        "node": "merge" if follows else "snapshot",
        "table": table,
        "kind": info["kind"],
        # A version of its own: a table that is bootstrapped twice at one epoch has two rows.
        "hash": f"{info['hash']}@{commit.version}",
        "log": info["log"],
        "number": info["epoch"],
        "first_number": info.get("first_epoch", info["epoch"]),
        "committed": info["raw_us"],
        "done": info["committed_us"],
        "merged": info["committed_us"],
        "readable": max(commit.readable_us or 0, info["committed_us"]),  # some stores give whole seconds
        **merged._asdict(),
        "total": sum(totals["logged"]),
        "totals": Counts(*totals["logged"])._asdict() | {name: n for name, n in totals.items() if name != "logged"},
        "bytes": counts.get("bytes_added", 0),
        **{name: counts.get(name, 0) for name in ("superseded", "duplicate", "effective", *effects, *_MEASURED)},
        "foreign": counts.get("foreign", 0),
        "rows_in": merged.changes if follows else added,
        "rows_out": sum(counts.get(name, 0) for name in _OUT) if follows else added,
        "bytes_out": counts.get("bytes_added", 0),
        "version": commit.version,
        "lake_id": commit.lake_id,
    }


def disown(client: Client, pipeline: str, table: str, lake_id: str, first: int, hashes: Collection[str]) -> None:
    """Say of rows that they are of no commit of the table any more: those with a version from `first` on that are not among `hashes`, which
    are all that the lake has. It was put back to an older state, and went on from there. Raises as the client."""
    query = (
        f"SELECT hash FROM {LEDGER} WHERE pipeline = {{p:String}} AND `table` = {{t:String}} AND lake_id = {{l:String}}"
        " AND node IN ('merge', 'snapshot') AND version >= {v:Int64}"
    )
    asked = {"p": pipeline, "t": table, "l": lake_id, "v": first}
    gone = [hash_ for (hash_,) in client.query(query, parameters=asked).result_rows if hash_ not in hashes]
    for start in range(0, len(gone), 1000):
        asked = {"p": pipeline, "t": table, "h": gone[start : start + 1000]}
        chosen = "WHERE pipeline = {p:String} AND `table` = {t:String} AND hash IN {h:Array(String)}"
        client.command(
            f"INSERT INTO {NODES} SELECT * REPLACE (concat(lake_id, '{LOST}') AS lake_id) FROM {LEDGER} {chosen}"
            " AND node IN ('merge', 'snapshot')",
            parameters=asked,
        )


LOST = " lost"
"""Behind the `lake_id` of a commit that the table does not have any more."""

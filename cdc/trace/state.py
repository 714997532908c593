"""What the trace has of a pipeline, for `lakesync trace status`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cdc.trace.schema import is_there
from cdc.trace.tables import NODES

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client


@dataclass(frozen=True)
class NodeEntries:
    """One node's entries: how many, the rows that they say went in and out, and when the first and the last one was written (UTC)."""

    node: str
    entries: int
    rows_in: int
    rows_out: int
    first: str | None
    last: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def look(client: Client, pipeline: str) -> list[NodeEntries]:
    """By node; empty where there is no trace yet. Raises as the client."""
    if not is_there(client):
        return []
    answer = client.query(
        f"SELECT node, count(), sum(rows_in), sum(rows_out), toString(min(done)), toString(max(done)) FROM {NODES} FINAL"
        " WHERE pipeline = {p:String} GROUP BY node ORDER BY indexOf(['source', 'capture', 'window', 'log', 'merge', 'snapshot'], node)",
        parameters={"p": pipeline},
    )
    return [
        NodeEntries(str(n), int(c), int(i), int(o), str(first)[:19], str(last)[:19])
        for n, c, i, o, first, last in answer.result_rows
    ]

"""How far the trace holds back the log, and a table's commits: no further than the cap, whatever happens to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdc.epoch import CommitRecord
from cdc.merge.trim import TRACE_EPOCHS, traced, traced_version
from cdc.names import TableName
from tests.unit.test_epoch import record

TABLE = TableName("s", "t")


def newest(number: int) -> CommitRecord:
    return replace(record(), number=number)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"epoch": "x"}', b"{}"])
def test_a_trace_that_never_was_or_is_damaged_holds_back_no_more_than_the_cap(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "trace.json").write_bytes(content)
    assert traced(tmp_path, newest(TRACE_EPOCHS + 500)) == 500
    assert traced(tmp_path, newest(10)) == 0
    assert traced_version(tmp_path, TABLE, "id", TRACE_EPOCHS + 500) == 500
    assert traced_version(tmp_path, TABLE, "id", 10) == -1


def test_what_the_trace_has_may_go(tmp_path: Path) -> None:
    cursor: dict[str, Any] = {"epoch": 70, "versions": {TABLE.id: 7}, "lakes": {TABLE.id: {"id": "new", "tail": ""}}}
    (tmp_path / "trace.json").write_bytes(orjson.dumps(cursor))
    assert traced(tmp_path, newest(100)) == 70
    assert traced_version(tmp_path, TABLE, "new", 9) == 7
    # A table that began in its place has commits that the trace has not seen, whatever their numbers.
    assert traced_version(tmp_path, TABLE, "another", 9) == -1

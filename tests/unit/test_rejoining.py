"""Whether a table has something that would be lost with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.config import Mode
from cdc.epoch import Counts
from cdc.lake import LakeTable, Layout, deltalog
from cdc.merge.rejoining import keeps
from tests.integration.lake_rows import SIMPLE, TABLE, applied


@pytest.mark.parametrize("mode", ["upsert", "soft-delete", "history"])
def test_a_table_keeps_rows_also_of_files_that_others_left_without_statistics(tmp_path: Path, mode: Mode) -> None:
    snapshot = LakeTable(tmp_path, TABLE, "p").create(SIMPLE, Layout(mode), applied(1), Counts())
    assert not keeps(snapshot)
    add = {"path": "theirs.parquet", "partitionValues": {}, "size": 1, "modificationTime": 1, "dataChange": True}
    vector = {"storageType": "u", "pathOrInlineDv": "x", "offset": 1, "sizeInBytes": 1, "cardinality": 3}
    for more, kept in (
        ({"stats": None}, True),
        ({"stats": '{"numRecords":3}'}, True),
        ({"stats": '{"numRecords":3}', "deletionVector": vector}, False),
    ):
        found = deltalog.commit(snapshot.folder, snapshot, [{"add": add | more}])
        assert keeps(found) == (kept and mode != "upsert")
        snapshot = found

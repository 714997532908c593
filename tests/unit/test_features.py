"""What others may change about a table's protocol and properties, and what stops lakesync."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest

from cdc.lake import features
from cdc.lake.columns import changed, configuration, delta_schema, foreign_changes, protocol
from cdc.lake.layout import Layout

COLUMNS = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us"))])
PLAIN, FEED, PARTED = Layout(), Layout(change_feed=True), Layout(partition_by=("id", "month(at)"))


def metadata(layout: Layout, **properties: str) -> dict[str, Any]:
    return {
        "schemaString": delta_schema(COLUMNS),
        "partitionColumns": [] if layout is not PARTED else ["id", "at_month"],
        "configuration": configuration(layout) | properties,
    }


def found(layout: Layout, wanted: dict[str, Any], said: dict[str, Any]) -> list[features.Problem]:
    return foreign_changes(COLUMNS, layout, wanted, said)


def test_a_table_has_exactly_the_features_that_it_needs() -> None:
    assert protocol(COLUMNS, PLAIN) == {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors", "timestampNtz"],
        "writerFeatures": ["deletionVectors", "timestampNtz"],
    }
    assert protocol(pa.schema([("id", pa.int64())]), PLAIN)["readerFeatures"] == ["deletionVectors"]
    fed = protocol(COLUMNS, FEED)
    assert fed["readerFeatures"] == ["deletionVectors", "timestampNtz"], "the change feed binds writers only"
    assert fed["writerFeatures"] == ["deletionVectors", "timestampNtz", "changeDataFeed"]
    assert configuration(FEED) == {"delta.enableDeletionVectors": "true", "delta.enableChangeDataFeed": "true"}


def test_what_a_table_had_before_it_keeps() -> None:
    before = {"readerFeatures": ["deletionVectors", "v2Checkpoint"], "writerFeatures": ["appendOnly", "v2Checkpoint"]}
    again = protocol(COLUMNS, FEED, before)
    assert again["readerFeatures"] == ["deletionVectors", "v2Checkpoint", "timestampNtz"]
    assert again["writerFeatures"] == [
        "appendOnly",
        "v2Checkpoint",
        "deletionVectors",
        "timestampNtz",
        "changeDataFeed",
    ]


@pytest.mark.parametrize("layout", [PLAIN, FEED, PARTED], ids=["plain", "feed", "partitions"])
def test_what_lakesync_writes_is_no_foreign_change(layout: Layout) -> None:
    assert found(layout, protocol(COLUMNS, layout), metadata(layout)) == []


def test_features_that_nothing_uses_are_tolerated() -> None:
    wanted = protocol(COLUMNS, PLAIN)
    wanted["readerFeatures"] += ["variantType", "variantType-preview", "columnMapping", "vacuumProtocolCheck"]
    wanted["writerFeatures"] += sorted(features.UNUSED - set(wanted["writerFeatures"]))
    said = metadata(PLAIN) | {"description": "ours", "name": "orders"}
    said["configuration"] |= {"delta.logRetentionDuration": "interval 1 day", "delta.columnMapping.mode": "none"}
    said["configuration"] |= {"delta.appendOnly": "false", "user.property": "x", "delta.enableChangeDataFeed": "true"}
    assert found(PLAIN, wanted, said) == []
    assert features.has_feed(said)
    assert not features.has_feed(metadata(PLAIN))


@pytest.mark.parametrize(
    ("properties", "says", "way_out"),
    [
        ({"delta.appendOnly": "true"}, "may not be changed", "UNSET TBLPROPERTIES ('delta.appendOnly')"),
        ({"delta.enableRowTracking": "TRUE"}, "tracked", "UNSET"),
        ({"delta.enableInCommitTimestamps": "true"}, "timestamps", "UNSET"),
        ({"delta.constraints.positive": "id > 0"}, "constraint (positive)", "DROP CONSTRAINT positive"),
        ({"delta.columnMapping.mode": "name"}, "mapped", "folder away"),
        ({"delta.enableDeletionVectors": "false"}, "switched off", "'delta.enableDeletionVectors' = 'true'"),
        (
            {"delta.enableChangeDataFeed": "false"},
            "change feed was switched off",
            "'delta.enableChangeDataFeed' = 'true'",
        ),
    ],
)
def test_properties_that_bind_a_writer_stop_it_with_the_way_out(
    properties: dict[str, str], says: str, way_out: str
) -> None:
    (problem,) = found(FEED, protocol(COLUMNS, FEED), metadata(FEED, **properties))
    assert says in problem.what
    assert way_out in problem.hint


@pytest.mark.parametrize("feature", ["rowTracking", "clustering", "catalogManaged", "icebergCompatV3", "something-new"])
def test_features_that_bind_a_writer_stop_it_with_the_way_out(feature: str) -> None:
    wanted = protocol(COLUMNS, PLAIN)
    wanted["writerFeatures"].append(feature)
    (problem,) = found(PLAIN, wanted, metadata(PLAIN))
    assert problem.what == f"feature {feature}"
    assert f"DROP FEATURE {feature}" in problem.hint


def test_dropped_deletion_vectors_stop_it() -> None:
    wanted = protocol(COLUMNS, PLAIN) | {"readerFeatures": ["timestampNtz"], "writerFeatures": ["timestampNtz"]}
    said = metadata(PLAIN)
    del said["configuration"]["delta.enableDeletionVectors"]
    (problem,) = found(PLAIN, wanted, said)
    assert problem.what == "feature deletionVectors was dropped"
    assert "resync" in problem.hint
    older = {"minReaderVersion": 1, "minWriterVersion": 2}
    assert found(PLAIN, older, said)[0].what == "protocol version (1, 2)"


def test_other_columns_and_partitions_stop_it() -> None:
    more = metadata(PLAIN) | {"schemaString": delta_schema(COLUMNS.append(pa.field("x", pa.int64())))}
    assert [p.what for p in found(PLAIN, protocol(COLUMNS, PLAIN), more)] == ["the columns"]
    assert [p.what for p in found(PLAIN, protocol(COLUMNS, PLAIN), metadata(PARTED))] == ["the partitioning"]
    assert [p.what for p in found(PARTED, protocol(COLUMNS, PARTED), metadata(PLAIN))] == ["the partitioning"]


def test_columns_that_ask_something_of_writers_stop_it() -> None:
    schema = orjson.loads(delta_schema(COLUMNS))
    schema["fields"][1]["metadata"] = {"delta.generationExpression": "x", "comment": "fine"}
    said = metadata(PLAIN) | {"schemaString": orjson.dumps(schema).decode()}
    (problem,) = found(PLAIN, protocol(COLUMNS, PLAIN), said)
    assert problem.what == "column at is generated from others"
    schema["fields"][1]["metadata"] = {"comment": "fine"}
    assert found(PLAIN, protocol(COLUMNS, PLAIN), said | {"schemaString": orjson.dumps(schema).decode()}) == []


def test_the_error_says_all_that_others_changed_and_each_way_out_once() -> None:
    wanted = protocol(COLUMNS, PLAIN)
    wanted["writerFeatures"] += ["rowTracking"]
    said = metadata(PLAIN, **{"delta.appendOnly": "true"})
    error = changed(found(PLAIN, wanted, said), "here")
    assert (
        error.what == "others changed the table: feature rowTracking, rows of it may not be changed (delta.appendOnly)"
    )
    assert error.hint.count("UNSET") == 1
    assert error.hint.count("DROP FEATURE") == 1

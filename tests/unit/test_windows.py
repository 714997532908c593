"""Windows without a server: what wins over what, what is written, and what readers and capture tell one another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdc import unfit
from cdc.capture import windows
from cdc.capture.base import Drained, Emptied, TableChanges
from cdc.capture.rows import Gaps, numbered
from cdc.capture.shards import Source
from cdc.capture.windows import Touched
from cdc.epoch import EpochId, Op, WindowId
from cdc.log.codec import METADATA, WIDTH, encode
from cdc.names import TableName
from cdc.position import BinlogEnd, GtidSet, Position
from cdc.schema import Column, TableSchema
from cdc.sharding import joined
from cdc.window import Delivery, Opened, Window, WindowCancelled, WindowEnded, Windows

T = TableName("s", "t")
END = BinlogEnd("b.000001", 4)
HERE = Position(GtidSet({}), "u", END)
TEXT = Column("v", "text", charset="utf8mb4")
PLAIN = TableSchema((Column("id", "int"), TEXT), ("id",))
TWO = TableSchema((Column("a", "int"), TEXT, Column("b", "text", charset="utf8mb4")), ("b", "a"))


def rows(schema: TableSchema, *cells: Sequence[Any]) -> pa.RecordBatch:
    columns = [pa.array([row[i] for row in cells], field.type) for i, field in enumerate(schema.arrow)]
    return pa.RecordBatch.from_arrays(columns, schema=schema.arrow)


def streamed(schema: TableSchema, *cells: Sequence[Any], op: int = Op.UPDATE, txn: int = 0) -> pa.RecordBatch:
    found = rows(schema, *cells)
    values = {"_op": op, "_txn": txn}
    metadata = [pa.array([values.get(f.name, 0)] * len(cells), f.type) for f in METADATA]
    return pa.RecordBatch.from_arrays([*metadata, *found.columns], schema=pa.schema([*METADATA, *schema.arrow]))


def touched(schema: TableSchema, *cells: Sequence[Any]) -> Touched:
    found = Touched(schema)
    for row in cells:
        found.add(found.keys(streamed(schema, row)))
    return found


def delivery(*batches: pa.RecordBatch, gone: pa.Table | None = None) -> Delivery:
    return Delivery(batches, gone, END, "u", {})


def written(schema: TableSchema, given: Delivery, since: Touched) -> list[tuple[Any, ...]]:
    window = Window(Windows(), WindowId("job", 7), T)
    found = windows.changes(window, given, schema, since)
    assert encode(found.batch, ["snap:job"], schema.hash) or not found.batch.num_rows
    return [tuple(column[i].as_py() for column in found.batch.columns) for i in range(found.batch.num_rows)]


# what wins


def test_a_touched_key_is_left_out_and_what_is_left_is_numbered() -> None:
    given = delivery(
        rows(PLAIN, (1, "a"), (2, "b")), rows(PLAIN, (3, "c")), gone=pa.table({"id": pa.array([4, 5], pa.int32())})
    )
    assert written(PLAIN, given, touched(PLAIN, (2, "x"), (4, None))) == [
        (Op.READ, 0, 7, 0, 0, 1, 1, "a"),
        (Op.READ, 0, 7, 1, 0, 2, 3, "c"),
        (Op.DELETE, 0, 7, 2, 0, 3, 5, None),
    ]


def test_keys_are_compared_by_their_bytes() -> None:
    given = delivery(rows(TWO, (1, "x", "a"), (1, "x", "A"), (1, "x", "á"), (2, "x", "a")))
    left = written(TWO, given, touched(TWO, (1, "y", "a"), (2, "y", "A")))
    assert [(row[WIDTH], row[WIDTH + 2]) for row in left] == [(1, "A"), (1, "á"), (2, "a")]


KEYS: list[tuple[Column, Any, Any]] = [
    (Column("k", "double"), 0.0, -0.0),
    (Column("k", "float"), -0.0, 0.0),
    (Column("k", "decimal", precision=20, scale=2), Decimal("1.20"), Decimal("1.21")),
    (Column("k", "varbinary"), b"", b"\0"),
    (Column("k", "text", charset="utf8mb4"), "a", "a "),
    (Column("k", "bigint", unsigned=True), Decimal(2**63), Decimal(2**63 + 1)),
    (Column("k", "bit", length=1), True, False),
    (Column("k", "datetime", scale=6), np.datetime64(1, "us"), np.datetime64(2, "us")),
]


@pytest.mark.parametrize(("column", "one", "other"), KEYS, ids=[c.type for c, _, _ in KEYS])
@pytest.mark.parametrize("width", [1, 2])
def test_keys_of_every_kind(column: Column, one: Any, other: Any, width: int) -> None:
    schema = TableSchema((column, Column("n", "int")), ("k", "n")[:width])
    left = written(schema, delivery(rows(schema, (one, 1), (other, 1))), touched(schema, (one, 1)))
    assert len(left) == 1
    assert repr(left[0][WIDTH]) == repr(rows(schema, (other, 1)).column(0)[0].as_py())


def test_many_keys_take_the_memory_of_the_distinct_ones_and_once_read_only_of_those_read() -> None:
    found = Touched(PLAIN)
    for low in range(0, 2_000_000, 100_000):
        batch = streamed(PLAIN, (0, None))
        columns = [pa.repeat(c[0], 100_000) for c in batch.columns]
        columns[WIDTH] = pa.array(np.arange(low, low + 100_000) % 50_000, pa.int32())
        found.add(found.keys(pa.RecordBatch.from_arrays(columns, schema=batch.schema)))
    assert found.nbytes < 2_000_000
    given = delivery(rows(PLAIN, (7, "a"), (70_000, "b")))
    found.keep(given)
    assert found.nbytes < 1000
    assert [row[WIDTH] for row in written(PLAIN, given, found)] == [70_000]


# what is written


def test_values_that_fit_no_type_come_along_where_there_are_some() -> None:
    plain = rows(PLAIN, (1, "a"))
    odd = rows(PLAIN, (2, None)).append_column(unfit.FIELD, pa.array([[("v", "ff")]], unfit.TYPE))
    assert [row[-1] for row in written(PLAIN, delivery(plain, odd), Touched(PLAIN))] == [None, [("v", "ff")]]
    (row,) = written(PLAIN, delivery(plain), Touched(PLAIN))
    assert len(row) == WIDTH + 2


@pytest.mark.parametrize(
    "given",
    [
        delivery(rows(TWO, (1, "x", "a"))),
        delivery(gone=pa.table({"id": pa.array([1], pa.int64())})),
        delivery(gone=pa.table({"v": ["x"]})),
    ],
    ids=["columns", "the key's type", "the key's columns"],
)
def test_what_has_other_columns_is_refused(given: Delivery) -> None:
    with pytest.raises(ValueError, match="other columns"):
        written(PLAIN, given, Touched(PLAIN))


def test_nothing_at_all_is_an_empty_batch() -> None:
    assert written(PLAIN, delivery(), Touched(PLAIN)) == []


# what they tell one another


def ready() -> tuple[Windows, Window]:
    found = Windows()
    window = found.ask(WindowId("job", 1), T)
    window.open(Opened(HERE, PLAIN))
    return found, window


def test_a_window_that_is_on_its_way_into_the_log_cannot_be_cancelled() -> None:
    found, window = ready()
    window.deliver(delivery())
    assert window.take()
    window.cancel("too late")
    found.cancel("too late")
    window.emitted(EpochId(1, "x"), 3)
    assert window.wait_emitted(threading.Event()) == EpochId(1, "x")
    assert found.of(("asked", "open", "delivered", "emitting", "emitted")) == []


def test_a_window_that_was_cancelled_is_not_taken() -> None:
    _, window = ready()
    window.deliver(delivery())
    window.cancel("enough")
    assert not window.take()
    assert not window.is_doubtful
    with pytest.raises(WindowCancelled, match="enough"):
        window.wait_emitted(threading.Event())


def test_a_window_whose_epoch_may_be_there_says_so() -> None:
    _, window = ready()
    window.deliver(delivery())
    window.take()
    window.lose("capture ended", doubtful=True)
    assert window.is_doubtful
    with pytest.raises(WindowCancelled):
        window.wait_emitted(threading.Event())


def test_a_window_that_was_open_and_is_cancelled_is_not_open() -> None:
    window = Windows().ask(WindowId("job", 1), T)
    window.open(Opened(HERE, PLAIN))
    assert window.wait_open(threading.Event()).c0 == HERE
    window.cancel("capture ended")
    with pytest.raises(WindowCancelled, match="capture ended"):
        window.wait_open(threading.Event())


def test_who_is_told_to_stop_waits_no_more() -> None:
    found = Windows()
    window = found.ask(WindowId("job", 1), T)
    stop = threading.Event()
    stop.set()
    with pytest.raises(WindowEnded):
        window.wait_open(stop)


def test_capture_is_woken_by_what_is_asked_delivered_and_cancelled() -> None:
    found, woken = Windows(), []
    found.listen(lambda: woken.append(1))
    window = found.ask(WindowId("job", 1), T)
    window.open(Opened(HERE, PLAIN))
    assert len(woken) == 1
    window.deliver(delivery())
    assert len(woken) == 2
    window.cancel("enough")
    assert len(woken) == 3


# numbers around what empties a shard


def test_numbers_of_later_changes_leave_room_for_what_empties_a_shard() -> None:
    def changes(name: str, txns: list[int], seqs: list[int]) -> TableChanges:
        batch = streamed(PLAIN, *([(1, "a")] * len(txns)))
        columns = list(batch.columns)
        columns[1], columns[5] = pa.array(txns, pa.int32()), pa.array(seqs, pa.int64())
        return TableChanges(TableName("s", name), PLAIN, pa.RecordBatch.from_arrays(columns, schema=batch.schema))

    a, b = changes("a", [0, 1, 4], [1, 3, 5]), changes("b", [0, 3], [2, 4])
    emptied = [Emptied(2, T, False), Emptied(5, T, False), Emptied(5, TableName("s", "u"), True)]
    drained = Drained([], np.zeros(0, np.int64), [], 0, GtidSet({}), [a, b], [], END, emptied=emptied)
    gaps = Gaps(drained)
    times: Any = pa.array([0] * 6, pa.int64())
    numbers = [numbered(one, times, 100, gaps).column(5).to_pylist() for one in (a, b)]
    assert numbers == [[101, 103, 106], [102, 105]]
    assert [100 + gaps.number(i) for i in range(3)] == [104, 107, 108]


def test_rows_of_a_shard_get_its_name_before_what_fits_no_type() -> None:
    schema = joined(PLAIN, "shard")
    source = Source(T, PLAIN, TableName("s", "all"), schema)
    batch = streamed(PLAIN, (1, None)).append_column(unfit.FIELD, pa.array([[("v", "ff")]], unfit.TYPE))
    mapped = source.mapped(batch)
    assert mapped.schema.names[WIDTH:] == ["id", "v", "shard", unfit.NAME]
    assert mapped.column(WIDTH + 2).to_pylist() == ["s.t"]
    gone = source.mapped(source.truncation(3, 1, 9).batch)
    assert [c[0].as_py() for c in gone.columns] == [Op.TRUNCATE, 3, 0, 1, 0, 9, None, None, "s.t"]
    assert gone.schema.types[WIDTH:] == schema.arrow.types

"""The record format."""

from __future__ import annotations

import datetime
import decimal
import random
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc import unfit
from cdc.errors import LogDamagedError, TableStoppedError
from cdc.log import codec
from cdc.log.base import RECORD_LIMIT, RECORD_MAXIMUM
from cdc.log.codec import METADATA, Changes, decode

SID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
HASH = "ab" * 32


def encode(batch: pa.RecordBatch, names: Any, schema_hash: str, limit: int = RECORD_LIMIT) -> list[bytes]:
    return [bytes(record) for record in codec.encode(batch, names, schema_hash, limit)]


def changes(txns: list[int], *source: tuple[pa.Field[Any], Any]) -> pa.RecordBatch:
    rows = len(txns)
    columns: list[pa.Array[Any]] = [
        pa.array([i % 6 for i in range(rows)], pa.int8()),
        pa.array(txns, pa.int32()),
        pa.array(range(rows), pa.int32()),
        pa.array([0] * rows, pa.int32()),
        pa.array([1_700_000_000_000 + i for i in range(rows)], pa.int64()),
        pa.array([10 + i for i in range(rows)], pa.int64()),
    ]
    fields = [*METADATA, *(field for field, _ in source)]
    return pa.RecordBatch.from_arrays([*columns, *(values for _, values in source)], schema=pa.schema(fields))


def text(rows: int, width: int = 4) -> tuple[pa.Field[Any], pa.Array[Any]]:
    return pa.field("text", pa.string()), pa.array(["x" * width] * rows)


def gtids(count: int) -> list[str]:
    return [f"{SID}:{i + 1}" for i in range(count)]


def rows_of(batch: pa.RecordBatch, names: list[str] | tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Rows with `_txn` resolved, columns by place."""
    columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
    columns[1] = [names[i] for i in columns[1]]
    return list(zip(*columns, strict=True))


def test_one_record_and_back() -> None:
    batch = changes([0, 0, 1], text(3))
    (record,) = encode(batch, gtids(2), HASH)
    found = decode(record)
    assert found == Changes(found.batch, tuple(gtids(2)), HASH)
    assert found.batch.equals(batch)
    assert [found.gid(i) for i in range(3)] == [f"{SID}:1/0.0", f"{SID}:1/1.0", f"{SID}:2/2.0"]


def test_any_arrow_reads_a_record() -> None:
    """The framing as it is documented, read without our code."""
    (record,) = encode(changes([1, 0], text(2)), gtids(3), HASH)
    with pa.ipc.open_stream(record) as reader:
        assert reader.schema.names == [*METADATA.names, "text"]
        assert reader.schema.metadata == {
            b"lakesync.v": b"1",
            b"lakesync.schema": HASH.encode(),
            b"lakesync.gtids": orjson.dumps([f"{SID}:2", f"{SID}:1"]),
        }
        assert reader.read_next_batch().column(1).to_pylist() == [0, 1]


def test_no_rows_give_no_records() -> None:
    assert encode(changes([], text(0)), [], HASH) == []


def test_columns_may_have_any_name() -> None:
    source = [
        (pa.field(name, pa.int64()), pa.array([i])) for i, name in enumerate(["_op", "_seq", "a", "a", "", "é `x`"])
    ]
    batch = changes([0], *source)
    (record,) = encode(batch, gtids(1), HASH)
    found = decode(record).batch
    assert found.schema.names == batch.schema.names
    assert [column.to_pylist() for column in found.columns[6:]] == [[i] for i in range(6)]


def test_every_type_of_the_contract_comes_back() -> None:
    day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999)  # noqa: DTZ001
    values: list[tuple[pa.DataType, Any]] = [
        (pa.int8(), -128),
        (pa.int16(), 32767),
        (pa.int32(), -(2**31)),
        (pa.int64(), 2**63 - 1),
        (pa.decimal128(20, 0), decimal.Decimal(2**64 - 1)),
        (pa.decimal128(38, 10), decimal.Decimal("-1234567890123456789012345678.0123456789")),
        (pa.float32(), 1.5),
        (pa.float64(), -0.0),
        (pa.bool_(), True),
        (pa.binary(), b"\0\xff"),
        (pa.string(), "ünï \U0001f600"),
        (pa.date32(), day),
        (pa.timestamp("us"), moment),
        (pa.timestamp("us", tz="UTC"), moment.replace(tzinfo=datetime.UTC)),
        (pa.list_(pa.float32()), [1.0, 2.0]),
    ]
    source = [(pa.field(f"c{i}", kind), pa.array([value, None], kind)) for i, (kind, value) in enumerate(values)]
    batch = changes([0, 0], *source)
    (record,) = encode(batch, gtids(1), HASH)
    assert decode(record).batch.equals(batch)


def test_what_rows_lack_stays_with_the_records_that_need_it() -> None:
    rows, columns = 300, 10
    known = np.ones((rows, columns), np.bool_)
    known[7, 3] = known[7, 9] = known[200, 0] = False
    diffs: list[Any] = [[] for _ in range(rows)]
    diffs[7] = [
        {"column": 3, "op": 1, "path": "$.a", "value": "1"},
        {"column": 9, "op": 2, "path": "$[1]", "value": None},
    ]
    source = [(pa.field(f"c{i}", pa.string()), pa.array([f"{n}" * 10 for n in range(rows)])) for i in range(columns)]
    batch = changes(list(range(rows)), *source, unfit_([[("c1", "x")] if n == 100 else None for n in range(rows)]))
    given = codec.Incomplete.of(known, pa.array(diffs, pa.list_(codec.DIFF)))
    records = [codec.decode(r) for r in codec.encode(batch, gtids(rows), HASH, 9_000, given)]
    assert len(records) > 3
    assert [i for i, r in enumerate(records) if r.incomplete is None]
    start = 0
    for record in records:
        count = record.batch.num_rows
        assert record.types == [pa.string()] * columns
        part = known[start : start + count]
        if record.incomplete is None:
            assert part.all()
        else:
            assert (record.incomplete.known(columns) == part).all()
            assert not part.all()
            assert record.incomplete.diffs.to_pylist() == diffs[start : start + count]
        start += count
    assert start == rows


def test_what_is_known_survives_slices() -> None:
    known = np.random.default_rng(1).random((50, 11)) < 0.5
    given = codec.Incomplete.of(known, pa.array([[]] * 50, pa.list_(codec.DIFF)))
    assert (given.slice(13, 20).known(11) == known[13:33]).all()
    assert (given.slice(13, 20).slice(5, 3).known(11) == known[18:21]).all()


def unfit_(values: list[Any], kind: pa.DataType = unfit.TYPE) -> tuple[pa.Field[Any], pa.Array[Any]]:
    return pa.field("_cdc_unfit", kind), pa.array(values, kind)


def test_what_does_not_fit_stays_with_the_records_that_need_it() -> None:
    rows = 300
    values = [[("d", "0000-00-00"), ("t", "FF")] if i == 7 else None for i in range(rows)]
    batch = changes(list(range(rows)), text(rows, 100), unfit_(values))
    records = list(map(decode, encode(batch, gtids(rows), HASH, limit=20_000)))
    assert len(records) > 2
    assert [r.unfit is not None for r in records] == [True] + [False] * (len(records) - 1)
    assert all(r.types == [pa.string()] for r in records)
    found = records[0].unfit
    assert found is not None
    assert found.to_pylist() == values[: len(found)]


def test_what_does_not_fit_has_one_type_and_one_place() -> None:
    """Whatever its fields are called by who made it; and a source's column of that name is a source's column."""
    fields: Any = [pa.field("k", pa.string(), nullable=False), pa.field("v", pa.string())]
    foreign = pa.map_(*fields)
    (record,) = encode(changes([0], text(1), unfit_([[("d", "x")]], foreign)), gtids(1), HASH)
    assert decode(record).batch.schema.field("_cdc_unfit").equals(unfit.FIELD)
    (record,) = encode(changes([0], unfit_(["a text"], pa.string())), gtids(1), HASH)
    assert decode(record).unfit is None
    assert decode(record).types == [pa.string()]
    for column in (
        unfit_([[("d", 1)]], pa.map_(pa.string(), pa.int64())),
        (pa.field("m", unfit.TYPE), unfit_([[]])[1]),
    ):
        with pytest.raises(ValueError, match="a type that"):
            encode(changes([0], column), gtids(1), HASH)
    with pytest.raises(ValueError, match="a type that"):
        encode(changes([0], unfit_([[("d", "x")]]), text(1)), gtids(1), HASH)


def test_gtids_may_come_as_arrow_has_them() -> None:
    batch = changes([0, 2], text(2))
    assert encode(batch, pa.array(gtids(3)), HASH) == encode(batch, gtids(3), HASH)


def test_a_slice_is_what_it_shows() -> None:
    batch = changes([0, 1, 2, 3], text(4)).slice(2, 2)
    (record,) = encode(batch, gtids(4), HASH)
    found = decode(record)
    assert found.gtids == tuple(gtids(4)[2:])
    assert rows_of(found.batch, found.gtids) == rows_of(batch, gtids(4))
    assert len(record) < len(encode(changes([0] * 400, text(400)), gtids(1), HASH)[0])


def test_extension_and_dictionary_types_are_stored_plainly() -> None:
    import uuid

    value = uuid.UUID(int=7)
    batch = changes(
        [0],
        (pa.field("u", pa.uuid()), pa.array([value.bytes], pa.uuid())),
        (
            pa.field("e", pa.dictionary(pa.int8(), pa.string())),
            pa.array(["red"]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        ),
    )
    found = decode(encode(batch, gtids(1), HASH)[0]).batch
    assert [column.type for column in found.columns[6:]] == [pa.binary(16), pa.string()]
    assert [column.to_pylist() for column in found.columns[6:]] == [[value.bytes], ["red"]]


@pytest.mark.parametrize(
    "batch",
    [
        pa.record_batch({"a": [1]}),
        changes([0], text(1)).rename_columns(["_op", "_txn", "_event", "_row", "_seq", "_ts_ms", "text"]),
        changes([0], (pa.field("v", pa.string_view()), pa.array(["x"], pa.string_view()))),
        changes([0], (pa.field("n", pa.null()), pa.array([None]))),
        pa.RecordBatch.from_arrays(
            [pa.array([None], METADATA.field(i).type) for i in range(6)],
            schema=pa.schema([pa.field(f.name, f.type) for f in METADATA]),
        ),
    ],
)
def test_columns_that_are_not_the_format_are_refused(batch: pa.RecordBatch) -> None:
    with pytest.raises(ValueError):
        encode(batch, gtids(1), HASH)


def test_many_rows_are_split_below_the_limit_and_stay_in_order() -> None:
    rows = 4_000
    batch = changes([i // 3 for i in range(rows)], text(rows, 2_000))
    records = encode(batch, gtids(rows), HASH)
    assert max(map(len, records)) <= RECORD_LIMIT
    assert len(records) <= 3
    found = [row for record in map(decode, records) for row in rows_of(record.batch, record.gtids)]
    assert found == rows_of(batch, gtids(rows))


def test_gtids_count_towards_the_limit() -> None:
    rows = 2_000
    records = encode(changes(list(range(rows)), text(rows, 0)), gtids(rows), HASH, limit=10_000)
    assert max(map(len, records)) <= 10_000
    for record in map(decode, records):
        assert len(record.gtids) == record.batch.num_rows, "each record has the GTIDs that it uses, no others"


def test_a_row_larger_than_the_limit_has_a_record_of_its_own() -> None:
    large = pa.array(["a", "b" * 5_000_000, "c", "d"])
    records = encode(changes([0, 0, 0, 0], (pa.field("text", pa.string()), large)), gtids(1), HASH)
    assert [decode(record).batch.num_rows for record in records] == [1, 1, 2]
    assert len(records[1]) > RECORD_LIMIT


def test_a_row_larger_than_the_maximum_stops_its_table_without_showing_it() -> None:
    large = pa.array(["a", "b" * RECORD_MAXIMUM])
    with pytest.raises(TableStoppedError, match=f"{SID}:1/1.0: a row change needs") as caught:
        encode(changes([0, 0], (pa.field("text", pa.string()), large)), gtids(1), HASH)
    assert "bbb" not in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.text(max_size=300)), min_size=1, max_size=60),
    st.integers(1_000, 6_000),
)
def test_no_split_loses_doubles_or_reorders_a_row(rows: list[tuple[int, str]], limit: int) -> None:
    batch = changes([t for t, _ in rows], (pa.field("text", pa.string()), pa.array([s for _, s in rows])))
    records = encode(batch, gtids(6), HASH, limit)
    found = [row for record in map(decode, records) for row in rows_of(record.batch, record.gtids)]
    assert found == rows_of(batch, gtids(6))
    assert all(len(record) <= limit or decode(record).batch.num_rows == 1 for record in records)


def stream(batch: pa.RecordBatch, batches: int = 1, metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    """A record as another program might write it."""
    given = {
        "lakesync.v": "1",
        "lakesync.schema": HASH,
        "lakesync.gtids": orjson.dumps(gtids(2)).decode(),
        **(metadata or {}),
    }
    schema = batch.schema.with_metadata(given)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return sink.getvalue().to_pybytes()


GOOD = changes([0, 1], text(2))
WRONG_OP = GOOD.set_column(0, METADATA.field(0), pa.array([0, 6], pa.int8()))
NEGATIVE = GOOD.set_column(2, METADATA.field(2), pa.array([0, -1], pa.int32()))


def diff_(**given: Any) -> dict[str, Any]:
    return {"column": 0, "op": 0, "path": "$", "value": "1", **given}


def incomplete_(present: list[Any], diffs: list[Any]) -> bytes:
    """A record of which the rows are said to lack something, as another program might write it."""
    width = len(next(filter(None, present)))
    batch = GOOD.append_column("_cdc_present", pa.array(present, pa.binary(width)))
    batch = batch.append_column("_cdc_diffs", pa.array(diffs, pa.list_(codec.DIFF)))
    return stream(batch, metadata={"lakesync.v": "2"})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "cannot be read"),
        (b"\0" * 64, "cannot be read"),
        (b"hello", "cannot be read"),
        (encode(GOOD, gtids(2), HASH)[0][:-9], "cannot be read"),
        (encode(GOOD, gtids(2), HASH)[0] + b"\0", "bytes after its end"),
        (encode(GOOD, gtids(2), HASH)[0] * 2, "bytes after its end"),
        (stream(GOOD, 2), "more than one batch"),
        (stream(GOOD, 0), "no batch"),
        (stream(GOOD.slice(0, 0)), "no rows"),
        (stream(GOOD, metadata={"lakesync.v": "3"}), "not a record of this format"),
        (stream(GOOD, metadata={"lakesync.gtids": "[]"}), "_txn is out of range"),
        (stream(GOOD, metadata={"lakesync.gtids": '["a", 1]'}), "GTIDs are not a list"),
        (stream(GOOD, metadata={"lakesync.gtids": "{}"}), "GTIDs are not a list"),
        (stream(GOOD, metadata={"lakesync.gtids": "["}), "JSON"),
        (stream(WRONG_OP), "_op is out of range"),
        (stream(NEGATIVE), "_event is out of range"),
        (stream(GOOD.select([1, 0, 2, 3, 4, 5])), "first columns are not"),
        (stream(changes([0] * 900, text(900, 90)), compression="zstd"), "claims more bytes than it has"),
        (stream(changes([0], (pa.field("v", pa.string_view()), pa.array(["x"], pa.string_view())))), "a type that"),
        (stream(GOOD) + b"x" * RECORD_MAXIMUM, "are possible"),
        (stream(changes([0, 1], unfit_([None, None]))), "_cdc_unfit without a value"),
        (stream(changes([0, 1], unfit_([None, [("a", "b")]]), text(2))), "a type that"),
        (stream(GOOD, metadata={"lakesync.v": "2"}), "do not say what is known"),
        (incomplete_([b"\1", b"\1"], [[], []]), "it lacks no value"),
        (incomplete_([b"\0", None], [[], []]), "of another form"),
        (incomplete_([b"\0\0", b"\1\0"], [[], []]), "of another form"),
        (incomplete_([b"\0", b"\1"], [[], None]), "of another form"),
        (incomplete_([b"\0", b"\1"], [[diff_(column=1)], []]), "column of a difference is out of range"),
        (incomplete_([b"\0", b"\1"], [[diff_(op=4)], []]), "op of a difference is out of range"),
        (incomplete_([b"\0", b"\1"], [[diff_(op=None)], []]), "op of a difference is out of range"),
        (incomplete_([b"\0", b"\1"], [[diff_(path=None)], []]), "without its path"),
        (incomplete_([b"\0", b"\1"], [[None], []]), "without its path"),
    ],
    ids=range(32),
)
def test_what_is_not_a_record_is_damaged(payload: bytes, reason: str) -> None:
    with pytest.raises(LogDamagedError, match=reason):
        decode(payload)


def test_text_that_is_not_utf_8_is_damaged() -> None:
    (record,) = encode(changes([0], (pa.field("text", pa.string()), pa.array(["secret-value"]))), gtids(1), HASH)
    assert record.count(b"secret-value") == 1
    with pytest.raises(LogDamagedError) as caught:
        decode(record.replace(b"secret-value", b"secret-v\xff\xfe\xff\xfe"))
    assert "secret" not in str(caught.value)


def _flip(record: bytes, generator: random.Random) -> bytes:
    changed = bytearray(record)
    for _ in range(generator.randint(1, 6)):
        changed[generator.randrange(len(changed))] = generator.choice(
            (0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256))
        )
    if generator.random() < 0.2:
        del changed[generator.randrange(len(changed)) :]
    return bytes(changed)


def test_changed_bytes_are_an_error_or_a_whole_batch() -> None:
    """Ten thousand records with bytes changed: nothing but `LogDamagedError`, and what passes is safe to read."""
    source = [
        text(5, 20),
        (pa.field("d", pa.decimal128(12, 2)), pa.array([decimal.Decimal("1.25")] * 5, pa.decimal128(12, 2))),
        (pa.field("l", pa.list_(pa.float32())), pa.array([[1.0]] * 5, pa.list_(pa.float32()))),
        (
            pa.field("b", pa.bool_()),
            pa.array([True, None] * 2 + [False]),
        ),
        unfit_([[("a", "b")], None] * 2 + [[]]),
    ]
    (record,) = encode(changes([0, 0, 1, 1, 2], *source), gtids(3), HASH)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    refused = 0
    for _ in range(10_000):
        try:
            found = decode(_flip(record, generator))
        except LogDamagedError:
            refused += 1
            continue
        assert len(rows_of(found.batch, found.gtids)) == found.batch.num_rows
    assert 1_000 < refused < 10_000


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_error(payload: bytes) -> None:
    with pytest.raises(LogDamagedError):
        decode(payload)

"""Sharded tables: what needs no server."""

from __future__ import annotations

import pytest

from cdc import sharding
from cdc.capture.tables import options, same
from cdc.config import TableConfig
from cdc.epoch import Counts, TableState
from cdc.errors import TableStoppedError
from cdc.names import TableName
from cdc.schema import Column, TableSchema
from cdc.source.catalogue import Target, unlike

A, B = TableName("s", "o_1"), TableName("s.t", "o 2")
ENTRY = TableConfig(name="s.o_*", into="s.o", shard_column="shard", exclude=("x",), types={"v": "string"})
OWN = TableSchema((Column("id", "int"), Column("v", "int"), Column("k", "int")), ("k", "id"), {"v": "string"}, ("x",))


def test_the_shards_column_is_the_last_one_and_the_first_of_the_key() -> None:
    made = sharding.joined(OWN, "shard")
    assert made.names == ("id", "v", "k", "shard")
    assert made.key == ("shard", "k", "id")
    given = options(Target(ENTRY, (A, B)))
    assert sharding.own(made, given) == OWN
    assert sharding.own(OWN, options(Target(TableConfig(name="s.o")))) == OWN
    with pytest.raises(TableStoppedError, match="no primary key"):
        sharding.joined(TableSchema(OWN.columns), "shard")
    with pytest.raises(TableStoppedError, match="have a column id"):
        sharding.joined(OWN, "ID")


def test_options_say_which_shards_there_are_and_since_when() -> None:
    given = options(Target(ENTRY, (A, B)))
    assert sharding.shards(given) == {A: None, B: None}
    assert sharding.shards(sharding.since(given, 7)) == {A: 7, B: 7}
    own = options(Target(TableConfig(name="s.o")))
    assert not sharding.is_sharded(own)
    assert sharding.shards(own) == {}
    assert sharding.since(own, 7) == own
    assert [sharding.value(t) for t in (A, B)] == ["s.o_1", "`s.t`.`o 2`"]
    # Shards may come and go; what else is said of a table may not change without a resync.
    assert same(given, sharding.since(options(Target(ENTRY, (A,))), 3))
    assert not same(given, own)
    assert not same(given, options(Target(ENTRY.model_copy(update={"shard_column": "part"}), (A, B))))
    assert not same(given, options(Target(ENTRY.model_copy(update={"partition_by": ("id",)}), (A, B))))
    assert not same(given, options(Target(ENTRY.model_copy(update={"change_feed": True}), (A, B))))
    adopted = options(Target(TableConfig(name="s.o", from_position="0-1-9")))
    assert same(adopted, own)


def test_a_shard_that_joins_again_is_read_by_another_job() -> None:
    def job(since: int, *, log: str = "l", table: str = "s.o", added: int = 3) -> str:
        given = options(Target(ENTRY, (A, B)))
        state = TableState({}, sharding.since(given, since) if since else given, Counts(), None, added)
        return sharding.job(log, table, state, A)

    assert job(5) == job(5)
    assert len({job(0), job(5), job(6), job(5, log="m"), job(5, table="s.p"), job(5, added=4)}) == 6
    state = TableState({}, options(Target(ENTRY, (A, B))), Counts(), None, 3)
    assert sharding.job("l", "s.o", state, A) != sharding.job("l", "s.o", state, B)


def test_shards_are_alike_or_it_is_said_what_differs() -> None:
    assert unlike(OWN, OWN) == ""
    uuid = TableSchema((Column("id", "uuid"),), ("id",))
    binary = TableSchema((Column("id", "binary", length=16),), ("id",))
    # In MariaDB's binary log the two are the same, in the lake they are not.
    assert "column id is" in unlike(uuid, binary)
    assert "column id is" in unlike(binary, uuid)

"""Pipeline files as `init`, `add` and `remove` write them."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from cdc import pipelinefile
from cdc.config import PipelineConfig, TableConfig, load
from cdc.errors import ConfigError
from cdc.names import TableName

EDITED = """\
# The shop.
name: shop           # and nothing else
source: {url: "mysql://u@127.0.0.1:3306"}

lake: 'lake'
tables:
# the important ones
- shop.orders   # money
- {name: shop.users, types: {is_admin: boolean}}
- "shop.log_*"
"""


def edited(folder: Path, text: str = EDITED) -> Path:
    path = folder / "lakesync.yaml"
    path.write_text(text)
    return path


def entries(*names: str) -> list[TableConfig]:
    return [TableConfig(name=n) for n in names]


def create(path: Path, source: str = "mysql://u@127.0.0.1:3306", **options: Any) -> PipelineConfig:
    return pipelinefile.create(path, source, **{"lake": "lake", **options})


def test_a_lake_in_an_object_store(tmp_path: Path) -> None:
    path = tmp_path / "lakesync.yaml"
    made = create(path, lake="s3://bucket/lake")
    assert made.lake == "s3://bucket/lake"
    assert made.lake_options == {}
    assert "# lake_options:" in path.read_text()
    given = {"region": "eu-central-1", "allow_http": "true", "secret_access_key": "env:LAKE_SECRET"}
    assert create(tmp_path / "other.yaml", lake="s3://bucket/lake", lake_options=given).lake_options == given
    with pytest.raises(ConfigError, match="holds a secret") as caught:
        create(tmp_path / "third.yaml", lake="s3://bucket/lake", lake_options={"secret_access_key": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "third.yaml").exists()


def test_a_new_file_loads_and_says_what_was_given(tmp_path: Path) -> None:
    made = create(
        tmp_path / "lakesync.yaml",
        "mysql://me%40home@db.example:3307",
        lake="/data/a: b #c",
        log="kafka://k:9092",
        trace="clickhouse://u@127.0.0.1:8123/d",
        name="my shop",
        password="env:SHOP",
        tls_ca="ca.pem",
        state="state",
    )
    assert made == load(tmp_path / "lakesync.yaml")
    assert (made.name, made.source.user, made.source.host, made.source.port) == (
        "my shop",
        "me@home",
        "db.example",
        3307,
    )
    assert (made.lake, made.log, made.source.password) == ("/data/a: b #c", "kafka://k:9092", "env:SHOP")
    assert made.source.tls_ca == tmp_path / "ca.pem"
    assert made.state == tmp_path / "state"
    assert made.tables == ()


def test_names_by_default(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    assert create(tmp_path / "shop" / "lakesync.yaml").name == "shop"
    assert create(tmp_path / "shop" / "other.yaml").name == "other"


def test_a_password_goes_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    made = create(tmp_path / "lakesync.yaml", "mysql://u:hunter2%3A%20@127.0.0.1")
    assert made.source.secret().get_secret_value() == "hunter2: "
    assert "hunter2" not in (tmp_path / "lakesync.yaml").read_text()
    secret = tmp_path / ".lakesync" / "source-password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = edited(tmp_path)
    with pytest.raises(ConfigError, match="there already"):
        create(path)
    assert path.read_text() == EDITED


@pytest.mark.parametrize(
    ("source", "options", "what"),
    [
        ("mysql://127.0.0.1", {}, "no user"),
        ("mysql://u@127.0.0.1:port", {}, "not a URL"),
        ("mysql://u@127.0.0.1/shop", {}, "a server, not a database"),
        ("postgres://u@127.0.0.1", {}, "write mysql://"),
        ("mysql://u:hunter2@127.0.0.1", {"password": "env:X"}, "two passwords"),
        ("mysql://u@127.0.0.1", {"password": "hunter2"}, "a secret is a reference"),
        ("mysql://u@127.0.0.1", {"lake": "gs://bucket"}, "a local folder or"),
        ("mysql://u@127.0.0.1", {"name": "x" * 65}, "1 to 64"),
    ],
)
def test_nothing_is_written_for_what_makes_no_pipeline(
    tmp_path: Path, source: str, options: dict[str, str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        create(tmp_path / "lakesync.yaml", source, **options)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_adding_keeps_comments_quotes_and_layout(tmp_path: Path) -> None:
    path = edited(tmp_path)
    path.chmod(0o640)
    made = pipelinefile.add(
        path,
        [
            *entries("shop.items"),
            TableConfig(name="shop.x", mode="append", types={"a b": "string"}),
            TableConfig(name="shop.y", exclude=("secret",)),
            TableConfig(name="shop.z_*", partition_by=("Month(at)", "a b"), change_feed=True),
        ],
    )
    assert path.read_text() == EDITED + (
        "- shop.items\n- {name: shop.x, mode: append, types: {a b: string}}\n- {name: shop.y, exclude: [secret]}\n"
        "- {name: shop.z_*, partition_by: [month(at), a b], change_feed: true}\n"
    )
    assert [e.name for e in made.tables][-4:] == ["shop.items", "shop.x", "shop.y", "shop.z_*"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["lakesync.yaml"]


def test_adding_shards_backfills_and_tables_to_be_taken_over(tmp_path: Path) -> None:
    path = edited(tmp_path)
    made = pipelinefile.add(
        path,
        [
            TableConfig(name="s_*.orders_*", into="shop.all", shard_column="shard"),
            TableConfig(name="t.orders_1", into="shop.everything"),
            TableConfig(name="shop.hist_*", mode="append", backfill=True),
            TableConfig(name="shop.old", from_position="0-1-9"),
        ],
    )
    assert path.read_text() == EDITED + (
        "- {name: s_*.orders_*, into: shop.all, shard_column: shard}\n"
        "- {name: t.orders_1, into: shop.everything}\n"
        "- {name: shop.hist_*, mode: append, backfill: true}\n"
        "- {name: shop.old, from_position: 0-1-9}\n"
    )
    assert load(path).tables == made.tables
    with pytest.raises(ConfigError, match="different shard_column"):
        pipelinefile.add(path, [TableConfig(name="u.orders_*", into="shop.all")])
    with pytest.raises(ConfigError, match="a table of its own here"):
        pipelinefile.add(path, [TableConfig(name="u.orders_*", into="shop.old")])
    assert load(path).tables == made.tables


def test_shards_are_removed_by_the_table_that_they_land_in(tmp_path: Path) -> None:
    path = edited(tmp_path)
    pipelinefile.add(path, [TableConfig(name=n, into="shop.all") for n in ("a.o_*", "b.o_*", "shop.all")])
    pipelinefile.add(path, [TableConfig(name="c.o_*", into="shop.other")])
    pipelinefile.remove(path, [TableName("b", "o_*")])
    assert [e.name for e in load(path).tables][-3:] == ["a.o_*", "shop.all", "c.o_*"]
    pipelinefile.remove(path, [TableName("shop", "all")])
    assert path.read_text() == EDITED + "- {name: c.o_*, into: shop.other}\n"


def test_adding_to_a_new_file_and_to_one_without_tables(tmp_path: Path) -> None:
    create(tmp_path / "lakesync.yaml")
    before = (tmp_path / "lakesync.yaml").read_text()
    pipelinefile.add(tmp_path / "lakesync.yaml", entries("a.b", "`a.b`.`c d`"))
    expected = before.replace("tables: []", "tables:\n  - a.b\n  - '`a.b`.`c d`'")
    assert (tmp_path / "lakesync.yaml").read_text() == expected
    path = edited(tmp_path, EDITED.partition("tables:")[0])
    assert [e.name for e in pipelinefile.add(path, entries("a.b")).tables] == ["a.b"]


def test_a_table_is_added_once(tmp_path: Path) -> None:
    path = edited(tmp_path)
    with pytest.raises(ConfigError, match="there already"):
        pipelinefile.add(path, entries("shop.items", "shop.users"))
    with pytest.raises(ConfigError, match="twice"):
        pipelinefile.add(path, entries("shop.items", "shop.items"))
    assert path.read_text() == EDITED


def test_removing_takes_one_entry_and_leaves_the_rest(tmp_path: Path) -> None:
    path = edited(tmp_path)
    pipelinefile.remove(path, [TableName("shop", "users"), TableName("shop", "log_*")])
    assert path.read_text() == EDITED.partition("- {name")[0]
    pipelinefile.remove(path, [TableName("shop", "orders")])
    assert load(path).tables == ()
    pipelinefile.add(path, entries("shop.orders"))
    assert [e.name for e in load(path).tables] == ["shop.orders"]


def test_what_has_no_entry_of_its_own_cannot_be_removed(tmp_path: Path) -> None:
    path = edited(tmp_path)
    with pytest.raises(ConfigError, match=r"the pattern shop\.log_\* matches it"):
        pipelinefile.remove(path, [TableName("shop", "log_1")])
    with pytest.raises(ConfigError, match=r"not there.*lists shop\.users"):
        pipelinefile.remove(path, [TableName("shop", "orders"), TableName("shop", "nothing")])
    assert path.read_text() == EDITED


def test_two_at_once_both_get_in(tmp_path: Path) -> None:
    path = edited(tmp_path)
    threads = [threading.Thread(target=pipelinefile.add, args=(path, entries(f"shop.t{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.name for e in load(path).tables} >= {f"shop.t{n}" for n in range(8)}


@pytest.mark.parametrize(
    ("pattern", "table", "matches"),
    [
        ("shop.*", "shop.orders", True),
        ("shop.log_?", "shop.log_1", True),
        ("shop.log_?", "shop.log_10", False),
        ("sh*.o*s", "shop.orders", True),
        ("shop.*", "Shop.orders", False),
        ("shop.a+", "shop.aa", False),
    ],
)
def test_patterns(pattern: str, table: str, matches: bool) -> None:
    assert TableConfig(name=pattern).matches(TableName.parse(table)) == matches


def test_a_table_takes_the_entry_that_names_it(tmp_path: Path) -> None:
    text = EDITED + "- {name: shop.log_a, mode: append}\n- {name: 'shop.*', mode: append}\n"
    config = load(edited(tmp_path, text))

    def name(table: str) -> str | None:
        entry = config.entry(TableName.parse(table))
        return entry.name if entry else None

    assert name("shop.log_a") == "shop.log_a"
    assert name("shop.log_b") == "shop.log_*"
    assert name("shop.other") == "shop.*"
    assert name("other.x") is None

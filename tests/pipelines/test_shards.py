"""Sharded tables from end to end: the whole daemon over a real server, and every row compared by another reader of Delta tables."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdc import sharding
from cdc.epoch import TableState
from cdc.errors import LakesyncError
from cdc.names import TableName
from cdc.pipeline import Pipeline
from dev.mysql import MySQLServer
from tests.contract.binlog import run
from tests.integration.lake_rows import read_deltalake
from tests.integration.rereading import Rereading

CREATE = "CREATE TABLE `{}` (id INT PRIMARY KEY, v VARCHAR(40), n INT)"


class Sharded:
    """Shards `o_<n>` in two schemas, `<schema>` and `<schema>_b`, that land in `<schema>.orders`."""

    def __init__(self, folder: Path, server: MySQLServer, schema: str, shards: int = 8, rows: int = 200) -> None:
        self.server = server
        self.schemas = (schema, f"{schema}_b")
        self.target = TableName(schema, "orders")
        server.execute(f"CREATE DATABASE {self.schemas[1]}")
        for n in range(shards):
            self.create(self.shard(n), rows)
        self.entries: list[Any] = [
            {"name": f"{s}.o_*", "into": str(self.target), "shard_column": "shard"} for s in self.schemas
        ]
        self.folder = folder
        self.rig = Rereading(folder, server, self.entries, window_rows=50)

    @classmethod
    def again(cls, other: Sharded) -> Sharded:
        """The same, whatever of its folder was lost meanwhile."""
        found = cls.__new__(cls)
        found.__dict__.update(other.__dict__)
        found.rig = Rereading(found.folder, found.server, found.entries, window_rows=50)
        return found

    def shard(self, n: int) -> TableName:
        return TableName(self.schemas[n % 2], f"o_{n}")

    def create(self, shard: TableName, rows: int) -> None:
        run(self.server, shard.schema, CREATE.format(shard.name))
        if rows:
            values = ", ".join(f"({i}, 'first {i}', {i % 7})" for i in range(rows))
            run(self.server, shard.schema, f"INSERT INTO {shard.name} VALUES {values}")

    def write_file(self, entries: Sequence[Any]) -> None:
        self.rig.config.path.write_text(self.rig._file(entries))

    def options(self) -> dict[str, Any]:
        """Of the table, as the log has them now."""
        state = self.captured()
        return dict(state.options) if state is not None else {}

    def captured(self) -> TableState | None:
        """The table, as the log has it now."""
        states: dict[str, TableState] = {}
        for record in self.rig.log.records():
            states = record.states_after(states)
        return states.get(self.target.id)

    def is_asked_for(self) -> bool:
        """Whether the read of each shard that came later is: that is so soon after the log says that it came."""
        state = self.captured()
        assert state is not None
        jobs = {read.job for read in self.rig.state.reads()}
        later = [shard for shard, since in sharding.shards(state.options).items() if since is not None]
        return all(sharding.job(self.rig.log.uuid, self.target.id, state, shard) in jobs for shard in later)

    def shards(self) -> set[TableName]:
        return set(sharding.shards(self.options()))

    def lake(self) -> list[tuple[Any, ...]]:
        found = read_deltalake(Path(self.rig.config.lake) / self.target.folder)
        columns = [found.column(name).to_pylist() for name in ("shard", "id", "v", "n")]
        return sorted(zip(*columns, strict=True))

    def source(self, *but: TableName) -> list[tuple[Any, ...]]:
        rows = []
        for schema in self.schemas:
            for (name,) in self.server.execute(
                f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{schema}' AND TABLE_NAME LIKE 'o\\_%%'"
            ):
                shard = TableName(schema, str(name))
                if shard not in but:
                    rows += [(str(shard), *row) for row in self.server.execute(f"SELECT * FROM {shard.quoted}")]
        return sorted(rows)

    def settled(self) -> None:
        """Wait until every read is done, and the lake has it and all that the server has now."""
        rig = self.rig
        rig.until(self.is_asked_for, "all reads are asked for")
        rig.until(lambda: not rig.state.reads(open_only=True), "all reads are done")
        last = max((r.last.number for r in rig.state.reads() if r.last is not None), default=0)
        rig.until(lambda: rig.applied() >= last, "merged")
        rig.current()

    @contextmanager
    def written(self, *shards: TableName, seed: int = 0) -> Iterator[None]:
        """Rows are inserted, changed, given other keys and deleted meanwhile, in all of these shards."""
        stop, failed = threading.Event(), []

        def write() -> None:
            rng = random.Random(seed)
            try:
                with self.server.root() as connection, connection.cursor() as cursor:
                    while not stop.is_set():
                        shard, key = rng.choice(shards).quoted, rng.randrange(400)
                        connection.begin()
                        for statement in rng.choices(
                            (
                                f"INSERT INTO {shard} VALUES ({key}, 'w {key}', 1) ON DUPLICATE KEY UPDATE n = n + 1",
                                f"UPDATE {shard} SET v = 'changed', n = n + 1 WHERE id BETWEEN {key} AND {key + 9}",
                                f"UPDATE IGNORE {shard} SET id = id + 1000 WHERE id = {key}",
                                f"UPDATE IGNORE {shard} SET id = id - 1000 WHERE id = {key + 1000}",
                                f"DELETE FROM {shard} WHERE id = {key}",
                            ),
                            k=rng.randint(1, 4),
                        ):
                            cursor.execute(statement)
                        connection.commit()
                        time.sleep(0.002)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(20)
        if failed:
            raise failed[0]


@pytest.fixture
def sharded(tmp_path: Path, mysql: MySQLServer, schema: str) -> Iterator[Sharded]:
    yield Sharded(tmp_path, mysql, schema)
    mysql.execute(f"DROP DATABASE IF EXISTS {schema}_b")


def test_eight_shards_in_two_schemas_are_one_table_while_they_come_and_go(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    emptied, dropped, new = sharded.shard(2), sharded.shard(5), sharded.shard(8)
    others = [sharded.shard(n) for n in (0, 1, 3, 4, 6, 7)]
    with rig.running():
        with sharded.written(*others, emptied, seed=1):
            rig.ready(target)
        sharded.settled()
        assert sharded.lake() == sharded.source()
        assert len({row[0] for row in sharded.lake()}) == 8
        with sharded.written(*others, seed=2):
            run(
                rig.server,
                emptied.schema,
                f"TRUNCATE TABLE {emptied.name}",
                f"INSERT INTO {emptied.name} VALUES (1, 'x', 1)",
            )
            run(rig.server, dropped.schema, f"DROP TABLE {dropped.name}")
            sharded.create(new, 230)
            rig.until(lambda: new in sharded.shards() and dropped not in sharded.shards(), "they came and went")
            with sharded.written(new, seed=3):
                (read,) = [r for r in rig.state.reads() if r.table == new]
                rig.read(read.job)
        sharded.settled()
        assert sharded.lake() == sharded.source()
        assert [row for row in sharded.lake() if row[0] == str(emptied)] == [(str(emptied), 1, "x", 1)]
        assert not [row for row in sharded.lake() if row[0] == str(dropped)]
        # The same name again is another table.
        sharded.create(dropped, 20)
        rig.until(lambda: dropped in sharded.shards(), "it came again")
        sharded.settled()
        assert sharded.lake() == sharded.source()
        status = rig.state.table(target)
        assert status is not None
        assert status.phase == "ready"
    assert set(rig.state.tables()) == {target}


def test_a_resync_of_the_table_reads_every_shard_anew(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    gone = sharded.shard(3)
    with rig.running():
        rig.ready(target)
        sharded.settled()
        rig.unlogged(
            f"UPDATE {sharded.shard(0).quoted} SET v = 'drifted' WHERE id < 9",
            f"DELETE FROM {sharded.shard(1).quoted} WHERE id < 9",
            f"DROP TABLE {gone.quoted}",
        )
        assert sharded.lake() != sharded.source()
        rig.pipeline.resync(str(target))
        with sharded.written(sharded.shard(0), sharded.shard(1), sharded.shard(2), seed=4):
            rig.until(lambda: not rig.state.open_requests(), "taken")
            rig.ready(target)
        sharded.settled()
        assert sharded.lake() == sharded.source()
        assert gone not in sharded.shards()
        rig.pipeline.remove(str(target))
        rig.until(lambda: rig.state.tables()[target].phase == "removed", "removed")
    assert rig.pipeline.config.tables == ()


def test_shards_that_the_file_names_no_more_leave_and_come_back(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    b = [sharded.shard(n) for n in range(1, 8, 2)]
    with rig.running():
        rig.ready(target)
        sharded.settled()
        sharded.write_file(sharded.entries[:1])
        rig.until(lambda: not sharded.shards() & set(b), "they left")
        before = [row for row in sharded.lake() if row[0].startswith(sharded.schemas[1])]
        run(
            rig.server, sharded.schemas[1], "UPDATE o_1 SET v = 'unseen' WHERE id < 30", "DELETE FROM o_3 WHERE id < 40"
        )
        rig.current()
        # What is there stays, and the others go on.
        assert [row for row in sharded.lake() if row[0].startswith(sharded.schemas[1])] == before
        run(rig.server, sharded.schemas[0], "UPDATE o_0 SET v = 'seen'")
        rig.current()
        assert {row[2] for row in sharded.lake() if row[0] == str(sharded.shard(0))} == {"seen"}
        sharded.write_file(sharded.entries)
        rig.until(lambda: set(b) <= sharded.shards(), "they came back")
        sharded.settled()
        assert sharded.lake() == sharded.source()
        sharded.write_file([])
        rig.until(lambda: rig.state.tables()[target].phase == "removed", "removed")
        sharded.write_file(sharded.entries)
        rig.ready(target)
        sharded.settled()
        assert sharded.lake() == sharded.source()


def test_a_shard_that_went_without_a_word_in_the_log_is_a_shard_no_more(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    gone = sharded.shard(4)
    with rig.running():
        rig.ready(target)
        sharded.settled()
        kept = [row for row in sharded.lake() if row[0] == str(gone)]
        rig.unlogged(f"DROP TABLE {gone.quoted}")
        rig.until(lambda: gone not in sharded.shards(), "it is out")
        run(rig.server, sharded.schemas[0], "UPDATE o_0 SET v = 'goes on'")
        rig.current()
        # No transaction deleted its rows.
        assert [row for row in sharded.lake() if row[0] != str(gone)] == sharded.source()
        assert [row for row in sharded.lake() if row[0] == str(gone)] == kept
        sharded.create(gone, 50)
        rig.until(lambda: gone in sharded.shards(), "it came again")
        sharded.settled()
        assert sharded.lake() == sharded.source()


def test_shards_that_come_and_go_at_once_leave_nothing(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    brief = [sharded.shard(n) for n in range(10, 20)]
    rng = random.Random(5)
    with rig.running():
        rig.ready(target)
        for shard in brief:
            run(rig.server, shard.schema, CREATE.format(shard.name), f"INSERT INTO {shard.name} VALUES (1, 'a', 1)")
            # What the server has is looked at within a second after the file changed.
            sharded.write_file([*sharded.entries, f"{shard.schema}.never_{shard.name}_*"])
            time.sleep(rng.uniform(0.6, 1.4))
            run(rig.server, shard.schema, f"DROP TABLE {shard.name}")
        time.sleep(1.2)
        rig.until(lambda: not sharded.shards() & set(brief), "they are out")
        sharded.settled()
        assert sharded.lake() == sharded.source()
        assert rig.state.tables()[target].phase == "ready"


@pytest.mark.parametrize("lost", ["state", "log", "both"])
def test_a_lost_log_or_state_folder_is_gone_on_without(sharded: Sharded, lost: str) -> None:
    rig, target = sharded.rig, sharded.target
    new, dropped = sharded.shard(8), sharded.shard(5)
    with rig.running():
        rig.ready(target)
        sharded.settled()
        sharded.create(new, 60)
        rig.until(lambda: new in sharded.shards(), "it came")
        sharded.settled()
    run(rig.server, sharded.schemas[0], "UPDATE o_0 SET v = 'meanwhile'", "DELETE FROM o_2 WHERE id < 20")
    late = sharded.shard(12)
    sharded.create(late, 70)
    rig.log.close()
    if lost in ("log", "both"):
        for path in sharded.folder.glob("log.db*"):
            path.unlink()
    if lost in ("state", "both"):
        for path in rig.config.state.glob("state.db*"):
            path.unlink()
    again = Sharded.again(sharded)
    rig = again.rig
    with rig.running():
        rig.ready(target)
        # One that was created since is out when the stream comes to its creation, and in again.
        rig.until(lambda: {new, late, dropped} <= again.shards() and again.lake() == again.source(), "all are there")
        run(rig.server, dropped.schema, f"DROP TABLE {dropped.name}")
        rig.until(lambda: dropped not in again.shards(), "it went")
        again.settled()
        assert again.lake() == again.source()


def test_a_shard_that_is_not_like_the_others_is_left_out_until_it_is(sharded: Sharded) -> None:
    rig, target = sharded.rig, sharded.target
    odd = sharded.shard(9)

    def problems() -> list[dict[str, Any]]:
        return rig.state.nodes()["capture"].info["problems"]  # type: ignore[no-any-return]

    with rig.running():
        rig.ready(target)
        run(
            rig.server,
            odd.schema,
            f"CREATE TABLE {odd.name} (id INT PRIMARY KEY, v VARCHAR(40))",
            f"INSERT INTO {odd.name} VALUES (1, 'x')",
        )
        rig.until(problems, "it is said")
        (problem,) = problems()
        assert problem["where"] == str(target)
        assert problem["what"] == f"shard {odd} is not like the others: column n is gone"
        assert "ALTER TABLE" in problem["hint"]
        run(rig.server, sharded.schemas[0], "UPDATE o_0 SET v = 'goes on'")
        rig.current()
        assert sharded.lake() == sharded.source(odd)
        run(rig.server, odd.schema, f"ALTER TABLE {odd.name} ADD COLUMN n INT")
        rig.until(lambda: odd in sharded.shards(), "it joined")
        rig.until(lambda: not problems(), "nothing is said any more")
        sharded.settled()
        assert sharded.lake() == sharded.source()


@pytest.mark.parametrize(
    ("create", "what", "hint"),
    [
        ("(id INT PRIMARY KEY, v VARCHAR(40), n BIGINT)", "column n is", "make them alike"),
        ("(id INT, v VARCHAR(40), n INT)", "the key is (), was (id)", "make them alike"),
        ("(id INT, v VARCHAR(40), n INT, PRIMARY KEY (id, n))", "the key is (id, n), was (id)", "make them alike"),
        ("(id INT PRIMARY KEY, v VARCHAR(40) CHARACTER SET latin1, n INT)", "column v is", "make them alike"),
    ],
)
def test_shards_that_are_not_alike_at_first_are_refused(
    tmp_path: Path, mysql: MySQLServer, schema: str, create: str, what: str, hint: str
) -> None:
    target = TableName(schema, "orders")
    run(mysql, schema, CREATE.format("o_0"), f"CREATE TABLE o_1 {create}", CREATE.format("plain"))
    rig = Rereading(tmp_path, mysql, [{"name": f"{schema}.o_*", "into": str(target)}, f"{schema}.plain"])
    with rig.running():
        rig.until(lambda: (s := rig.state.table(target)) and s.phase == "stopped", "refused")
        rig.ready(TableName(schema, "plain"))
        error = rig.state.tables()[target].error
        assert error is not None
        assert error["where"] == str(target)
        assert what in error["what"]
        assert hint in error["hint"]
        findings = [f for f in rig.pipeline.check() if f.subject == str(target)]
        assert [f.level for f in findings] == ["error"] or create.startswith("(id INT, v VARCHAR(40), n INT)")
        run(mysql, schema, "DROP TABLE o_1", CREATE.format("o_1"), "INSERT INTO o_1 VALUES (1, 'a', 1)")
        rig.pipeline.resync(str(target))
        rig.ready(target)
        assert [f.level for f in rig.pipeline.check() if f.subject == str(target)] == ["ok"]


@pytest.mark.parametrize(
    ("columns", "entry", "what"),
    [
        ("(v INT)", {}, "a shard has no primary key"),
        ("(id INT PRIMARY KEY, shard INT)", {"shard_column": "Shard"}, "the shards have a column shard"),
        ("(id INT PRIMARY KEY, _cdc_shard INT)", {}, "names that begin with _cdc_"),
    ],
)
def test_shards_that_cannot_be_one_table(
    tmp_path: Path, mysql: MySQLServer, schema: str, columns: str, entry: dict[str, str], what: str
) -> None:
    target = TableName(schema, "orders")
    run(mysql, schema, f"CREATE TABLE o_0 {columns}", f"CREATE TABLE o_1 {columns}")
    rig = Rereading(tmp_path, mysql, [{"name": f"{schema}.o_*", "into": str(target)} | entry])
    with rig.running():
        rig.until(lambda: (s := rig.state.table(target)) and s.phase == "stopped", "refused")
    error = rig.state.tables()[target].error
    assert error is not None
    assert what in error["what"]
    assert any(f.level == "error" for f in rig.pipeline.check())


def test_a_table_of_the_name_that_shards_land_in_is_no_surprise(
    tmp_path: Path, mysql: MySQLServer, schema: str
) -> None:
    target = TableName(schema, "orders")
    run(mysql, schema, *(CREATE.format(n) for n in ("o_0", "o_1", "orders")), "INSERT INTO orders VALUES (1, 'old', 1)")
    shards = {"name": f"{schema}.o_*", "into": str(target)}
    rig = Rereading(tmp_path, mysql, [shards, f"{schema}.*"])
    (finding,) = [f for f in rig.pipeline.check() if f.subject == str(target) and f.level == "error"]
    assert "has this name too" in finding.what
    with rig.running():
        rig.until(lambda: (s := rig.state.table(target)) and s.phase == "stopped", "refused")
        error = rig.state.tables()[target].error
        assert error is not None
        assert "has this name too" in error["what"]
        # The way out that is named: it is a shard as well.
        rig.config.path.write_text(rig._file([{"name": str(target), "into": str(target)}, shards, f"{schema}.*"]))
        time.sleep(1.5)
        rig.pipeline.resync(str(target))
        rig.ready(target)
    found = read_deltalake(Path(rig.config.lake) / target.folder)
    assert found.column("_cdc_shard").to_pylist() == [str(target)]


def test_it_is_added_and_removed_by_command(tmp_path: Path, mysql: MySQLServer, schema: str) -> None:
    target = TableName(schema, "orders")
    run(
        mysql,
        schema,
        CREATE.format("o_0"),
        CREATE.format("o_1"),
        "INSERT INTO o_1 VALUES (1, 'a', 1)",
        CREATE.format("x"),
    )
    rig = Rereading(tmp_path, mysql, [f"{schema}.x"])
    pipeline = Pipeline.load(rig.config.path)
    with rig.running():
        rig.ready(TableName(schema, "x"))
        findings = pipeline.add(f"{schema}.o_*", into=str(target), shard_column="part")
        assert [(f.level, f.subject) for f in findings] == [("ok", str(target))]
        assert "2 shards in 1 schema, alike" in findings[0].what
        rig.ready(target)
        with pytest.raises(LakesyncError, match="different shard_column"):
            pipeline.add(f"{schema}.p_*", into=str(target))
        run(mysql, schema, "CREATE TABLE z_1 (id INT PRIMARY KEY)")
        findings = pipeline.add(f"{schema}.z_*", into=str(target), shard_column="part")
        assert [f.level for f in findings if f.subject == str(target)] == ["error"]
        assert len(pipeline.config.tables) == 2
        pipeline.remove(str(target))
        rig.until(lambda: rig.state.tables()[target].phase == "removed", "removed")
    found = read_deltalake(Path(rig.config.lake) / target.folder)
    assert found.column("part").to_pylist() == [f"{schema}.o_1"]

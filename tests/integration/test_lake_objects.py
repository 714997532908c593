"""Tables in an object store: written by us, read by others, disputed, interrupted, tidied up."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pytest

from cdc.epoch import Counts
from cdc.errors import LakeConflictError, LakeDamagedError, LakeUnknownError
from cdc.lake import LakeTable, Layout, applied_everywhere, deltalog, open_folder
from cdc.lake.maintain import Keep, Maintenance
from cdc.lake.parquet import NAME
from cdc.roots import ObjectRoot
from dev.minio import MinIOServer
from dev.toxiproxy import Toxiproxy
from tests.integration.lake_rows import (
    AFTER,
    BEFORE,
    EVERY_TYPE,
    SIMPLE,
    TABLE,
    Row,
    applied,
    bootstrap,
    collect,
    content,
    every_type,
    same,
    table_of,
    upsert,
    write_and_die,
)
from tests.integration.losing import LosingProxy

Reader = Callable[[LakeTable, int | None], pa.Table]


@pytest.fixture
def bucket(minio: MinIOServer) -> str:
    return minio.bucket()


@pytest.fixture
def at(minio: MinIOServer, bucket: str) -> Callable[..., ObjectRoot]:
    """The lake, by this way to the store."""

    def root(endpoint: str = "") -> ObjectRoot:
        options = minio.options(endpoint or minio.endpoint) | {"retry_timeout": "2"}
        return ObjectRoot(f"s3://{bucket}/lake", tuple(sorted(options.items())))

    return root


@pytest.fixture
def lake(at: Callable[..., ObjectRoot]) -> LakeTable:
    return LakeTable(at(), TABLE, "p")


@pytest.fixture
def proxy(minio: MinIOServer) -> Iterator[LosingProxy]:
    proxy = LosingProxy(minio.port)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(params=["deltalake", "polars", "chdb"])
def reader(request: pytest.FixtureRequest, minio: MinIOServer) -> Reader:
    """Who reads, as docs/lake.md says that they do."""
    options = minio.reader_options()

    def by_deltalake(lake: LakeTable, version: int | None) -> pa.Table:
        return pa.table(deltalake.DeltaTable(str(lake.folder), version=version, storage_options=options).scan())

    def by_polars(lake: LakeTable, version: int | None) -> pa.Table:
        return polars.read_delta(str(lake.folder), version=version, storage_options=options).to_arrow()

    def by_chdb(lake: LakeTable, version: int | None) -> pa.Table:
        url = str(lake.folder).replace("s3://", f"{minio.endpoint}/") + "/"
        program = "import sys, chdb; sys.stdout.buffer.write(chdb.query(sys.argv[1], 'ArrowStream').bytes())"
        query = f"SELECT * FROM deltaLake('{url}', '{minio.user}', '{minio.password}')"
        query += f" SETTINGS delta_lake_snapshot_version = {version}" if version is not None else ""
        done = subprocess.run([sys.executable, "-c", program, query], cwd="/", capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return pa.ipc.open_stream(done.stdout).read_all()

    return {"deltalake": by_deltalake, "polars": by_polars, "chdb": by_chdb}[request.param]


def test_every_reader_reads_every_version(lake: LakeTable, reader: Reader) -> None:
    rows: dict[int, Row] = {i: every_type(i) for i in range(200)}
    snapshot = bootstrap(lake, EVERY_TYPE, list(rows.values()), files=3)
    states = [dict(rows)]
    for i in range(3):
        changed = [every_type(key, 2030 + i) for key in range(i * 40, i * 40 + 60)]
        deleted = [(key,) for key in range(190 - 10 * i, 200 - 10 * i)]
        snapshot = upsert(lake, snapshot, changed, deleted)
        rows |= {row[6]: row for row in changed}
        for (key,) in deleted:
            rows.pop(key, None)
        states.append(dict(rows))
    lake.checkpoint(snapshot)
    assert same(reader(lake, None), EVERY_TYPE.arrow) == same(
        table_of(rows.values(), EVERY_TYPE.arrow), EVERY_TYPE.arrow
    )
    for version in (0, 2):
        expected = table_of(states[version].values(), EVERY_TYPE.arrow)
        assert same(reader(lake, version), EVERY_TYPE.arrow) == same(expected, EVERY_TYPE.arrow)


def test_a_table_equals_a_dictionary(at: Callable[..., ObjectRoot], tmp_path: Path) -> None:
    chance = random.Random(7)
    lake = LakeTable(at(), TABLE, "p", file_size=20_000, index=tmp_path / "index")
    rows: dict[Any, Any] = dict(BEFORE)
    snapshot = bootstrap(lake, SIMPLE, BEFORE, files=2)
    for step in range(25):
        new = {chance.randrange(300): f"{step}-{chance.random()}" for _ in range(chance.randrange(20))}
        gone = [key for key in chance.sample(range(300), 10) if key not in new]
        snapshot = upsert(lake, snapshot, list(new.items()), [(key,) for key in gone])
        rows |= new
        for key in gone:
            rows.pop(key, None)
        if chance.random() < 0.2:
            snapshot = lake.checkpoint(snapshot)
        if chance.random() < 0.3:
            lake.close()
            lake = LakeTable(at(), TABLE, "p", file_size=20_000, index=tmp_path / "index")
            loaded = lake.load()
            assert loaded is not None
            snapshot = loaded
        assert snapshot.rows == len(rows)
    assert content(lake, snapshot) == sorted(rows.items())
    lake.close()


def test_of_two_writers_one_is_told_and_leaves_nothing(at: Callable[..., ObjectRoot], lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    first = upsert(lake, snapshot, [(1, "first")])
    there = set(lake.folder.names())
    other = LakeTable(at(), TABLE, "p")
    with pytest.raises(LakeConflictError, match="version 1"):
        upsert(other, snapshot, [(1, "second")])
    assert {name for name in lake.folder.names() if NAME.fullmatch(name)} == {n for n in there if NAME.fullmatch(n)}
    assert content(lake, first)[1] == (1, "first")
    again = upsert(other, other.refresh(snapshot), [(1, "second")])
    assert content(other, again)[1] == (1, "second")


def test_a_commit_whose_answer_is_lost_is_made_once(
    at: Callable[..., ObjectRoot], lake: LakeTable, proxy: LosingProxy
) -> None:
    bootstrap(lake, SIMPLE, BEFORE)
    ours = LakeTable(at(proxy.endpoint), TABLE, "p")
    snapshot = ours.load()
    assert snapshot is not None
    with proxy.rule("lost", "PUT", "_delta_log", times=2):
        snapshot = upsert(ours, snapshot, [(1, "x")])
        snapshot = upsert(ours, snapshot, [(2, "y")], [(3,)])
    assert snapshot.version == 2
    loaded = lake.load()
    assert loaded is not None
    assert (loaded.version, loaded.applied) == (2, snapshot.applied)
    rows: dict[Any, Any] = dict(content(lake, snapshot))
    assert (rows[1], rows[2], 3 in rows, len(rows)) == ("x", "y", False, 99)


def test_a_commit_that_arrives_late_is_applied_and_not_repeated(
    at: Callable[..., ObjectRoot], lake: LakeTable, proxy: LosingProxy
) -> None:
    bootstrap(lake, SIMPLE, BEFORE)
    ours = LakeTable(at(proxy.endpoint), TABLE, "p")
    snapshot = ours.load()
    assert snapshot is not None
    with proxy.rule("late", "PUT", "_delta_log", delay_s=5), pytest.raises(LakeUnknownError):
        upsert(ours, snapshot, [(1, "x")], [(3,)])
    assert ours.refresh(snapshot) is snapshot  # it is not there, yet
    proxy.wait()
    after = ours.refresh(snapshot)
    assert (after.version, after.applied) == (1, applied(2))
    rows: dict[Any, Any] = dict(content(ours, after))
    assert (rows[1], 3 in rows, len(rows)) == ("x", False, 99)


@pytest.mark.parametrize(
    "point", ["lake.after-data-files", "lake.after-vectors", "lake.before-commit", "lake.after-commit"]
)
def test_a_kill_leaves_the_version_before_or_after(at: Callable[..., ObjectRoot], lake: LakeTable, point: str) -> None:
    assert write_and_die(at(), "bootstrap", "") == 0
    assert write_and_die(at(), "upsert", f"kill:{point}") == -signal.SIGKILL
    snapshot = lake.load()
    assert snapshot is not None
    committed = point == "lake.after-commit"
    assert snapshot.version == (1 if committed else 0)
    assert content(lake, snapshot) == (AFTER if committed else BEFORE)
    assert write_and_die(at(), "upsert", "") == 0
    assert content(lake, lake.refresh(snapshot)) == AFTER


def test_a_busy_and_far_store_loses_nothing(
    at: Callable[..., ObjectRoot], minio: MinIOServer, proxy: LosingProxy, toxiproxy: Toxiproxy, bucket: str
) -> None:
    """Every third request of a kind is refused, and each takes a while."""
    way = toxiproxy.proxy(f"far-{bucket}", minio.port)
    proxy.upstream_port = way.port
    lake = LakeTable(at(proxy.endpoint), TABLE, "p")
    rows: dict[Any, Any] = dict(BEFORE)
    with way.toxic("latency", latency=10, jitter=10):
        snapshot = bootstrap(lake, SIMPLE, BEFORE)
        for step in range(6):
            new = {step * 7 + i: f"{step}" for i in range(5)}
            with (
                proxy.rule("503", "PUT", times=1),
                proxy.rule("503", "GET", times=1),
                proxy.rule("lost", "HEAD", times=1),
                proxy.rule("lost", "PUT", "_delta_log", times=1),
            ):
                snapshot = upsert(lake, snapshot, list(new.items()), [(90 + step,)])
            rows |= new
            del rows[90 + step]
    loaded = LakeTable(at(), TABLE, "p").load()
    assert loaded is not None
    assert content(LakeTable(at(), TABLE, "p"), loaded) == sorted(rows.items())


def test_a_data_file_that_is_gone_is_damage(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    (file,) = snapshot.files
    lake.folder.delete([file])
    with pytest.raises(LakeDamagedError, match="is missing"):
        list(lake.scan(snapshot))
    lake.folder.replace(file, b"x" * 1000)
    with pytest.raises(LakeDamagedError, match="has 1000 bytes, its commit says"):
        list(lake.scan(snapshot))


def test_tidied_up(at: Callable[..., ObjectRoot]) -> None:
    lake = LakeTable(at(), TABLE, "p")
    snapshot = upsert(lake, bootstrap(lake, SIMPLE, BEFORE), [(i, "x") for i in range(100)])
    orphan = lake.write_file(table_of(BEFORE, SIMPLE.arrow).to_batches(), SIMPLE, ts_ms=1, seq=1)
    before = len(list(lake.folder.walk()))
    assert collect(lake, 3600)[0] == 0
    assert collect(lake, -3600)[0] == 1
    assert collect(lake, -3600, -3600)[0] == 1
    assert len(list(lake.folder.walk())) == before - 2
    assert not lake.folder.holds(orphan.name)
    assert lake.discard([orphan.name, *snapshot.files]) == 0
    assert content(lake, snapshot) == [(i, "x") for i in range(100)]


def test_kept_tidy_between_commits(at: Callable[..., ObjectRoot]) -> None:
    lake = LakeTable(at(), TABLE, "p")
    maintenance, keep = Maintenance(lake), Keep(files_s=0.0, log_s=0.0)
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    for number in range(16):
        snapshot = upsert(lake, snapshot, [(number, "x"), (200 + number, "y")])
        snapshot = maintenance.run(snapshot, keep, 60)
    assert len(snapshot.files) < 8
    before = len(list(lake.folder.walk()))
    snapshot = maintenance.optimize(snapshot, keep)
    assert maintenance.done.files_deleted > 8
    assert len(list(lake.folder.walk())) < before
    (file,) = snapshot.files.values()
    assert (file.num_records, file.deleted, snapshot.checkpoint) == (116, 0, snapshot.version)
    loaded = LakeTable(at(), TABLE, "p").load()
    assert loaded is not None
    expected = sorted({**dict(BEFORE), **dict.fromkeys(range(16), "x"), **{200 + i: "y" for i in range(16)}}.items())
    assert content(lake, snapshot) == content(lake, loaded) == expected


def test_where_a_fresh_log_continues(at: Callable[..., ObjectRoot], lake: LakeTable) -> None:
    bootstrap(lake, SIMPLE, BEFORE, epoch=3)
    open_folder(at()).folder("Not a name/x/_delta_log").replace("y", b"")
    assert applied_everywhere(at(), "p") == {TABLE: applied(3)}
    assert applied_everywhere(at(), "q") == {}
    assert [commit.info["kind"] for commit in deltalog.commits(lake.folder)] == ["bootstrap"]


def test_a_log_that_was_put_back_is_read_from_the_start(lake: LakeTable) -> None:
    snapshot = bootstrap(lake, SIMPLE, BEFORE)
    log = lake.folder.folder("_delta_log")
    for step in range(2):
        snapshot = upsert(lake, snapshot, [(1, f"{step}")])
    log.delete([f"{2:020}.json"])
    assert lake.refresh(snapshot).version == 1
    log.replace(f"{1:020}.json", log.read(f"{1:020}.json") + b"\n")
    assert lake.refresh(snapshot).version == 1


def test_an_empty_table(lake: LakeTable) -> None:
    created = lake.create(SIMPLE, Layout(), applied(1), Counts())
    assert content(lake, upsert(lake, created, BEFORE)) == BEFORE

"""What every kind of lake promises, run over each of them: a local disk, and an object store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc.errors import LakeConflictError, LakeError
from cdc.lake.store import Folder, open_folder
from cdc.roots import ObjectRoot, Root
from dev.minio import MinIOServer

MIB = 1024 * 1024


@pytest.fixture(params=["local", "minio", "minio, without a prefix"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "local":
        return tmp_path / "lake"
    minio: MinIOServer = request.getfixturevalue("minio")
    prefix = "" if "without" in request.param else "/some/lake"
    return ObjectRoot(f"s3://{minio.bucket()}{prefix}", tuple(sorted(minio.options().items())))


@pytest.fixture
def lake(root: Root) -> Folder:
    return open_folder(root)


def write(folder: Folder, name: str, *pieces: bytes) -> None:
    output = folder.create(name)
    for piece in pieces:
        output.write(piece)
    output.finish()


def test_nothing_is_there_before_anything_is_written(lake: Folder) -> None:
    folder = lake.folder("shop/orders")
    assert (folder.names(), list(folder.walk()), folder.size("x"), folder.tail("x")) == ([], [], None, None)
    assert not folder.holds("x")
    assert folder.delete(["x", "y"]) == 0
    for read in (folder.read, folder.open, lambda name: folder.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("x")


def test_what_was_written_is_read(lake: Folder) -> None:
    folder = lake.folder("shop/orders")
    write(folder, "data", b"hello ", b"world")
    folder.settle()
    assert folder.read("data") == b"hello world"
    assert folder.size("data") == 11
    assert folder.holds("data")
    assert lake.folder("shop").read("orders/data") == b"hello world"


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(0, 5, b"hello"), (6, 99, b"world"), (11, 3, b""), (3, 0, b"")]
)
def test_ranges(lake: Folder, offset: int, length: int, expected: bytes) -> None:
    write(lake, "data", b"hello world")
    assert lake.read_range("data", offset, length) == expected


def test_a_file_is_there_when_it_is_finished_and_not_before_its_bytes_are(lake: Folder) -> None:
    output = lake.create("data")
    output.write(b"half")
    assert output.tell() == 4
    assert lake.size("data") != 8
    output.write(b"half")
    output.finish()
    assert output.closed
    assert lake.read("data") == b"halfhalf"


def test_what_is_abandoned_is_gone(lake: Folder) -> None:
    output = lake.create("data")
    output.write(b"half")
    output.abandon()
    assert output.closed
    assert not lake.holds("data")
    output = lake.create("data")
    output.write(b"whole")
    output.finish()
    output.abandon()
    assert not lake.holds("data")


def test_an_empty_file(lake: Folder) -> None:
    write(lake, "nothing")
    assert (lake.size("nothing"), lake.read("nothing")) == (0, b"")
    with lake.open("nothing") as file:
        assert file.size() == 0


def test_names_are_those_directly_in_it_and_walking_finds_all_files(lake: Folder) -> None:
    before = time.time() * 1000
    for name in ("b", "a", "c=1/x", "c=1/d=2/y", "_delta_log/0"):
        write(lake, name, name.encode())
    assert sorted(lake.names()) == ["_delta_log", "a", "b", "c=1"]
    assert sorted(lake.folder("c=1").names()) == ["d=2", "x"]
    found = {entry.name: entry for entry in lake.walk()}
    assert set(found) == {"a", "b", "c=1/x", "c=1/d=2/y", "_delta_log/0"}
    assert {name: entry.size for name, entry in found.items()} == {name: len(name) for name in found}
    assert all(before - 2000 <= entry.modified_ms <= time.time() * 1000 + 2000 for entry in found.values())
    assert [entry.name for entry in lake.folder("c=1").walk() if "/" in entry.name] == ["d=2/y"]
    assert lake.holds("c=1")
    assert lake.holds("c=1/d=2")
    assert not lake.holds("c=")


NAMES = [
    "with space",
    "per%cent",
    "per%20cent",
    "a=Ünïcode ✓",
    "plus+and&",
    "c=a%3Ab/part",
    "'quoted\"",
    "#hash?question",
    "[x]{y}|~`^",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_as_they_are(lake: Folder, name: str) -> None:
    write(lake, name, b"x")
    assert lake.read(name) == b"x"
    assert [entry.name for entry in lake.walk()] == [name]
    with lake.open(name) as file:
        assert file.read() == b"x"
    assert lake.delete([name]) == 1


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "s3://other/x", "x\0y"])
def test_no_name_leads_out(lake: Folder, name: str) -> None:
    for use in (lake.read, lake.folder, lake.create, lake.size, lambda n: lake.replace(n, b"")):
        with pytest.raises(LakeError):
            use(name)
    assert lake.delete([name]) == 0


def test_many_small_files_at_once(lake: Folder) -> None:
    names = [f"{i}.json" for i in range(100)]
    for name in names[::2]:
        lake.replace(f"log/{name}", name.encode())
    log = lake.folder("log")
    assert list(log.read_all(names)) == [name.encode() if int(name[:-5]) % 2 == 0 else None for name in names]
    assert list(log.read_all(iter(["0.json"]))) == [b"0.json"]
    assert list(log.read_all([])) == []


def test_a_replaced_file_is_the_new_one_and_another_one(lake: Folder) -> None:
    lake.replace("m/manifest.json", b"old")
    tail = lake.tail("m/manifest.json")
    assert tail == lake.tail("m/manifest.json")
    lake.replace("m/manifest.json", b"new")
    assert lake.read("m/manifest.json") == b"new"
    assert lake.tail("m/manifest.json") not in (None, tail)
    assert lake.folder("m").names() == ["manifest.json"]


def test_a_second_name_keeps_what_was_there(lake: Folder) -> None:
    lake.replace("m/manifest.json", b"old")
    lake.folder("m").alias("manifest.json", "manifest-1.json")
    lake.replace("m/manifest.json", b"new")
    assert lake.read("m/manifest-1.json") == b"old"
    lake.folder("m").alias("manifest.json", "manifest-1.json")
    assert lake.read("m/manifest-1.json") == b"old"


def test_deleting_says_how_many_were_there(lake: Folder) -> None:
    for name in "abc":
        write(lake, name, b"x")
    assert lake.delete(["a", "b", "none"]) == 2
    assert lake.names() == ["c"]
    assert lake.delete(iter(["c"])) == 1


# -- commits ---------------------------------------------------------------------------------------------------------------

COMMIT = f"{7:020}.json"


def test_the_second_writer_of_a_version_is_told(lake: Folder) -> None:
    log = lake.folder("shop/orders/_delta_log")
    tail = log.put_if_absent(COMMIT, b"first")
    assert tail is not None
    assert tail == log.tail(COMMIT)
    with pytest.raises(LakeConflictError, match="version 7 was committed by another writer") as caught:
        log.put_if_absent(COMMIT, b"second")
    assert caught.value.where == f"{lake}/shop/orders/_delta_log/{COMMIT}"
    assert log.read(COMMIT) == b"first"
    assert log.names() == [COMMIT]


def test_of_many_writers_of_a_version_one_wins(root: Root) -> None:
    log = open_folder(root).folder("_delta_log")
    start, won, lost = threading.Barrier(8), list[int](), list[int]()

    def commit(number: int) -> None:
        start.wait()
        try:
            open_folder(root).folder("_delta_log").put_if_absent(COMMIT, b"%d" % number)
        except LakeConflictError:
            lost.append(number)
        else:
            won.append(number)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert log.read(COMMIT) == b"%d" % won[0]


def test_the_probe_leaves_nothing(lake: Folder) -> None:
    lake.probe()
    assert list(lake.walk()) == []


def test_folders_are_equal_by_where_they_are(root: Root) -> None:
    assert open_folder(root).folder("a").folder("b") == open_folder(root).folder("a/b")
    assert open_folder(root).folder("a") != open_folder(root).folder("b")
    assert len({open_folder(root).folder("a"), open_folder(root).folder("a")}) == 1
    assert str(open_folder(root).folder("a/b")) == f"{root}/a/b"


# -- Parquet -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [0.01, 3, 20])
def test_parquet_is_written_and_read_at_random(lake: Folder, megabytes: float) -> None:
    rows = int(megabytes * MIB / 16)
    table = pa.table(
        {"id": pa.array(range(rows), pa.int64()), "square": pa.array([(i * i) % 2**61 for i in range(rows)])}
    )
    output = lake.create("t/part.parquet")
    writer = pq.ParquetWriter(output, table.schema, compression="none", use_dictionary=False)  # type: ignore[arg-type]
    writer.write_table(table, row_group_size=100_000)
    writer.close()
    written = output.tell()
    output.finish()
    with lake.open("t/part.parquet") as source:
        assert source.size() == written == lake.size("t/part.parquet")
        with pq.ParquetFile(source) as file:
            last = file.num_row_groups - 1
            assert file.read_row_group(last, columns=["square"]).equals(table.slice(last * 100_000).select(["square"]))
            assert file.read_row_group(0).equals(table.slice(0, 100_000))
            assert file.read().equals(table)


def test_reading_backwards_and_beyond_the_end(lake: Folder) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    write(lake, "data", data)
    with lake.open("data") as file:
        for at, size in ((2 * MIB - 10, 100), (0, 10), (MIB, MIB), (5, 2 * MIB), (2 * MIB, 1), (100, 0)):
            file.seek(at)
            assert file.read(size) == data[at : at + size]


@pytest.fixture(autouse=True)
def _unchanged_folder(tmp_path: Path) -> Iterator[None]:
    """Nothing is written outside of the lake."""
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"lake"}

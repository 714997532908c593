"""The key index against a dict, with keys of all types, through runs, saves, damage and kills."""

from __future__ import annotations

import datetime as dt
import gc
import multiprocessing
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cdc._native import Bitmap, KeyIndex

MEMORY = 1 << 20


def bitmap(rows: Sequence[int]) -> Bitmap:
    return Bitmap().add(pa.array(rows, pa.uint32()))


def batch(*columns: Any) -> pa.RecordBatch:
    return pa.record_batch(list(columns), [f"c{i}" for i in range(len(columns))])


def longs(*numbers: int) -> pa.RecordBatch:
    return batch(pa.array(numbers, pa.int64()))


def located(index: KeyIndex, keys: pa.RecordBatch) -> list[tuple[int, int] | None]:
    found: Any = index.locate(keys)
    places: Any = pa.array(found)
    files, rows = places.field("file").to_pylist(), places.field("row").to_pylist()
    assert [place is None for place in places.to_pylist()] == [file is None for file in files]
    return [None if file is None else (file, row) for file, row in zip(files, rows, strict=True)]


DAY = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
TYPES: dict[str, tuple[list[pa.DataType], Callable[[int], tuple[object, ...]]]] = {
    "int8": ([pa.int8()], lambda n: (n - 128,)),
    "int16": ([pa.int16()], lambda n: (n - 300,)),
    "int32": ([pa.int32()], lambda n: (2**31 - 1 - n,)),
    "int64": ([pa.int64()], lambda n: (-(2**63) + n,)),
    "decimal": ([pa.decimal128(20, 0)], lambda n: (Decimal(2**64 - 1 - n),)),
    "fine decimal": ([pa.decimal128(38, 9)], lambda n: (Decimal(n - 9).scaleb(-9),)),
    "date": ([pa.date32()], lambda n: (dt.date(1970, 1, 1) + dt.timedelta(n - 90),)),
    "timestamp": ([pa.timestamp("us")], lambda n: (DAY.replace(tzinfo=None) + dt.timedelta(microseconds=n - 90),)),
    "timestamp utc": ([pa.timestamp("us", "UTC")], lambda n: (DAY + dt.timedelta(days=n),)),
    "string": ([pa.string()], lambda n: ("" if n == 0 else f"ключ {n}" if n % 2 else str(n),)),
    "large string": ([pa.large_string()], lambda n: ("x" * n,)),
    "string view": ([pa.string_view()], lambda n: ("x" * n,)),
    "binary": ([pa.binary()], lambda n: (b"\0" * (n % 5) + n.to_bytes(2, "big"),)),
    "float32": ([pa.float32()], lambda n: (n / 2,)),
    "float64": ([pa.float64()], lambda n: (-0.0 if n == 1 else float("nan") if n == 2 else n / 3,)),
    "two ints": ([pa.int32(), pa.int32()], lambda n: (n // 10, -(n % 10))),
    "narrow ones": ([pa.int8(), pa.bool_(), pa.int16(), pa.int32()], lambda n: (n % 7, n % 2 == 0, n, -n)),
    "two longs": ([pa.int64(), pa.int64()], lambda n: (n % 3, n // 3)),
    "strings": ([pa.string(), pa.string()], lambda n: ("a" * (n // 12), "a" * (n % 12))),
    "mixed": (
        [pa.string(), pa.int64(), pa.bool_(), pa.binary()],
        lambda n: (str(n)[:1], n // 2, n % 2 == 0, b"a" * (n % 4)),
    ),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_keys_of_each_type_are_told_apart(name: str, memory: int, tmp_path: Path) -> None:
    types, make = TYPES[name]
    made = [make(n) for n in range(120)]
    columns = [pa.array([key[i] for key in made], type_) for i, type_ in enumerate(types)]
    keys = batch(*columns)
    index = KeyIndex(str(tmp_path), memory)
    index.set_file(0)
    index.set_file(1)
    index.add(0, 0, keys[:60])
    index.add(1, 7, keys[60:100])
    expected = [(0, row) for row in range(60)] + [(1, 7 + row) for row in range(40)] + [None] * 20
    assert located(index, keys) == expected
    assert located(index, keys[50:70]) == expected[50:70]
    index.save(b"x")
    assert located(index, keys) == expected
    assert located(KeyIndex.open(str(tmp_path), memory), keys) == expected
    assert index.compact() == 0
    assert located(index, keys) == expected


def test_floats_are_compared_by_their_bits() -> None:
    index = KeyIndex(None, MEMORY)
    index.set_file(0)
    index.add(0, 0, batch(pa.array([0.0, float("nan")])))
    assert located(index, batch(pa.array([-0.0, float("nan"), 0.0]))) == [None, (0, 1), (0, 0)]


class Table(RuleBasedStateMachine):
    """Files of rows, of which some are live; beside it the dict of where each key is."""

    @initialize(
        string=st.booleans(),
        memory=st.sampled_from([0, 4000, MEMORY]),
        folder=st.booleans(),
    )
    def begin(self, string: bool, memory: int, folder: bool) -> None:
        self.folder = Path(os.environ["KEYINDEX_FOLDER"]) / str(id(self)) if folder else None
        self.string, self.memory = string, memory
        self.index = KeyIndex(str(self.folder) if self.folder else None, memory)
        self.live: dict[int, tuple[int, int]] = {}
        self.files: dict[int, list[int]] = {}
        self.dead: dict[int, set[int]] = {}
        self.saved: tuple[dict[int, tuple[int, int]], dict[int, list[int]], dict[int, set[int]]] | None = None
        self.next = 0

    def keys(self, keys: Sequence[int]) -> pa.RecordBatch:
        return batch(pa.array([f"key {key}" for key in keys], pa.string())) if self.string else longs(*keys)

    def forget(self, keys: set[int]) -> list[tuple[int, int]]:
        return [self.live.pop(key) for key in keys & self.live.keys()]

    def kill(self, places: Iterable[tuple[int, int]]) -> None:
        touched = set()
        for file, row in places:
            self.dead[file].add(row)
            touched.add(file)
        for file in touched:
            if len(self.dead[file]) == len(self.files[file]):
                del self.files[file], self.dead[file]
                self.index.drop_file(file)
            else:
                self.index.set_file(file, bitmap(sorted(self.dead[file])))

    def put(self, keys: list[int]) -> None:
        self.files[self.next], self.dead[self.next] = keys, set()
        self.index.set_file(self.next)
        self.index.add(self.next, 0, self.keys(keys))
        self.live.update({key: (self.next, row) for row, key in enumerate(keys)})
        self.next += 1

    @rule(keys=st.sets(st.integers(0, 60), min_size=1), index_first=st.booleans())
    def upsert(self, keys: set[int], index_first: bool) -> None:
        old = self.forget(keys)
        if not index_first:
            self.kill(old)
        self.put(list(keys))
        if index_first:  # the new places are known before the old ones are said to be dead
            self.kill(old)

    @rule(keys=st.sets(st.integers(0, 60)))
    def delete(self, keys: set[int]) -> None:
        self.kill(self.forget(keys))

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        files = data.draw(st.sets(st.sampled_from(sorted(self.files)), min_size=1))
        keys = [key for key, (file, _) in sorted(self.live.items()) if file in files]
        for file in files:
            del self.files[file], self.dead[file]
            self.index.drop_file(file)
        if keys:
            self.put(keys)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Somebody's RESTORE: a file's dead rows live again, what is newer is dead; the file is read again, under its number."""
        file = data.draw(st.sampled_from(sorted(self.files)))
        keys = self.files[file]
        self.kill(self.forget({key for key in keys if self.live.get(key, (file, 0))[0] != file}))
        self.dead[file] = set()
        self.index.set_file(file)
        self.index.add(file, 0, self.keys(keys))
        self.live.update({key: (file, row) for row, key in enumerate(keys)})

    @rule()
    def compact(self) -> None:
        assert self.index.compact() == 0
        assert self.index.entries == len(self.live)
        assert self.index.runs <= 1

    @rule()
    def write_run(self) -> None:
        self.index.write_run()

    @rule(stamp=st.binary(max_size=9))
    def save(self, stamp: bytes) -> None:
        self.index.save(stamp)
        assert self.index.stamp == stamp
        copies = {file: list(keys) for file, keys in self.files.items()}, {f: set(d) for f, d in self.dead.items()}
        self.saved = (dict(self.live), *copies)

    @precondition(lambda self: self.folder and self.saved)
    @rule()
    def reopen(self) -> None:
        assert self.folder
        assert self.saved
        stamp = self.index.stamp
        self.index = KeyIndex.open(str(self.folder), self.memory)
        assert self.index.stamp == stamp
        live, files, dead = self.saved
        self.live, self.files = dict(live), {file: list(keys) for file, keys in files.items()}
        self.dead = {file: set(rows) for file, rows in dead.items()}

    @invariant()
    def every_key_is_where_it_is(self) -> None:
        keys = list(range(70))
        assert located(self.index, self.keys(keys)) == [self.live.get(key) for key in keys]

    def teardown(self) -> None:
        if getattr(self, "folder", None):
            shutil.rmtree(str(self.folder), ignore_errors=True)


@pytest.mark.timeout(300)
def test_it_agrees_with_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("KEYINDEX_FOLDER", str(tmp_path))
    run_state_machine_as_test(Table, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))


def test_a_file_counts_once_it_is_set_and_until_it_is_dropped() -> None:
    index = KeyIndex(None, MEMORY)
    index.add(3, 10, longs(1, 2, 3), bitmap([11]))
    assert located(index, longs(1, 2, 3)) == [None, None, None]
    index.set_file(3)
    assert located(index, longs(1, 2, 3)) == [(3, 10), None, (3, 12)]
    index.set_file(3, bitmap([10, 4_000_000]))
    assert located(index, longs(1, 2, 3)) == [None, None, (3, 12)]
    index.set_file(3, None)
    assert located(index, longs(1, 2, 3)) == [(3, 10), None, (3, 12)]
    index.drop_file(3)
    assert located(index, longs(1, 2, 3)) == [None, None, None]
    index.drop_file(99)


@pytest.mark.parametrize("memory", [0, MEMORY])
def test_keys_that_are_live_more_than_once_are_counted(memory: int) -> None:
    index = KeyIndex(None, memory)
    for file in range(3):
        index.set_file(file)
        index.add(file, 0, longs(1, 2 + file, 2 + file, 9 + file))
    assert located(index, longs(1, 2)) == [(2, 0), (0, 2)]
    assert [index.compact(), index.compact()] == [4, 4]
    index.set_file(0, bitmap([0, 1]))
    index.set_file(1, bitmap([0, 1]))
    assert index.compact() == 1
    assert located(index, longs(1, 2, 4)) == [(2, 0), (0, 2), (2, 2)]


def test_nulls_and_other_types_are_refused_without_a_word_of_the_keys() -> None:
    index = KeyIndex(None, MEMORY)
    with pytest.raises(ValueError, match="NULL"):
        index.add(0, 0, batch(pa.array(["secret", None])))
    index.add(0, 0, batch(pa.array(["secret"])))
    with pytest.raises(ValueError, match=r"\(int64\).*\(string\)"):
        index.locate(longs(1))
    with pytest.raises(ValueError, match="NULL"):
        index.locate(batch(pa.array([None], pa.string())))
    with pytest.raises(ValueError, match="type"):
        index.add(0, 0, batch(pa.array([[1]])))
    none: Any = pa.array([{}], pa.struct([]))
    with pytest.raises(ValueError, match="column"):
        index.add(0, 0, pa.RecordBatch.from_struct_array(none))
    with pytest.raises(TypeError):
        index.add(0, 0, pa.array(["secret"]))
    with pytest.raises(TypeError):
        index.locate(pa.table({"key": ["secret"]}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows"):
        index.add(0, 2**32 - 2, batch(pa.array(["a", "b", "c"])))


def test_a_batch_without_rows_is_nothing() -> None:
    index = KeyIndex(None, MEMORY)
    assert located(index, longs()) == []
    index.add(0, 0, longs())
    assert located(index, longs()) == []
    assert (index.compact(), index.entries, index.runs) == (0, 0, 0)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_of_live_places_in_several_runs_the_newest_is_found(kind: pa.DataType) -> None:
    index = KeyIndex(None, MEMORY)
    for file, count in enumerate([2000, 300, 40]):  # none of these is small enough to be merged with the one before
        index.set_file(file)
        index.add(file, 0, batch(pa.array(range(count), pa.int64()).cast(kind)))
        index.write_run()
    asked = batch(pa.array([5, 100, 1000], pa.int64()).cast(kind))
    assert index.runs == 3
    assert located(index, asked) == [(2, 5), (1, 100), (0, 1000)]
    index.drop_file(2)
    assert located(index, asked) == [(1, 5), (1, 100), (0, 1000)]
    assert index.compact() == 300
    assert located(index, asked) == [(1, 5), (1, 100), (0, 1000)]


def saved(folder: Path) -> dict[str, bytes]:
    index = KeyIndex(str(folder), MEMORY)
    for file in range(2):
        index.set_file(file, bitmap([3]))
        index.add(file, 0, batch(pa.array([f"key {file} {row}" for row in range(300 >> 4 * file)])))
        index.save(b"stamp")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("damaged")
    return folder, saved(folder)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_index_is_not_opened(damaged: tuple[Path, dict[str, bytes]], data: st.DataObject) -> None:
    folder, files = damaged
    assert len(files) > 2
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    kind = data.draw(st.sampled_from(["flipped", "cut", "zeroed", "longer", "other"]))
    if kind == "flipped":
        # Runs have holes, of zeros, that nobody reads.
        places = [i for i, byte in enumerate(content) if byte]
        content[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "zeroed":
        first = data.draw(st.integers(0, len(content) - 1).filter(lambda i: any(content[i:])))
        content[first:] = bytes(len(content) - first)
    elif kind == "longer" and name == "index":
        content += b"\0"
    else:
        content = bytearray(next(other for other in files.values() if other != files[name]))
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="index"):
        KeyIndex.open(str(folder), MEMORY)
    (folder / name).write_bytes(files[name])
    assert KeyIndex.open(str(folder), MEMORY).stamp == b"stamp"


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyIndex.open(str(tmp_path / "nowhere"), MEMORY)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(FileNotFoundError):
        KeyIndex.open(str(tmp_path), MEMORY)
    files = saved(tmp_path)
    for name in files:
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(FileNotFoundError if name == "index" else ValueError):
            KeyIndex.open(str(tmp_path), MEMORY)
        (tmp_path / "away").rename(tmp_path / name)


def test_runs_of_another_index_are_not_taken(tmp_path: Path) -> None:
    for name, key in (("one", "a"), ("two", "b")):
        index = KeyIndex(str(tmp_path / name), MEMORY)
        index.set_file(0)
        index.add(0, 0, batch(pa.array([key * 3 + str(n) for n in range(9)])))
        index.save(name.encode())
    runs = sorted((tmp_path / "one").glob("*.run"))
    assert runs
    for run in runs:
        shutil.copy(tmp_path / "two" / run.name, run)
    with pytest.raises(ValueError, match="damaged"):
        KeyIndex.open(str(tmp_path / "one"), MEMORY)


def test_an_index_of_a_later_version_is_not_opened(tmp_path: Path) -> None:
    saved(tmp_path)
    content = bytearray((tmp_path / "index").read_bytes())
    content[15] += 1
    content[-4:] = struct.pack("<I", __import__("zlib").crc32(content[:-4]))
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(ValueError, match="version"):
        KeyIndex.open(str(tmp_path), MEMORY)


def test_files_may_be_replaced_or_removed_under_an_open_index(tmp_path: Path) -> None:
    index = KeyIndex(str(tmp_path), MEMORY)
    index.set_file(0)
    index.add(0, 0, longs(*range(50_000)))
    index.save(b"1")
    other = KeyIndex.open(str(tmp_path), MEMORY)
    other.set_file(1)
    other.add(1, 0, longs(*range(60_000, 70_000)))
    other.compact()
    other.save(b"2")
    for path in tmp_path.iterdir():
        path.unlink()
    assert located(index, longs(7, 60_000)) == [(0, 7), None]
    assert located(other, longs(7, 60_000)) == [(0, 7), (1, 0)]


def test_only_what_the_index_names_is_left_in_its_folder(tmp_path: Path) -> None:
    index = KeyIndex(str(tmp_path), 0)
    for number in range(40):
        index.set_file(number)
        index.add(number, 0, longs(*range(number * 10, number * 10 + 30)))
        if number > 2:
            index.drop_file(number - 3)
        if number % 8 == 7:
            index.write_run()
            (tmp_path / "00000999.run").touch()
            index.save(b"")
            assert len(list(tmp_path.iterdir())) <= 1 + 2 * index.runs
    assert index.runs < 12


def _upsert_and_die(folder: str, steps: int, delay: float) -> None:
    index = KeyIndex.open(folder, 0)
    start = int(index.stamp)
    longs(start)  # the first time pyarrow loads much
    threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    for number in range(start + 1, start + steps):
        index.drop_file(number - 1)
        index.set_file(number)
        index.add(number, 0, longs(*range(number, number + 2000)))
        index.write_run()
        index.save(str(number).encode())
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(300)
def test_after_a_kill_it_is_what_was_saved_last(tmp_path: Path) -> None:
    index = KeyIndex(str(tmp_path), 0)
    index.save(b"0")
    del index
    context = multiprocessing.get_context("spawn")
    reached = [0]
    for attempt in range(9):
        child = context.Process(target=_upsert_and_die, args=(str(tmp_path), 10_000, 0.02 * 1.5**attempt))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        index = KeyIndex.open(str(tmp_path), MEMORY)
        number = int(index.stamp)
        reached.append(number)
        if number:
            expected = [(number, row) for row in (0, 1000, 1999)]
            assert located(index, longs(number, number + 1000, number + 1999)) == expected
            assert located(index, longs(number - 1, number + 2000)) == [None, None]
            assert index.compact() == 0
            assert index.entries == 2000
    assert reached == sorted(reached)
    assert reached[-1] > 5


def anonymous() -> int:
    """Bytes of this process that no file is behind."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("folder", [True, False])
def test_memory_is_bounded_however_many_keys_there_are(kind: str, folder: bool, tmp_path: Path) -> None:
    memory = 8 << 20
    index = KeyIndex(str(tmp_path) if folder else None, memory)
    gc.collect()
    before = anonymous()
    most = 0
    for number in range(30):
        numbers = pa.array(range(number * 100_000, (number + 1) * 100_000), pa.int64())
        keys = batch(numbers if kind == "int64" else numbers.cast(pa.string()))
        index.set_file(number)
        index.add(number, 0, keys)
        if number % 7 == 0:
            assert located(index, keys[:100]) == [(number, row) for row in range(100)]
        most = max(most, anonymous() - before)
        assert index.memory <= memory + (4 << 20)
    assert index.entries == 3_000_000
    assert index.compact() == 0
    assert (index.runs, index.entries) == (1, 3_000_000)
    most = max(most, anonymous() - before)
    assert most < memory + (40 << 20)  # of these about 30 are the keys made here; the entries alone are 48
    if folder:
        index.save(b"")
        index = KeyIndex.open(str(tmp_path), memory)
    assert index.memory < memory
    assert located(index, keys[-1:]) == [(29, 99_999)]


def test_a_folder_is_not_needed_for_files_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    index = KeyIndex(None, 0)
    index.set_file(0)
    index.add(0, 0, longs(*range(1000)))
    assert index.runs == 1
    assert list(tmp_path.iterdir()) == []
    used = index.memory
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    index.add(0, 1000, longs(*range(1000, 3000)))
    assert located(index, longs(999, 2999, 3000)) == [(0, 999), (0, 2999), None]
    assert index.memory > used + 2000 * 16  # it is in memory then
    assert index.compact() == 0
    index.save(b"stamp")
    assert index.stamp == b"stamp"


def test_a_folder_that_goes_costs_only_what_is_not_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = KeyIndex(str(folder), MEMORY)
    index.set_file(0)
    index.add(0, 0, batch(pa.array(["a", "b"])))
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        index.write_run()
    with pytest.raises(FileNotFoundError):
        index.save(b"x")
    index.add(0, 2, batch(pa.array(["c"])))
    assert located(index, batch(pa.array(["a", "b", "c"]))) == [(0, 0), (0, 1), (0, 2)]
    assert index.stamp == b""
    folder.mkdir()
    index.save(b"x")
    assert located(KeyIndex.open(str(folder), MEMORY), batch(pa.array(["c", "a"]))) == [(0, 2), (0, 0)]


def test_threads_wait_for_each_other_and_others_run_meanwhile() -> None:
    index = KeyIndex(None, 1 << 20)
    index.set_file(0)
    keys = batch(pa.array(range(2_000_000), pa.int64()))
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begun = time.monotonic()
    index.add(0, 0, keys)
    ended = time.monotonic()
    stop.set()
    ticker.join()
    assert sum(begun < at < ended for at in ticks) >= 3  # the GIL was not held
    errors: list[BaseException] = []

    def look(first: int) -> None:
        try:
            assert located(index, keys[first : first + 1000]) == [(0, first + row) for row in range(1000)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    index.compact()
    for thread in threads:
        thread.join()
    assert not errors

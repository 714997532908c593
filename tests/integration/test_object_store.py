"""An object store that is busy, slow, far away, or does not know what it is asked: what comes of a lake's requests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import obstore
import pyarrow as pa
import pytest

from cdc.errors import ConfigError, LakeConflictError, LakeError, LakeUnavailableError, LakeUnknownError
from cdc.lake import objects
from cdc.lake.store import Folder, open_folder
from cdc.roots import ObjectRoot
from dev.minio import MinIOServer
from dev.toxiproxy import Toxiproxy
from tests.integration.losing import LosingProxy

COMMIT = f"{7:020}.json"
LOG = r"_delta_log"


@pytest.fixture
def bucket(minio: MinIOServer) -> str:
    return minio.bucket()


@pytest.fixture
def proxy(minio: MinIOServer) -> Iterator[LosingProxy]:
    proxy = LosingProxy(minio.port)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def at(minio: MinIOServer, bucket: str) -> Callable[..., Folder]:
    """The bucket's lake, by another way; with options of its own."""

    def open_at(endpoint: str = "", **options: str) -> Folder:
        given = minio.options(endpoint or minio.endpoint) | {"retry_timeout": "1.5"} | options
        return open_folder(ObjectRoot(f"s3://{bucket}/lake", tuple(sorted(given.items()))))

    return open_at


# -- commits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lost", "stored-500"])
def test_a_commit_whose_answer_is_lost_is_found_to_be_ours(
    at: Callable[..., Folder], proxy: LosingProxy, what: str
) -> None:
    log = at(proxy.endpoint).folder("_delta_log")
    with proxy.rule(what, "PUT", LOG, times=1) as rule:  # type: ignore[arg-type]
        log.put_if_absent(COMMIT, b"ours")
    assert len(rule.done) == 1
    assert at().folder("_delta_log").read(COMMIT) == b"ours"
    with pytest.raises(LakeConflictError):
        log.put_if_absent(COMMIT, b"theirs")


@pytest.mark.parametrize("what", ["lost", "stored-500"])
def test_a_commit_whose_every_answer_is_lost_is_found_to_be_ours(
    at: Callable[..., Folder], proxy: LosingProxy, what: str
) -> None:
    log = at(proxy.endpoint).folder("_delta_log")
    with proxy.rule(what, "PUT", LOG):  # type: ignore[arg-type]
        log.put_if_absent(COMMIT, b"ours")
    assert at().folder("_delta_log").read(COMMIT) == b"ours"


@pytest.mark.parametrize("what", ["lost", "stored-500"])
def test_the_name_was_taken_and_the_answer_is_lost(at: Callable[..., Folder], proxy: LosingProxy, what: str) -> None:
    at().folder("_delta_log").put_if_absent(COMMIT, b"theirs")
    with proxy.rule(what, "PUT", LOG), pytest.raises(LakeConflictError, match="version 7"):  # type: ignore[arg-type]
        at(proxy.endpoint).folder("_delta_log").put_if_absent(COMMIT, b"ours")
    assert at().folder("_delta_log").read(COMMIT) == b"theirs"


def test_a_commit_of_which_no_one_knows_is_unknown(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    """The connection breaks, the name is free, and the request arrives afterwards."""
    log = at(proxy.endpoint, retry_timeout="1").folder("_delta_log")
    with proxy.rule("late", "PUT", LOG, delay_s=4), pytest.raises(LakeUnknownError) as caught:
        log.put_if_absent(COMMIT, b"ours")
    assert caught.value.retryable
    proxy.wait()
    assert at().folder("_delta_log").read(COMMIT) == b"ours"
    with pytest.raises(LakeConflictError):
        log.put_if_absent(COMMIT, b"decided anew")


def test_a_commit_that_cannot_be_looked_for_is_unknown(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    log = at(proxy.endpoint).folder("_delta_log")
    with proxy.rule("lost", "PUT", LOG), proxy.rule("503", "GET", LOG), pytest.raises(LakeUnknownError):
        log.put_if_absent(COMMIT, b"ours")


def test_a_busy_store_is_asked_again(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    lake = at(proxy.endpoint)
    with (
        proxy.rule("503", "PUT", LOG, times=2) as puts,
        proxy.rule("503", "GET", "lake", times=2) as gets,
        proxy.rule("503", "HEAD", "lake", times=2) as heads,
    ):
        lake.folder("_delta_log").put_if_absent(COMMIT, b"ours")
        assert lake.folder("_delta_log").size(COMMIT) == 4
        assert lake.folder("_delta_log").read(COMMIT) == b"ours"
    assert [len(rule.done) for rule in (puts, gets, heads)] == [2, 2, 2]


def test_a_store_that_stays_busy_is_given_up_in_time(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    lake = at(proxy.endpoint, retry_timeout="1")
    lake.probe()
    started = time.monotonic()
    with proxy.rule("503", "PUT"), proxy.rule("503", "GET"), proxy.rule("503", "HEAD"):
        for use in (lambda: lake.read("x"), lambda: lake.replace("x", b""), lake.names, lambda: lake.size("x")):
            with pytest.raises(LakeUnavailableError, match="the store answers 503") as caught:
                use()
            assert caught.value.retryable
        with pytest.raises(LakeUnknownError):
            lake.folder("_delta_log").put_if_absent(COMMIT, b"ours")
    assert time.monotonic() - started < 20


def test_a_store_that_takes_no_conditions_is_refused(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    """As one that ignores If-None-Match: every put of a name that is taken succeeds."""
    lake = at(proxy.endpoint)
    with proxy.rule("unconditional", "PUT"):
        uses: list[Callable[[], object]] = [
            lake.probe,
            lambda: lake.folder("_delta_log").put_if_absent(COMMIT, b"ours"),
        ]
        for use in uses:
            with pytest.raises(LakeError, match="overwrites what it is asked not to") as caught:
                use()
            assert "If-None-Match" in caught.value.hint
            assert not caught.value.retryable
    assert list(at().walk()) == []


def test_the_probe_is_made_once(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    lake = at(proxy.endpoint)
    for version in range(3):
        lake.folder("_delta_log").put_if_absent(f"{version:020}.json", b"x")
    assert sum("probe" in path for method, path in proxy.requests if method == "PUT") == 2


# -- files ---------------------------------------------------------------------------------------------------------------------


def test_a_large_file_is_put_in_parts_and_parts_are_repeated(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    lake = at(proxy.endpoint)
    data = os.urandom(3 * objects.PART + 5)
    output = lake.create("part.parquet")
    for at_byte in range(0, len(data), 1_000_000):
        output.write(data[at_byte : at_byte + 1_000_000])
    assert not [path for method, path in proxy.requests if method != "GET"]
    with proxy.rule("503", "PUT", "partNumber=2", times=1) as busy, proxy.rule("lost", "PUT", "partNumber=3", times=1):
        output.finish()
    assert len(busy.done) == 1
    assert sum("partNumber" in path for _, path in proxy.requests) == 6
    assert at().read("part.parquet") == data


def test_what_was_just_written_is_opened_without_a_request(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    lake = at(proxy.endpoint)
    data = os.urandom(1_000_000)
    output = lake.create("part")
    output.write(data)
    output.finish()
    proxy.requests.clear()
    with lake.open("part") as file:
        assert file.size() == len(data)
        file.seek(900_000)
        assert file.read() == data[900_000:]
        assert proxy.requests == []
        file.seek(0)
        assert file.read() == data
    lake.replace("part", b"other")
    with lake.open("part") as file:
        assert file.read() == b"other"
    lake.delete(["part"])
    with pytest.raises(FileNotFoundError):
        lake.open("part")


def test_half_an_answer_is_no_file(at: Callable[..., Folder], proxy: LosingProxy) -> None:
    at().replace("x", b"0123456789" * 1000)
    lake = at(proxy.endpoint, retry_timeout="1")
    with proxy.rule("half", "GET", "lake/x", times=1):
        assert lake.read("x") == b"0123456789" * 1000
    with proxy.rule("half", "GET", "list-type", times=2):
        assert lake.names() == ["x"]
    with proxy.rule("half", "GET", "list-type"), pytest.raises(LakeUnavailableError):
        lake.names()
    with proxy.rule("half", "GET", "lake/x"):
        for use in (lambda: lake.read("x"), lambda: lake.open("x")):
            with pytest.raises(LakeUnavailableError):
                use()


def test_a_failure_while_a_data_file_is_read_is_the_stores_and_no_damage(
    at: Callable[..., Folder], proxy: LosingProxy
) -> None:
    import pyarrow.parquet as pq

    from cdc.lake.parquet import opened

    sink = pa.BufferOutputStream()
    table = pa.table({"id": pa.array(range(400_000), pa.int64())})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    at().replace("t/x.parquet", sink.getvalue().to_pybytes())
    folder = at(proxy.endpoint, retry_timeout="1").folder("t")
    with opened(folder, "x.parquet") as file:
        assert file.read().equals(table)
    with pytest.raises(LakeUnavailableError), opened(folder, "x.parquet") as file, proxy.rule("503", "GET"):
        file.read()


# -- the network ---------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there(at: Callable[..., Folder]) -> None:
    lake = at("http://127.0.0.1:9", retry_timeout="1")
    with pytest.raises(LakeUnavailableError, match="was not reached") as caught:
        lake.probe()
    assert "lake_options" in caught.value.hint


def test_a_store_that_does_not_answer_is_given_up_in_time(
    at: Callable[..., Folder], minio: MinIOServer, toxiproxy: Toxiproxy, bucket: str
) -> None:
    proxy = toxiproxy.proxy(bucket, minio.port)
    lake = at(proxy.endpoint, timeout="500ms", retry_timeout="2")
    log = lake.folder("_delta_log")
    log.put_if_absent(f"{0:020}.json", b"x")
    started = time.monotonic()
    with proxy.toxic("timeout", timeout=0):
        with pytest.raises(LakeUnavailableError, match="did not answer in time"):
            log.read(f"{0:020}.json")
        with pytest.raises(LakeUnknownError, match="did not answer in time"):
            log.put_if_absent(COMMIT, b"ours")
    assert time.monotonic() - started < 20
    # The store had taken the request, and only its answer did not come.
    with pytest.raises(LakeConflictError):
        log.put_if_absent(COMMIT, b"decided anew")
    assert log.read(COMMIT) == b"ours"


def test_connections_that_are_reset_and_an_outage(
    at: Callable[..., Folder], minio: MinIOServer, toxiproxy: Toxiproxy, bucket: str
) -> None:
    proxy = toxiproxy.proxy(bucket, minio.port)
    lake = at(proxy.endpoint, retry_timeout="1")
    lake.replace("x", b"x")
    with proxy.down(), pytest.raises(LakeUnavailableError):
        lake.read("x")
    with proxy.toxic("reset_peer", timeout=0), pytest.raises(LakeUnavailableError):
        lake.read("x")
    assert lake.read("x") == b"x"


def test_a_far_store_is_slow_and_right(
    at: Callable[..., Folder], minio: MinIOServer, toxiproxy: Toxiproxy, bucket: str
) -> None:
    proxy = toxiproxy.proxy(bucket, minio.port)
    lake = at(proxy.endpoint)
    with proxy.toxic("latency", latency=100, jitter=50):
        lake.probe()
        data = os.urandom(objects.PART + 1)
        output = lake.create("x")
        output.write(data)
        output.finish()
        assert lake.read("x") == data
        with lake.open("x") as file:
            file.seek(1000)
            assert file.read(1000) == data[1000:2000]


# -- who may, and what is said ---------------------------------------------------------------------------------------------------


@contextmanager
def nothing_secret(minio: MinIOServer, capfd: pytest.CaptureFixture[str]) -> Iterator[list[BaseException]]:
    caught: list[BaseException] = []
    yield caught
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, *map(str, caught), *map(repr, caught)]
    assert not [text for text in texts if minio.password in text or "wrong-secret" in text]


def test_wrong_credentials_are_named_and_not_shown(
    at: Callable[..., Folder], minio: MinIOServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with nothing_secret(minio, capfd) as errors:
        lake = at(secret_access_key="wrong-secret", retry_timeout="1")
        for use in (lake.probe, lake.names, lambda: lake.replace("x", b""), lambda: lake.size("x")):
            with pytest.raises(LakeUnavailableError, match="refuses these credentials") as caught:
                use()
            errors.append(caught.value)
        assert "wrong-secret" not in repr(lake)


def test_a_bucket_that_is_not_there(minio: MinIOServer) -> None:
    lake = open_folder(ObjectRoot("s3://no-such-bucket/x", tuple(sorted(minio.options().items()))))
    for use in (lake.probe, lake.names, lambda: list(lake.walk()), lambda: lake.replace("x", b"")):
        with pytest.raises(LakeUnavailableError, match="no such bucket"):
            use()


@pytest.mark.parametrize("options", [{"regon": "x"}, {"timeout": "soon"}, {"retry_timeout": "soon"}, {"AWS_X": "1"}])
def test_options_that_are_not_known(at: Callable[..., Folder], options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="lake_options") as caught:
        at(**options)
    assert next(iter(options)) in caught.value.hint


def test_options_may_be_named_as_others_name_them(minio: MinIOServer, bucket: str) -> None:
    lake = open_folder(ObjectRoot(f"s3://{bucket}", tuple(sorted(minio.reader_options().items()))))
    lake.probe()


def test_obstore_speaks_as_this_version_of_it_is_read(minio: MinIOServer, bucket: str) -> None:
    """The status of an answer is read from the text of obstore's errors: nothing else has it."""
    from obstore.exceptions import GenericError
    from obstore.store import S3Store

    proxy = LosingProxy(minio.port)
    store = S3Store(
        bucket,
        config={k: v for k, v in minio.options(proxy.endpoint).items() if k != "allow_http"},  # type: ignore[arg-type]
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    try:
        with proxy.rule("503", "GET"), pytest.raises(GenericError) as caught:
            obstore.get(store, "x")
        assert objects._status(caught.value) == 503
    finally:
        proxy.close()

"""The same whatever-happens over an object store, on a way to it that refuses, forgets and cuts short some of the requests."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis.stateful import run_state_machine_as_test
from obstore.store import S3Store

from cdc.lake import Layout
from cdc.roots import ObjectRoot
from dev.minio import MinIOServer
from tests.integration.lake_rows import TABLE
from tests.integration.losing import LosingProxy, What
from tests.lake.machine import DONE, LakeMachine
from tests.lake.subject import Crash, Held, Kind, Subject, at_point, busy_upkeep, frozen
from tests.lake.test_model import SETTINGS

EXAMPLES = int(os.environ.get("LAKE_EXAMPLES", "30")) // 5
TROUBLE = 0.03
"""Of the requests that something happens to."""


class Bucket:
    """Where the tables of all examples lie, each under a prefix of its own."""

    def __init__(self, minio: MinIOServer, endpoint: str) -> None:
        self.name = minio.bucket()
        self.options = tuple(sorted((minio.options(endpoint) | {"retry_timeout": "20"}).items()))
        config: Any = minio.options()
        self.store = S3Store(self.name, config=config)
        self._used = 0

    def prefix(self) -> str:
        """One that is not used yet."""
        self._used += 1
        return f"lake-{self._used}"


BUCKET: list[Bucket] = []


class StoredSubject(Subject):
    """A table in the bucket; in `root` is only its index."""

    def __init__(self, root: Path, kind: Kind, layout: Layout, *, file_size: int) -> None:
        self.prefix = BUCKET[0].prefix()
        super().__init__(root, kind, layout, file_size=file_size)

    @property
    def lake_root(self) -> ObjectRoot:  # type: ignore[override]
        return ObjectRoot(f"s3://{BUCKET[0].name}/{self.prefix}", BUCKET[0].options)

    @property
    def folder(self) -> str:  # type: ignore[override]
        return f"{self.lake_root}/{TABLE.folder}"

    def files(self) -> set[str]:
        names = (entry.name for entry in self.lake.folder.walk())
        return {name for name in names if not name.startswith(("_delta_log/", "_change_data/"))}

    def copied(self) -> str:
        """The prefix of a copy of all that is there."""
        other, store = BUCKET[0].prefix(), BUCKET[0].store
        for some in obstore.list(store, self.prefix):
            for found in some:
                obstore.copy(store, found["path"], other + found["path"].removeprefix(self.prefix))
        return other


class StoredMachine(LakeMachine):
    """What happens is the same; a crash leaves a copy of the bucket."""

    subjects = StoredSubject

    def teardown(self) -> None:
        with suppress(AttributeError):
            self.subject.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def they_vacuum(self) -> None:
        """No rule here: deltalake's fails at MinIO (`DeleteObjects`)."""

    def _crash(self, act: Callable[[], None], point: str, nth: int, index: str, after: Held) -> None:
        subject, left = self.subject, self.root.with_name(self.root.name + ".left")
        assert isinstance(subject, StoredSubject)
        before, epoch = subject.held, subject.epoch
        copies: list[str] = []

        def die() -> None:
            copies.append(subject.copied())
            frozen(self.root, left)
            raise Crash

        try:
            with at_point(point, nth, die):
                act()
        except Crash:
            DONE[f"crashed at {point}"] += 1
            subject.held = before
            subject.close(save=False)
            shutil.rmtree(self.root)
            left.rename(self.root)
            subject.prefix = copies[0]
            if index == "lost":
                shutil.rmtree(subject.index, ignore_errors=True)
            subject.reopen()
            assert subject.snapshot.applied is not None
            committed = subject.snapshot.applied.epoch.number > epoch
            subject.epoch = subject.snapshot.applied.epoch.number
            subject.held = after if committed else before
            subject.check(f"after a crash at {point}")
            if not committed:
                act()


@pytest.fixture(autouse=True)
def bucket(minio: MinIOServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[LosingProxy]:
    """Others find their way by the environment, and without trouble."""
    chance = random.Random(5)

    def whim(method: str, path: str) -> What | None:
        if chance.random() >= TROUBLE:
            return None
        kinds: list[What] = ["503", "lost", "half"] if method == "GET" else ["503", "lost", "stored-500"]
        return chance.choice(kinds)

    for name, value in minio.reader_options().items():
        monkeypatch.setenv(name, value)
    proxy = LosingProxy(minio.port)
    BUCKET.append(Bucket(minio, proxy.endpoint))
    proxy.whim = whim
    try:
        with busy_upkeep():
            yield proxy
    finally:
        BUCKET.clear()
        proxy.close()


@pytest.mark.timeout(3600)
def test_a_table_in_an_object_store_equals_a_dictionary_whatever_happens(bucket: LosingProxy) -> None:
    DONE.clear()
    try:
        run_state_machine_as_test(StoredMachine, settings=SETTINGS.__class__(SETTINGS, max_examples=EXAMPLES))
    finally:
        print("\n" + "\n".join(f"{count:7} {what}" for what, count in sorted(DONE.items())))
    assert bucket.troubled > 10

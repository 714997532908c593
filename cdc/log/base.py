"""The log: where epochs are, each visible whole or not at all. The protocol that Kafka and the embedded log implement.

Both run the same contract suite, `tests/contract/test_log.py`. Numbers of epochs ascend by one along the log, from wherever the
first one began. A log is opened by `open_log(url, pipeline)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from cdc.epoch import CommitRecord, Extent

RECORD_LIMIT = 4 * 1024 * 1024
"""Bytes; the codec splits a table's data so that no record is larger, a single row larger than this excepted."""
RECORD_MAXIMUM = 16 * 1024 * 1024
"""Bytes; a record larger than this cannot be written: its table stops."""

Payload = bytes | memoryview
"""A record to be written: its bytes, or a view of memory that holds them and does not change."""
Seal = Callable[[Mapping[str, Extent]], CommitRecord]
"""Makes the commit record, once the extents of the data just written are known."""


class LogWriter(Protocol):
    """The one capture that may write. Opening it fenced every earlier one and settled what was in doubt."""

    @property
    def newest(self) -> CommitRecord | None:
        """The newest record that this writer knows: the one found when it was opened, then the one it appended."""

    def append(self, data: Mapping[str, Sequence[Payload]], seal: Seal) -> CommitRecord:
        """Write one epoch in one transaction: each table's records in order, then the record that `seal` returns.

        `data` maps `TableName.id` to at least one record of at most `RECORD_MAXIMUM` bytes. On return the epoch is durable and
        visible (for Kafka: as durable as the topics' replication).

        Raises `LogFencedError`; `LogMovedError` if the newest record is not `self.newest`; `LogIndefiniteError` if it may or may not
        have been written: the writer is then unusable; `LogUnavailableError` if certainly nothing was; `LogError` for the rest
        (disk full), with nothing written.
        """

    def check(self) -> None:
        """Raise `LogMovedError` or `LogFencedError` if the newest record is not `self.newest`. Cheap; called when idle."""

    def close(self) -> None:
        """Give up the right to write. Idempotent."""


class Log(Protocol):
    """Reading, trimming, and the way to a writer. Safe to use from several threads and processes."""

    @property
    def uuid(self) -> str:
        """Identity of this log: another one, or one made anew under the same name, has another."""

    def writer(self) -> LogWriter:
        """Fence every other writer, settle commits in doubt, read the newest record: in this order."""

    def newest(self) -> CommitRecord | None:
        """The newest visible record; None in an empty log. Raises `LogDamagedError` if it cannot be parsed."""

    def oldest(self) -> CommitRecord | None:
        """The oldest record that is not trimmed."""

    def records(self, after: int | None = None) -> Iterator[CommitRecord]:
        """Visible records in the log's order: those with a number above `after`, or all; ends at the newest as of now.

        Nothing is promised of continuity: the caller compares hashes. Raises `LogDamagedError`.
        """

    def wait(self, after: int, timeout_s: float) -> bool:
        """Until a record with a number above `after` is visible, or the time is over. Whether there is one."""

    def data(self, table: str, extent: Extent) -> list[bytes]:
        """The records of one table in one epoch. Waits for what is committed and not yet visible.

        Raises `LogDamagedError` unless they are exactly what the extent says, `LogGapError` if they were trimmed.
        """

    def heads(self, table: str, extent: Extent, length: int) -> list[tuple[bytes, int]]:
        """Of the records that `data` gives the beginning, at least `length` bytes where there are so many, and the whole length: for who does
        not need their values.

        Raises `LogDamagedError` unless they are as many and as long as the extent says, `LogGapError` if they were trimmed.
        """

    def trim(self, before: int) -> None:
        """Allow records with a number below `before`, and their data, to go. Keeps the newest record and all from the checkpoint
        that it names on, whatever is asked. Idempotent; may keep more."""

    def size_bytes(self) -> int | None:
        """What the log takes, where that can be known."""

    def close(self) -> None:
        """Release connections and files. Idempotent."""

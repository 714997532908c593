"""Every error that lakesync raises on purpose.

    LakesyncError
    ├── ConfigError                 the pipeline file, an option or an argument is wrong            exit 2
    ├── StateError                  the state folder is in use, damaged or of another version       exit 2
    ├── SourceError                 the source failed, or cannot give what is needed                exit 3
    │   ├── SourceUnavailableError  not reached, connection lost, timed out (retryable)
    │   ├── SourceIdentityError     the server's history is not the one that was read before
    │   ├── SourcePurgedError       the binary log no longer reaches back to the position
    │   ├── UnsupportedEventError   an event whose order is at stake and that is not understood
    │   └── BinlogError             an event that is damaged or does not follow the one before
    ├── LogError                    the log failed                                                  exit 3
    │   ├── LogUnavailableError     not reached, timed out before anything was written (retryable)
    │   ├── LogFencedError          a newer capture writes this log; this one must end
    │   ├── LogIndefiniteError      a commit whose outcome is unknown; open a new writer and look (retryable)
    │   ├── LogMovedError           the newest record is not the one that this writer knows (retryable: start again)
    │   ├── LogDamagedError         a record that cannot be parsed, or data that is not what its record says
    │   └── LogGapError             the log does not continue where the lake ends
    ├── LakeError                   the lake failed, or holds what lakesync did not write           exit 3
    │   ├── LakeUnavailableError    the object store was not reached, or refused (retryable)
    │   ├── LakeConflictError       another writer took the version; reload and decide again (retryable)
    │   ├── LakeUnknownError        a commit whose outcome is unknown; reload and look (retryable)
    │   ├── LakeDamagedError        a commit, checkpoint or data file that is torn or missing
    │   │   └── LakeKeysError       a key is there twice, or has a NULL in it: someone else wrote to the table
    │   └── LakeOccupiedError       the folder belongs to someone else
    ├── TraceError                  ClickHouse failed; the pipeline does not wait for it            exit 3
    ├── DeliveryError               a webhook or a command did not take a message; it is tried again    exit 3
    ├── TableStoppedError           one table cannot go on; the others do                           exit 3
    ├── NotFollowingError           the lake does not reach a position in time                      exit 3
    └── UnexpectedError             a mistake in lakesync itself; `where` has the traceback         exit 3

An error says what happened, where (a table, a position, a file), and the way out. It never holds a row's values or a
secret. `retryable` says whether doing the same again, later, can help.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LakesyncError(Exception):
    """Base of all. `what` happened, `where`, and `hint`: what a person may safely do next.

    `code` is a stable name for machines: stored per table, shown by `status --json`.
    """

    exit_code: ClassVar[int] = 3
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    @property
    def code(self) -> str:
        """The class name, without `Error`."""
        return type(self).__name__.removesuffix("Error")

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        """For the state folder, commit records and `--json`."""
        return {"code": self.code, "what": self.what, "where": self.where, "hint": self.hint}


class ConfigError(LakesyncError):
    """The pipeline file, an option or an argument is wrong."""

    exit_code = 2


class StateError(LakesyncError):
    """The state folder is in use by another process, damaged, or written by another version."""

    exit_code = 2


class SourceError(LakesyncError):
    """The source failed, or cannot give what is needed."""


class SourceUnavailableError(SourceError):
    """The server was not reached, or the connection was lost."""

    retryable = True


class SourceIdentityError(SourceError):
    """The server's history is not the one that was read before: reset, restored, or failed over with a loss."""


class SourcePurgedError(SourceError):
    """The binary log no longer reaches back to the position that capture must go on from."""


class UnsupportedEventError(SourceError):
    """A binary log event whose order is at stake and that is not understood; never skipped."""


class BinlogError(SourceError):
    """A binary log event that is damaged, truncated, or does not follow the one before."""


class LogError(LakesyncError):
    """The log failed."""


class LogUnavailableError(LogError):
    """The log was not reached, and nothing was written."""

    retryable = True


class LogFencedError(LogError):
    """A newer capture writes this log; this one must end."""


class LogIndefiniteError(LogError):
    """A commit whose outcome is unknown: throw the writer away, open a new one, look at the newest record."""

    retryable = True


class LogMovedError(LogError):
    """The newest record is not the one that this writer knows: the log lost its tail, or has another writer."""

    retryable = True


class LogDamagedError(LogError):
    """A record that cannot be parsed, or data that is not what its commit record says."""


class LogGapError(LogError):
    """The log does not continue where the lake ends."""


class LakeError(LakesyncError):
    """The lake failed, or holds what lakesync did not write and cannot follow."""


class LakeUnavailableError(LakeError):
    """The object store was not reached, or refused what it was asked; nothing became visible that was not there."""

    retryable = True


class LakeConflictError(LakeError):
    """Another writer took the version: reload the table and decide again."""

    retryable = True


class LakeUnknownError(LakeError):
    """A commit whose outcome is unknown: reload the table and look."""

    retryable = True


class LakeDamagedError(LakeError):
    """A commit, checkpoint or data file that is torn, empty or missing."""


class LakeKeysError(LakeDamagedError):
    """Rows that no source can have: a key twice, or with a NULL in it. Someone else wrote to the table."""


class LakeOccupiedError(LakeError):
    """The folder holds something that this pipeline did not write."""


class TraceError(LakesyncError):
    """ClickHouse failed. The pipeline never waits for it."""


class DeliveryError(LakesyncError):
    """A webhook or a command did not take a message. The pipeline never waits for it."""

    retryable = True


class TableStoppedError(LakesyncError):
    """One table cannot go on; the others do. `where` names the table and the transaction."""


class NotFollowingError(LakesyncError):
    """The lake does not reach a position in the time given."""


class UnexpectedError(LakesyncError):
    """A mistake in lakesync itself, or in what it stands on: an exception that nobody expected, a thread that ended."""

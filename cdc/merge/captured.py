"""Which tables are captured as of the log's newest epoch, kept from round to round."""

from __future__ import annotations

from collections.abc import Mapping

from cdc.epoch import CommitRecord, TableState
from cdc.errors import LogDamagedError, LogMovedError
from cdc.log.base import Log


class Captured:
    """Every captured table by `TableName.id`, as of `record`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.record: CommitRecord | None = None
        self.tables: Mapping[str, TableState] = {}

    def refresh(self) -> CommitRecord | None:
        """Read on to the newest record, and return it; from its checkpoint where the log does not go on from what was read before.

        Raises `LogDamagedError` if there is no way from a checkpoint to the newest record, `LogMovedError` if that changed meanwhile, and
        what the log raises.
        """
        newest = self._log.newest()
        if newest is None:
            self.record, self.tables = None, {}
            return None
        known = self.record is not None and newest.id == self.record.id
        if known or self._walk(newest, self.record, self.tables) or self._walk(newest, None, {}):
            return newest
        again = self._log.newest()
        if again is None or again.id != newest.id:
            raise LogMovedError("the log changed while it was read", where=f"epoch {newest.id}")
        raise LogDamagedError(
            f"the log does not say which tables are captured: epoch {newest.checkpoint} should, and lead to epoch {newest.id}",
            hint="restore the log from a copy, or begin a new one: it continues from the lake",
        )

    def _walk(self, newest: CommitRecord, at: CommitRecord | None, tables: Mapping[str, TableState]) -> bool:
        """From `at`, or the newest record's checkpoint, to `newest`, if that is a chain; whether it is."""
        if at is not None and at.number >= newest.number:
            return False
        for record in self._log.records(after=at.number if at is not None else newest.checkpoint - 1):
            if record.states is None if at is None else record.before != at.hash:
                return False
            tables, at = record.states_after(tables), record
            if record.id == newest.id:
                self.record, self.tables = newest, tables
                return True
        return False

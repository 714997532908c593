"""What both logs check, in one place: that a record is a record, follows the one before, and that data is what its record says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from cdc import faults
from cdc.epoch import CommitRecord, Extent, digest
from cdc.errors import LogDamagedError, LogError, LogFencedError, LogMovedError
from cdc.log.base import RECORD_MAXIMUM, Payload

RESTORED = "was the log restored, trimmed by another program, or replaced? `lakesync status` shows which tables need `lakesync resync`"


def parse(payload: object, where: str) -> CommitRecord:
    """The commit record with these bytes. Raises `LogDamagedError`."""
    try:
        if not isinstance(payload, bytes):
            raise TypeError("not bytes")
        record = CommitRecord.parse(payload)
        _check_types(record)
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise LogDamagedError(
            f"a commit record cannot be read: {error}",
            where=where,
            hint="was it written by another version of lakesync, or by another program? Restore the log, or begin a new one",
        ) from None

    return record


def _check_types(record: CommitRecord) -> None:
    """What is computed with is a number, what is compared is text. Raises `TypeError`."""
    numbers: list[object] = [record.number, record.ts_ms, record.raw_us, record.seq, record.transactions]
    texts: list[object] = [record.log, record.before or ""]
    numbers += [record.checkpoint, record.written_us, *record.framing.values(), *record.framing_totals.values()]
    for entry in record.tables.values():
        extent = entry.extent
        numbers += [*entry.rows, *entry.totals, extent.first, extent.last, extent.records, extent.bytes]
        texts += [extent.digest, entry.schema]
    if any(type(number) is not int for number in numbers) or any(type(text) is not str for text in texts):
        raise TypeError("a number or a text is something else")


def check_input(data: Mapping[str, Sequence[Payload]]) -> None:
    """What the caller of `append` owes. Raises `ValueError`; `LogError` for a record that is too large."""
    for table, records in data.items():
        if not records:
            raise ValueError(f"no records of {table}: leave the table out")
        largest = max(map(len, records))
        if largest > RECORD_MAXIMUM:
            raise LogError(f"a record of {largest} bytes; {RECORD_MAXIMUM} are possible", where=table)


def check_next(
    newest: CommitRecord | None, record: CommitRecord, log: str, extents: Mapping[str, Extent], where: str
) -> None:
    """That `record` may follow `newest` in the log with the uuid `log`, and names the data just written. Raises `LogError`.

    This is the last look before an epoch becomes history; it never fails unless capture is wrong.
    """
    wrong = None
    if record.log != log:
        wrong = f"it names the log {record.log}, this is {log}"
    elif {table: entry.extent for table, entry in record.tables.items()} != dict(extents):
        wrong = "it does not name the data just written"
    elif not record.whole and (record.added or record.states is not None):
        wrong = "it adds or restates tables within a transaction"
    elif len(record.payload) > RECORD_MAXIMUM:
        wrong = f"it has {len(record.payload)} bytes; {RECORD_MAXIMUM} are possible"
    elif newest is not None and not (faults.mutant("no_read_back") or faults.mutant("read_before_fence")):
        if record.number != newest.number + 1:
            wrong = f"it follows epoch {newest.id}"
        elif record.before != newest.hash:
            wrong = f"it names another epoch than {newest.id} as the one before"
    if wrong:
        raise LogError(f"commit record {record.number} is refused: {wrong}", where=where)


def moved(known: CommitRecord | None, found: CommitRecord | None, where: str) -> LogMovedError | LogFencedError:
    """The error for a log whose newest record is not the one that its writer knows."""
    if found is not None and (known is None or found.number > known.number):
        return LogFencedError(
            f"another capture wrote epoch {found.id} after {known.id if known else 'the start'}",
            where=where,
            hint="one pipeline has one capture: end one of them",
        )
    return LogMovedError(
        f"the newest epoch is {found.id if found else 'none'}, this capture wrote {known.id if known else 'none'}",
        where=where,
        hint=RESTORED,
    )


def check_data(table: str, extent: Extent, records: Sequence[bytes], where: str) -> None:
    """That `records` are exactly what `extent` says. Raises `LogDamagedError`."""
    check_lengths(table, extent, [len(record) for record in records], where)
    if not faults.mutant("count_only") and digest(records) != extent.digest:
        _refuse(table, extent, "other bytes than its commit record says", where)


def check_lengths(table: str, extent: Extent, lengths: Sequence[int], where: str) -> None:
    """That records of these lengths are as many and as long as `extent` says. Raises `LogDamagedError`."""
    if len(lengths) != extent.records:
        _refuse(table, extent, f"{len(lengths)} records, its commit record says {extent.records}", where)
    if not faults.mutant("count_only") and (size := sum(lengths)) != extent.bytes:
        _refuse(table, extent, f"{size} bytes, its commit record says {extent.bytes}", where)


def _refuse(table: str, extent: Extent, wrong: str, where: str) -> NoReturn:
    raise LogDamagedError(
        f"an epoch's data of {table} is damaged: {wrong}",
        where=f"{where}, offsets {extent.first} to {extent.last}",
        hint=RESTORED,
    )

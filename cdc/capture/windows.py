"""Windowed reads, capture's half: it opens windows, collects the keys that the stream touches meanwhile, and puts what was read into the
log. `cdc.window` is what readers see of it, `spec/window.py` says why it is so.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc import faults, unfit
from cdc.capture import identity
from cdc.capture.base import Decoder, Drained, TableChanges
from cdc.capture.chain import Chain
from cdc.capture.partial import Key, Partial
from cdc.capture.reading import StreamQueue
from cdc.clock import Clock
from cdc.epoch import CommitRecord, Op, WindowEntry, WindowId
from cdc.log.codec import METADATA, WIDTH
from cdc.names import TableName
from cdc.position import BinlogEnd, Position
from cdc.schema import TableSchema
from cdc.source import canonical
from cdc.state import ReadSpec, State
from cdc.window import PROBE, Delivery, Opened, Window, Windows

TOUCHED_LIMIT = 128 * 1024 * 1024
"""Bytes of keys that one window may collect while it is read; one that would take more is cancelled."""
_COMPACT_ROWS = 65_536
"""Keys collected before the first look at which of them are the same."""
_AGAIN_S = 0.02
"""Before capture looks again whether it has passed a mark, when it did not although the stream has."""
_GIVE_WAY_S = 0.25
"""So long a window waits while an epoch is written, so that the stream need not wait for it."""


class Touched:
    """Keys that the stream touched since a window was opened, old ones and new ones, by their bytes."""

    def __init__(self, schema: TableSchema, *, appended: bool = False) -> None:
        self.schema = schema
        self.appended = appended
        """Every change is a row of the table's: what the merger cannot complete it has read again, and nothing else is mended."""
        self.partial = Partial(schema, self._told)
        self._types = [schema.arrow.field(name).type for name in schema.key]
        self._places = [WIDTH + schema.names.index(name) for name in schema.key]
        self._parts: list[pa.Table] = []
        self._rows = 0
        self._distinct = 0

    def _told(self, batch: pa.RecordBatch, before: int) -> list[Key]:
        """The key of each row, of changes or, with nothing `before` them, of a window's rows."""
        columns = [batch.column(place - WIDTH + before) for place in self._places]
        return list(zip(*(column.to_pylist() for column in _keys(columns).columns), strict=True))

    def note(self, changes: TableChanges) -> None:
        """Before `add`: what is incomplete among these changes, and what is not any more."""
        if self.appended:
            return

        def before() -> set[Key]:
            keys = self.keys(changes.batch)
            if not any(part.num_rows for part in self._parts):
                return set()
            found = keys.filter(_among(keys, pa.concat_tables(self._parts)))
            return set(zip(*(column.to_pylist() for column in found.columns), strict=True))

        self.partial.note(changes, before)

    def doubtful(self, delivery: Delivery) -> pa.Table:
        """Keys that this window does not settle although it may have been read for them."""
        keys = None
        if delivery.points and self.partial:
            keys = set(zip(*(column.to_pylist() for column in self._read(delivery).columns), strict=True))
        found = self.partial.doubtful(keys)
        columns = [pa.array([key[n] for key in found], _bits(kind)) for n, kind in enumerate(self._types)]
        fields = [self.schema.arrow.field(name) for name in self.schema.key]
        # By bytes, as they were taken apart.
        return pa.table(
            [c.view(f.type) if c.type != f.type else c for c, f in zip(columns, fields, strict=True)],
            schema=pa.schema(fields),
        )

    def keys(self, batch: pa.RecordBatch) -> pa.Table:
        """The distinct keys of changes, as `add` takes them: a copy, so that nothing holds the changes themselves."""
        columns = [batch.column(place) for place in self._places]
        if faults.mutant("only_new_keys_win"):
            new = pc.is_in(batch.column(0), value_set=pa.array([Op.INSERT, Op.UPDATE], pa.int8()))
            columns = [column.filter(new) for column in columns]
        return _distinct(_keys(columns))

    def add(self, keys: pa.Table) -> None:
        """Collect these too."""
        self._parts.append(keys)
        self._rows += keys.num_rows
        if self._rows > 2 * self._distinct + _COMPACT_ROWS:
            self._parts = [_distinct(pa.concat_tables(self._parts))]
            self._rows = self._distinct = self._parts[0].num_rows

    def keep(self, delivery: Delivery) -> None:
        """Forget all that are not among what was read, now that this is known."""
        found = self._read(delivery)
        kept = _distinct(pa.concat_tables(self._parts)) if self._parts else None
        self._parts = [] if kept is None else [kept.filter(_among(kept, found))]
        self._rows = self._distinct = sum(part.num_rows for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(part.nbytes for part in self._parts) + self.partial.nbytes

    def _read(self, delivery: Delivery) -> pa.Table:
        tables = [_keys([batch.column(place - WIDTH) for place in self._places]) for batch in delivery.rows]
        if delivery.gone is not None:
            tables.append(_keys([c.combine_chunks() for c in delivery.gone.columns]))
        return pa.concat_tables(tables or [_keys([pa.array([], t) for t in self._types])])

    def untouched(self, columns: list[pa.Array[Any]]) -> pa.Array[Any] | None:
        """Which of these keys are not among them; None: all."""
        if not any(part.num_rows for part in self._parts) or faults.mutant("no_window"):
            return None
        return pc.invert(_among(_keys(columns), pa.concat_tables(self._parts)))

    def untouched_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the table, less those with a touched key."""
        wanted = self.untouched([batch.column(place - WIDTH) for place in self._places])
        return batch if wanted is None else batch.filter(wanted)

    def untouched_keys(self, keys: pa.Table) -> pa.Table:
        """Keys, less those that are touched."""
        wanted = self.untouched([c.combine_chunks() for c in keys.columns])
        return keys if wanted is None else keys.filter(wanted)


def _keys(columns: list[pa.Array[Any]]) -> pa.Table:
    """Key columns as a table whose values are equal if their bytes are."""
    columns = [_plain(column) for column in columns]
    return pa.table(columns, names=[f"k{i}" for i in range(len(columns))])


def _plain(column: pa.Array[Any]) -> pa.Array[Any]:
    if pa.types.is_float64(column.type):
        return column.view(pa.int64())
    return column.view(pa.int32()) if pa.types.is_float32(column.type) else column


def _bits(kind: pa.DataType) -> pa.DataType:
    """The type that `_plain` gives."""
    return pa.int64() if pa.types.is_float64(kind) else pa.int32() if pa.types.is_float32(kind) else kind


def _distinct(keys: pa.Table) -> pa.Table:
    if keys.num_columns == 1:
        return pa.table([pc.unique(keys.column(0))], names=keys.column_names)
    return keys.group_by(keys.column_names, use_threads=False).aggregate([])


def _among(keys: pa.Table, others: pa.Table) -> pa.Array[Any]:
    """Which of `keys` are among `others`, one a row."""
    if keys.num_columns == 1:
        return _one(pc.is_in(keys.column(0), value_set=_one(others.column(0))))
    numbered = keys.append_column("i", pa.array(np.arange(keys.num_rows)))
    found = numbered.join(others, keys.column_names, join_type="left semi", use_threads=False)
    among = np.zeros(keys.num_rows, np.bool_)
    among[found.column("i").to_numpy()] = True
    return pa.array(among)


def _one(column: pa.ChunkedArray[Any] | pa.Array[Any]) -> pa.Array[Any]:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def changes(window: Window, delivery: Delivery, schema: TableSchema, touched: Touched) -> TableChanges:
    """What a window found, less what the stream touched, as changes: rows as READ, keys that are gone as DELETE; and rows of which the stream
    only set columns, with these set.

    Raises `ValueError` where what was delivered has other columns than the table.
    """
    plain = pa.schema([pa.field(f.name, f.type) for f in schema.arrow])
    checked = [_checked(batch, plain) for batch in delivery.rows]
    batches = [touched.untouched_rows(batch) for batch in checked]
    batches += [row for batch in checked for row in touched.partial.overlaid(batch)]
    rows = sum(batch.num_rows for batch in batches)
    if delivery.gone is not None:
        batches.append(_gone(delivery.gone, schema, plain, touched))
    if any(unfit.is_last(batch.schema) for batch in batches):
        plain = plain.append(unfit.FIELD)
        batches = [
            batch
            if unfit.is_last(batch.schema)
            else batch.append_column(unfit.FIELD, pa.nulls(batch.num_rows, unfit.TYPE))
            for batch in batches
        ]
    columns = [_one(column) for column in pa.Table.from_batches(batches, plain).columns]
    count = sum(batch.num_rows for batch in batches)
    values: dict[str, Any] = {
        "_op": np.where(np.arange(count) < rows, Op.READ, Op.DELETE),
        "_event": np.full(count, window.id.number),
        "_row": np.arange(count),
        "_seq": np.arange(1, count + 1),
    }
    metadata = [pa.array(values.get(f.name, np.zeros(count)), f.type) for f in METADATA]
    fields = [*METADATA, *plain]
    return TableChanges(
        window.table, schema, pa.RecordBatch.from_arrays([*metadata, *columns], schema=pa.schema(fields))
    )


def _checked(batch: pa.RecordBatch, plain: pa.Schema) -> pa.RecordBatch:
    fields = [*plain, *([unfit.FIELD] if unfit.is_last(batch.schema) else [])]
    if [(f.name, f.type) for f in batch.schema] != [(f.name, f.type) for f in fields]:
        raise ValueError("rows with other columns than the table's")
    return pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(fields))


def _gone(gone: pa.Table, schema: TableSchema, plain: pa.Schema, touched: Touched) -> pa.RecordBatch:
    if [(f.name, f.type) for f in gone.schema] != [(name, plain.field(name).type) for name in schema.key]:
        raise ValueError("keys with other columns than the table's")
    gone = touched.untouched_keys(gone)
    known = {name: _one(gone.column(name)) for name in gone.column_names}
    columns = [known[f.name] if f.name in known else pa.nulls(gone.num_rows, f.type) for f in plain]
    return pa.RecordBatch.from_arrays(columns, schema=plain)


class Stream(Protocol):
    """What of a session a window needs."""

    chain: Chain
    state: State
    clock: Clock
    decoder: Decoder
    queue: StreamQueue
    uuid: str
    linger_at: float | None

    def collect(self) -> None: ...

    def settle(self) -> None: ...

    def publish_behind(self) -> None: ...


class OpenWindows:
    """The windows of one session: none of them outlives it, and none was there before it. `step` costs next to nothing while there is none."""

    def __init__(self, session: Stream, windows: Windows, most: int) -> None:
        self._session = session
        self._windows = windows
        self._most = most
        """Bytes of windows in one epoch; a single one may have more."""
        self._asked: list[Window] = []
        self._open: dict[Window, Touched] = {}
        """Open and delivered ones."""
        self._emitting: dict[WindowId, tuple[Window, int]] = {}
        """Their rows are in an epoch that is not known to be written."""
        self._woken = False
        self._not_before = 0.0
        self._give_way_until: float | None = None
        if faults.mutant("window_survives_restart"):
            for window in windows.of(("open", "delivered")):
                assert window.opened is not None
                self._open[window] = Touched(window.opened.schema)
        else:
            windows.cancel("capture starts")

    def listen(self) -> None:
        """From now on: the stream is there."""
        self._windows.listen(self._wake)
        self._wake()

    def close(self) -> None:
        """The session ends. Of windows that are being written it is found out whether they are."""
        self._windows.listen(lambda: None)
        if self._emitting:
            with suppress(Exception):  # whatever it was, it was raised already where it is dealt with
                self._session.settle()
        # Before the doubtful ones are told: a window that is open then is one of the next session, which knows what became of them.
        if not faults.mutant("window_survives_restart"):
            self._windows.cancel("capture ended")
        for window, _ in self._emitting.values():
            window.lose("capture ended while its rows were written", doubtful=True)

    def _wake(self) -> None:
        self._woken = True
        self._session.queue.wake()

    @property
    def is_busy(self) -> bool:
        """Whether there is any."""
        return bool(self._woken or self._asked or self._open or self._emitting)

    def wake(self) -> None:
        """An epoch is written, in whichever thread."""
        if self.is_busy:
            self._session.queue.wake()

    # -- the stream's ------------------------------------------------------------------------------------------------

    def touch(self, drained: Drained) -> None:
        """Collect the keys of what the stream gave."""
        if not self._open:
            return
        if drained.skipped:
            self.cancel("a transaction was passed over, and nobody knows what it wrote to")
        if drained.emptied and not faults.mutant("truncate_ignored"):
            self.cancel("all rows of the table went at once", [emptied.table for emptied in drained.emptied])
        for changes in drained.changes:
            windows = [w for w in self._open if w.table == changes.table]
            if not windows:
                continue
            first = self._open[windows[0]]
            if changes.schema != first.schema:
                self.cancel("an XA transaction has rows of the table as it was before", [changes.table])
                continue
            keys = first.keys(changes.batch)
            for window in windows:
                touched = self._open[window]
                touched.note(changes)
                touched.add(keys)
                if touched.nbytes > TOUCHED_LIMIT:
                    if window.delivery is not None:
                        touched.keep(window.delivery)
                    else:
                        self._cancel(window, "the stream touched too many keys while it was read: read less at once")

    def cancel(self, reason: str, tables: Iterable[TableName] | None = None) -> None:
        """Cancel all that are open, or those of these tables of the source."""
        if self._open:
            wanted = None if tables is None else frozenset(tables)
            for window in [w for w in self._open if wanted is None or w.table in wanted]:
                self._cancel(window, reason)

    def _cancel(self, window: Window, reason: str) -> None:
        self._open.pop(window, None)
        window.cancel(reason)

    def written(self, record: CommitRecord) -> None:
        """The epoch is durable: tell the windows in it."""
        for entries in record.windows.values():
            for entry in entries:
                if found := self._emitting.pop(entry.id, None):
                    window, rows = found
                    window.emitted(record.id, rows)

    # -- the loop's --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Do what can be done now."""
        if not self.is_busy:
            return
        if self._woken:
            self._woken = False
            self._asked = self._windows.of(("asked",))
            self._open = {w: t for w, t in self._open.items() if w.phase in ("open", "delivered")}
        if self._emitting and not self._session.chain.is_writing:
            self._session.settle()
        if self._asked:
            self._open_asked()
        if delivered := [w for w in self._open if w.phase == "delivered"]:
            self._emit(delivered)

    def _here(self) -> Position | None:
        """The place in the stream, if a window can begin or end there."""
        position = self._session.chain.position
        if position is None or not position.whole or position.server_uuid != self._session.uuid:
            return None
        return position

    def _open_asked(self) -> None:
        position, chain = self._here(), self._session.chain
        if position is None:
            return
        writing, waiting = {window.job for window in self._emitting}, []
        for window in self._asked:
            if window.id.number == PROBE and window.id.job in writing:
                waiting.append(window)
                continue
            source = chain.sources.get(window.table)
            if source is None or source.target in chain.stopped:
                window.cancel("the table is not captured")
            elif not source.own.key:
                window.cancel("the table has no primary key")
            else:
                mode = chain.states[source.target.id].options.get("mode")
                self._open[window] = Touched(source.own, appended=mode == "append")
                window.open(Opened(position, source.own))
                faults.point("window.opened")
        self._asked = waiting

    def _emit(self, delivered: list[Window]) -> None:
        """Put those into the log whose mark the stream has passed."""
        session, chain = self._session, self._session.chain
        now_s = session.clock.monotonic()
        if now_s < self._not_before or not self._may_have_passed(delivered):
            return
        if chain.is_writing:
            if self._give_way_until is None:
                self._give_way_until = now_s + _GIVE_WAY_S
            if now_s < self._give_way_until:
                return
        self._give_way_until = None
        due = session.linger_at
        session.collect()
        position = self._here()
        emitted = self._emit_at(position, delivered) if position is not None else 0
        if emitted:
            faults.point("window.emitting")
            session.publish_behind()
        else:
            self._not_before = now_s + _AGAIN_S
            if chain.has_rows:
                session.linger_at = now_s if due is None else due

    def _may_have_passed(self, delivered: list[Window]) -> bool:
        """Cheap: whether a drain could show that a mark is passed."""
        end = self._session.chain.position
        ends = [self._session.decoder.place, *([end.end] if end is not None else [])]
        return any(self._is_passed(e, w.delivery) for w in delivered if w.delivery is not None for e in ends)

    def _is_passed(self, end: BinlogEnd, delivery: Delivery) -> bool:
        if delivery.mark_server != self._session.uuid or faults.mutant("emission_before_mark"):
            return True
        return not identity.before(end, delivery.mark)

    def _emit_at(self, position: Position, delivered: list[Window]) -> int:
        """Put those into the next epoch whose mark lies before `position`. How many."""
        emitted, size, chain = 0, 0, self._session.chain
        for window in delivered:
            delivery = window.delivery
            if delivery is None or window not in self._open or not self._is_passed(position.end, delivery):
                continue
            if size >= self._most:
                break
            source = chain.sources.get(window.table)
            if delivery.mark_server != self._session.uuid:
                self._cancel(window, "it was read from another server than capture's")
            elif source is None or source.target in chain.stopped or source.own != self._open[window].schema:
                self._cancel(window, "the table is not captured as it was")
            elif window.take():
                found = self._add(window, delivery, source.own)
                emitted += found is not None
                size += found or 0
        return emitted

    def _add(self, window: Window, delivery: Delivery, schema: TableSchema) -> int | None:
        """The bytes of a window that is in the next epoch; None: it is not."""
        touched = self._open.pop(window)
        try:
            found = changes(window, delivery, schema, touched)
        except (ValueError, pa.ArrowException) as error:
            window.lose(f"what was read cannot be written: {type(error).__name__}")
            return None
        rows = found.batch.num_rows
        doubtful = touched.doubtful(delivery)
        if doubtful.num_rows:
            # Before the window is in the log: what it says of them is not to be all there is.
            target = self._session.chain.sources[window.table].target
            spec = ReadSpec(keys=tuple(canonical.key_texts(schema, doubtful)))
            self._session.state.ask_read(window.table, target, spec, "repair")
        read = sum(batch.num_rows for batch in delivery.rows) + (
            delivery.gone.num_rows if delivery.gone is not None else 0
        )
        if not self._session.chain.emit(found, WindowEntry(window.id, window.table.id, read, rows, delivery.progress)):
            window.lose("a row is too large for the log")
            return None
        self._emitting[window.id] = window, rows
        return found.batch.nbytes

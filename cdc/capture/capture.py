"""Capture: the binary log's transactions, as epochs in the log. The only writer of the log, and its only checkpoint is there.

Start-up, in this order: fence the log, read its newest record, connect to the source, compare its history, go on. Whenever it is in
doubt what the log holds, it starts again from there.
"""

from __future__ import annotations

import threading
from contextlib import closing

from cdc import faults
from cdc.capture import identity
from cdc.capture.housekeeping import Housekeeping
from cdc.capture.session import LOG, NODE, Session
from cdc.capture.starting import start
from cdc.capture.tables import PipelineFile
from cdc.clock import Clock
from cdc.config import PipelineConfig
from cdc.errors import LakesyncError, LogFencedError, LogIndefiniteError, LogMovedError
from cdc.log.base import Log, LogWriter
from cdc.source.connection import connect
from cdc.state import State
from cdc.window import Windows

AGAIN_S = 0.2
"""Before a new start after the log was not what it should be."""
WAIT_S = 0.1
"""Longest sleep without a look at the time and at whether to stop."""
BEAT_S = 1.0
HOUSEKEEP_S = 0.5
"""Between looks at requests and the pipeline file."""


class Capture:
    """Follows one source into one log. `run` may be called again after it raised a retryable error. `windows`: of the readers in this
    process. `file`: as it was read last, if there was a capture in this process before."""

    def __init__(
        self,
        config: PipelineConfig,
        log: Log,
        state: State,
        clock: Clock,
        windows: Windows | None = None,
        file: PipelineFile | None = None,
    ) -> None:
        self._windows = windows
        self._file = file or PipelineFile(config, state)
        self._config = config
        self._log = log
        self._state = state
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then the last whole transactions are written.

        Raises what ends it: `SourceUnavailableError` and `LogUnavailableError` (run again later), `LogFencedError` (a newer capture
        writes), `SourceIdentityError`, `SourcePurgedError`, `UnsupportedEventError`, `BinlogError`, and other errors of source and log.
        """
        writer: LogWriter | None = None
        while not stop.is_set():
            session = Session(self._config, self._log, self._state, self._clock, self._file, self._windows, writer)
            writer = None
            try:
                with closing(connect(self._config.source, purpose=NODE)) as connection:
                    session.reach(connection)
                    start(session)
                    _Following(session).run(stop)
                return
            except (LogIndefiniteError, LogMovedError) as error:
                LOG.warning("starts-again", error=error.code, what=error.what, where=error.where)
                if faults.mutant("producer_reused") and isinstance(error, LogIndefiniteError):
                    writer = session.keep_writer()
            finally:
                session.close()
            stop.wait(AGAIN_S)


class _Following:
    """The loop: feed the decoder, write epochs, do what is due."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._chain = session.chain
        self._clock = session.clock
        self._settings = session.config.capture
        self._housekeeping = Housekeeping(session)
        now_s = self._clock.monotonic()
        session.idle_at = now_s + self._settings.idle
        self._look_at = now_s + self._settings.look_back
        self._housekeep_at = self._beat_at = now_s

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        session = self._session
        try:
            self._tick()
            self._feed(b"")  # what the start left in the decoder
            session.windows.listen()
            while not stop.is_set():
                self._tick()
                session.windows.step()
                for piece in session.queue.get(self._patience()):
                    self._feed(piece)
                    self._tick()
                    session.windows.step()
        except LakesyncError as error:
            if isinstance(error, LogIndefiniteError | LogMovedError):
                raise
            # The log's errors leave nothing to be written; the source's leave what was read before them.
            self._last_epoch(error)
            raise
        self._last_epoch(None)

    def _last_epoch(self, error: LakesyncError | None) -> None:
        """Write the whole transactions that were read. Of two errors the first is told, unless a newer capture is the reason."""
        try:
            self._session.settle()
            self._session.collect()
            if self._chain.has_news:
                self._session.publish()
            elif error is not None:
                self._chain.writer.check()
            self._beat(self._clock.monotonic())
        except LogFencedError:
            raise
        except LakesyncError:
            if error is None:
                raise

    def _patience(self) -> float:
        """Seconds until something is due."""
        if self._session.linger_at is None:
            return WAIT_S
        return max(0.0, min(WAIT_S, self._session.linger_at - self._clock.monotonic()))

    def _feed(self, piece: bytes) -> None:
        session = self._session
        taken = session.decoder.feed(piece)
        faults.point("capture.event")
        while not taken:
            session.collect()
            if session.is_eager:
                session.publish()
            elif self._chain.has_rows:
                session.publish_behind()
            self._tick()
            taken = session.decoder.feed(b"")
            faults.point("capture.event")
        if session.linger_at is None and session.decoder.pending_bytes:
            session.linger_at = self._clock.monotonic() + self._settings.linger

    def _tick(self) -> None:
        """Whatever is due."""
        session = self._session
        now_s = self._clock.monotonic()
        if now_s < min(session.linger_at or now_s + 1, session.idle_at, self._look_at, self._beat_at) and (
            now_s < self._housekeep_at or not session.decoder.idle
        ):
            return
        session.settle()
        if session.linger_at is not None and now_s >= session.linger_at:
            session.collect()
            if self._chain.has_rows:
                session.publish()
        if now_s >= session.idle_at:
            session.collect()
            if self._chain.has_news:
                session.publish()
            session.idle_at = now_s + self._settings.idle
        if now_s >= self._look_at:
            if not faults.mutant("never_looks_back"):
                self._chain.writer.check()
            self._look_at = now_s + self._settings.look_back
        if now_s >= self._housekeep_at and session.decoder.idle:
            self._housekeeping.look(now_s)
            self._housekeep_at = now_s + HOUSEKEEP_S
        if now_s >= self._beat_at:
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        """A sign of life."""
        self._beat_at = now_s + BEAT_S
        session, chain, position = self._session, self._chain, self._chain.position
        assert position is not None
        end = session.server.binlog_end()
        behind = position.server_uuid != session.uuid or identity.before(position.end, end)
        lag_ms = max(0, self._clock.now_us() - chain.raw_us) // 1000 if behind and chain.raw_us else 0
        session.state.beat(
            NODE,
            {
                "epoch": chain.newest.number if chain.newest else 0,
                "position": str(position.end),
                "source_end": str(end),
                "lag_ms": lag_ms,
                "rows": chain.rows,
                "transactions": chain.transactions,
                "bytes": chain.bytes,
                "tables": len(chain.states),
                "clamped": chain.clamped,
                "problems": self._housekeeping.problems,
            },
        )

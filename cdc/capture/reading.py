"""The server's stream, read in a thread of their own, so that an epoch can be written while the server is silent."""

from __future__ import annotations

import threading
from collections import deque

from cdc.errors import SourceUnavailableError
from cdc.source.dump import BinlogStream

LIMIT_BYTES = 16 * 1024 * 1024
"""Of pieces that wait; the thread stops reading at more, and the server waits."""


class StreamQueue:
    """What `stream` gives, in order, at most about `LIMIT_BYTES` of it at a time. Owns the stream."""

    def __init__(self, stream: BinlogStream) -> None:
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._ended = False
        self._woken = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="lakesync-binlog", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for piece in self._stream:
                with self._changed:
                    while self._bytes > LIMIT_BYTES and not self._ended:
                        self._changed.wait()
                    if self._ended:
                        return
                    self._pieces.append(piece)
                    self._bytes += len(piece)
                    self._changed.notify_all()
        except BaseException as raised:
            error = raised
        finally:
            with self._changed:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def get(self, timeout_s: float, most: int | None = None) -> list[bytes]:
        """The pieces that wait (`most` of them), or the next one within `timeout_s`; none if there is none in time, or before `wake`.

        Raises what the stream raised, after the pieces before it were given.
        """
        with self._changed:
            if not self._pieces and not self._ended and not self._woken:
                self._changed.wait(timeout_s)
            self._woken = False
            if not self._pieces and self._ended:
                raise self._error or SourceUnavailableError("the stream of the binary log ended")
            count = len(self._pieces) if most is None else min(most, len(self._pieces))
            pieces = [self._pieces.popleft() for _ in range(count)]
            self._bytes -= sum(map(len, pieces))
            self._changed.notify_all()
            return pieces

    def wake(self) -> None:
        """End the `get` that waits, or the next one that would wait, from any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the stream and the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._stream.close()
        self._thread.join()
        self._stream.__exit__(None, None, None)

"""Changes at a fixed rate."""

from __future__ import annotations

import random
import threading
import time

from bench.setting import DATABASE, Setting
from cdc.position import GtidSet

SEED = 17


class Load(threading.Thread):
    """One connection that changes rows of a table, `batch` a transaction, `rate` a second; as a context from its beginning to its end."""

    def __init__(self, setting: Setting, table: str, rows: int, rate: int, batch: int) -> None:
        super().__init__(daemon=True)
        self._rate, self._batch = rate, batch
        self._setting, self._table, self._rows = setting, table, rows
        self.sent: list[float] = []
        """When each was."""
        self.first = 0
        """Its GTID's number."""
        self.uuid = ""
        self.late_s = 0.0
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Load:
        server = self._setting.server
        self.uuid = str(server.execute("SELECT @@server_uuid")[0][0])
        executed = GtidSet.parse(server.gtid_executed)
        self.first = executed.sids[self.uuid][-1][1] + 1
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """No more."""
        self._ended.set()
        self.join()
        self.check()

    def check(self) -> None:
        """Raise what it raised."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        dice = random.Random(SEED)
        pause_s = self._batch / self._rate
        try:
            with self._setting.server.root(DATABASE) as connection, connection.cursor() as cursor:
                began = time.monotonic()
                number = 0
                while not self._ended.is_set():
                    due = began + number * pause_s
                    now = time.monotonic()
                    self.late_s = max(self.late_s, now - due)
                    time.sleep(max(0.0, due - now))
                    low = dice.randrange(1, self._rows - self._batch + 2)
                    self.sent.append(time.monotonic())
                    cursor.execute(
                        f"UPDATE `{self._table}` SET change_no = change_no + 1 WHERE id BETWEEN {low} AND {low + self._batch - 1}"
                    )
                    number += 1
        except BaseException as error:
            self._error = error

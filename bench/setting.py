"""What the benchmarks share: how large, where, and a MySQL server with the table that is measured with."""

from __future__ import annotations

import compileall
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

from bench.rows import COLUMNS, EXPRESSIONS
from dev.mysql import MySQLServer

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / ".bench"
DATABASE = "bench"
TABLE = "big"
USER, PASSWORD = "bench", "bench"
GRANTS = ("REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON *.*")
# Enough for the tables: that no disk is waited for is as well for the peers as for lakesync. The caches are as large as a server's
# are by itself.
SERVER = (
    "--innodb-buffer-pool-size=3G",
    "--innodb-redo-log-capacity=1G",
    "--table-open-cache=4000",
    "--table-definition-cache=2000",
)
LOAD_ROWS = 50_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: int = 1_000_000
    """Of the table."""
    snapshot_rows: int = 10_000_000
    """Of the table that is read for the first time."""
    changes: int = 260_000
    """Row changes of a backlog."""
    seconds: int = 30
    """Of writing, for latencies."""
    commits: int = 10_000
    """Of a table that is read when it has aged."""
    turns: int = 3
    """Of each contestant, in turn; figures are medians."""


QUICK = Sizes(rows=20_000, snapshot_rows=20_000, changes=5_200, seconds=3, commits=50, turns=1)


class Setting:
    """A folder, and a server that is started when it is asked for; both go in the end."""

    def __init__(self, sizes: Sizes, folder: Path = FOLDER) -> None:
        self.sizes, self.root = sizes, folder
        self.held = ExitStack()
        """What ends with the run."""

    def __enter__(self) -> Setting:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(mode=0o700)
        for package in ("cdc", "snapshot", "reconcile", "bench"):
            compileall.compile_dir(CHECKOUT / package, quiet=2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.close()
        if error is None:
            shutil.rmtree(self.root, ignore_errors=True)

    def folder(self, name: str) -> Path:
        """An empty one of this name."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @cached_property
    def server(self) -> MySQLServer:
        """The source, with an empty schema and the pipelines' account."""
        server = self.held.enter_context(MySQLServer(options=SERVER))
        server.execute(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
        server.add_user(USER, PASSWORD, *GRANTS)
        return server

    @cached_property
    def table(self) -> str:
        """The name of the table with `sizes.rows` rows."""
        self.create(TABLE, self.sizes.rows)
        return f"{DATABASE}.{TABLE}"

    def create(self, name: str, rows: int) -> None:
        """A table with rows 1 to `rows`."""
        select = ", ".join(EXPRESSIONS)
        with self.server.root(DATABASE) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE `{name}` ({COLUMNS})")
            cursor.execute(f"SET SESSION cte_max_recursion_depth = {LOAD_ROWS}, time_zone = '+00:00'")
            for first in range(1, rows + 1, LOAD_ROWS):
                last = min(first + LOAD_ROWS - 1, rows)
                numbers = f"SELECT {first} AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}"
                cursor.execute(
                    f"INSERT INTO `{name}` WITH RECURSIVE numbers AS ({numbers}) SELECT {select} FROM numbers"
                )
            cursor.execute(f"ANALYZE TABLE `{name}`")

"""sysbench and Percona's tools, unpacked like the servers: workloads at a fixed rate, and second opinions on tables."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev import packages, warden
from dev.errors import SetUpError
from dev.mysql import MySQLServer
from dev.sqlserver import SqlServer

PACKAGES = ("sysbench", "percona-toolkit")

# How long a workload may run on when it was told to end.
END_TIMEOUT_S = 10.0


def tools() -> packages.DebianRoot:
    """The tree with sysbench and Percona's tools, downloaded if need be."""
    return packages.debian_root("sysbench", PACKAGES)


def _environment(tree: packages.DebianRoot) -> Mapping[str, str]:
    return {
        **os.environ,
        "LUA_PATH": f"{tree.path}/usr/share/sysbench/?.lua",
        # Without it the client library cannot log in by caching_sha2_password.
        "MARIADB_PLUGIN_DIR": str(tree.libraries / "libmariadb3/plugin"),
    }


@dataclass(frozen=True)
class Outcome:
    """What a run of sysbench did."""

    transactions: int
    per_second: float
    ignored_errors: int
    reconnects: int

    @classmethod
    def parse(cls, report: str) -> Outcome:
        """From what sysbench prints. Raises ValueError where that is not its report."""

        def find(pattern: str) -> tuple[str, ...]:
            if (found := re.search(pattern, report)) is None:
                raise ValueError(f"no report of sysbench:\n{report[-2000:]}")
            return found.groups()

        transactions, per_second = find(r"transactions:\s+(\d+)\s+\(([\d.]+) per sec")
        return cls(
            transactions=int(transactions),
            per_second=float(per_second),
            ignored_errors=int(find(r"ignored errors:\s+(\d+)")[0]),
            reconnects=int(find(r"reconnects:\s+(\d+)")[0]),
        )


class Sysbench:
    """A sysbench workload against one server, as root.

    `script` is one of sysbench's own: `oltp_read_write`, `oltp_write_only`, `oltp_insert`, …; `table_size` is in rows a table;
    `tables` are named `sbtest1`, `sbtest2`, … in the schema `database`.
    """

    def __init__(
        self,
        server: MySQLServer,
        *,
        script: str = "oltp_read_write",
        database: str = "sbtest",
        tables: int = 2,
        table_size: int = 10_000,
        threads: int = 2,
    ) -> None:
        self._tree = tools()
        self.server = server
        self.script = script
        self.database = database
        self.tables = tables
        self.table_size = table_size
        self.threads = threads

    def prepare(self) -> None:
        """Create the schema and the tables and fill them."""
        self.server.execute(f"CREATE DATABASE IF NOT EXISTS `{self.database}`")
        self._run("prepare")

    def cleanup(self) -> None:
        """Drop the tables."""
        self._run("cleanup")

    def run(self, *, seconds: float, rate: int = 0, options: Sequence[str] = ()) -> Outcome:
        """Run for `seconds`, at `rate` transactions a second (0: as many as it can). Raises CalledProcessError."""
        return Outcome.parse(self._run("run", *self._pace(seconds, rate), *options))

    @contextmanager
    def running(
        self, *, rate: int, seconds: float = 3600, options: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """Run beside the block, and end with it, in the middle of whatever transaction is open.

        `seconds` bounds it. Where the server goes away, pass `--mysql-ignore-errors=all`, or it ends with an error.
        """
        process = subprocess.Popen(
            self._command("run", *self._pace(seconds, rate), *options),
            env=_environment(self._tree),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        warden.watch(process.pid)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            warden.unwatch(process.pid)

    def _pace(self, seconds: float, rate: int) -> list[str]:
        return [f"--time={seconds:g}", f"--rate={rate}", "--events=0"]

    def _command(self, verb: str, *options: str) -> list[str]:
        return self._tree.command(
            "usr/bin/sysbench",
            self.script,
            f"--mysql-socket={self.server.socket}",
            "--mysql-user=root",
            f"--mysql-db={self.database}",
            f"--tables={self.tables}",
            f"--table-size={self.table_size}",
            f"--threads={self.threads}",
            *options,
            verb,
        )

    def _run(self, verb: str, *options: str) -> str:
        done = subprocess.run(
            self._command(verb, *options), env=_environment(self._tree), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(
                done.returncode, f"sysbench {self.script} {verb}", done.stdout, done.stderr
            )
        return done.stdout


def percona_command(
    server: SqlServer, tool: str, *arguments: str, dsn: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line, and the environment, that run one of Percona's tools (`pt-online-schema-change`, `pt-table-checksum`, …) as root on
    `server`. `dsn` adds keys to the data source name, such as `{"D": "shop", "t": "orders"}`."""
    tree = tools()
    folders = [*_perl_folders(tree.path)]
    if not folders:
        raise SetUpError(f"no perl in {tree.path}", f"remove {tree.path}; it is downloaded anew")
    source = {"S": str(server.socket), "u": "root", **(dsn or {})}
    given = ",".join(f"{k}={v}" for k, v in source.items())
    command = tree.command("usr/bin/perl", str(tree.path / "usr/bin" / tool), *arguments, given)
    return command, {**_environment(tree), "PERL5LIB": ":".join(map(str, folders))}


def percona_tool(
    server: SqlServer, tool: str, *arguments: str, dsn: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Percona's tools to its end, as of `percona_command`. Its exit code is the caller's to judge: the tools use it to tell what
    they found."""
    command, environment = percona_command(server, tool, *arguments, dsn=dsn)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _perl_folders(root: Path) -> Iterator[Path]:
    for pattern in (
        "usr/lib/*/perl-base",
        "usr/lib/*/perl/5.*",
        "usr/lib/*/perl5/5.*",
        "usr/share/perl/5.*",
        "usr/share/perl5",
    ):
        yield from sorted(root.glob(pattern))

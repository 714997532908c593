"""Throwaway MySQL servers: the newest of Debian unstable (9.7 and later), with GTIDs and row events, and replicas."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dev import packages
from dev.certificates import write_certificates
from dev.errors import SetUpError
from dev.sqlserver import SqlServer

PACKAGES = ("mysql-server-core", "mysql-client")

REPLICATION_USER = "lakesync_replica"
REPLICATION_PASSWORD = "replica"  # no secret: root has no password here either

# Written by the server for the server; a copy must make its own.
OWN_IDENTITY = "auto.cnf"

# Small, and fast rather than safe against power loss: a server killed by -9 still loses nothing, for what it wrote is
# with the kernel. `options` come later on the command line and win.
DEFAULTS = (
    "--gtid-mode=ON",
    "--enforce-gtid-consistency=ON",
    "--binlog-format=ROW",
    "--binlog-row-metadata=FULL",
    "--mysqlx=OFF",
    "--secure-file-priv=NULL",
    "--bind-address=127.0.0.1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-redo-log-capacity=64M",
    "--innodb-flush-log-at-trx-commit=2",
    "--sync-binlog=0",
    "--max-connections=100",
    "--table-open-cache=400",  # with the next, 110 MB less memory a server
    "--table-definition-cache=400",
    "--max-allowed-packet=256M",
    "--log-error-verbosity=2",
)


@dataclass(frozen=True)
class Installation:
    """Where the programs are: a tree of our own, or what the machine has."""

    root: packages.DebianRoot | None
    mysqld: Path | None = None

    @classmethod
    def find(cls) -> Installation:
        """`LAKESYNC_DEV_MYSQLD`, else the tree in the cache (downloaded if need be)."""
        if given := os.environ.get("LAKESYNC_DEV_MYSQLD"):
            mysqld = Path(given).absolute()
            if not os.access(mysqld, os.X_OK):
                raise SetUpError(f"LAKESYNC_DEV_MYSQLD={given} is no program", "give the full path of mysqld")
            return cls(None, mysqld)
        return cls(packages.debian_root("mysql", PACKAGES))

    @property
    def key(self) -> str:
        """Tells installations apart that need a template each."""
        return "debian" if self.root else hashlib.sha256(str(self.mysqld).encode()).hexdigest()[:12]

    def server(self, *arguments: str) -> list[str]:
        """The command line of mysqld."""
        if self.root is None:
            return [str(self.mysqld), "--no-defaults", *arguments]
        tree = self.root.path
        return self.root.command(
            "usr/sbin/mysqld",
            "--no-defaults",
            f"--basedir={tree}/usr",
            f"--lc-messages-dir={tree}/usr/share/mysql",
            f"--plugin-dir={tree}/usr/lib/mysql/plugin",
            f"--character-sets-dir={tree}/usr/share/mysql/charsets",
            *arguments,
            libraries=[tree / "usr/lib/mysql/private"],
        )

    def client(self, program: str, *arguments: str) -> list[str]:
        """The command line of `mysql`, `mysqlbinlog`, `mysqldump`, …"""
        if self.root is not None:
            libraries = [self.root.path / "usr/lib/mysql/private"]
            return self.root.command(f"usr/bin/{program}", "--no-defaults", *arguments, libraries=libraries)
        assert self.mysqld is not None
        beside = [self.mysqld.parent, self.mysqld.parent.parent / "bin", self.mysqld.parent.parent.parent / "bin"]
        found = shutil.which(program, path=os.pathsep.join(map(str, beside))) or shutil.which(program)
        if found is None:
            raise SetUpError(f"no {program} beside {self.mysqld} or on the PATH", "install MySQL's client programs")
        return [found, "--no-defaults", *arguments]

    def template(self) -> Path:
        """An initialised data folder with certificates, to be copied; root has no password."""
        return packages.made_once(f"mysql-template-{self.key}", self._initialise)

    def _initialise(self, folder: Path) -> None:
        data = folder / "data"
        command = self.server(
            "--initialize-insecure",
            f"--user={getpass.getuser()}",
            f"--datadir={data}",
            "--innodb-redo-log-capacity=8M",
            "--secure-file-priv=NULL",
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetUpError(
                f"mysqld could not make its system tables:\n{done.stdout[-1000:]}{done.stderr[-2000:]}",
                f"to download it anew, remove {packages.cache_folder()}/mysql",
            )
        (data / OWN_IDENTITY).unlink(missing_ok=True)
        write_certificates(data)


class MySQLServer(SqlServer):
    """A MySQL server on 127.0.0.1. See `Server` for folder, start, stop, kill and close.

    `options` are further arguments of mysqld, such as `--binlog-row-image=MINIMAL`; the last one wins.
    `replica_of`: follow that running server by GTID auto-position, read-only, from the first start on.
    `server_id`: 1, and for a replica one more than its source's, unless given.

    root has no password and is let in from this machine only. `ca` is the authority that signed the server's
    certificate, which names 127.0.0.1 and localhost.
    """

    name = "mysql"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        server_id: int | None = None,
        options: Sequence[str] = (),
        replica_of: Self | None = None,
    ) -> None:
        self._installation = Installation.find()
        super().__init__(folder, self._installation.template, server_id, options, replica_of)

    # life

    def _command(self) -> list[str]:
        return self._installation.server(
            f"--user={getpass.getuser()}",
            f"--datadir={self.datadir}",
            f"--port={self.port}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder}/mysql.pid",
            f"--tmpdir={self.folder}",
            f"--server-id={self.server_id}",
            f"--log-bin={self.datadir}/binlog",
            *DEFAULTS,
            *(() if self.source is None else ("--read-only=ON", "--replica-net-timeout=10")),
            *self.options,
        )

    # talking to it

    @property
    def executed(self) -> str:
        """The server's executed GTID set, on one line."""
        return self.gtid_executed

    @property
    def gtid_executed(self) -> str:
        """The server's executed GTID set, on one line."""
        return str(self.execute("SELECT @@global.gtid_executed")[0][0]).replace("\n", "")

    def mysql_cli(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the `mysql` client as root. `stdin` may be a whole script. Raises CalledProcessError."""
        command = self._installation.client("mysql", f"--socket={self.socket}", "--user=root", *arguments)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)

    def mysqlbinlog(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mysqlbinlog`, with file names relative to the data folder. Rows may have bytes of any kind. Raises CalledProcessError."""
        command = self._installation.client("mysqlbinlog", *arguments)
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, cwd=self.datadir)

    # replication

    def follow(self, source: Self) -> None:
        """Replicate from `source` from now on, by GTID auto-position."""
        if not source.execute("SELECT 1 FROM mysql.user WHERE user = %s", REPLICATION_USER):
            source.add_user(REPLICATION_USER, REPLICATION_PASSWORD, "REPLICATION SLAVE ON *.*")
        self.execute("STOP REPLICA")
        self.execute(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = %s, SOURCE_USER = %s,"
            " SOURCE_PASSWORD = %s, SOURCE_AUTO_POSITION = 1, SOURCE_CONNECT_RETRY = 1, GET_SOURCE_PUBLIC_KEY = 1",
            source.port,
            REPLICATION_USER,
            REPLICATION_PASSWORD,
        )
        self.execute("START REPLICA")
        self.source = source

    def wait_for_source(self, timeout_s: float = 30.0) -> None:
        """Wait until this replica has executed what its source has now. Raises TimeoutError with the replica's state."""
        if self.source is None:
            raise ValueError("not a replica")
        wanted = self.source.gtid_executed
        (timed_out,) = self.execute("SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)", wanted, timeout_s)[0]
        if timed_out:
            state = self.status("SHOW REPLICA STATUS")
            # Last_SQL_Error only says that some worker failed.
            workers = self.execute(
                "SELECT LAST_ERROR_MESSAGE FROM performance_schema.replication_applier_status_by_worker"
            )
            errors = "; ".join(filter(None, [state.get("Last_IO_Error"), *(message for (message,) in workers)]))
            raise TimeoutError(f"the replica did not reach {wanted} within {timeout_s} s: {errors or 'no error'}")

    def promote(self) -> None:
        """Stop replicating, forget the source and take writes."""
        self.execute("STOP REPLICA")
        self.execute("RESET REPLICA ALL")
        self.execute("SET GLOBAL read_only = OFF")
        self.source = None

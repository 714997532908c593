"""Throwaway MariaDB servers: the newest of Debian unstable (11.8 and later), with strict GTIDs and row events, and replicas."""

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

PACKAGES = ("mariadb-server-core", "mariadb-client-core")
ALONE = ("mariadb-server", "mariadb-client")  # the SQL that makes the system tables; mariadb-binlog

REPLICATION_USER = "lakesync_replica"
REPLICATION_PASSWORD = "replica"  # no secret: root has no password here either

SYSTEM_TABLES = (
    "{}_system_tables.sql",
    "{}_performance_tables.sql",
    "{}_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
)
"""The SQL, named after the server: of old it was called mysql."""

# As dev.mysql's: small, and fast rather than safe against power loss. `options` come later on the command line and win.
DEFAULTS = (
    "--binlog-format=ROW",
    "--binlog-row-metadata=FULL",
    "--gtid-strict-mode=ON",
    "--log-slave-updates=ON",
    "--bind-address=127.0.0.1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=64M",
    "--innodb-flush-log-at-trx-commit=2",
    "--sync-binlog=0",
    "--max-connections=100",
    "--table-open-cache=400",
    "--max-allowed-packet=256M",
    "--character-set-server=utf8mb4",
)


@dataclass(frozen=True)
class Installation:
    """Where the programs are: a tree of our own, or what the machine has."""

    root: packages.DebianRoot | None
    mariadbd: Path | None = None

    @classmethod
    def find(cls) -> Installation:
        """`LAKESYNC_DEV_MARIADBD`, else the tree in the cache (downloaded if need be)."""
        if given := os.environ.get("LAKESYNC_DEV_MARIADBD"):
            mariadbd = Path(given).absolute()
            if not os.access(mariadbd, os.X_OK):
                raise SetUpError(f"LAKESYNC_DEV_MARIADBD={given} is no program", "give the full path of mariadbd")
            return cls(None, mariadbd)
        return cls(packages.debian_root("mariadb", PACKAGES, ALONE))

    @property
    def key(self) -> str:
        """Tells installations apart that need a template each."""
        return "debian" if self.root else hashlib.sha256(str(self.mariadbd).encode()).hexdigest()[:12]

    def server(self, *arguments: str) -> list[str]:
        """The command line of mariadbd."""
        if self.root is None:
            return [str(self.mariadbd), "--no-defaults", *arguments]
        tree = self.root.path
        return self.root.command(
            "usr/sbin/mariadbd",
            "--no-defaults",
            f"--basedir={tree}/usr",
            f"--lc-messages-dir={tree}/usr/share/mariadb",
            f"--plugin-dir={tree}/usr/lib/mysql/plugin",
            f"--character-sets-dir={tree}/usr/share/mariadb/charsets",
            *arguments,
        )

    def client(self, program: str, *arguments: str) -> list[str]:
        """The command line of `mariadb`, `mariadb-binlog`, `mariadb-dump`, …"""
        if self.root is not None:
            return self.root.command(f"usr/bin/{program}", "--no-defaults", *arguments)
        assert self.mariadbd is not None
        beside = [self.mariadbd.parent, self.mariadbd.parent.parent / "bin"]
        found = shutil.which(program, path=os.pathsep.join(map(str, beside))) or shutil.which(program)
        if found is None:
            raise SetUpError(f"no {program} beside {self.mariadbd} or on the PATH", "install MariaDB's client programs")
        return [found, "--no-defaults", *arguments]

    def _system_tables(self) -> str:
        """The SQL that fills an empty data folder."""
        if self.root is not None:
            folders = [self.root.path / "usr/share/mariadb"]
        else:
            assert self.mariadbd is not None
            share = self.mariadbd.parent.parent / "share"
            folders = [share / "mariadb", share / "mysql", share]
        for folder in folders:
            for server in ("mariadb", "mysql"):
                files = [folder / name.format(server) for name in SYSTEM_TABLES]
                if files[0].exists():
                    return "".join(file.read_text() for file in files)
        missing = SYSTEM_TABLES[0].format("mariadb")
        raise SetUpError(f"{missing} is in none of {', '.join(map(str, folders))}", "install the whole server")

    def template(self) -> Path:
        """An initialised data folder with certificates, to be copied; root has no password."""
        return packages.made_once(f"mariadb-template-{self.key}", self._initialise)

    def _initialise(self, folder: Path) -> None:
        data = folder / "data"
        (data / "mysql").mkdir(parents=True)
        command = self.server(
            "--bootstrap",
            f"--user={getpass.getuser()}",
            f"--datadir={data}",
            "--innodb-log-file-size=64M",
            "--innodb-buffer-pool-size=64M",
        )
        script = f"USE mysql;\nSET @auth_root_socket = NULL, @current_hostname = 'localhost';\n{self._system_tables()}"
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetUpError(
                f"mariadbd could not make its system tables:\n{done.stdout[-1000:]}{done.stderr[-2000:]}",
                f"to download it anew, remove {packages.cache_folder()}/mariadb",
            )
        write_certificates(data)


class MariaDBServer(SqlServer):
    """A MariaDB server on 127.0.0.1. See `Server` for folder, start, stop, kill and close, `SqlServer` for talking to it.

    `options` are further arguments of mariadbd, such as `--log-bin-compress=ON`; the last one wins.
    `replica_of`: follow that running server by GTID, read-only, from the first start on.
    `server_id`: 1, and for a replica one more than its source's, unless given.
    """

    name = "mariadb"

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
            f"--pid-file={self.folder}/mariadb.pid",
            f"--tmpdir={self.folder}",
            f"--server-id={self.server_id}",
            f"--log-bin={self.datadir}/binlog",
            f"--ssl-ca={self.ca}",
            f"--ssl-cert={self.datadir}/server-cert.pem",
            f"--ssl-key={self.datadir}/server-key.pem",
            *DEFAULTS,
            *(() if self.source is None else ("--read-only=ON", "--slave-net-timeout=10")),
            *self.options,
        )

    # talking to it

    @property
    def executed(self) -> str:
        """The last GTID of every domain: what the binary log holds (`gtid_binlog_pos`)."""
        return str(self.execute("SELECT @@global.gtid_binlog_pos")[0][0])

    def mariadb_binlog(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mariadb-binlog`, with file names relative to the data folder. Raises CalledProcessError."""
        command = self._installation.client("mariadb-binlog", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.datadir)

    # replication

    def follow(self, source: Self) -> None:
        """Replicate from `source` from now on, by GTID: from what this server has, written or replicated."""
        if not source.execute("SELECT 1 FROM mysql.user WHERE user = %s", REPLICATION_USER):
            source.add_user(REPLICATION_USER, REPLICATION_PASSWORD, "REPLICATION SLAVE ON *.*")
        self.execute("STOP SLAVE")
        if own := self.executed:
            self.execute("SET GLOBAL gtid_slave_pos = %s", own)
        self.execute(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
            " MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_SSL_VERIFY_SERVER_CERT = 0",
            source.port,
            REPLICATION_USER,
            REPLICATION_PASSWORD,
        )
        self.execute("START SLAVE")
        self.source = source

    def wait_for_source(self, timeout_s: float = 30.0) -> None:
        """Wait until this replica has executed what its source has now. Raises TimeoutError with the replica's state."""
        if self.source is None:
            raise ValueError("not a replica")
        wanted = self.source.executed
        (timed_out,) = self.execute("SELECT MASTER_GTID_WAIT(%s, %s)", wanted, timeout_s)[0]
        if timed_out:
            state = self.status("SHOW REPLICA STATUS")
            errors = "; ".join(filter(None, (state.get("Last_IO_Error"), state.get("Last_SQL_Error"))))
            raise TimeoutError(f"the replica did not reach {wanted} within {timeout_s} s: {errors or 'no error'}")

    def promote(self) -> None:
        """Stop replicating, forget the source and take writes."""
        self.execute("STOP SLAVE")
        self.execute("RESET SLAVE ALL")
        self.execute("SET GLOBAL read_only = OFF")
        self.source = None

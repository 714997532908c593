"""`python -m dev mysql|mariadb|kafka|minio`: one server in the foreground, until Ctrl-C. `python -m dev fetch`: only download."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from dev import chromium, kafka, mariadb, minio, packages, sysbench, toxiproxy
from dev.errors import SetUpError
from dev.kafka import KafkaBroker
from dev.mariadb import MariaDBServer
from dev.minio import MinIOServer
from dev.mysql import Installation, MySQLServer


def _fetch() -> None:
    """Fill the cache, so that no test waits for a download. Says what it does only where that takes time."""
    for name, folder, fetch in (
        ("MySQL", "mysql", lambda: Installation.find().template()),
        ("MariaDB", "mariadb", lambda: mariadb.Installation.find().template()),
        ("Kafka", "kafka", kafka.libraries),
        ("MinIO (built, some minutes)", "minio", minio.binary),
        ("Toxiproxy", "toxiproxy", toxiproxy.binary),
        ("sysbench and Percona's tools", "sysbench", sysbench.tools),
        ("Chromium", chromium.FOLDER, chromium.Installation.find),
    ):
        if not (packages.cache_folder() / folder).exists():
            print(f"fetching {name} …", flush=True)
        fetch()


def main() -> int:
    """Parse the command line, run the server until a signal comes, and end it."""
    parser = argparse.ArgumentParser(prog="python -m dev", description="A throwaway server, gone when you end it.")
    parser.add_argument(
        "server", choices=["mysql", "mariadb", "kafka", "minio", "fetch"], help="`fetch` downloads what tests need"
    )
    parser.add_argument("--folder", type=Path, help="keep its data here (default: a folder that is removed at the end)")
    parser.add_argument(
        "options", nargs="*", help="after `--`: more options of mysqld or mariadbd, or KEY=VALUE for Kafka"
    )
    arguments = parser.parse_args()
    # SIGTERM ends it the way Ctrl-C does, so that the server is ended and its folder removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.server == "fetch":
            _fetch()
        elif arguments.server in ("mysql", "mariadb"):
            kind = MySQLServer if arguments.server == "mysql" else MariaDBServer
            with kind(arguments.folder, options=arguments.options) as server:
                print(f"{server.url()}    (socket {server.socket}, certificate authority {server.ca})", flush=True)
                signal.pause()
        elif arguments.server == "minio":
            with MinIOServer(arguments.folder) as store:
                print(
                    f"{store.endpoint}    (bucket {store.bucket()}, user {store.user}, password {store.password})",
                    flush=True,
                )
                signal.pause()
        else:
            settings = dict(option.split("=", 1) for option in arguments.options)
            with KafkaBroker(arguments.folder, options=settings) as broker:
                print(broker.url, flush=True)
                signal.pause()
    except KeyboardInterrupt:
        print("ended")
    except SetUpError as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

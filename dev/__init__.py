"""Throwaway servers for tests, the demo and people who try things: real ones, without Docker, nothing installed.

    with MySQLServer() as mysql, KafkaBroker() as kafka: ...

Each has a folder and a port of its own, several run at once, and they are gone when the process that started them is.
What they need is downloaded once, into `.dev/` in the project's root (or `LAKESYNC_DEV_CACHE`).
"""

from dev.errors import SetUpError
from dev.kafka import KafkaBroker
from dev.mysql import MySQLServer
from dev.sysbench import Sysbench

__all__ = ["KafkaBroker", "MySQLServer", "SetUpError", "Sysbench"]

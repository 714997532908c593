"""Real servers as fixtures. Nothing is started, or downloaded, before a test asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from dev.kafka import KafkaBroker
from dev.mariadb import MariaDBServer
from dev.minio import MinIOServer
from dev.mysql import MySQLServer
from dev.toxiproxy import Toxiproxy


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQLServer]:
    """One MySQL server for the whole session. Leave its settings as they are, and work in the schema of `schema`."""
    with MySQLServer() as server:
        yield server


@pytest.fixture
def schema(mysql: MySQLServer) -> Iterator[str]:
    """The name of a fresh, empty schema on `mysql`, dropped after the test."""
    name = f"s_{uuid.uuid4().hex[:12]}"
    mysql.execute(f"CREATE DATABASE `{name}`")
    yield name
    mysql.execute(f"DROP DATABASE IF EXISTS `{name}`")


@pytest.fixture
def mysql_factory() -> Iterator[Callable[..., MySQLServer]]:
    """Starts servers of the test's own: `mysql_factory(options=[…], replica_of=…)`; they go with the test."""
    with ExitStack() as servers:

        def start(**arguments: Any) -> MySQLServer:
            return servers.enter_context(MySQLServer(**arguments))

        yield start


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """One MariaDB server for the whole session. Leave its settings as they are, and work in the schema of `mariadb_schema`."""
    with MariaDBServer() as server:
        yield server


@pytest.fixture
def mariadb_schema(mariadb: MariaDBServer) -> Iterator[str]:
    """The name of a fresh, empty schema on `mariadb`, dropped after the test."""
    name = f"s_{uuid.uuid4().hex[:12]}"
    mariadb.execute(f"CREATE DATABASE `{name}`")
    yield name
    mariadb.execute(f"DROP DATABASE IF EXISTS `{name}`")


@pytest.fixture
def mariadb_factory() -> Iterator[Callable[..., MariaDBServer]]:
    """Starts servers of the test's own: `mariadb_factory(options=[…], replica_of=…)`; they go with the test."""
    with ExitStack() as servers:

        def start(**arguments: Any) -> MariaDBServer:
            return servers.enter_context(MariaDBServer(**arguments))

        yield start


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """One Kafka broker for the whole session. Topics need names of their own."""
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture
def kafka_factory() -> Iterator[Callable[..., KafkaBroker]]:
    """Starts brokers of the test's own, to be killed: `kafka_factory(options={…})`; they go with the test."""
    with ExitStack() as brokers:

        def start(**arguments: Any) -> KafkaBroker:
            return brokers.enter_context(KafkaBroker(**arguments))

        yield start


@pytest.fixture(scope="session")
def minio() -> Iterator[MinIOServer]:
    """One object store for the whole session. Work in a bucket of your own: `minio.bucket()`."""
    with MinIOServer() as server:
        yield server


@pytest.fixture(scope="session")
def toxiproxy() -> Iterator[Toxiproxy]:
    """One proxy server for the whole session, for proxies of your own."""
    with Toxiproxy() as server:
        yield server

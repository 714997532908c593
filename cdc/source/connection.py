"""Connections to MySQL and MariaDB: made one way, with a session that does not depend on the server's settings, and errors with a way out."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CR, ER
from pymysql.cursors import Cursor, SSCursor

from cdc.config import SourceConfig
from cdc.errors import ConfigError, LakesyncError, SourceError, SourceUnavailableError


@dataclass(frozen=True)
class Limits:
    """How long the network may take, in seconds."""

    connect: float = 10
    """Until the server has let us in; each answer of the login has this long."""
    read: float = 60
    """Until the next bytes of an answer."""
    stream: float = 600
    """The same for streamed result sets: the first row of a large chunk may take long."""
    write: float = 60
    """Until the server takes a statement."""


LIMITS = Limits()

# Each of these would change what a SELECT gives if it were left to the server's settings. `sql_select_limit` and
# `sql_safe_updates` cut result sets short without a word. The session reads only, and says so. Between two chunks it may rest for long.
_SESSION = (
    "SET SESSION sql_mode = '', time_zone = '+00:00', transaction_isolation = 'REPEATABLE-READ', transaction_read_only = ON,"
    " sql_safe_updates = OFF, sql_select_limit = 18446744073709551615, sql_big_selects = ON, sql_auto_is_null = OFF, max_execution_time = 0,"
    " information_schema_stats_expiry = 0, lock_wait_timeout = 60, net_write_timeout = 600, wait_timeout = 28800"
)
# The same for MariaDB, where names differ, and a system-versioned table shows another time's rows if the server is told to.
_MARIADB_SESSION = (
    "SET SESSION sql_mode = '', time_zone = '+00:00', sql_safe_updates = OFF, sql_select_limit = 18446744073709551615,"
    " sql_big_selects = ON, sql_auto_is_null = OFF, max_statement_time = 0, system_versioning_asof = DEFAULT, lock_wait_timeout = 60, net_write_timeout = 600, wait_timeout = 28800"
)
# The variables have other names in other versions.
_MARIADB_TRANSACTIONS = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# Generated invisible primary keys are columns like others: they are in the binary log and must be in information_schema.
_SHOW_GIPK = "SET SESSION show_gipk_in_create_table_and_information_schema = ON"

NEEDED = "MySQL 8.0 or MariaDB 10.6, or later"

_UNAVAILABLE = frozenset(
    {
        CR.CR_CONNECTION_ERROR,
        CR.CR_CONN_HOST_ERROR,
        CR.CR_UNKNOWN_HOST,
        CR.CR_SERVER_GONE_ERROR,
        CR.CR_SERVER_LOST,
        CR.CR_SERVER_LOST_EXTENDED,
        ER.CON_COUNT_ERROR,
        ER.TOO_MANY_USER_CONNECTIONS,
        ER.USER_LIMIT_REACHED,
        ER.SERVER_SHUTDOWN,
        ER.NORMAL_SHUTDOWN,
        ER.ABORTING_CONNECTION,
        ER.NEW_ABORTING_CONNECTION,
        ER.NET_READ_ERROR,
        ER.NET_READ_INTERRUPTED,
        ER.NET_ERROR_ON_WRITE,
        ER.NET_WRITE_INTERRUPTED,
        ER.LOCK_WAIT_TIMEOUT,
        ER.LOCK_DEADLOCK,
        ER.TABLE_DEF_CHANGED,
        ER.QUERY_INTERRUPTED,
        1927,  # the connection was killed
        1969,  # MariaDB: the statement ran longer than max_statement_time
        3024,  # the statement ran longer than max_execution_time
        3032,  # the server is offline
        3169,  # the session was killed
        4031,  # disconnected for inactivity
    }
)
"""Codes of errors after which the same may work later."""

_EXPIRED = (1820, 1862)  # the account's password has expired

_NAMES = {code: name for name, code in vars(ER).items() if isinstance(code, int) and not name.startswith("ERROR_")}

# What the server says of these holds names of accounts, tables and privileges; of any other error it may hold values.
_TOLD = frozenset(
    {
        ER.ACCESS_DENIED_ERROR,
        ER.DBACCESS_DENIED_ERROR,
        ER.TABLEACCESS_DENIED_ERROR,
        ER.COLUMNACCESS_DENIED_ERROR,
        ER.SPECIFIC_ACCESS_DENIED_ERROR,
        ER.HOST_IS_BLOCKED,
        ER.HOST_NOT_PRIVILEGED,
        ER.BAD_DB_ERROR,
        ER.NO_SUCH_TABLE,
        ER.BAD_FIELD_ERROR,
        ER.UNKNOWN_SYSTEM_VARIABLE,
        *_EXPIRED,
        3118,  # the account is locked
        ER.NO_BINARY_LOGGING,
    }
    | (_UNAVAILABLE - {ER.LOCK_WAIT_TIMEOUT, ER.LOCK_DEADLOCK})
)


def connect(source: SourceConfig, *, purpose: str, streaming: bool = False) -> Connection[Any]:
    """A new connection in autocommit, for the caller to close: utf8mb4, UTC, REPEATABLE READ, read-only, without a default schema.

    `purpose` is shown by the server (`program_name` in `performance_schema.session_connect_attrs`). With `streaming`, `cursor()` is
    unbuffered, and the server has longer to answer. Raises `SourceUnavailableError`
    (not reached, lost) and `SourceError` (refused, neither MySQL nor MariaDB, too old), `ConfigError` (the password, the authority).
    """
    limit = LIMITS.stream if streaming else LIMITS.read
    arguments: dict[str, Any] = {
        "host": source.host,
        "port": source.port,
        "user": source.user,
        "password": source.secret().get_secret_value().encode(),
        "charset": "utf8mb4",
        "autocommit": True,
        "cursorclass": SSCursor if streaming else Cursor,
        "connect_timeout": LIMITS.connect,
        "read_timeout": LIMITS.connect,
        "write_timeout": LIMITS.write,
        "local_infile": False,
        "program_name": f"lakesync {purpose}",
        **_tls(source),
    }
    where = place(source)
    try:
        connection: Connection[Any] = pymysql.connect(**arguments)
    except (pymysql.err.Error, OSError, RuntimeError) as error:
        raise translate(error, source) from None
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError, struct.error) as error:
        # PyMySQL takes what it reads for a MySQL handshake, whatever it is.
        raise SourceError(
            f"what answers there does not speak MySQL's protocol ({type(error).__name__})",
            where=where,
            hint="check the port in source.url",
        ) from None
    try:
        _prepare(connection, source)
        cast("Any", connection)._read_timeout = limit
    except BaseException:
        abandon(connection)
        raise
    return connection


def _prepare(connection: Connection[Any], source: SourceConfig) -> None:
    version = version_of(connection)
    numbers = release(version)
    mariadb = is_mariadb(connection)
    if numbers < ((10, 6) if mariadb else (8, 0)):
        raise SourceError(
            f"the server is {'MariaDB' if mariadb else 'MySQL'} {version}",
            where=place(source),
            hint=f"lakesync needs {NEEDED}: upgrade it",
        )
    with translated(source), connection.cursor(Cursor) as cursor:
        cursor.execute(_MARIADB_SESSION if mariadb else _SESSION)
        if mariadb:
            cursor.execute(_MARIADB_TRANSACTIONS)
        elif numbers >= (8, 0, 30):
            cursor.execute(_SHOW_GIPK)


def version_of(connection: Connection[Any]) -> str:
    """The version that the server named when the connection was made."""
    # MariaDB before 11 says that it is MySQL 5.5.5 first, for old clients.
    return str(cast("Any", connection).server_version).removeprefix("5.5.5-")


def is_mariadb(connection: Connection[Any]) -> bool:
    """Whether the server is MariaDB."""
    return "mariadb" in version_of(connection).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers of a server's version: `8.4.3-log` is (8, 4, 3)."""
    numbers = []
    for part in version.split("-")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def abandon(connection: Connection[Any]) -> None:
    """Close without a word to the server: for connections with an answer on its way. Again is fine."""
    cast("Any", connection)._force_close()


class _RefusePassword:
    """In place of the plugins that would send the password as it is, when nothing hides it on its way."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def authenticate(self, _packet: object) -> NoReturn:
        raise pymysql.err.OperationalError(CR.CR_AUTH_PLUGIN_ERR, "the server asked for the password in plain text")


def _tls(source: SourceConfig) -> dict[str, Any]:
    if source.tls_mode == "disabled":
        # Without this PyMySQL would use TLS without verifying anything, if the server offers it.
        return {
            "ssl_disabled": True,
            "auth_plugin_map": {"mysql_clear_password": _RefusePassword, "dialog": _RefusePassword},
        }
    try:
        context = ssl.create_default_context(cafile=source.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the authority's certificate cannot be read: {error.strerror or type(error).__name__}",
            where=f"source.tls_ca: {source.tls_ca}",
            hint="give a PEM file",
        ) from None
    # The certificates that MySQL makes for itself lack an extension that newer Pythons insist on.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = source.tls_mode == "verify-identity"
    context.verify_mode = ssl.CERT_REQUIRED
    return {"ssl": context}


def place(at: SourceConfig | Connection[Any] | str) -> str:
    """`host:port`, for an error's `where`."""
    if isinstance(at, str):
        return at
    return f"{at.host}:{at.port}"


def account(at: SourceConfig | Connection[Any] | str) -> str:
    """The user as a GRANT names it; its host is a guess."""
    if isinstance(at, str):
        return "the user"
    user = at.user.decode() if isinstance(at.user, bytes) else at.user
    return f"'{user}'@'%'"


def grant(privileges: str, on: str, name: str) -> str:
    """The statement that gives an account privileges."""
    return f"GRANT {privileges} ON {on} TO {name}"


@contextlib.contextmanager
def translated(at: SourceConfig | Connection[Any] | str = "") -> Iterator[None]:
    """Errors of PyMySQL and of the network, raised inside, leave as `translate` makes them."""
    try:
        yield
    except (pymysql.err.Error, OSError, RuntimeError) as error:
        if isinstance(error, LakesyncError):
            raise
        # Not `from error`: what the server says may hold a row's values.
        raise translate(error, at) from None


def translate(error: BaseException, at: SourceConfig | Connection[Any] | str = "") -> SourceError:
    """`error` of PyMySQL or the network as `SourceUnavailableError` (the same may work later) or `SourceError`, with what helps."""
    where = place(at)
    if isinstance(error, SourceError):
        return error
    if isinstance(error, RuntimeError) and "LOCAL" in str(error):
        return SourceError("the server asked for a file of this machine (LOAD DATA LOCAL); refused", where=where)
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    message = str(error.args[1]) if len(error.args) > 1 else ""
    cause = getattr(error, "original_exception", error)
    if isinstance(cause, OSError):
        return _network(cause, where)
    if isinstance(error, pymysql.err.InterfaceError):
        return SourceUnavailableError("the connection is closed", where=where)
    if isinstance(error, pymysql.err.InternalError) and not code:
        return SourceUnavailableError("the connection broke: packets out of order", where=where)
    told = message if code in _TOLD else f"error {_NAMES.get(code, '')}".rstrip()
    what = f"{told} (error {code})" if code else f"{type(error).__name__}"
    if code in _UNAVAILABLE:
        hint = "raise max_connections, or end other clients" if code in (1040, 1203, 1226) else ""
        return SourceUnavailableError(what, where=where, hint=hint)
    return SourceError(what, where=where, hint=_hint(code, at))


def _network(cause: OSError, where: str) -> SourceError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(
            f"the server's certificate was not accepted: {cause.verify_message}",
            where=where,
            hint="name its authority in source.tls_ca, or the host as the certificate does",
        )
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return SourceError(f"no TLS with the server: {cause.reason or 'handshake failed'}", where=where)
    if isinstance(cause, socket.gaierror):
        return SourceUnavailableError(
            "the host's name is not known", where=where, hint="check source.url and the name service"
        )
    if isinstance(cause, TimeoutError):
        return SourceUnavailableError("no answer in time", where=where, hint="check the network and the server's load")
    if isinstance(cause, ConnectionRefusedError):
        return SourceUnavailableError(
            "nobody listens there", where=where, hint="start the server, or check host and port in source.url"
        )
    return SourceUnavailableError(f"not reached: {cause.strerror or type(cause).__name__}", where=where)


def _hint(code: int, at: SourceConfig | Connection[Any] | str) -> str:
    name = account(at)
    if code == ER.ACCESS_DENIED_ERROR:
        return "check the user in source.url and source.password; the account must be allowed to come from this host"
    if code == ER.DBACCESS_DENIED_ERROR:
        return grant("SELECT", "the schema's tables (schema.*)", name)
    if code in (ER.TABLEACCESS_DENIED_ERROR, ER.COLUMNACCESS_DENIED_ERROR):
        return grant("SELECT", "the table (schema.table)", name)
    if code == ER.SPECIFIC_ACCESS_DENIED_ERROR:
        return grant("REPLICATION SLAVE, REPLICATION CLIENT", "*.*", name)
    if code in (ER.HOST_IS_BLOCKED, ER.HOST_NOT_PRIVILEGED):
        return "on the server: FLUSH HOSTS, or create the account for this host"
    if code == ER.UNKNOWN_SYSTEM_VARIABLE:
        return f"lakesync needs {NEEDED}"
    if code == ER.NO_BINARY_LOGGING:
        return "start the server with --log-bin"
    if code in _EXPIRED:
        return "the account's password has expired: ALTER USER … IDENTIFIED BY …"
    if code == CR.CR_AUTH_PLUGIN_ERR:
        return "use TLS (source.tls: verify-identity), or another authentication plugin for the account"
    if code == CR.CR_SSL_CONNECTION_ERROR:
        return "switch TLS on at the server, or write `tls: disabled` (and `insecure: true` for another host)"
    return ""

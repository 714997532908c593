"""Whether a source can be followed: its settings, the account's grants, the tables. Each finding comes with its fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from pymysql.connections import Connection
from pymysql.cursors import Cursor

from cdc import sharding
from cdc.config import PipelineConfig, TableConfig
from cdc.errors import LakesyncError, SourceError
from cdc.names import TableName
from cdc.schema import TableSchema
from cdc.source import catalogue
from cdc.source.catalogue import Target
from cdc.source.connection import connect, grant, place, release, translated
from cdc.source.grants import REPLICATION, Grants
from cdc.source.server import Server, ServerIdentity

Level = Literal["ok", "warning", "error"]
OWN_PREFIX = "_cdc_"
"""Columns of this prefix are lakesync's own in the lake."""
LEAST_KEPT_S = 86_400
"""A shorter life of the binary log is worth a warning: capture may be down for a weekend."""
_SHOWN = 6
"""Of long lists so many are named."""


@dataclass(frozen=True)
class Finding:
    """One line of `lakesync check`. `fix` is the way out, a statement where there is one; empty for `ok`."""

    level: Level
    subject: str
    what: str
    fix: str = ""


def check(config: PipelineConfig, entries: Sequence[TableConfig]) -> list[Finding]:
    """Everything about the source, and these entries' tables. Raises `SourceError` if the source cannot be asked at all."""
    with closing(connect(config.source, purpose="check")) as connection:
        server = Server(connection)
        settings = server.settings()
        found = [*_server(server.identity(), config), *_settings(settings), *_grants(connection)]
        found += _log_end(server)
        found += _tables(connection, settings, config, entries)
    return found


def require(config: PipelineConfig, connection: Connection[Any]) -> None:
    """Raise `SourceError` for the first setting under which capture would miss changes."""
    for finding in _settings(Server(connection).settings()):
        if finding.level == "error":
            raise SourceError(finding.what, where=place(config.source), hint=finding.fix)


# the server


def _server(identity: ServerIdentity, config: PipelineConfig) -> list[Finding]:
    kind = "MariaDB" if identity.is_mariadb else "MySQL"
    found = [Finding("ok", "source", f"{kind} {identity.version} at {place(config.source)}, server {identity.uuid}")]
    if identity.server_id == 0:
        found.append(
            Finding(
                "error",
                "server_id",
                "server_id = 0: the server sends its binary log to nobody",
                "SET GLOBAL server_id = 1, and in the server's configuration"
                if identity.is_mariadb
                else "SET PERSIST server_id = 1",
            )
        )
    return found


_WANTED: Mapping[str, tuple[str, str]] = {
    "log_bin": ("ON", "nothing can be captured"),
    "binlog_format": ("ROW", "changes are logged as statements, which cannot be captured"),
    "binlog_row_image": ("FULL", "rows are logged without all their columns"),
    "binlog_row_metadata": ("FULL", "the log does not name columns, keys and ENUM members"),
    "binlog_row_value_options": ("", "JSON values are logged as differences"),
    "gtid_mode": ("ON", "transactions have no global names"),
    "enforce_gtid_consistency": ("ON", "transactions without global names are possible"),
}
"""What each setting must be, and what is wrong otherwise."""

_MARIADB_WANTED: Mapping[str, tuple[str, str]] = {
    **{name: _WANTED[name] for name in ("log_bin", "binlog_format", "binlog_row_image", "binlog_row_metadata")},
    "gtid_strict_mode": ("ON", "the numbers of transactions need not grow, and what was read could not be told"),
}

_AS_GOOD = {"binlog_row_image": "FULL_NODUP"}
"""MariaDB's FULL_NODUP leaves out of an after-image what the before-image, which is whole, says already."""

_COMPLETED = {
    "binlog_row_image": ("MINIMAL", "NOBLOB"),
    "binlog_row_value_options": ("PARTIAL_JSON",),
}
"""Settings under which rows are completed from the lake's: it costs a look at the lake, and now and then a reading of a key."""

_STEPS = {
    "log_bin": "start the server with --log-bin",
    "gtid_mode": (
        "SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode = OFF_PERMISSIVE;"
        " SET PERSIST gtid_mode = ON_PERMISSIVE; SET PERSIST gtid_mode = ON"
    ),
}
"""Where one statement is not enough."""


def _settings(settings: Mapping[str, str]) -> list[Finding]:
    found = []
    for name, (wanted, why) in (_MARIADB_WANTED if _is_mariadb(settings) else _WANTED).items():
        # A setting that a version does not have any more has only the value that is wanted.
        value = settings.get(name, wanted)
        if value.upper() in _COMPLETED.get(name, ()):
            what = (
                f"{name} = {value}: {why}; they are completed from the lake's, and a table without a primary key stops"
            )
            found.append(Finding("warning", name, what, _fix(settings, name, wanted)))
        elif value.upper() not in (wanted, _AS_GOOD.get(name)):
            found.append(Finding("error", name, f"{name} = {value or 'empty'}: {why}", _fix(settings, name, wanted)))
    if not found:
        found.append(Finding("ok", "binary log", "rows in full, with GTIDs"))
    elif all(finding.level == "warning" for finding in found):
        found.append(Finding("ok", "binary log", "rows, with GTIDs"))
    if settings.get("log_replica_updates", settings.get("log_slave_updates", "ON")) != "ON":
        what = "log_replica_updates = OFF: what this server replicates from another one is not in its binary log"
        option = "--log-slave-updates" if _is_mariadb(settings) else "--log-replica-updates"
        found.append(Finding("warning", "log_replica_updates", what, f"start the server with {option}"))
    if settings.get("wsrep_on", "OFF") == "ON" and settings.get("wsrep_gtid_mode", "OFF") != "ON":
        what = "a Galera cluster with wsrep_gtid_mode = OFF: each node names the same transaction differently"
        fix = "set wsrep_gtid_mode = ON and the same wsrep_gtid_domain_id on all nodes, or stay with one node"
        found.append(Finding("warning", "wsrep_gtid_mode", what, fix))
    if settings.get("innodb_native_foreign_keys") == "ON":
        what = "innodb_native_foreign_keys = ON: rows changed by foreign-key cascades are not in the binary log"
        found.append(Finding("warning", "foreign keys", what, "start the server with --innodb-native-foreign-keys=OFF"))
    return [*found, *_retention(settings)]


def _retention(settings: Mapping[str, str]) -> list[Finding]:
    if _managed(settings) in ("RDS", "Aurora"):
        return [
            Finding(
                "warning",
                "retention",
                "how long the binary log is kept is not told here, and is short by default",
                "CALL mysql.rds_set_configuration('binlog retention hours', 168)",
            )
        ]
    seconds = int(settings.get("binlog_expire_logs_seconds", "0"))
    if not 0 < seconds < LEAST_KEPT_S or settings.get("binlog_expire_logs_auto_purge", "ON") != "ON":
        return []
    return [
        Finding(
            "warning",
            "retention",
            f"the binary log is kept for {seconds} s; if capture is down for longer, all tables must be read anew",
            _set(settings, "binlog_expire_logs_seconds = 604800"),
        )
    ]


def _is_mariadb(settings: Mapping[str, str]) -> bool:
    return "mariadb" in settings.get("version", "").lower()


def _managed(settings: Mapping[str, str]) -> str:
    if "aurora_version" in settings:
        return "Aurora"
    if settings.get("basedir", "").startswith("/rdsdbbin"):
        return "RDS"
    if "google" in settings.get("version_comment", "").lower():
        return "Cloud SQL"
    return ""


def _fix(settings: Mapping[str, str], name: str, wanted: str) -> str:
    match _managed(settings):
        case "RDS" if name == "log_bin":
            return "switch automated backups on: that starts the binary log"
        case "Aurora" if name == "log_bin":
            return "in the DB cluster parameter group set binlog_format = ROW, and restart"
        case "RDS":
            return f"in the DB parameter group set {name} = {wanted or 'empty'}"
        case "Aurora":
            return f"in the DB cluster parameter group set {name} = {wanted or 'empty'}"
        case "Cloud SQL":
            return f"set the database flag {name} = {wanted or 'empty'}"
    value = wanted or "''"
    steps = f"{_set(settings, f'{name} = {value}')}; and let clients reconnect, sessions keep the old value"
    return _STEPS.get(name, steps)


def _set(settings: Mapping[str, str], setting: str) -> str:
    """The statement that sets a variable for good; MariaDB has none that outlives a restart."""
    if _is_mariadb(settings):
        return f"SET GLOBAL {setting}, and the same in the server's configuration"
    return f"SET PERSIST {setting}"


def _log_end(server: Server) -> list[Finding]:
    """Schemas that the server leaves out of its log; asked where the account may."""
    try:
        filters = server.binlog_filters()
    except SourceError:
        return []  # said by the grants, or by log_bin
    if not filters:
        return []
    what = f"the server logs not every schema: {filters}"
    return [Finding("error", "binary log", what, "start the server without --binlog-do-db and --binlog-ignore-db")]


# the account


def _grants(connection: Connection[Any]) -> list[Finding]:
    with translated(connection), connection.cursor(Cursor) as cursor:
        cursor.execute("SELECT CURRENT_USER(), CURRENT_ROLE()")
        ((account, active),) = cursor.fetchall()  # MariaDB's role is NULL where MySQL's is NONE
        cursor.execute("SHOW GRANTS")
        grants = Grants.parse(str(line) for (line,) in cursor.fetchall())
    name = _quote_account(str(account))
    found = []
    if missing := grants.missing:
        fix = grant(", ".join(missing), "*.*", name)
        if grants.roles and active in ("NONE", None):
            fix += f"; or, if its roles have them: SET DEFAULT ROLE ALL TO {name}"
        found.append(Finding("error", "grants", f"{account} lacks {' and '.join(missing)}", fix))
    else:
        found.append(Finding("ok", "grants", f"{account} has {' and '.join(REPLICATION)}"))
    if excess := grants.excess:
        what = f"{account} may do more than it needs: {_some(excess)}"
        found.append(
            Finding(
                "warning",
                "grants",
                what,
                f"REVOKE it, or make a user with SELECT on the tables and {', '.join(REPLICATION)}",
            )
        )
    return found


def _quote_account(account: str) -> str:
    user, _, host = account.rpartition("@")
    return f"'{user}'@'{host}'"


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


# the tables


_KINDS = {
    "VIEW": ("is a view", "name its tables"),
    "SEQUENCE": ("is a sequence", "remove it: its next value is no row"),
    "SYSTEM VERSIONED": (
        "is system-versioned, which this version does not read: rows of the past are logged like others",
        "ALTER TABLE … DROP SYSTEM VERSIONING, or leave it out",
    ),
}


def _tables(
    connection: Connection[Any], settings: Mapping[str, str], config: PipelineConfig, entries: Sequence[TableConfig]
) -> Iterator[Finding]:
    present = catalogue.tables(connection)
    kinds = {t.name: t for t in present}
    # Entries that are to be added stand behind those that are there, which may take their tables.
    everything = (*config.tables, *(e for e in entries if e not in config.tables))
    every, _ = catalogue.select(everything, present)
    chosen = {t: e for t, e in every.items() if e in entries}
    _, idle = catalogue.select(entries, present)
    for entry in idle:
        if entry.is_pattern:
            yield Finding("warning", entry.name, "matches no table", "correct it, or leave it for tables to come")
        else:
            yield _absent(connection, entry.table, catalogue.nearest(entry.table, present))
    taken = {e.name for e in chosen.values()}
    for entry in entries:
        if entry not in idle and entry.name not in taken:
            fix = "put it before them in the file"
            yield Finding("warning", entry.name, "matches only tables that entries before it take", fix)
    if not entries:
        yield Finding("warning", "tables", "none are configured", "lakesync add schema.table")
    # Since 9.6 the server itself, and not its storage engine, follows foreign keys.
    logged = (
        not _is_mariadb(settings)
        and release(settings["version"]) >= (9, 6)
        and settings.get("innodb_native_foreign_keys", "OFF") == "OFF"
    )
    cascades = {} if logged else catalogue.foreign_key_cascades(connection, chosen)
    schemas: dict[TableName, TableSchema] = {}
    for table, entry in chosen.items():
        info = kinds[table]
        if info.kind != "BASE TABLE":
            yield Finding("error", str(table), *_KINDS.get(info.kind, _KINDS["VIEW"]))
            continue
        if table.schema.lower() in catalogue.SYSTEM_SCHEMAS:
            yield Finding("error", str(table), "belongs to the server", "remove it")
            continue
        found = list(_table(connection, table, entry, schemas))
        if info.engine.lower() != "innodb":
            what = f"storage engine {info.engine}: after a crash of the server the table and the binary log may differ"
            found.append(Finding("warning", str(table), what, f"ALTER TABLE {table.quoted} ENGINE = InnoDB"))
        if constraints := cascades.get(table):
            what = f"rows that foreign keys change by cascade are not in the binary log ({_some(constraints)})"
            fix = "change the rows by statements; `lakesync reconcile --values` finds them"
            if not _is_mariadb(settings):
                fix = f"upgrade to MySQL 9.6 or later, or {fix}"
            found.append(Finding("warning", str(table), what, fix))
        yield from found
    for table, target in catalogue.targets(every).items():
        if target.shards is not None and any(s in chosen for s in target.shards):
            yield from _together(connection, table, target, schemas)


def _together(
    connection: Connection[Any], table: TableName, target: Target, schemas: Mapping[TableName, TableSchema]
) -> Iterator[Finding]:
    """What shards are together; `schemas` are those that were looked at and can be followed."""
    shards, entry = target.shards or (), target.entry
    subject = str(table)
    if target.clash:
        what = "a table of the source has this name too, and is meant by a pattern"
        yield Finding("error", subject, what, f"name another table by `into:`, or add {{name: {table}, into: {table}}}")
    first: tuple[TableName, TableSchema] | None = None
    rows = 0
    found = []
    for shard in shards:
        schema = schemas.get(shard)
        if schema is None:
            # One of an entry that is there already, and needs no finding of its own.
            try:
                schema = catalogue.as_configured(catalogue.read_schema(connection, shard), entry)
            except LakesyncError:
                continue
        if first is None:
            first = shard, schema
            try:
                catalogue.check_layout(sharding.joined(schema, entry.shard_column), entry)
                _ = table.folder
            except LakesyncError as error:
                found.append(Finding("error", subject, error.what, error.hint))
        elif said := catalogue.unlike(first[1], schema):
            what = f"its shards are not alike: {shard} against {first[0]}: {said}"
            found.append(Finding("error", subject, what, "make them alike by ALTER TABLE, or give one its own entry"))
        rows += catalogue.estimate_rows(connection, shard)
    yield from found
    if first is not None and not found:
        places = len({s.schema for s in shards})
        key = ", ".join((entry.shard_column, *first[1].key))
        yield Finding(
            "ok",
            subject,
            f"{len(shards)} shard{'s' * (len(shards) > 1)} in {places} schema{'s' * (places > 1)}, alike:"
            f" {len(first[1].columns)} columns and {entry.shard_column}, key ({key}), about {rows:,} rows",
        )


def _absent(connection: Connection[Any], table: TableName, hint: str) -> Finding:
    # The server says which of the two it is only when it is asked for rows.
    try:
        refused = not catalogue.may_select(connection, table)
    except SourceError as error:
        if error.retryable:
            raise
        refused = False
    if refused:
        return Finding("error", str(table), "may not be read", _grant_select(connection, table))
    return Finding("error", str(table), "does not exist", hint)


def _grant_select(connection: Connection[Any], table: TableName) -> str:
    with translated(connection), connection.cursor(Cursor) as cursor:
        cursor.execute("SELECT CURRENT_USER()")
        ((account,),) = cursor.fetchall()
    return grant("SELECT", table.quoted, _quote_account(str(account)))


def _table(
    connection: Connection[Any], table: TableName, entry: TableConfig, schemas: dict[TableName, TableSchema]
) -> Iterator[Finding]:
    """Of one table. The schema of a shard that can be followed is kept in `schemas`: of the shards together something is said once."""
    subject = str(table)
    if not catalogue.may_select(connection, table):
        yield Finding("error", subject, "may not be read", _grant_select(connection, table))
        return
    schema = catalogue.read_schema(connection, table)
    findings = []

    def columns() -> None:
        configured = catalogue.as_configured(schema, entry)
        configured.check()
        catalogue.check_logged(connection, table, configured)
        if entry.into is None:
            catalogue.check_layout(configured, entry)

    def folder() -> None:
        if entry.into is None:
            _ = table.folder

    for look in (columns, folder):
        try:
            look()
        except LakesyncError as error:
            findings.append(Finding("error", subject, error.what, error.hint))
    if entry.mode != "append" and not schema.key:
        fix = f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…)" + (", or `mode: append`" if entry.into is None else "")
        findings.append(Finding("error", subject, "has no primary key", fix))
    if entry.backfill and not schema.key:
        fix = f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…), or no `backfill:`"
        findings.append(Finding("error", subject, "has no primary key, by which its rows could be read", fix))
    kept = [name for name in schema.names if name not in entry.exclude]
    if own := [name for name in kept if name.lower().startswith(OWN_PREFIX)]:
        what = f"column {own[0]}: names that begin with {OWN_PREFIX} are lakesync's own"
        findings.append(Finding("error", subject, what, "rename the column"))
    yield from findings
    if entry.into is not None and not findings:
        schemas[table] = catalogue.as_configured(schema, entry)
    elif not findings:
        yield Finding("ok", subject, _describe(connection, table, len(kept), schema.key, entry))


def _describe(
    connection: Connection[Any], table: TableName, columns: int, names: tuple[str, ...], entry: TableConfig
) -> str:
    rows = catalogue.estimate_rows(connection, table)
    key = f", key ({', '.join(names)})" if names else ", no key"
    mode = entry.mode + (" from the rows that are there on" if entry.backfill else "")
    return f"{mode}, {columns} columns{key}, about {rows:,} rows"

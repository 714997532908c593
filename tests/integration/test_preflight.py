"""Preflight against real servers: every finding with its fix, and the fix, where it is a statement, works."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cdc.config import PipelineConfig, SourceConfig, TableConfig
from cdc.errors import SourceError, SourceUnavailableError
from cdc.source import preflight
from cdc.source.connection import connect
from cdc.source.grants import Grants
from cdc.source.preflight import Finding
from dev.mysql import MySQLServer
from dev.server import free_port


def config(url: str, **source: Any) -> PipelineConfig:
    return PipelineConfig(
        name="p", source=SourceConfig(url=url, **source), log="sqlite:///none", lake="none", state=Path("none")
    )


def check(server: MySQLServer, *tables: str | TableConfig) -> list[Finding]:
    entries = [TableConfig(name=t) if isinstance(t, str) else t for t in tables]
    return preflight.check(config(server.url()), entries)


def about(found: list[Finding], subject: str) -> list[Finding]:
    return [f for f in found if f.subject == subject]


def the_only(found: list[Finding], subject: str) -> Finding:
    (finding,) = about(found, subject)
    return finding


@pytest.fixture(scope="module")
def tuned() -> Iterator[MySQLServer]:
    """A server whose settings tests may change, and put back."""
    with MySQLServer() as server:
        server.execute("CREATE DATABASE shop")
        server.execute("CREATE TABLE shop.orders (id INT PRIMARY KEY, name VARCHAR(20))")
        yield server


def test_a_server_and_a_table_that_can_be_followed(tuned: MySQLServer) -> None:
    found = check(tuned, "shop.orders")
    assert not [f for f in found if f.level == "error"]
    assert the_only(found, "source").what.startswith("MySQL ")
    assert the_only(found, "binary log").level == "ok"
    table = the_only(found, "shop.orders")
    assert (table.level, table.what) == ("ok", "upsert, 2 columns, key (id), about 0 rows")
    preflight_passes(tuned)


def preflight_passes(server: MySQLServer) -> None:
    with closing(connect(config(server.url()).source, purpose="test")) as connection:
        preflight.require(config(server.url()), connection)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("binlog_format", "STATEMENT"),
        ("binlog_format", "MIXED"),
        ("binlog_row_metadata", "MINIMAL"),
        ("gtid_mode", "ON_PERMISSIVE"),
    ],
)
def test_a_setting_that_loses_changes_is_an_error_and_its_fix_repairs_it(
    tuned: MySQLServer, setting: str, value: str
) -> None:
    tuned.execute(f"SET PERSIST {setting} = {value}")
    finding = the_only(check(tuned), setting)
    assert finding.level == "error"
    assert finding.what.startswith(f"{setting} = {value}")
    with (
        closing(connect(config(tuned.url()).source, purpose="test")) as connection,
        pytest.raises(SourceError, match=setting) as error,
    ):
        preflight.require(config(tuned.url()), connection)
    assert (error.value.hint, error.value.retryable) == (finding.fix, False)
    for statement in finding.fix.split("; "):
        if statement.startswith("SET PERSIST"):
            tuned.execute(statement)
    assert not about(check(tuned), setting)
    preflight_passes(tuned)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("binlog_row_image", "MINIMAL"), ("binlog_row_image", "NOBLOB"), ("binlog_row_value_options", "PARTIAL_JSON")],
)
def test_rows_that_are_completed_are_a_warning(tuned: MySQLServer, setting: str, value: str) -> None:
    tuned.execute(f"SET PERSIST {setting} = {value}")
    try:
        finding = the_only(check(tuned), setting)
        assert finding.level == "warning"
        assert "completed from the lake's" in finding.what
        preflight_passes(tuned)
    finally:
        tuned.execute(finding.fix.split("; ")[0])
    assert not about(check(tuned), setting)


def test_a_short_life_of_the_log_is_a_warning(tuned: MySQLServer) -> None:
    for seconds, level in ((3600, "warning"), (86_400, None), (0, None)):
        tuned.execute(f"SET GLOBAL binlog_expire_logs_seconds = {seconds}")
        assert [f.level for f in about(check(tuned), "retention")] == ([level] if level else [])
    tuned.execute("SET GLOBAL binlog_expire_logs_seconds = DEFAULT")


def test_a_server_without_a_log_or_with_a_filtered_one_is_refused(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory(
        options=["--skip-log-bin", "--gtid-mode=OFF", "--enforce-gtid-consistency=OFF", "--server-id=0"]
    )
    found = check(server)
    levels = {f.subject: f.level for f in found}
    assert all(levels[s] == "error" for s in ("log_bin", "gtid_mode", "enforce_gtid_consistency", "server_id"))
    assert "--log-bin" in the_only(found, "log_bin").fix


def test_filters_of_the_log_are_an_error(mysql_factory: Callable[..., MySQLServer]) -> None:
    server = mysql_factory(options=["--binlog-ignore-db=shop"])
    errors = [f for f in about(check(server), "binary log") if f.level == "error"]
    assert "shop" in errors[0].what


def test_a_server_that_is_not_reached_is_an_error_of_the_source() -> None:
    with pytest.raises(SourceUnavailableError):
        preflight.check(config(f"mysql://u@127.0.0.1:{free_port()}"), [])


# grants


@pytest.fixture
def account(tuned: MySQLServer) -> Iterator[Callable[..., PipelineConfig]]:
    made: list[str] = []

    def make(*grants: str) -> PipelineConfig:
        name = f"u{random.randrange(10**9)}"
        tuned.add_user(name, "", *grants)
        made.append(name)
        return config(tuned.url(name))

    yield make
    for name in made:
        tuned.execute(f"DROP USER {name}@'%'")


def test_the_grants_that_are_needed_and_no_more(account: Callable[..., PipelineConfig]) -> None:
    found = preflight.check(
        account("SELECT ON shop.orders", "REPLICATION SLAVE, REPLICATION CLIENT ON *.*"),
        [TableConfig(name="shop.orders")],
    )
    assert [f.level for f in about(found, "grants")] == ["ok"]
    assert the_only(found, "shop.orders").level == "ok"


def test_missing_grants_come_with_statements_that_give_them(
    account: Callable[..., PipelineConfig], tuned: MySQLServer
) -> None:
    # Without SELECT a table is not even visible; with SELECT on one column it is.
    for grants in ((), ("SELECT (id) ON shop.orders",)):
        pipeline = account(*grants)
        entries = [TableConfig(name="shop.orders")]
        found = preflight.check(pipeline, entries)
        missing, table = the_only(found, "grants"), the_only(found, "shop.orders")
        assert (missing.level, table.level) == ("error", "error")
        assert "REPLICATION SLAVE and REPLICATION CLIENT" in missing.what
        assert table.what == "may not be read"
        tuned.execute(missing.fix)
        tuned.execute(table.fix)
        assert not [f for f in preflight.check(pipeline, entries) if f.level == "error"]


def test_grants_through_roles_count_when_the_role_is_active(
    account: Callable[..., PipelineConfig], tuned: MySQLServer
) -> None:
    tuned.execute("CREATE ROLE IF NOT EXISTS reader")
    tuned.execute("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO reader")
    pipeline = account()
    name = pipeline.source.user
    tuned.execute(f"GRANT reader TO {name}@'%'")
    missing = the_only(preflight.check(pipeline, []), "grants")
    assert missing.level == "error"
    assert "SET DEFAULT ROLE ALL TO" in missing.fix
    tuned.execute(missing.fix.rpartition(": ")[2])
    assert the_only(preflight.check(pipeline, []), "grants").level == "ok"


def test_excess_grants_are_a_warning(account: Callable[..., PipelineConfig]) -> None:
    pipeline = account("SELECT, REPLICATION SLAVE, REPLICATION CLIENT, FILE ON *.*", "INSERT, SELECT ON shop.*")
    warning = about(preflight.check(pipeline, []), "grants")[-1]
    assert warning.level == "warning"
    assert all(part in warning.what for part in ("FILE ON *.*", "SELECT ON *.*", "INSERT ON `shop`.*"))
    assert "SELECT ON `shop`" not in warning.what


def test_lines_of_show_grants() -> None:
    grants = Grants.parse(
        [
            "GRANT SELECT, REPLICATION CLIENT ON *.* TO `u`@`%` WITH GRANT OPTION",
            "GRANT BINLOG_ADMIN,SYSTEM_USER ON *.* TO `u`@`%`",
            "GRANT SELECT (`a`, `b`), INSERT (`a`) ON `p`.`u` TO `u`@`%`",
            "GRANT ALL PRIVILEGES ON `on to`.* TO `u`@`%`",
            "GRANT EXECUTE ON PROCEDURE `p`.`f` TO `u`@`%`",
            "REVOKE SELECT ON `mysql`.* FROM `u`@`%`",
            "GRANT `r1`@`%`,`r2`@`%` TO `u`@`%`",
        ]
    )
    assert grants.globally == {"SELECT", "REPLICATION CLIENT", "BINLOG_ADMIN", "SYSTEM_USER"}
    assert grants.missing == ("REPLICATION SLAVE",)
    assert grants.roles == ("`r1`@`%`", "`r2`@`%`")
    assert "INSERT ON `p`.`u`" in grants.excess
    assert "ALL PRIVILEGES ON `on to`.*" in grants.excess
    assert Grants.parse(["GRANT ALL PRIVILEGES ON *.* TO `u`@`%`"]).missing == ()


# tables


def test_tables_that_cannot_be_followed_say_why_and_what_helps(mysql: MySQLServer, schema: str) -> None:
    def made(name: str, columns: str, mode: Any = "upsert", **types: Any) -> tuple[str, TableConfig]:
        mysql.execute(f"CREATE TABLE {schema}.`{name}` ({columns})")
        return f"{schema}.{name}", TableConfig(name=f"{schema}.{name}", mode=mode, types=types)

    def less(name: str, columns: str, *exclude: str) -> tuple[str, TableConfig]:
        subject, _ = made(name, columns)
        return subject, TableConfig(name=subject, exclude=exclude)

    def laid(name: str, columns: str, **how: Any) -> tuple[str, TableConfig]:
        subject, _ = made(name, columns)
        return subject, TableConfig(name=subject, **how)

    key = "id INT PRIMARY KEY"
    cases = [
        (*made("keyless", "a INT"), "no primary key", "mode: append"),
        (*made("members", f"{key}, e ENUM('a') CHARACTER SET binary"), "binary", "exclude"),
        (*made("own", f"{key}, _CDC_seq INT"), "lakesync's own", "rename"),
        (*made("types", f"{key}, a INT", b="string"), "does not exist", "correct"),
        (*made("flag", f"{key}, a INT", a="boolean"), "boolean", "TINYINT"),
        (*less("keys", key, "id"), "primary key", "exclude:"),
        (*less("strange", key, "ident"), "does not exist", "correct"),
        (*made("é" * 50, key), "as a folder", ""),
        (*laid("parted", f"{key}, made DATETIME", partition_by=("month(mad)",)), "does not exist", "did you mean made"),
        (*laid("moments", f"{key}, at DATETIME", partition_by=("at",)), "microsecond", "day(at)"),
        (*laid("feeds", f"{key}, _commit_version INT", change_feed=True), "change data feed", "exclude"),
    ]
    mysql.execute(f"CREATE VIEW {schema}.v AS SELECT 1 AS a")
    cases += [
        (f"{schema}.v", TableConfig(name=f"{schema}.v"), "view", "tables"),
        (f"{schema}.kyless", TableConfig(name=f"{schema}.kyless"), "does not exist", f"did you mean {schema}.keyless"),
        ("mysql.user", TableConfig(name="mysql.user"), "not exist", ""),
    ]
    found = check(mysql, *(entry for _, entry, _, _ in cases))
    for subject, _, what, fix in cases:
        finding = the_only(found, subject)
        assert finding.level == "error", finding
        assert what in finding.what, finding
        assert fix in finding.fix, finding


def test_tables_that_can_be_followed(mysql: MySQLServer, schema: str) -> None:
    mysql.execute(f"CREATE TABLE {schema}.keyless (a INT)")
    mysql.execute(f"CREATE TABLE {schema}.big (id INT PRIMARY KEY, d DECIMAL(65,30), f TINYINT)")
    mysql.execute(f"CREATE TABLE {schema}.old (id INT PRIMARY KEY) ENGINE = MyISAM")
    mysql.execute(f"CREATE TABLE {schema}.less (id INT PRIMARY KEY, _cdc_x INT, e ENUM('a') CHARACTER SET binary)")
    found = check(
        mysql,
        TableConfig(name=f"{schema}.keyless", mode="append"),
        TableConfig(name=f"{schema}.big", types={"d": "string", "f": "boolean"}),
        f"{schema}.old",
        TableConfig(name=f"{schema}.less", exclude=("_cdc_x", "e"), partition_by=("id",), change_feed=True),
        f"{schema}.no_such_*",
    )
    assert the_only(found, f"{schema}.less").what.startswith("upsert, 1 columns, key (id)")
    assert [f.level for f in about(found, f"{schema}.keyless")] == ["ok"]
    assert [f.level for f in about(found, f"{schema}.big")] == ["ok"]
    assert [f.level for f in about(found, f"{schema}.old")] == ["ok", "warning"]
    assert the_only(found, f"{schema}.no_such_*").level == "warning"


def test_shards_are_said_to_be_one_table_or_why_not(mysql: MySQLServer, schema: str) -> None:
    for name, columns in (
        ("o_1", "id INT PRIMARY KEY, v INT"),
        ("o_2", "id INT PRIMARY KEY, v INT"),
        ("_o_2_gho", "id INT PRIMARY KEY"),
        ("p_1", "id INT PRIMARY KEY, v INT"),
        ("p_2", "id INT PRIMARY KEY, v BIGINT"),
        ("k_1", "id INT, v INT"),
        ("c_1", "id INT PRIMARY KEY, part INT"),
    ):
        mysql.execute(f"CREATE TABLE {schema}.{name} ({columns})")

    def shards(pattern: str, into: str, **more: Any) -> TableConfig:
        return TableConfig(name=f"{schema}.{pattern}", into=f"{schema}.{into}", **more)

    found = check(
        mysql,
        shards("*o_*", "o"),
        shards("p_*", "p"),
        shards("k_*", "k"),
        shards("c_*", "c", shard_column="PART"),
        shards("later_*", "later"),
        shards("p_2*", "p"),
    )
    finding = the_only(found, f"{schema}.o")
    assert finding.level == "ok"
    assert finding.what.startswith("2 shards in 1 schema, alike: 2 columns and _cdc_shard, key (_cdc_shard, id)")
    assert not about(found, f"{schema}.o_1")
    finding = the_only(found, f"{schema}.p")
    assert finding.level == "error"
    assert f"its shards are not alike: {schema}.p_2 against {schema}.p_1: column v is bigint, was int" in finding.what
    assert the_only(found, f"{schema}.k_1").what == "has no primary key"
    assert "mode: append" not in the_only(found, f"{schema}.k_1").fix
    assert "have a column part" in the_only(found, f"{schema}.c").what
    assert the_only(found, f"{schema}.later_*").what == "matches no table"
    assert the_only(found, f"{schema}.p_2*").what == "matches only tables that entries before it take"


def test_backfill_needs_a_key(mysql: MySQLServer, schema: str) -> None:
    mysql.execute(f"CREATE TABLE {schema}.keyless (a INT)")
    mysql.execute(f"CREATE TABLE {schema}.keyed (a INT PRIMARY KEY)")
    found = check(
        mysql, *(TableConfig(name=f"{schema}.{n}", mode="append", backfill=True) for n in ("keyless", "keyed"))
    )
    finding = the_only(found, f"{schema}.keyless")
    assert (finding.level, "by which its rows could be read" in finding.what) == ("error", True)
    assert the_only(found, f"{schema}.keyed").what.startswith("append from the rows that are there on")


def test_cascades_are_a_warning_where_they_are_not_logged(mysql_factory: Callable[..., MySQLServer]) -> None:
    for options, warned in (([], False), (["--innodb-native-foreign-keys=ON"], True)):
        server = mysql_factory(options=options)
        server.execute("CREATE DATABASE shop")
        server.execute("CREATE TABLE shop.p (a INT PRIMARY KEY)")
        server.execute(
            "CREATE TABLE shop.c (a INT PRIMARY KEY, CONSTRAINT down FOREIGN KEY (a) REFERENCES p (a) ON DELETE CASCADE)"
        )
        found = check(server, "shop.*")
        assert [f.level for f in about(found, "shop.c")] == (["ok", "warning"] if warned else ["ok"])
        if warned:
            assert "down" in about(found, "shop.c")[1].what
        server.stop()


# managed servers: what they say of themselves is known, the servers are not here


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"basedir": "/rdsdbbin/mysql/"}, "DB parameter group"),
        ({"basedir": "/rdsdbbin/oscar/", "aurora_version": "3.08"}, "DB cluster parameter group"),
        ({"version_comment": "(Google)"}, "database flag"),
    ],
)
def test_managed_servers_have_fixes_of_their_own(settings: dict[str, str], words: str) -> None:
    found = preflight._settings({"binlog_row_metadata": "MINIMAL", **settings})
    assert words in the_only(found, "binlog_row_metadata").fix
    retention = about(found, "retention")
    assert ("rds_set_configuration" in retention[0].fix) if "basedir" in settings else not retention

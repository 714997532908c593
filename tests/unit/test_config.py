"""The pipeline file: what it may say, what it defaults to, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from cdc.config import PipelineConfig, format_duration, json_schema, load, read_secret
from cdc.errors import ConfigError
from cdc.names import TableName
from cdc.roots import ObjectRoot

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = """\
name: shop
source: {url: "mysql://lakesync@127.0.0.1:3306"}
lake: lake
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "lakesync.yaml"
    path.write_text(text)
    return path


def parse(folder: Path, text: str) -> PipelineConfig:
    return load(write(folder, text))


def test_defaults_lie_beside_the_file(tmp_path: Path) -> None:
    config = parse(tmp_path, MINIMAL)
    assert config.state == tmp_path / ".lakesync"
    assert config.log == f"sqlite://{tmp_path}/.lakesync/log.db"
    assert config.trace is not None
    assert config.trace.url == f"chdb://{tmp_path}/.lakesync/trace"
    assert config.lake_root == tmp_path / "lake"
    assert config.path == tmp_path / "lakesync.yaml"
    assert (config.source.host, config.source.port, config.source.user) == ("127.0.0.1", 3306, "lakesync")
    assert config.source.tls_mode == "disabled"
    assert config.source.secret().get_secret_value() == ""


def test_a_folder_with_a_query_in_its_name_stays_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a?b #c"
    folder.mkdir()
    assert parse(folder, MINIMAL).log == f"sqlite://{tmp_path}/a%3Fb%20%23c/.lakesync/log.db"


def test_no_trace_is_a_choice(tmp_path: Path) -> None:
    assert parse(tmp_path, MINIMAL + "trace: null\n").trace is None


def test_units(tmp_path: Path) -> None:
    config = parse(tmp_path, MINIMAL + "capture: {linger: 50ms, epoch_size: 512KiB}\nmerge: {every: 1.5s, keep: 1d}\n")
    assert config.capture.linger == pytest.approx(0.05)
    assert config.capture.epoch_size == 512 * 1024
    assert config.merge.every == 1.5
    assert config.merge.keep == 86400


@given(st.sampled_from([0.001, 0.2, 1.0, 5.0, 60.0, 90.0, 3600.0, 86400.0]) | st.integers(1, 10**7).map(float))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    from cdc.units import parse_duration

    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nmae: x\n", "unknown key `nmae`, did you mean `name`?"),
        ("tabels: []\n", "unknown key `tabels`, did you mean `tables`?"),
        ("path: /x\n", "unknown key `path`"),
        ("merge: {evry: 5s}\n", "unknown key `merge.evry`, did you mean `every`?"),
        ("tables: [{name: a.b, mod: append}]\n", "unknown key `tables.0.mod`, did you mean `mode`?"),
        ("merge: {every: 5}\n", "`merge.every`: write a number and a unit"),
        ("merge: {every: 0s}\n", "`merge.every`: must be longer than nothing"),
        ("reconcile: {legder: every 5m}\n", "unknown key `reconcile.legder`, did you mean `ledger`?"),
        ("reconcile: {ledger: often}\n", "`reconcile.ledger`: write `every 5m`, or the five fields of cron"),
        ("reconcile: {values: '61 3 * * *'}\n", "`reconcile.values`: bad minute: write `every 5m`"),
        ("reconcile: {ledger: every 0s}\n", "`reconcile.ledger`: oftener than every second"),
        ("reconcile: {values: every 1d, sample: 0.01}\n", "`reconcile.sample`: write a percentage"),
        ("reconcile: {values: every 1d, sample: 0%}\n", "`reconcile.sample`: write a percentage"),
        (
            "reconcile: {ledger: every 5m, sample: 1%}\n",
            "`reconcile`: repair: and sample: go with a schedule for `values:`",
        ),
        ("reconcile: {ledger: every 5m, timezone: Berlin}\n", "`reconcile.timezone`: no such time zone is known here"),
        (
            "alerts: {webhook: {url: https://h/, hdrs: {}}}\n",
            "unknown key `alerts.webhook.hdrs`, did you mean `headers`?",
        ),
        ("alerts: {webhook: http://other.example/x}\n", "`alerts.webhook`: http:// sends everything in plain text"),
        ("alerts: {webhook: https://u:hunter2@h/}\n", "`alerts.webhook`: the URL holds a login"),
        ("alerts: {webhook: ftp://h/}\n", "`alerts.webhook`: write https://host/path"),
        (
            "alerts: {webhook: {url: https://h/, headers: {Authorization: Bearer hunter2}}}\n",
            "Authorization holds a secret",
        ),
        ("alerts: {command: page --me}\n", "`alerts.command`: write a list, the program and each of its arguments"),
        ("alerts: {command: []}\n", "`alerts.command.run`: "),
        ("alerts: {repeat: 0s}\n", "`alerts.repeat`: must be longer than nothing"),
        ("metrics: 0.0.0.0:9464\n", "`metrics`: 0.0.0.0 can be reached by others"),
        ("metrics: 127.0.0.1\n", "`metrics`: write host:port"),
        ("trace: {url: 'chdb:///x', keep: 5m}\n", "`trace.keep`: at least 1h"),
        ("capture: {epoch_size: 8MB}\n", "`capture.epoch_size`: write a number and a unit"),
        ("tables: [orders]\n", "`tables.0.name`: 'orders': not a table name (write schema.table)"),
        ("tables: [a.b, {name: a.b}]\n", "`tables`: a.b stands there twice"),
        ("tables: [{name: a.b, mode: upsrt}]\n", "`tables.0.mode`: Input should be 'upsert', 'append'"),
        ("tables: {a: b}\n", "`tables`"),
        ("tables: [{name: a.b, exclude: [x, x]}]\n", "exclude: each column's name once"),
        ("tables: [{name: a.b, exclude: [x], types: {x: string}}]\n", "column x stands in types: and in exclude:"),
        (
            "tables: [{name: a.b, partition_by: ['week(c)']}]\n",
            "partition_by: week(c): there is no week: write a column, or",
        ),
        ("tables: [{name: a.b, partition_by: ['month(c']}]\n", "partition_by: month(c lacks a parenthesis"),
        ("tables: [{name: a.b, partition_by: [c, c]}]\n", "partition_by: c and c are the same column"),
        (
            "tables: [{name: a.b, partition_by: ['day(c)'], exclude: [c]}]\n",
            "column c stands in partition_by: and in exclude:",
        ),
        (
            "tables: [{name: a.b, from_position: 0-1-9, partition_by: [c]}]\n",
            "from_position: is for one table as it is, not with `partition_by:`",
        ),
        (
            "tables: [{name: a.b, from_position: 0-1-9, change_feed: true}]\n",
            "from_position: is for one table as it is, not with `change_feed:`",
        ),
        (
            "tables: [{name: 'a.b_*', into: a.b, partition_by: [c]}, {name: 'c.b_*', into: a.b}]\n",
            "a.b_* and c.b_* are into a.b, with different partition_by:",
        ),
        (
            "tables: [{name: 'a.b_*', into: a.b, change_feed: true}, {name: 'c.b_*', into: a.b}]\n",
            "a.b_* and c.b_* are into a.b, with different change_feed:",
        ),
        ("tables: [{name: a.b, backfill: true}]\n", "backfill: is for `mode: append`"),
        ("tables: [{name: a.b, into: orders}]\n", "`tables.0.into`: 'orders': not a table name (write schema.table)"),
        ("tables: [{name: 'a.*', into: 'a.b*'}]\n", "`tables.0.into`: one table, and no pattern"),
        ("tables: [{name: 'a.*', into: a.b, mode: append}]\n", "into: is not for `mode: append`"),
        ("tables: [{name: a.b, shard_column: s}]\n", "shard_column: goes with `into:`"),
        ("tables: [{name: 'a.*', into: a.b, shard_column: ''}]\n", "shard_column: a column has a name"),
        ("tables: [{name: 'a.*', into: a.b, shard_column: _cdc_seq}]\n", "shard_column: names that begin with _cdc_"),
        ("tables: [{name: 'a.*', into: a.b, shard_column: s, exclude: [s]}]\n", "shard_column: s is no column"),
        ("tables: [{name: 'a.*', into: a.b, mode: history, shard_column: Valid_To}]\n", "a column Valid_To of its own"),
        ("tables: [{name: a.b, mode: history, from_position: '0-1-1'}]\n", "not with `mode: history`"),
        ("tables: [{name: a.b, mode: soft-delete, backfill: true}]\n", "backfill: is for `mode: append`"),
        ("tables: [a.b, {name: 'a.b_*', into: a.b}]\n", "into: a.b (at a.b_*) is a table of its own here"),
        (
            "tables: [{name: 'a.b', into: x.y}, {name: 'a.b_*', into: a.b}]\n",
            "into: a.b (at a.b_*) is a table of its own here",
        ),
        (
            "tables: [{name: 'a.b_*', into: a.b}, {name: 'c.b_*', into: a.b, shard_column: s}]\n",
            "a.b_* and c.b_* are into a.b, with different shard_column:",
        ),
        (
            "tables: [{name: 'a.b_*', into: a.b}, {name: 'c.b_*', into: a.b, exclude: [x]}]\n",
            "a.b_* and c.b_* are into a.b, with different exclude:",
        ),
        ("tables: [{name: a.b, from_position: here}]\n", "`tables.0.from_position`: write a GTID set"),
        ("tables: [{name: a.b, from_position: ''}]\n", "`tables.0.from_position`: an empty GTID set"),
        (
            "tables: [{name: 'a.*', from_position: 0-1-9}]\n",
            "from_position: is for one table as it is, not with a pattern",
        ),
        (
            "tables: [{name: a.b, from_position: 0-1-9, mode: append}]\n",
            "from_position: is for one table as it is, not with `mode: append`",
        ),
        (
            "tables: [{name: a.b, from_position: 0-1-9, into: a.c}]\n",
            "from_position: is for one table as it is, not with `into:`",
        ),
        ("log_options: {sasl.password: hunter2}\n", "`sasl.password` holds a secret"),
        ("log_options: {ssl.key.pem: hunter2}\n", "`ssl.key.pem` holds a secret"),
        ("trace: clickhouse://u:hunter2@h:8123/d\n", "the URL holds a password"),
        ("trace: {url: 'clickhouse://u@h:8123/d', password: hunter2}\n", "a secret is a reference"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, MINIMAL + text)
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / "lakesync.yaml")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{url: 'mysql://u:hunter2@db:3306'}", "the URL holds a password"),
        ("{url: 'postgres://u@db'}", "write mysql://user@host:3306"),
        ("{url: 'mysql://db:3306'}", "write mysql://user@host:3306"),
        ("{url: 'mysql://u@db', tls: disabled}", "insecure: true"),
        ("{}", "`source.url` is missing"),
    ],
)
def test_a_source_that_cannot_be(tmp_path: Path, source: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, f"name: shop\nlake: lake\nsource: {source}\n")
    assert what in caught.value.what
    assert "hunter2" not in str(caught.value)


def test_mariadb_may_be_called_so(tmp_path: Path) -> None:
    source = parse(tmp_path, "name: s\nlake: l\nsource: {url: 'mariadb://u@db.example:3307'}\n").source
    assert (source.host, source.port, source.user) == ("db.example", 3307, "u")


def test_plain_text_elsewhere_needs_a_word(tmp_path: Path) -> None:
    text = "name: s\nlake: l\nsource: {url: 'mysql://u@db.example', tls: disabled, insecure: true}\n"
    assert parse(tmp_path, text).source.tls_mode == "disabled"
    text = "name: s\nlake: l\nsource: {url: 'mysql://u@db.example'}\n"
    assert parse(tmp_path, text).source.tls_mode == "verify-identity"


def test_not_there_not_yaml_not_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lakesync init"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"lakesync.yaml:3: not YAML"):
        parse(tmp_path, "name: shop\nsource: [\nlake: }\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        parse(tmp_path, "- shop\n")
    with pytest.raises(ConfigError, match="not YAML"):
        parse(tmp_path, "name: a\nname: b\n")


@pytest.mark.parametrize("more", ["", ", allow_http: false"])
@pytest.mark.parametrize("key", ["endpoint", "AWS_ENDPOINT_URL"])
def test_an_object_store_without_encryption_is_asked_for_in_words(tmp_path: Path, key: str, more: str) -> None:
    lake = f"lake: s3://a-bucket/x\nlake_options: {{{key}: 'http://minio:9000'{more}}}"
    with pytest.raises(ConfigError) as found:
        parse(tmp_path, MINIMAL.replace("lake: lake", lake))
    assert found.value.what.startswith("`lake_options`: http://minio:9000 is not encrypted")
    assert "`allow_http: true`" in found.value.what


def test_a_lake_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKESYNC_TEST_SECRET", "hunter2")
    options = "{endpoint: 'http://minio:9000', allow_http: true, secret_access_key: 'env:LAKESYNC_TEST_SECRET'}"
    config = parse(tmp_path, MINIMAL.replace("lake: lake", f"lake: s3://a-bucket/x/y/\nlake_options: {options}"))
    root = config.lake_root
    assert isinstance(root, ObjectRoot)
    assert (root.url, str(root)) == ("s3://a-bucket/x/y", "s3://a-bucket/x/y")
    assert dict(root.options)["secret_access_key"] == "hunter2"
    assert dict(root.options)["allow_http"] == "true"
    for text in (repr(root), repr(config), config.model_dump_json(), f"{root}"):
        assert "hunter2" not in text


@pytest.mark.parametrize(
    ("lake", "what"),
    [
        ("gs://bucket/x", "a local folder or `s3://bucket/prefix`"),
        ("s3://", "the bucket's name"),
        ("s3://Bucket_/x", "the bucket's name"),
        ("s3://user:hunter2@bucket/x", "the bucket's name"),
        ("s3://bucket/a//b", "the prefix"),
        ("s3://bucket/a/../b", "the prefix"),
        ("s3://bucket/a b", "the prefix"),
        ("s3://bucket/x\nlake_options: {secret_access_key: hunter2}", "holds a secret"),
        ("s3://bucket/x\nlake_options: {session_token: hunter2}", "holds a secret"),
        ("s3://bucket/x\nlake_options: {aws_token: hunter2}", "holds a secret"),
        ("s3://bucket/x\nlake_options: {sse_customer_key_base64: hunter2}", "holds a secret"),
        ("lake\nlake_options: {region: x}", "are for an object store"),
    ],
)
def test_a_lake_that_cannot_be(tmp_path: Path, lake: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, MINIMAL.replace("lake: lake", f"lake: {lake}"))
    assert what in caught.value.what
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKESYNC_TEST_SECRET", "hunter2")
    assert read_secret("env:LAKESYNC_TEST_SECRET", "x") == "hunter2"
    secret = tmp_path / "secret"
    secret.write_text("hunter3\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        read_secret(f"file:{secret}", "x")
    secret.chmod(0o600)
    assert read_secret(f"file:{secret}", "x") == "hunter3"
    for wrong in ("hunter4", "", "env:", "file:", "env:LAKESYNC_TEST_UNSET", f"file:{tmp_path}/none"):
        with pytest.raises(ConfigError) as caught:
            read_secret(wrong, "source.password")
        assert "hunter" not in str(caught.value)


def test_files_named_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    text = MINIMAL.replace("3306", "3306', password: 'file:secret', tls_ca: 'ca.pem").replace('"', "'")
    config = parse(tmp_path, text + "log_options: {sasl.password: 'file:secret', client.id: me}\n")
    assert config.source.secret().get_secret_value() == "hunter2"
    assert config.source.tls_ca == tmp_path / "ca.pem"
    assert config.log_settings() == {"sasl.password": "hunter2", "client.id": "me"}
    assert "hunter2" not in repr(config)


def test_tables_of_the_lake_take_the_entry_that_lands_in_them(tmp_path: Path) -> None:
    text = "tables: [a.x, {name: 'a.orders_*', into: a.orders}, {name: 'b.orders_*', into: a.orders}, 'a.*']\n"
    config = parse(tmp_path, MINIMAL + text)
    expected = {
        "a.x": "a.x",
        "a.orders": "a.orders_*",
        "a.orders_1": None,
        "b.orders_1": None,
        "b.orders": None,
        "a.y": "a.*",
    }
    for table, name in expected.items():
        entry = config.landing(TableName.parse(table))
        assert (entry and entry.name) == name, table
    assert [str(t) for t in config.named()] == ["a.x", "a.orders"]
    other = config.model_copy(update={"tables": ()})
    assert other.landing(TableName("a", "x")) is None
    assert config.landing(TableName("a", "x")) is not None


def test_a_table_may_be_a_shard_of_one_that_has_its_own_name(tmp_path: Path) -> None:
    text = "tables: [{name: a.orders, into: a.orders}, {name: 'a.orders_*', into: a.orders}]\n"
    assert parse(tmp_path, MINIMAL + text).named() == [TableName("a", "orders")]


def test_a_position_is_kept_as_the_server_writes_it(tmp_path: Path) -> None:
    uuid = "3E11FA47-71CA-11E1-9E33-C80AA9429562"
    for text, kept in ((f"{uuid}:5-9:1-4", f"{uuid.lower()}:1-9"), ("0-1-9", "0-1-9"), ("1-2-7, 0-1-9", "0-1-9,1-2-7")):
        entry = parse(tmp_path, MINIMAL + f"tables: [{{name: a.b, from_position: '{text}'}}]\n").tables[0]
        assert entry.from_position == kept


def test_the_schema_in_configs_is_the_one_of_the_code() -> None:
    stored = YAML(typ="safe", pure=True).load((CONFIGS / "lakesync.schema.json").read_text())
    assert stored == json_schema(), "run: lakesync schema > configs/lakesync.schema.json"
    Draft202012Validator.check_schema(stored)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_files_in_configs_can_be_read(path: Path) -> None:
    load(path)
    Draft202012Validator(json_schema()).validate(YAML(typ="safe", pure=True).load(path.read_text()))


def test_the_schema_refuses_what_the_code_refuses() -> None:
    validator = Draft202012Validator(json_schema())
    good = {
        "name": "s",
        "lake": "l",
        "source": {"url": "mysql://u@h"},
        "tables": ["a.b", {"name": "a.c"}],
        "trace": None,
    }
    assert validator.is_valid(good)
    wrong: list[dict[str, object]] = [
        {"nmae": "x"},
        {"merge": {"every": 5}},
        {"tables": [{"nme": "x"}]},
        {"source": {}},
    ]
    for bad in wrong:
        assert not validator.is_valid(good | bad)


def test_checks_alerts_and_metrics_have_short_forms(tmp_path: Path) -> None:
    config = parse(
        tmp_path,
        MINIMAL
        + """
reconcile: {ledger: every 5m, values: "0 3 * * *", sample: 1%, rows_per_second: 50000, timezone: Europe/Berlin}
alerts: {webhook: "http://127.0.0.1:9/x", command: [./page, --me], lag: 10m}
metrics: "[::1]:9464"
""",
    )
    assert config.reconcile is not None
    assert str(config.reconcile.ledger) == "every 5m"
    assert config.reconcile.sample == pytest.approx(0.01)
    assert config.alerts is not None
    assert config.alerts.webhook is not None
    assert config.alerts.webhook.timeout == 10
    assert config.alerts.command is not None
    assert config.alerts.command.run == ("./page", "--me")
    assert config.metrics is not None
    assert config.metrics.address == ("::1", 9464)


def test_a_webhooks_secrets_are_references_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("url", "https://hooks.example/T0/hunter2\n"), ("token", "Bearer hunter3\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    config = parse(tmp_path, MINIMAL + "alerts: {webhook: {url: 'file:url', headers: {Authorization: 'file:token'}}}\n")
    assert config.alerts is not None
    webhook = config.alerts.webhook
    assert webhook is not None
    assert webhook.target("alerts.webhook") == (
        "https://hooks.example/T0/hunter2",
        {"Authorization": "Bearer hunter3"},
    )
    assert "hunter" not in repr(config) + webhook.shown()
    (tmp_path / "url").write_text("http://hooks.example/hunter2")
    with pytest.raises(ConfigError, match="plain text") as caught:
        webhook.target("alerts.webhook")
    assert "hunter2" not in str(caught.value)

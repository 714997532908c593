"""URLs of logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cdc.errors import ConfigError
from cdc.log import open_log


def test_a_path_may_hold_anything(tmp_path: Path) -> None:
    log = open_log(f"sqlite://{tmp_path}/a%20b%3Fc%23d%25/l%C3%B6g.db", "shop")
    log.close()
    assert (tmp_path / "a b?c#d%" / "lög.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/log.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://log.db",
        "sqlite://relative/log.db",
        "sqlite:////var/log.db",
        "sqlite:///var/log.db?mode=memory",
        "sqlite:///var/log.db#x",
        "kafka://",
        "kafka:///topic",
        "kafka://h:9092/topic",
        "kafka://user:hush@h:9092",
        "postgresql://user:hush@h/db",
    ],
)
def test_what_is_no_log_is_refused_with_the_forms_that_are(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///absolute/path\.db or kafka://host:9092") as caught:
        open_log(url, "shop")
    assert "hush" not in str(caught.value)


def test_the_embedded_log_has_no_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sasl\.password") as caught:
        open_log(f"sqlite://{tmp_path}/log.db", "shop", {"sasl.password": "hush"})
    assert "hush" not in str(caught.value)


def test_without_the_client_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["confluent_kafka"] = None
from cdc.errors import ConfigError
from cdc.log import open_log
try:
    open_log("kafka://127.0.0.1:1", "shop")
except ConfigError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'lakesync[kafka]'" in ended.stdout


def test_the_embedded_log_does_not_load_the_client(tmp_path: Path) -> None:
    script = f"""
import sys
from cdc.log import open_log
open_log("sqlite://{tmp_path}/log.db", "shop").close()
print("confluent_kafka" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"

"""`docker-compose.yml` is a valid Compose file, and agrees with the pipeline file and the image that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from compose_spec import PyCompose
from ruamel.yaml import YAML

from cdc.config import PipelineConfig, load

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = YAML(typ="safe", pure=True).load(TEXT)
    return parsed


@pytest.fixture(scope="module")
def pipeline() -> PipelineConfig:
    return load(ROOT / "configs" / "compose.yaml")


def test_is_valid() -> None:
    specification = PyCompose.from_yaml(TEXT)
    specification.validate()
    assert set(specification.service_names()) == {"mysql", "kafka", "clickhouse", "minio", "lakesync"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("build: .", "buildx: ."),
        ("retries: 20", "retries: many"),
        ("condition: service_healthy", "condition: healthy"),
        ('ports: ["127.0.0.1:9092:9092"]', "ports: 9092"),
    ],
)
def test_mistakes_are_seen(right: str, wrong: str) -> None:
    """The validator is worth something."""
    assert right in TEXT
    with pytest.raises(ValueError, match=r".+"):
        PyCompose.from_yaml(TEXT.replace(right, wrong)).validate()


def test_nothing_listens_beyond_this_machine(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_mounted_files_exist_and_volumes_are_declared(compose: dict[str, Any]) -> None:
    mounted = {
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])
    }
    files = {name for name in mounted if name.startswith("./")}
    assert files
    assert all((ROOT / name).exists() for name in files)
    assert mounted - files == set(compose["volumes"])


def test_the_pipeline_file_names_these_services(compose: dict[str, Any], pipeline: PipelineConfig) -> None:
    services = compose["services"]
    assert pipeline.source.host in services
    assert pipeline.trace is not None
    trace, log = urlsplit(pipeline.trace.url), urlsplit(pipeline.log)
    assert trace.hostname in services
    assert trace.username == services["clickhouse"]["environment"]["CLICKHOUSE_USER"]
    assert trace.path == "/" + services["clickhouse"]["environment"]["CLICKHOUSE_DB"]
    assert log.netloc in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_the_pipeline_file_finds_its_folders_and_secrets(compose: dict[str, Any], pipeline: PipelineConfig) -> None:
    lakesync = compose["services"]["lakesync"]
    inside = [volume.split(":")[1] for volume in lakesync["volumes"]]
    assert str(pipeline.lake_root) in inside
    assert str(pipeline.state) in inside
    assert lakesync["environment"]["LAKESYNC_CONFIG"] == "/etc/lakesync/compose.yaml"
    assert pipeline.trace is not None
    for reference in (pipeline.source.password, pipeline.trace.password):
        kind, _, name = reference.partition(":")
        assert kind == "env"
        assert name in lakesync["environment"]
    assert (
        lakesync["environment"]["LAKESYNC_TRACE_PASSWORD"]
        == compose["services"]["clickhouse"]["environment"]["CLICKHOUSE_PASSWORD"]
    )


def test_the_image_makes_the_folders_that_volumes_are_mounted_on(pipeline: PipelineConfig) -> None:
    """A volume takes its owner from the image; without the folder it would be root's, and lakesync is not root there."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (install,) = [line for line in dockerfile.splitlines() if "install -d -o lakesync" in line]
    assert {str(pipeline.lake_root), str(pipeline.state)} <= set(install.split())

"""Throwaway MinIO: an object store that speaks S3, with a bucket, and a user and password that are new every time."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from dev import gotools
from dev.server import Server

PACKAGE = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"


def binary() -> Path:
    """The server's program: `LAKESYNC_DEV_MINIO`, else the one in the cache (built if need be: some minutes)."""
    return gotools.program("minio", PACKAGE, "LAKESYNC_DEV_MINIO")


class MinIOServer(Server):
    """A MinIO server on 127.0.0.1. See `Server` for folder, start, stop, kill and close."""

    name = "minio"

    def __init__(self, folder: Path | None = None) -> None:
        self._binary = binary()
        super().__init__(folder)
        self.user, self.password = f"u{secrets.token_hex(6)}", secrets.token_hex(16)

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self.port}"

    def options(self, endpoint: str | None = None) -> dict[str, str]:
        """The pipeline file's `lake_options`; `endpoint`: of a proxy before it."""
        return {
            "endpoint": endpoint or self.endpoint,
            "access_key_id": self.user,
            "secret_access_key": self.password,
            "allow_http": "true",
        }

    def reader_options(self) -> dict[str, str]:
        """`storage_options` of deltalake and polars."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def bucket(self) -> str:
        """A new, empty bucket: a folder that the server finds."""
        name = f"b-{uuid.uuid4().hex[:16]}"
        (self.folder / "data" / name).mkdir()
        return name

    def _prepare(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)

    def _command(self) -> Sequence[str]:
        address = f"127.0.0.1:{self.port}"
        return [str(self._binary), "server", str(self.folder / "data"), "--address", address, "--quiet"]

    def _environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.user,
            "MINIO_ROOT_PASSWORD": self.password,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",
        }

    def _port_was_taken(self) -> bool:
        return "already in use" in self._log_tail(200)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/minio/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

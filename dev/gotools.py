"""Programs that are built from Go's modules, into the cache folder; the system is not touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dev import packages
from dev.errors import SetUpError


def program(name: str, package: str, given: str) -> Path:
    """The program that `go install package@version` makes, called `name` in the cache; the environment's variable `given` names one that is
    installed. Raises SetUpError where there is no Go and none is given."""
    if path := os.environ.get(given):
        if not os.access(path, os.X_OK):
            raise SetUpError(f"{given}={path} is no program", f"give {given} the path of {name}")
        return Path(path).absolute()
    folder = packages.made_once(name, lambda part: _install(part, package, given))
    return next(folder.iterdir())


def _install(folder: Path, package: str, given: str) -> None:
    go = shutil.which("go")
    if go is None:
        raise SetUpError(
            f"{package} is built by Go, and there is no `go`",
            f"install Go (Debian: golang-go), or the program itself and set {given} to its path",
        )
    scratch = folder.with_name(f"{folder.name}.go")
    environment = os.environ | {
        "GOBIN": str(folder),
        "GOPATH": str(scratch / "path"),
        "GOMODCACHE": str(scratch / "modules"),
        "GOCACHE": str(scratch / "cache"),
    }
    try:
        done = subprocess.run(
            [go, "install", "-modcacherw", "-ldflags=-s -w", package],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if done.returncode != 0:
        raise SetUpError(f"go install {package} failed:\n{done.stderr[-2000:]}", "is the network there?")

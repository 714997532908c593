"""Programs from Debian's archive, unpacked into the cache folder; the system is not touched.

apt gets folders of its own, so neither root nor the system's package state is needed, and downloads without installing.
An empty status file makes it fetch the whole closure, the C library too: what is unpacked runs through its own loader on
any Linux, whatever that has installed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.errors import SetUpError

PROJECT_ROOT = Path(__file__).resolve().parent.parent

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

MULTIARCH = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
LOADER = {"x86_64": "usr/lib64/ld-linux-x86-64.so.2", "aarch64": "usr/lib/ld-linux-aarch64.so.1"}


def cache_folder() -> Path:
    """Where downloads are kept between runs: `LAKESYNC_DEV_CACHE`, or `.dev` in the project's root."""
    folder = Path(os.environ.get("LAKESYNC_DEV_CACHE") or PROJECT_ROOT / ".dev").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold a lock between processes; the others wait."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `make(folder)` if it is not there yet.

    Processes that want it at the same time wait for the first one. It appears under its name only when `make` has
    returned, so a run that was killed leaves nothing that looks finished.
    """
    folder = cache_folder() / name
    if folder.exists():
        return folder
    with _locked(name):
        if not folder.exists():
            for left_over in folder.parent.glob(f"{name}.part-*"):
                shutil.rmtree(left_over, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f"{name}.part-", dir=folder.parent))
            try:
                make(part)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class DebianRoot:
    """An unpacked tree of Debian packages, with everything that they need."""

    path: Path

    @property
    def libraries(self) -> Path:
        """The tree's main library folder."""
        return self.path / "usr/lib" / MULTIARCH[platform.machine()]

    def command(self, program: str, *arguments: str, libraries: Sequence[Path] = ()) -> list[str]:
        """The command line for `program` (relative to the tree), run through the tree's own loader."""
        search = ":".join(str(folder) for folder in (self.libraries, *libraries))
        loader = self.path / LOADER[platform.machine()]
        return [str(loader), "--library-path", search, str(self.path / program), *arguments]


def debian_root(name: str, packages: Sequence[str], alone: Sequence[str] = ()) -> DebianRoot:
    """The tree `name` with `packages` and all that they depend on, and `alone` without; downloaded if it is not in the cache.

    Raises SetUpError where that is impossible: no apt, no Debian archive key, no mirror, no network.
    """
    return DebianRoot(made_once(name, lambda part: _unpack(part, packages, alone)))


def _unpack(folder: Path, packages: Sequence[str], alone: Sequence[str]) -> None:
    if platform.machine() not in LOADER:
        raise SetUpError(
            f"no throwaway servers for {platform.machine()}",
            "x86_64 and aarch64 work; with a Docker engine, `docker compose up` gives the same services",
        )
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise SetUpError(
                f"{program} is not there, and {', '.join(packages)} cannot be downloaded without it",
                "install apt and dpkg (packages `apt`, `dpkg`, `debian-archive-keyring` exist for most distributions), "
                "or a Docker engine and use `docker compose up`, "
                "or name an installed server: LAKESYNC_DEV_MYSQLD=/path/to/mysqld, LAKESYNC_DEV_MARIADBD=/path/to/mariadbd",
            )
    if not KEYRING.exists():
        raise SetUpError(f"{KEYRING} is not there", "install the package debian-archive-keyring")
    scratch = folder / "apt"
    apt = _PrivateApt(scratch)
    apt.run("update")
    apt.run("install", "-y", "--no-install-recommends", "--download-only", *packages)
    if alone:
        apt.run("download", *alone)
    for archive in sorted(apt.archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    shutil.rmtree(scratch)


class _PrivateApt:
    """apt-get with lists, cache and status of its own, reading Debian unstable."""

    def __init__(self, folder: Path) -> None:
        self.archives = folder / "cache/archives"
        (self.archives / "partial").mkdir(parents=True)
        (folder / "lists/partial").mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} sid main\n")
        self._options = [
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::Lists={folder}/lists",
            f"-oDir::State::status={folder}/status",
            f"-oDir::Cache={folder}/cache",
            "-oDebug::NoLocking=1",
            "-oAcquire::Retries=3",
            "-oAPT::Sandbox::User=root",  # as root apt would download as a user who may not enter our folder
        ]

    def run(self, *arguments: str) -> None:
        done = subprocess.run(
            ["apt-get", "-q", *self._options, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.archives,  # where `download` puts what it gets
        )
        if done.returncode != 0:
            raise SetUpError(
                f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}".rstrip(),
                "is the network there? The mirror comes from this machine's apt, or from LAKESYNC_DEV_DEBIAN_MIRROR",
            )


def _mirror() -> str:
    """The Debian mirror that this machine uses."""
    if given := os.environ.get("LAKESYNC_DEV_DEBIAN_MIRROR"):
        return given
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"], capture_output=True, text=True, check=False
    )
    for line in listing.stdout.splitlines():
        origin, _, uri = line.rpartition(" ")
        if origin in ("Debian", "") and "security" not in uri:
            return uri
    # `indextargets` knows only sources whose lists were fetched once; the sources themselves are always there.
    raise SetUpError(
        "no Debian mirror is known here",
        "run `apt-get update` once on a Debian, or set LAKESYNC_DEV_DEBIAN_MIRROR to the URI of one",
    )

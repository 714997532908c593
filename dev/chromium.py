"""A browser without a window, from Debian's packages, unpacked into the cache folder; the system is not touched.

Chromium starts itself again for every page, so it cannot be run through a loader as the servers are: the loader's path is
written into a copy of the program (patchelf). It sees the fonts of its own tree alone, so what a page measures is the same everywhere.
"""

from __future__ import annotations

import os
import platform
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dev.errors import SetUpError
from dev.packages import LOADER, DebianRoot, debian_root

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER = "chromium"
PACKAGES = ("chromium-headless-shell", "patchelf", "fonts-dejavu-core", "fonts-noto-core")
PROGRAM = "usr/lib/chromium/chromium-headless-shell"

_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{root}/usr/share/fonts</dir>
  <cachedir>{root}/fonts-cache</cachedir>
  <alias><family>sans-serif</family><prefer><family>Noto Sans</family></prefer></alias>
  <alias><family>system-ui</family><prefer><family>Noto Sans</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


@dataclass(frozen=True)
class Installation:
    """The program, and the environment that it needs."""

    program: Path
    environment: dict[str, str]

    @classmethod
    def find(cls) -> Installation:
        """`LAKESYNC_DEV_CHROMIUM`, or Debian's, downloaded if it is not in the cache. Raises SetUpError where that is impossible."""
        if given := os.environ.get("LAKESYNC_DEV_CHROMIUM"):
            return cls(Path(given), {})
        root = debian_root(FOLDER, PACKAGES)
        fonts = root.path / "fonts.conf"
        if not fonts.exists():
            _write(fonts, _FONTS.format(root=root.path).encode())
        libraries = f"{root.libraries}:{root.libraries / 'pulseaudio'}"
        return cls(_patched(root), {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(fonts)})


@contextmanager
def browser() -> Iterator[Browser]:
    """The browser, driven by playwright; ended at the end. Raises SetUpError."""
    from playwright.sync_api import sync_playwright

    found = Installation.find()
    environment: dict[str, str | float | bool] = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DBUS_")},
        **found.environment,
    }
    with sync_playwright() as playwright:
        # Its sandbox needs rights that root in a container does not have; the pages are our own.
        started = playwright.chromium.launch(
            executable_path=found.program, env=environment, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield started
        finally:
            started.close()


def _patched(root: DebianRoot) -> Path:
    """The program, beside the files that it looks for there, started by the tree's own loader wherever the tree is."""
    program = root.path / PROGRAM
    loader = root.path / LOADER[platform.machine()]
    # Named after the loader, so that a cache that was moved gets another one.
    patched = program.with_name(f"chromium-{zlib.crc32(str(loader).encode()):08x}")
    if patched.exists():
        return patched
    part = patched.with_name(f"{patched.name}.{os.getpid()}")
    command = root.command("usr/bin/patchelf", "--set-interpreter", str(loader), "--output", str(part), str(program))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetUpError(f"patchelf failed: {done.stderr.strip()}", f"remove {root.path} and try again")
    part.chmod(0o755)
    part.replace(patched)
    return patched


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)

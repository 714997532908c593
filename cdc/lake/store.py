"""Files on a local disk, durable before they are acknowledged.

The order of every commit: data files are written and fsynced, then the folders that are new, then the commit as a temporary file,
fsync, a hard link to its final name (which fails if the name is taken: put-if-absent), and fsync of `_delta_log`. A failed
fsync is never retried: the kernel may have dropped the pages and would answer yes.
"""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cdc import faults
from cdc.errors import LakeConflictError, LakeError, LakeUnknownError

FILE_MODE = 0o640
FOLDER_MODE = 0o750
TEMPORARY = "_commit_"
"""Prefix of temporary files in `_delta_log`, as delta-rs names its own; readers pass over them."""

_HINTS = {
    errno.ENOSPC: "make room on the lake's disk, then resume the table",
    errno.EDQUOT: "raise the quota of the lake's disk, then resume the table",
    errno.EACCES: "let this user write to the lake, then resume the table",
    errno.EPERM: "let this user write and link files in the lake, then resume the table",
    errno.EROFS: "mount the lake's disk writable, then resume the table",
    errno.EMFILE: "raise the limit of open files, then start again",
    errno.EOPNOTSUPP: "put the lake on a file system that has hard links",
    errno.EMLINK: "put the lake on a file system that has hard links",
}
_NOT_LINKED = frozenset({*_HINTS, errno.ENOENT, errno.ENAMETOOLONG})
"""Errors of link() that say that nothing was linked."""


def failed(error: OSError, what: str, path: Path) -> LakeError:
    """The error of a file operation that certainly made nothing visible."""
    reason = error.strerror or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "see what the system's log says of the disk, then resume the table")
    return LakeError(f"{what}: {reason}", where=str(path), hint=hint)


class Store:
    """Files under one root. Remembers which folders it has made durable, so that each is fsynced once up to the root."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._durable: set[Path] = set()

    def folder(self, relative: str) -> Path:
        """The folder of this name under the root. Raises `LakeError` if links lead out of it."""
        path = self.root / relative
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise LakeError("lies outside the lake", where=str(path), hint="remove the symbolic link")
        return path

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it; `settle` makes them durable. Raises `LakeError`."""
        try:
            for missing in (path for path in (folder, *folder.parents) if not path.exists()):
                self._durable.discard(missing)  # someone moved it away: its new name is not durable yet
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise failed(error, "cannot make the folder", folder) from error

    def create(self, path: Path) -> BinaryIO:
        """A new file, open for writing. Raises `OSError`."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "wb")

    def finish(self, file: BinaryIO) -> None:
        """Flush, fsync, close. Raises `OSError`."""
        try:
            file.flush()
            os.fsync(file.fileno())
        finally:
            file.close()

    def settle(self, folder: Path) -> None:
        """Make the names in `folder` durable, and the folder's own name and those above it up to the root. Raises `LakeError`."""
        try:
            _fsync_folder(folder)
            at = folder
            while at not in self._durable and at.is_relative_to(self.root):
                with suppress(PermissionError):  # above the root may lie what this user cannot open
                    _fsync_folder(at.parent)
                self._durable.add(at)
                at = at.parent
        except OSError as error:
            raise failed(error, "cannot make the folder durable", folder) from error

    def replace(self, path: Path, data: bytes, point: str = "") -> None:
        """Write a whole file in place of what was there, atomically and durably. Raises `LakeError`."""
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}.tmp"
        try:
            self._write(temporary, data)
            if point:
                faults.point(point)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise failed(error, "cannot be written", path) from error
        self.settle(path.parent)

    def put_if_absent(self, path: Path, data: bytes) -> None:
        """Make `data` appear at `path`, whole and durable, or not at all.

        Raises `LakeConflictError` if the name is taken, `LakeUnknownError` if the outcome is unknown, `LakeError` if certainly
        nothing became visible.
        """
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}.json.tmp"
        try:
            self._write(temporary, data)
            faults.point("lake.before-commit")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise failed(error, "the commit cannot be written", path) from error
        try:
            self._link(temporary, path)
        except LakeError:
            with suppress(OSError):
                temporary.unlink()
            raise
        try:
            faults.point("lake.after-commit")
            temporary.unlink(missing_ok=True)
            _fsync_folder(path.parent)
        except OSError as error:
            raise _unknown(error, path) from error

    def _link(self, temporary: Path, path: Path) -> None:
        try:
            if faults.mutant("no_put_if_absent"):
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        except FileExistsError as error:
            # A network file system may repeat a link whose answer it lost: then the name that is taken is ours.
            with suppress(OSError):
                if path.samefile(temporary):
                    return
            raise LakeConflictError(
                f"version {int(path.stem)} was committed by another writer",
                where=str(path),
                hint="the table is read again, and the merge decided anew",
            ) from error
        except OSError as error:
            if error.errno in _NOT_LINKED:
                raise failed(error, "the commit cannot be linked", path) from error
            raise _unknown(error, path) from error

    def _write(self, path: Path, data: bytes) -> None:
        file = self.create(path)
        try:
            file.write(data)
        except BaseException:
            with suppress(OSError):
                file.close()
            raise
        self.finish(file)


def _unknown(error: OSError, path: Path) -> LakeUnknownError:
    return LakeUnknownError(
        f"the commit's outcome is unknown: {error.strerror or type(error).__name__}",
        where=str(path),
        hint="the table is read again to see whether it was committed",
    )


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # file systems that have no fsync of folders; read-only ones
            raise
    finally:
        os.close(descriptor)

"""Folders of a lake: what is written there is durable before it is acknowledged.

On a local disk the order of every commit is: data files are written and fsynced, then the folders that are new, then the commit as a
temporary file, fsync, a hard link to its final name (which fails if the name is taken: put-if-absent), and fsync of `_delta_log`. A
failed fsync is never retried: the kernel may have dropped the pages and would answer yes.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, NewType, Protocol

import pyarrow as pa

from cdc import faults
from cdc.errors import LakeConflictError, LakeError, LakeUnknownError
from cdc.roots import Root

FILE_MODE = 0o640
FOLDER_MODE = 0o750
TEMPORARY = "_commit_"
"""Prefix of temporary files in `_delta_log`, as delta-rs names its own; readers pass over them."""
COPIED_NS = 60_000_000_000
"""A file that got its name so long after it was written was restored, or copied with its times."""
Tail = NewType("Tail", str)
"""Which file it is that has a name: another file of the same name has another one, so that a log that was put back to an older state
is noticed."""

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


class Entry(NamedTuple):
    """A file in a folder, or in one below it."""

    name: str
    """Relative to the folder, with `/`."""
    size: int
    modified_ms: int


class Output(Protocol):
    """A new file being written. It is there, whole and durable, after `finish`; its name may need the folder's `settle`."""

    def write(self, data: bytes, /) -> int:
        """Add bytes. Raises `OSError`, `LakeError`."""

    def tell(self) -> int:
        """Bytes written so far."""

    def flush(self) -> None:
        """Nothing that anyone may rely on: writers of Parquet call it."""

    @property
    def closed(self) -> bool:
        """Whether it was finished or abandoned."""

    def finish(self) -> None:
        """Make it durable. Raises `OSError`, `LakeError`."""

    def abandon(self) -> None:
        """Remove what was written, as far as that is possible. May be called whatever happened before."""


class Folder(Protocol):
    """A table's folder, or the lake's root, or any other below it. Names are relative, with `/`, and never lead out of it: `LakeError`.

    Every method but those that say otherwise raises `LakeError` where the store fails.
    """

    def __str__(self) -> str:
        """The path or URL, for people and readers."""

    def folder(self, name: str) -> Folder:
        """The folder of this name in it; it need not be there."""

    def probe(self) -> None:
        """Raises `LakeError` unless commits can be made here. Writes nothing that stays."""

    def names(self) -> list[str]:
        """Files and folders directly in it; none where nothing is."""

    def walk(self, without: str = "") -> Iterator[Entry]:
        """Every file in it and below; nothing of the folder `without`, which is directly in it."""

    def holds(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""

    def size(self, name: str) -> int | None:
        """Of a file, bytes; None where it is not."""

    def tail(self, name: str) -> Tail | None:
        """Which file has this name; None where none is."""

    def made_us(self, name: str) -> int | None:
        """Since when the file of this name can be read, by the store's clock, µs since 1970; None where it is not. Stores that say no more
        give whole seconds."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises `FileNotFoundError`, `LakeError`."""

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Whole files, small ones, in this order; None for one that is not there."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """So many bytes from `offset` on, fewer where the file ends. Raises `FileNotFoundError`, `LakeError`."""

    def open(self, name: str) -> pa.NativeFile:
        """For random access, by `pq.ParquetFile` and others; it knows its size. Who opens it closes it. Raises `FileNotFoundError`,
        `OSError`, `LakeError`."""

    def create(self, name: str) -> Output:
        """A new file; folders that are not there are made. Raises `OSError` (a name that is taken, on a disk), `LakeError`."""

    def put_if_absent(self, name: str, data: bytes) -> Tail | None:
        """Make `data` appear under the name of a commit, whole and durable, or not at all. Which file it is then, if that is known.

        Raises `LakeConflictError` if the name is taken, `LakeUnknownError` if the outcome is unknown, `LakeError` if certainly
        nothing became visible.
        """

    def replace(self, name: str, data: bytes, point: str = "") -> None:
        """Write a whole file in place of what was there, atomically and durably. `point`: a fault point before it is visible."""

    def alias(self, name: str, other: str) -> None:
        """Give what is there under `name` now a second name, which keeps it when `name` is replaced. Nothing if `other` is taken."""

    def delete(self, names: Iterable[str]) -> int:
        """Remove these files. How many of them were there and could be removed; it never raises for one that cannot."""

    def settle(self) -> None:
        """Make the names in it durable, and its own name and those above it up to the root. A folder that is not there is made."""


def open_folder(root: Root | str) -> Folder:
    """The lake's root. Raises `ConfigError` for an object store's options that are wrong; asks nothing of it."""
    if isinstance(root, str | Path):
        path = Path(root).absolute()
        return LocalFolder(path, path, set())
    from cdc.lake.objects import open_objects  # needs a package that local lakes do not

    return open_objects(root)


def checked(name: str, where: object) -> str:
    """The name, if it stays in the folder. Raises `LakeError`."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "://" in name or "\0" in name:
        raise LakeError("a name that leads out of the folder", where=str(where), hint="report this")
    return name


def conflict(name: str, where: str) -> LakeConflictError:
    """The error of a commit's name that is taken."""
    return LakeConflictError(
        f"version {int(PurePosixPath(name).stem)} was committed by another writer",
        where=where,
        hint="the table is read again, and the merge decided anew",
    )


def unknown(reason: str, where: str) -> LakeUnknownError:
    """The error of a commit of which no one knows whether it was made."""
    return LakeUnknownError(
        f"the commit's outcome is unknown: {reason}",
        where=where,
        hint="the table is read again to see whether it was committed",
    )


def failed(error: OSError, what: str, where: object) -> LakeError:
    """The error of a file operation that certainly made nothing visible."""
    reason = error.strerror or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "see what the system's log says of the disk, then resume the table")
    return LakeError(f"{what}: {reason}", where=str(where), hint=hint)


class LocalFolder:
    """On a local disk. Remembers which folders of the lake were made durable, so that each is fsynced once up to the root."""

    def __init__(self, path: Path, root: Path, durable: set[Path]) -> None:
        self._path, self._root, self._durable = path, root, durable

    def __str__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return f"LocalFolder({str(self._path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalFolder) and other._path == self._path

    def __hash__(self) -> int:
        return hash(self._path)

    def _at(self, name: str) -> Path:
        return self._path / checked(name, self)

    def folder(self, name: str) -> LocalFolder:
        """As `Folder.folder`. Raises `LakeError` if links lead out of the lake."""
        path = self._at(name)
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise LakeError("lies outside the lake", where=str(path), hint="remove the symbolic link")
        return LocalFolder(path, self._root, self._durable)

    def probe(self) -> None:
        """As `Folder.probe`: the folder, or the one that it will be made in, can be written to."""
        existing = next(path for path in (self._path, *self._path.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise LakeError(
                f"{existing} cannot be written to",
                where=str(self),
                hint="name another folder, or give this user the right to",
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """As `Folder.names`."""
        try:
            return [path.name for path in self._path.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise failed(error, "cannot be read", self) from error

    def walk(self, without: str = "") -> Iterator[Entry]:
        """As `Folder.walk`. What is gone by the time that it is looked at is passed over."""

        def stop(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise failed(error, "cannot be read", self) from error

        for top, folders, files in os.walk(self._path, onerror=stop):
            if without and Path(top) == self._path and without in folders:
                folders.remove(without)
            for name in files:
                path = Path(top, name)
                with suppress(OSError):
                    found = path.stat()
                    yield Entry(path.relative_to(self._path).as_posix(), found.st_size, found.st_mtime_ns // 1_000_000)

    def holds(self, name: str) -> bool:
        """As `Folder.holds`."""
        return self._at(name).exists()

    def size(self, name: str) -> int | None:
        """As `Folder.size`."""
        found = self._stat(name)
        return None if found is None else found.st_size

    def tail(self, name: str) -> Tail | None:
        """As `Folder.tail`."""
        found = self._stat(name)
        return None if found is None else Tail(f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}")

    def made_us(self, name: str) -> int | None:
        """As `Folder.made_us`: when it was linked to its name, unless it was copied since."""
        found = self._stat(name)
        if found is None:
            return None
        late = found.st_ctime_ns - found.st_mtime_ns
        return (found.st_ctime_ns if late < COPIED_NS else found.st_mtime_ns) // 1000

    def _stat(self, name: str) -> os.stat_result | None:
        path = self._at(name)
        try:
            return path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise failed(error, "cannot be read", path) from error

    def read(self, name: str) -> bytes:
        """As `Folder.read`."""
        path = self._at(name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failed(error, "cannot be read", path) from error

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """As `Folder.read_all`."""
        for name in names:
            try:
                yield self.read(name)
            except FileNotFoundError:
                yield None

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """As `Folder.read_range`."""
        path = self._at(name)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failed(error, "cannot be read", path) from error

    def open(self, name: str) -> pa.NativeFile:
        """As `Folder.open`."""
        return pa.OSFile(str(self._at(name)), "rb")

    # -- writing -------------------------------------------------------------------------------------------------------

    def create(self, name: str) -> Output:
        """As `Folder.create`; `finish` fsyncs the file, not its folder."""
        path = self._at(name)
        self._make(path.parent)
        return _LocalOutput(path, _create(path))

    def put_if_absent(self, name: str, data: bytes) -> Tail | None:
        """As `Folder.put_if_absent`."""
        path = self._at(name)
        self._make(path.parent)
        self._settle_names(path.parent)
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}.json.tmp"
        try:
            _write(temporary, data)
            faults.point("lake.before-commit")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise failed(error, "the commit cannot be written", path) from error
        try:
            _link(temporary, path)
        except LakeError:
            with suppress(OSError):
                temporary.unlink()
            raise
        try:
            faults.point("lake.after-commit")
            temporary.unlink(missing_ok=True)
            _fsync_folder(path.parent)
        except OSError as error:
            raise unknown(error.strerror or type(error).__name__, str(path)) from error
        with suppress(LakeError):
            return self.tail(name)
        return None

    def replace(self, name: str, data: bytes, point: str = "") -> None:
        """As `Folder.replace`."""
        path = self._at(name)
        self._make(path.parent)
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}.tmp"
        try:
            _write(temporary, data)
            if point:
                faults.point(point)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise failed(error, "cannot be written", path) from error
        self._settle(path.parent)

    def alias(self, name: str, other: str) -> None:
        """As `Folder.alias`: a hard link."""
        try:
            with suppress(FileExistsError):
                self._at(other).hardlink_to(self._at(name))
        except OSError as error:
            raise failed(error, f"a second name of {name} cannot be made", self) from error

    def delete(self, names: Iterable[str]) -> int:
        """As `Folder.delete`."""
        removed = 0
        for name in names:
            with suppress(OSError, LakeError):
                self._at(name).unlink()
                removed += 1
        return removed

    def settle(self) -> None:
        """As `Folder.settle`."""
        self._make(self._path)
        self._settle(self._path)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it; they are not durable yet."""
        try:
            for missing in (path for path in (folder, *folder.parents) if not path.exists()):
                self._durable.discard(missing)  # someone moved it away: its new name is not durable yet
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise failed(error, "cannot make the folder", folder) from error

    def _settle(self, folder: Path) -> None:
        try:
            _fsync_folder(folder)
        except OSError as error:
            raise failed(error, "cannot make the folder durable", folder) from error
        self._settle_names(folder)

    def _settle_names(self, folder: Path) -> None:
        """Make the folder's own name durable, and those above it up to the root."""
        try:
            at = folder
            while at not in self._durable and at.is_relative_to(self._root):
                with suppress(PermissionError):  # above the root may lie what this user cannot open
                    _fsync_folder(at.parent)
                self._durable.add(at)
                at = at.parent
        except OSError as error:
            raise failed(error, "cannot make the folder durable", folder) from error


class _LocalOutput:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def write(self, data: bytes, /) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def finish(self) -> None:
        _finish(self._file)

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink()


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "wb")


def _finish(file: BinaryIO) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()


def _write(path: Path, data: bytes) -> None:
    file = _create(path)
    try:
        file.write(data)
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    _finish(file)


def _link(temporary: Path, path: Path) -> None:
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
        raise conflict(path.name, str(path)) from error
    except OSError as error:
        if error.errno in _NOT_LINKED:
            raise failed(error, "the commit cannot be linked", path) from error
        raise unknown(error.strerror or type(error).__name__, str(path)) from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):  # file systems that have no fsync of folders; read-only ones
            raise
    finally:
        os.close(descriptor)

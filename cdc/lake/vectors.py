"""Deletion vectors: which rows of a data file are deleted (Delta protocol, "Deletion Vectors").

Every form is read: in a file beside the table's (`u`, under whatever prefix), at a place of its own (`p`), in the log itself (`i`). Only
files under `_dv` at the table's root are written: readers' VACUUM takes names that begin so for hidden, and Spark's fails on vectors in
the log.
"""

from __future__ import annotations

import base64
import os
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from cdc import faults
from cdc._native import Bitmap
from cdc.errors import LakeDamagedError
from cdc.lake.snapshot import AddFile, identity
from cdc.lake.store import Folder, failed

FOLDER: Final = "_dv"
HELD_BYTES: Final = 32 * 1024 * 1024
"""Of vectors as they are stored that are kept in memory; the newest that were asked for."""
_MAGIC = (1681511377).to_bytes(4, "little")
"""Before a 64-bit portable roaring bitmap."""
_FORM = b"\x01"
"""The first byte of a file of vectors."""
_READERS = 8
"""Files of vectors that are read at once: where they lie in an object store, each takes a while."""

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_FROM_Z85, _TO_Z85 = str.maketrans(_Z85, _B85), str.maketrans(_B85, _Z85)
_UUID_LENGTH = 20
"""Characters of a UUID in Z85."""

Descriptor = Mapping[str, Any]
"""`deletionVector` of an `add` or `remove`."""


def cardinality(vector: Descriptor | None) -> int:
    """How many rows it deletes."""
    return int(vector["cardinality"]) if vector else 0


def name_of(vector: Descriptor, root: str = "") -> str | None:
    """The file in the table's folder that it is in; None for one that is in the log, or elsewhere. `root`: the folder, as it says of
    itself. Raises `ValueError`, `KeyError` for what is no descriptor."""
    where = vector["pathOrInlineDv"]
    if vector["storageType"] == "u":
        prefix, name = where[:-_UUID_LENGTH], uuid.UUID(bytes=_from_z85(where[-_UUID_LENGTH:]))
        return f"{prefix}/deletion_vector_{name}.bin" if prefix else f"deletion_vector_{name}.bin"
    if vector["storageType"] == "p" and root:
        path, top = _plain(where), _plain(root).rstrip("/") + "/"
        return path.removeprefix(top) if path.startswith(top) else None
    return None


def alive(dead: Bitmap, first: int, count: int) -> Any:
    """Of so many rows from number `first` on, which are not deleted: an Arrow array of booleans."""
    made: Any = pa.array
    return made(dead.kept(first, count))


class Vectors:
    """The vectors of one table's files, read when they are asked for. For any threads."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held: OrderedDict[str, tuple[int, Bitmap]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, file: AddFile) -> Bitmap | None:
        """The rows of the file that are deleted; None: none. Raises `LakeDamagedError`, `LakeError`."""
        if not file.deletion_vector:
            return None
        name = file.vector
        with self._lock:
            found = self._held.get(name)
            if found is not None:
                self._held.move_to_end(name)
                return found[1]
        return self._keep(file.deletion_vector, self._read(file.deletion_vector))

    def load(self, files: Iterable[AddFile]) -> dict[str, Bitmap]:
        """The vectors of all of these files that have one, by path; several of one file are read at once. Raises as `of`."""
        wanted = [file for file in files if file.deletion_vector]
        missing: dict[str, list[Descriptor]] = {}
        for file in wanted:
            vector = file.deletion_vector
            if vector and file.vector not in self._held:
                missing.setdefault(str(vector.get("pathOrInlineDv")), []).append(vector)
        found: dict[str, Bitmap] = {}
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_READERS, len(missing))) as pool:
                parts = list(pool.map(self._read_all, missing.values()))
        else:
            parts = [self._read_all(vectors) for vectors in missing.values()]
        for vectors, bitmaps in zip(missing.values(), parts, strict=True):
            for vector, bitmap in zip(vectors, bitmaps, strict=True):
                found[identity(vector)] = self._keep(vector, bitmap)
        return {file.path: found.get(file.vector) or self._of(file) for file in wanted}

    def _of(self, file: AddFile) -> Bitmap:
        found = self.of(file)
        assert found is not None
        return found

    def write(self, bitmaps: Sequence[Bitmap]) -> list[dict[str, Any]]:
        """Make these vectors durable, in one file; their descriptors, in the same order. Raises `LakeError`."""
        if not bitmaps:
            return []
        name = uuid.uuid4()
        path = f"{FOLDER}/deletion_vector_{name}.bin"
        where = FOLDER + _to_z85(name.bytes)
        parts, descriptors, at = [_FORM], [], len(_FORM)
        for bitmap in bitmaps:
            data = _MAGIC + bitmap.serialize()
            parts += [len(data).to_bytes(4, "big"), data, zlib.crc32(data).to_bytes(4, "big")]
            descriptor = {
                "storageType": "u",
                "pathOrInlineDv": where,
                "offset": at,
                "sizeInBytes": len(data),
                "cardinality": len(bitmap),
            }
            descriptors.append(descriptor)
            at += len(data) + 8
        try:
            file = self._folder.create(path)
            try:
                file.write(b"".join(parts))
                file.finish()
            except BaseException:
                file.abandon()
                raise
            faults.point("lake.after-vectors")
        except OSError as error:
            raise failed(error, "the deletion vectors cannot be made durable", f"{self._folder}/{path}") from error
        self._folder.folder(FOLDER).settle()
        for descriptor, bitmap in zip(descriptors, bitmaps, strict=True):
            self._keep(descriptor, bitmap)
        return descriptors

    def _keep(self, vector: Descriptor, bitmap: Bitmap) -> Bitmap:
        name, size = identity(vector), int(vector.get("sizeInBytes") or 0)
        with self._lock:
            if name not in self._held and size <= HELD_BYTES:
                self._held[name] = size, bitmap
                self._bytes += size
            while self._bytes > HELD_BYTES:
                _, (size, _) = self._held.popitem(last=False)
                self._bytes -= size
        return bitmap

    # -- from where they are -------------------------------------------------------------------------------------------

    def _read_all(self, vectors: Sequence[Descriptor]) -> list[Bitmap]:
        """Vectors that lie in one file."""
        if len(vectors) > 1 and vectors[0].get("storageType") == "u":
            with _reading(self._folder, vectors[0]):
                first = min(int(v["offset"]) for v in vectors)
                end = max(int(v["offset"]) + int(v["sizeInBytes"]) + 8 for v in vectors)
                data = self._folder.read_range(_named(vectors[0]), first, end - first)
            return [self._parse(v, data[int(v["offset"]) - first :][: int(v["sizeInBytes"]) + 8]) for v in vectors]
        return [self._read(vector) for vector in vectors]

    def _read(self, vector: Descriptor) -> Bitmap:
        with _reading(self._folder, vector):
            kind, size = vector["storageType"], int(vector["sizeInBytes"])
            if kind == "i":
                return _bitmap(_from_z85(vector["pathOrInlineDv"])[:size], vector)
            offset = int(vector.get("offset") or 0)
            if kind == "u":
                data = self._folder.read_range(_named(vector), offset, size + 8)
            elif kind == "p":
                name = name_of(vector, str(self._folder))
                if name is not None:
                    data = self._folder.read_range(name, offset, size + 8)
                else:
                    data = _range_of(Path(_plain(vector["pathOrInlineDv"])), offset, size + 8)
            else:
                raise ValueError(f"storage type {kind}")
        return self._parse(vector, data)

    def _parse(self, vector: Descriptor, data: bytes) -> Bitmap:
        """Size, data, CRC-32."""
        with _reading(self._folder, vector):
            size = int(vector["sizeInBytes"])
            if len(data) != size + 8 or int.from_bytes(data[:4], "big") != size:
                raise ValueError("its size is not the one that the log says")
            if zlib.crc32(data[4:-4]) != int.from_bytes(data[-4:], "big"):
                raise ValueError("its checksum is wrong")
            return _bitmap(data[4:-4], vector)


@contextmanager
def _reading(folder: Folder, vector: Descriptor) -> Iterator[None]:
    """What can be wrong with a vector is `LakeDamagedError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise LakeDamagedError(
            f"deletion vector {_shown(vector)} {what}",
            where=str(folder),
            hint="restore the file, or `lakesync resync` the table",
        ) from error


def _shown(vector: Descriptor) -> str:
    try:
        return name_of(vector) or "of another writer"
    except (ValueError, KeyError, TypeError):
        return "without a name"


def _bitmap(data: bytes, vector: Descriptor) -> Bitmap:
    if data[:4] != _MAGIC:
        raise ValueError("it is of a form that lakesync does not read")
    found = Bitmap.parse(data[4:])
    if len(found) != cardinality(vector):
        raise ValueError(f"it deletes {len(found)} rows, the log says {cardinality(vector)}")
    return found


def _named(vector: Descriptor) -> str:
    name = name_of(vector)
    assert name is not None
    return name


def _plain(path: str) -> str:
    """A path or URL as the file system has it."""
    parts = urlsplit(path)
    return unquote(parts.path) if parts.scheme == "file" else unquote(path)


def _range_of(path: Path, offset: int, length: int) -> bytes:
    if not path.is_absolute():
        raise ValueError("it lies where lakesync does not reach")
    with path.open("rb") as file:
        file.seek(offset, os.SEEK_SET)
        return file.read(length)


def _from_z85(text: str) -> bytes:
    return base64.b85decode(text.translate(_FROM_Z85))


def _to_z85(data: bytes) -> str:
    return base64.b85encode(data).decode().translate(_TO_Z85)

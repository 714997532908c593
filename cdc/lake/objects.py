"""Folders in an object store that speaks S3 (AWS, MinIO and their like), by obstore. There are no folders there, only names with `/`.

What a put acknowledges is durable. A commit is a put under the condition that its name is free; a store that does not know the
condition is refused. Failed requests are repeated for a while, and that may lose a commit's answer: then the name is read back, and
what stands there tells whether the commit is ours, another's, or unknown. A name that is free proves nothing: the request may still be
on its way.
"""

from __future__ import annotations

import io
import re
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from cdc import faults
from cdc.errors import ConfigError, LakeError, LakeUnavailableError
from cdc.journal import logger
from cdc.lake.store import Entry, Tail, checked, conflict, failed, unknown
from cdc.roots import ObjectRoot

if TYPE_CHECKING:
    from obstore.store import S3Store

LOGGER = logger("lake")
T = TypeVar("T")

REQUEST_S = 30
"""One request, answer and all."""
CONNECT_S = 5
REPEAT_S = 60
"""For so long a request that failed by 5xx or by the network is repeated."""
PART = 8 * 1024 * 1024
"""Bytes: what is larger is held on disk until it is whole, and put in parts of this size."""
PARTS_AT_ONCE = 4
AT_ONCE = 8
"""Requests for many small files."""
TAIL = 256 * 1024
"""Bytes from a file's end that opening it reads: footers fit, and so do most files of one commit."""
ENDS = 64
"""So many of them are kept."""
AHEAD = 1024 * 1024
"""Bytes that are read at least from where something is wanted: the columns of a row group lie one behind the other."""
READS = 3
"""So often an answer is asked for that breaks off."""
PROBE = "-lakesync/probe-"

_REPEATS = "retry_timeout"
"""The one that says for how many seconds a request is repeated."""
_REFUSED = (
    "use a store with conditional writes (If-None-Match), as AWS S3, MinIO and Cloudflare R2 have, or a local folder"
)
_SEE = "see whether `lake:` and `lake_options:` are right, and whether the store answers; it is tried again"


class _Bucket:
    """One lake's way to its store, shared by all of its folders."""

    def __init__(self, root: ObjectRoot) -> None:
        self.url = root.url
        _, _, rest = root.url.partition("://")
        name, _, self.prefix = rest.partition("/")
        self.store = _open(name, dict(root.options), root.url)
        self.ends = _Ends()
        self._probing = threading.Lock()
        self._probed = False

    def probe(self) -> None:
        """Once: a put of a name that is taken must fail. Raises `LakeError`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._probing:
            if self._probed:
                return
            key = "/".join(part for part in (self.prefix, PROBE + uuid.uuid4().hex) if part)
            with _asked("cannot be written", self.url), _no_bucket(self.url):
                try:
                    with suppress(AlreadyExistsError):  # its answer was lost, and it was repeated
                        obstore.put(self.store, key, b"1", mode="create", use_multipart=False)
                    try:
                        obstore.put(self.store, key, b"2", mode="create", use_multipart=False)
                    except AlreadyExistsError:
                        self._probed = True
                finally:
                    with suppress(Exception):
                        obstore.delete(self.store, key)
            if not self._probed:
                raise LakeError("the store overwrites what it is asked not to", where=self.url, hint=_REFUSED)


class _Ends:
    """The last bytes of files that were opened or written lately, by key: what is opened has a name that is used once, and a file that was
    just written is the first to be read."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, size: int, end: bytes) -> None:
        """Remember a file's size and its end."""
        with self._lock:
            self._found[key] = size, end
            self._found.move_to_end(key)
            if len(self._found) > ENDS:
                self._found.popitem(last=False)

    def get(self, key: str) -> tuple[int, bytes] | None:
        """A file's size and its end, if they are known."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def forget(self, key: str) -> None:
        """The file was replaced or deleted."""
        with self._lock:
            self._found.pop(key, None)


def _open(bucket: str, given: Mapping[str, str], url: str) -> S3Store:
    options = {name.lower().removeprefix("aws_"): value for name, value in given.items()}
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise ConfigError(
            "object stores need the package obstore", where=f"lake: {url}", hint="pip install 'lakesync[s3]'"
        ) from error
    try:
        repeat_s = float(options.pop(_REPEATS, REPEAT_S))
        options.setdefault("timeout", f"{REQUEST_S}s")
        options.setdefault("connect_timeout", f"{CONNECT_S}s")
        if {"endpoint", "endpoint_url"} & options.keys():
            options.setdefault("region", "us-east-1")
        config: Any = options
        return S3Store(
            bucket,
            config=config,
            retry_config={
                "max_retries": 20,
                "retry_timeout": timedelta(seconds=repeat_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError, TypeError) as error:
        # Its text names the setting, and might show its value.
        raise ConfigError(
            f"lake_options are not understood ({type(error).__name__})",
            where=f"lake: {url}",
            hint="docs/lake.md lists them; one of these is wrong: " + ", ".join(sorted(given)),
        ) from None


@lru_cache(maxsize=16)
def _bucket(root: ObjectRoot) -> _Bucket:
    return _Bucket(root)


def open_objects(root: ObjectRoot) -> ObjectFolder:
    """The lake's root. Raises `ConfigError` for options that the store does not know. No request is made."""
    bucket = _bucket(root)
    return ObjectFolder(bucket, bucket.prefix)


class ObjectFolder:
    """As `cdc.lake.store.Folder` says; every failure of the store is a `LakeUnavailableError`, and can be tried again."""

    def __init__(self, bucket: _Bucket, path: str) -> None:
        self._bucket, self._store, self._path = bucket, bucket.store, path

    def __str__(self) -> str:
        below = self._path.removeprefix(self._bucket.prefix)
        return self._bucket.url + ("" if not below or below.startswith("/") else "/") + below

    def __repr__(self) -> str:
        return f"ObjectFolder({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFolder) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def _key(self, name: str) -> str:
        name = checked(name, self)
        return f"{self._path}/{name}" if self._path else name

    def folder(self, name: str) -> ObjectFolder:
        """As `Folder.folder`."""
        return ObjectFolder(self._bucket, self._key(name).rstrip("/"))

    def probe(self) -> None:
        """As `Folder.probe`."""
        self._bucket.probe()

    # -- reading -------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """As `Folder.names`."""
        import obstore

        with _no_bucket(self):
            found = _answer(lambda: obstore.list_with_delimiter(self._store, self._path or None), "listed", self)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return [name for path in paths if (name := path.rstrip("/").rpartition("/")[2])]

    def walk(self, without: str = "") -> Iterator[Entry]:
        """As `Folder.walk`."""
        import obstore

        before = len(self._path) + 1 if self._path else 0
        with _no_bucket(self):
            pages = _answer(lambda: list(obstore.list(self._store, self._path or None)), "listed", self)
        for found in chain.from_iterable(pages):
            name = found["path"][before:]
            if not without or not name.startswith(f"{without}/"):
                yield Entry(name, found["size"], int(found["last_modified"].timestamp() * 1000))

    def holds(self, name: str) -> bool:
        """As `Folder.holds`."""
        import obstore

        if self.size(name) is not None:
            return True
        with _no_bucket(self):
            return _answer(lambda: any(map(len, obstore.list(self._store, self._key(name)))), "listed", self)

    def size(self, name: str) -> int | None:
        """As `Folder.size`."""
        found = self._head(name)
        return None if found is None else int(found["size"])

    def tail(self, name: str) -> Tail | None:
        """As `Folder.tail`: the entity tag."""
        found = self._head(name)
        return None if found is None else _tail(found["e_tag"] or str(found["last_modified"]), found["size"])

    def made_us(self, name: str) -> int | None:
        """As `Folder.made_us`."""
        found = self._head(name)
        return None if found is None else int(found["last_modified"].timestamp() * 1_000_000)

    def _head(self, name: str) -> Any:
        import obstore

        with _asked("cannot be read", f"{self}/{name}"):
            try:
                return obstore.head(self._store, self._key(name))
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes:
        """As `Folder.read`."""
        import obstore

        return _answer(lambda: bytes(obstore.get(self._store, self._key(name)).bytes()), "read", f"{self}/{name}")

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """As `Folder.read_all`, several at once."""

        def one(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        rest = list(names)
        if len(rest) < 2:
            yield from map(one, rest)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while rest:
                some, rest = rest[: 4 * AT_ONCE], rest[4 * AT_ONCE :]
                yield from pool.map(one, some)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """As `Folder.read_range`."""
        import obstore

        if length <= 0:
            return b""
        wanted: Any = {"range": (offset, offset + length)}
        try:
            return _answer(
                lambda: bytes(obstore.get(self._store, self._key(name), options=wanted).bytes()),
                "read",
                f"{self}/{name}",
            )
        except LakeUnavailableError:
            size = self.size(name)
            if size is not None and offset >= size:
                return b""
            raise

    def open(self, name: str) -> pa.NativeFile:
        """As `Folder.open`: one request, which brings its end; none for a file that was just written."""
        key = self._key(name)
        found = self._bucket.ends.get(key)
        if found is None:
            found = self._end(name)
            self._bucket.ends.put(key, *found)
        return pa.PythonFile(_Reader(self, name, *found), mode="r")

    def _end(self, name: str) -> tuple[int, bytes]:
        """A file's size and its last bytes."""
        import obstore

        def ask() -> tuple[int, bytes]:
            found = obstore.get(self._store, self._key(name), options={"range": {"suffix": TAIL}})
            return int(found.meta["size"]), bytes(found.bytes())

        try:
            return _answer(ask, "read", f"{self}/{name}")
        except LakeUnavailableError:
            # Some stores refuse more bytes than there are, and all do so for a file of none.
            size = self.size(name)
            if size is None or size > TAIL:
                raise
        return size, self.read(name) if size else b""

    # -- writing -------------------------------------------------------------------------------------------------------

    def create(self, name: str) -> _ObjectOutput:
        """As `Folder.create`; nothing is sent before `finish`, which replaces what is there."""
        return _ObjectOutput(self, name)

    def put(self, name: str, data: Any, *, parts: bool = False) -> None:
        """Write or replace a file: bytes, or with `parts` what can be read. Raises `LakeUnavailableError`."""
        import obstore

        self._bucket.ends.forget(self._key(name))
        with _asked("cannot be written", f"{self}/{name}"), _no_bucket(self):
            obstore.put(
                self._store,
                self._key(name),
                data,
                use_multipart=parts,
                chunk_size=PART,
                max_concurrency=PARTS_AT_ONCE,
            )

    def written(self, name: str, size: int, end: bytes) -> None:
        """What was just put under a name has this size, and ends so."""
        self._bucket.ends.put(self._key(name), size, end)

    def put_if_absent(self, name: str, data: bytes) -> Tail | None:
        """As `Folder.put_if_absent`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        where = f"{self}/{name}"
        self._bucket.probe()
        try:
            faults.point("lake.before-commit")
        except OSError as error:
            raise failed(error, "the commit cannot be written", where) from error
        tail: Tail | None = None
        mode: Any = "overwrite" if faults.mutant("no_put_if_absent") else "create"
        try:
            put = obstore.put(self._store, self._key(name), data, mode=mode, use_multipart=False)
            tail = _tail(put["e_tag"], len(data))
        except AlreadyExistsError as error:
            # The first of several requests may have been ours, and its answer lost.
            if self._there(name, where, "the name is taken") != data:
                raise conflict(name, where) from error
        except Exception as error:
            if _certain(error):
                raise _unavailable(error, "the commit cannot be written", where) from error
            found = self._there(name, where, _reason(error))
            if found is None:
                raise unknown(_reason(error), where) from error
            if found != data:
                raise conflict(name, where) from error
            LOGGER.warning("commit-found", where=where, error=_reason(error))
        try:
            faults.point("lake.after-commit")
        except OSError as error:
            raise unknown(error.strerror or type(error).__name__, where) from error
        if tail is None:
            with suppress(LakeError):
                tail = self.tail(name)
        return tail

    def _there(self, name: str, where: str, reason: str) -> bytes | None:
        """What stands under a commit's name. Raises `LakeUnknownError` if that cannot be read either."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None
        except LakeError as error:
            raise unknown(f"{reason}; {error.what}", where) from error

    def replace(self, name: str, data: bytes, point: str = "") -> None:
        """As `Folder.replace`."""
        try:
            if point:
                faults.point(point)
        except OSError as error:
            raise failed(error, "cannot be written", f"{self}/{name}") from error
        self.put(name, data)

    def alias(self, name: str, other: str) -> None:
        """As `Folder.alias`: a copy."""
        import obstore

        if self.size(other) is None:
            with _asked("cannot be copied", f"{self}/{name}"):
                obstore.copy(self._store, self._key(name), self._key(other))

    def delete(self, names: Iterable[str]) -> int:
        """As `Folder.delete`."""
        import obstore
        from obstore.exceptions import BaseError

        def remove(name: str) -> bool:
            with suppress(LakeError, BaseError, FileNotFoundError):
                self._bucket.ends.forget(self._key(name))
                if self.size(name) is not None:
                    obstore.delete(self._store, self._key(name))
                    return True
            return False

        wanted = list(names)
        if len(wanted) < 2:
            return sum(map(remove, wanted))
        with ThreadPoolExecutor(min(AT_ONCE, len(wanted))) as pool:
            return sum(pool.map(remove, wanted))

    def settle(self) -> None:
        """As `Folder.settle`: what was acknowledged is durable."""


class _ObjectOutput:
    """Gathers a file, on disk if it is large, and puts it whole."""

    def __init__(self, folder: ObjectFolder, name: str) -> None:
        checked(name, folder)
        self._folder, self._name = folder, name
        self._file = tempfile.SpooledTemporaryFile(PART)  # noqa: SIM115 - `finish` or `abandon` closes it
        self._sent = False

    def write(self, data: bytes, /) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        pass

    @property
    def closed(self) -> bool:
        return self._file.closed

    def finish(self) -> None:
        try:
            size = self._file.tell()
            self._file.seek(0)
            self._sent = True
            if size <= PART:
                self._folder.put(self._name, self._file.read())
            else:
                self._folder.put(self._name, self._file, parts=True)
            self._file.seek(max(0, size - TAIL))
            self._folder.written(self._name, size, self._file.read())
        finally:
            self._file.close()

    def abandon(self) -> None:
        self._file.close()
        if self._sent:
            self._folder.delete([self._name])


class _Reader(io.RawIOBase):
    """A file by ranges, with a look ahead. For one thread at a time, as `pa.PythonFile` takes care of."""

    def __init__(self, folder: ObjectFolder, name: str, size: int, end: bytes) -> None:
        self._folder, self._name, self._size = folder, name, size
        self._end, self._end_at = end, size - len(end)
        self._ahead, self._ahead_at = b"", 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._at + size)
        pieces = []
        while self._at < stop:
            piece = self._held(stop)
            if not piece:
                self._fetch(stop)
                piece = self._held(stop)
            if not piece:
                raise LakeUnavailableError(
                    "fewer bytes came than were asked for", where=f"{self._folder}/{self._name}", hint=_SEE
                )
            pieces.append(piece)
            self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _held(self, stop: int) -> bytes:
        """What is held from here on, up to `stop`."""
        for held, at in ((self._end, self._end_at), (self._ahead, self._ahead_at)):
            if at <= self._at < at + len(held):
                return held[self._at - at : stop - at]
        return b""

    def _fetch(self, stop: int) -> None:
        wanted = min(max(stop, self._at + AHEAD), self._end_at)
        self._ahead, self._ahead_at = self._folder.read_range(self._name, self._at, wanted - self._at), self._at


def _tail(etag: str | None, size: int) -> Tail | None:
    return Tail(f"{etag}-{size}") if etag else None


@contextmanager
def _asked(what: str, where: object) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise _unavailable(error, what, str(where)) from error


def _answer(ask: Callable[[], T], what: str, where: object) -> T:
    """What is read or listed. An answer that breaks off is asked for again: obstore does that with files, and not with lists."""
    from obstore.exceptions import BaseError

    for left in reversed(range(READS)):
        try:
            return ask()
        except BaseError as error:
            if not left or "kind: Interrupted" not in str(error):
                raise _unavailable(error, f"cannot be {what}", str(where)) from error
    raise AssertionError


@contextmanager
def _no_bucket(where: object) -> Iterator[None]:
    """Where no file is asked for, the bucket is what is not found."""
    try:
        yield
    except FileNotFoundError as error:
        raise LakeUnavailableError(
            "there is no such bucket", where=str(where), hint="make the bucket, or put `lake:` right"
        ) from error


def _certain(error: Exception) -> bool:
    """Whether the store certainly took nothing."""
    from obstore.exceptions import InvalidPathError, NotSupportedError, PermissionDeniedError, UnauthenticatedError

    refused = (PermissionDeniedError, UnauthenticatedError, NotSupportedError, InvalidPathError, FileNotFoundError)
    status = _status(error)
    return isinstance(error, refused) or (status is not None and 400 <= status < 500 and status not in (408, 409, 429))


def _status(error: Exception) -> int | None:
    """Of the last answer, by the error's text: nothing else has it."""
    found = re.search(r"\bstatus: (\d{3})\b|status code: (\d{3})\b", str(error))
    return int(found[1] or found[2]) if found else None


def _reason(error: Exception) -> str:
    """Short, and without what the store or the network wrote."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in str(error):
        return "there is no such bucket"
    status, kind = _status(error), re.search(r"\bkind: (Timeout|Connect)\b", str(error))
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return "the store refuses these credentials"
    if status is not None:
        return f"the store answers {status}"
    if kind:
        return "the store did not answer in time" if kind[1] == "Timeout" else "the store was not reached"
    return f"no answer that can be used ({type(error).__name__})"


def _unavailable(error: Exception, what: str, where: str) -> LakeUnavailableError:
    return LakeUnavailableError(f"{what}: {_reason(error)}", where=where, hint=_SEE)

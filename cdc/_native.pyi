"""The native module, built from `native/`."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

def crc32(data: bytes) -> int:
    """CRC-32 (IEEE 802.3) of `data`, as MySQL appends it to binlog events. Releases the GIL from 64 KiB on."""

def version() -> str:
    """The version of the crate that this module was built from, such as `0.1.0`."""

def decode_text(charset: str, data: bytes) -> str | None:
    """Bytes of a server's character set as text; None where the server would put a question mark. ValueError: no such character set."""

def charset_of_collation(collation: int) -> str | None:
    """The character set of a collation of MySQL or MariaDB, by its number."""

def inet6_text(data: bytes) -> str:
    """The 16 bytes of an IPv6 address as MariaDB prints it. ValueError for another number of bytes."""

def json_text(data: bytes) -> str:
    """MySQL's binary JSON as the server prints it. ValueError if it is damaged."""

def json_diffs(data: bytes) -> list[tuple[int, str, str | None]]:
    """The differences of a partial update: 0 to replace, 1 to insert, 2 to remove; path; the new value's text. ValueError if damaged."""

def json_patch(text: str, diffs: list[tuple[int, str, str | None]]) -> str | None:
    """The text of a JSON value, as the server prints it, after these differences; None where they do not fit the value."""

def texts(array: _Arrow, time: bool = False) -> Batch:
    """The canonical texts (`cdc.source.canonical`) of an array of the lake's types, string; null stays null. `time`: int64 is a TIME in µs.

    Raises `TypeError` for a type that no column has, `ValueError` for more than 2 GiB of texts.
    """

def row_digests(batch: _Arrow, kinds: Sequence[str], unfit: _Arrow | None = None) -> Batch:
    """Of each row of a record batch the first 16 bytes of the SHA-256 over its fields; fixed_size_binary(16).

    `kinds`: how each column is laid out (`cdc.source.digests`): `plain`, `time` (plain; int64 is a TIME), `bytes`, `hexed` (bytes; texts are
    hexadecimal digits), `hashed`. `unfit`: the same rows' `_cdc_unfit`. Raises `ValueError`, `TypeError` for what does not belong together.
    """

def row_buckets(batch: _Arrow, kinds: Sequence[str], bits: int, unfit: _Arrow | None = None) -> Batch:
    """Of each row the lowest `bits` bits of the CRC-32 over its fields, uint32; arguments and errors of `row_digests`."""

def chunk_of(keys: _Arrow, bounds: _Arrow) -> Batch:
    """For each key how many of the bounds are not after it, uint32. Both are record batches of the key's columns, in its order and of the same
    types; bounds ascend. Texts and binaries are ordered by their bytes, all else by value. Raises `ValueError` for a null, or other types.
    """

def sums(digests: _Arrow, chunks: _Arrow, n: int) -> Batch:
    """For each of `n` chunks struct<rows: int64, high: decimal128(38, 0), low: decimal128(38, 0)>: its rows, and the sums of the first and the
    last eight bytes of their digests (fixed_size_binary(16)), as unsigned big-endian numbers. `chunks`: uint32, each digest's.
    """

class DecodeError(Exception):
    """Bytes that cannot be decoded: `args` are the kind (`damaged`, `unsupported`, `table` or `identity`) and what, without row values."""

class ServerError(Exception):
    """The server answered with an error: `args` are its code, SQLSTATE and message. Code 0: it ended the stream."""

class Batch:
    """An Arrow array; of structs for a batch of rows: `pyarrow.record_batch(it)`, `pyarrow.array(it)`."""

    def __len__(self) -> int: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

class _Arrow(Protocol):
    """An Arrow array or record batch, such as pyarrow's."""

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[object, object]: ...

class Bitmap:
    """A set of row numbers, never changed once made: a 64-bit portable roaring bitmap, as in Delta's deletion vectors."""

    def __init__(self) -> None:
        """The empty set."""

    @staticmethod
    def parse(data: bytes) -> Bitmap:
        """What `serialize` gives, and nothing after it. Raises `ValueError` if it is damaged."""

    def serialize(self) -> bytes:
        """The portable form: Delta's payload without its magic number."""

    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def add(self, rows: _Arrow) -> Bitmap:
        """A new one that has these rows as well: uint32, in any order, some of them perhaps in it. Raises `ValueError` for a null."""

    def union(self, other: Bitmap) -> Bitmap: ...
    def lacks(self, other: Bitmap) -> int:
        """How many of `other`'s rows are not in this one; 0: it has them all."""

    def kept(self, first: int, count: int) -> Batch:
        """`count` booleans: whether row `first + i` is not in it."""

    def rows(self) -> Batch:
        """All of them, uint64, ascending."""

class KeyIndex:
    """The newest place, a file and a row of it, of every key of a table.

    Keys are record batches of the key's columns: one or more of booleans, integers, floats (by their bits), decimal128, date32,
    timestamps, strings and binaries. The first `add` fixes their types. Files have numbers that the caller gives, growing in time
    and never given again. One call at a time; more threads wait for each other, without the GIL.

    In a folder are a file `index`, replaced as a whole by `save`, and the runs that it names, which are never changed. After an
    `OSError` (no room in its folder) nothing is lost, and the call can be repeated.
    """

    def __init__(self, folder: str | None, memory: int) -> None:
        """An empty one. It replaces what is in `folder` when it is saved, not before; without a folder it cannot be opened again.

        `memory`: bytes that the newest entries may take; beyond it they go into files, also without a folder (unlinked ones).
        """

    @staticmethod
    def open(folder: str, memory: int) -> KeyIndex:
        """What was saved last. `FileNotFoundError`: nothing was; `ValueError`: it is damaged or of another form."""

    @property
    def stamp(self) -> bytes:
        """What `save` was given last; empty if it never was."""

    def set_file(self, number: int, dead: Bitmap | None = None) -> None:
        """The file is live, except for these rows. Files are not live before this is called. It is kept by `save`."""

    def drop_file(self, number: int) -> None:
        """No place in the file counts from now on."""

    def add(self, number: int, first_row: int, keys: _Arrow, dead: Bitmap | None = None) -> None:
        """The keys of rows `first_row`… of a file, in order; rows in `dead` are passed over. Newer places win over older ones.

        It is best called after what has ended by the same commit was told by `set_file` and `drop_file`.
        Raises `ValueError`: a key is NULL, or of other types than the index's. `OSError`: its folder cannot be written.
        """

    def locate(self, keys: _Arrow) -> Batch:
        """Of each key the newest live place, struct<file: uint32, row: uint32>; null, as both fields are, where there is none.

        Raises `ValueError` as `add` does.
        """

    def compact(self) -> int:
        """Make everything one run, without dead places; how many keys have more than one live place, which should be none."""

    def write_run(self) -> None:
        """Everything that is only in memory goes into a run; nothing refers to it before `save`."""

    def save(self, stamp: bytes) -> None:
        """Everything, and which files are live, is what `open` finds from now on. A machine that stops may lose it: then `open` raises
        `ValueError`."""

    @property
    def memory(self) -> int:
        """Bytes that it takes now, without what the system may drop: the mapped runs."""

    @property
    def entries(self) -> int:
        """Places in it, dead ones too."""

    @property
    def runs(self) -> int:
        """How many runs a lookup may have to look at."""

class ResultSet:
    """Reads one result set into columns: what a query (`binary=False`) or COM_STMT_EXECUTE answers."""

    def __init__(self, columns: Sequence[dict[str, Any]], binary: bool = True) -> None: ...
    def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """The next bytes from the socket, cut anywhere. True once the result set has ended. Raises `DecodeError`, `ServerError`."""

    @property
    def rows(self) -> int:
        """Rows that can be taken."""

    @property
    def bytes(self) -> int:
        """Bytes that these take in memory, and what waits for the rest of its packet."""

    def take(self) -> Batch:
        """The pending rows: the columns, then `_cdc_unfit` if a row has one; none are left."""

class BinlogDecoder:
    """Decodes what answers COM_BINLOG_DUMP: packets, each a status byte and an event. After an error every further call raises it."""

    def __init__(
        self, *, mariadb: bool = False, drain_bytes: int, part_bytes: int, max_event: int = ..., mutant: str = ""
    ) -> None: ...
    def feed(self, data: bytes | bytearray | memoryview) -> tuple[Any, ...] | None:
        """Take `data`, cut anywhere; None when more is needed, else what the decoder waits for: answer, then `feed(b"")` goes on.

        `("drain",)`: call `drain`. `("table", schema, name, columns, key, named)`: the first TABLE_MAP with this definition of a
        captured table, columns as `Column.to_dict()`; call `table`. `("statement", database, sql, charset, ansi_quotes,
        no_backslash_escapes)`: call `statement`; `charset` is the server's name, empty if it is not known.
        """

    def table(self, plan: Sequence[dict[str, Any] | None] | None) -> None:
        """A plan (`TableSchema.plans()`) for each column of the definition, None for one that is not wanted; or None: skip its rows."""

    def statement(self, kind: str, savepoint: str = "") -> None:
        """`statement`, `create-select`, `savepoint`, `rollback-to`, `begin`, `commit` or `rollback`."""

    def capture(self, tables: Sequence[tuple[str, str]]) -> None:
        """Decode exactly these tables (schema, name). Raises `ValueError` unless idle."""

    def stop_table(self, schema: str, name: str) -> None:
        """Give no more rows of a table, from the open transaction on; those of it that were not given are forgotten."""

    def pass_over(self, gtids: Collection[str]) -> None:
        """Of transactions that begin from here on, pass over exactly these."""

    def counted(self, gtid: str, row_events: int) -> None:
        """Of this transaction, if it is passed over, so many row events, and what was before them, were counted before."""

    def resume(self, gtid: str, commit_us: int, row_events: int) -> None:
        """The first transaction that is not passed over must be this one; its first `row_events` row events were given before."""

    def drain(self) -> Drained:
        """Give and forget all whole transactions, and the open one's rows if a part of them is ready."""

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of events that a drain would give; of compressed transactions, decompressed."""

    @property
    def open_gtid(self) -> str | None:
        """The transaction at hand; after an error the one that it was in."""

    @property
    def resumed_changes(self) -> int:
        """Of the open transaction: how many changes of captured tables are in the row events that were given before (`resume`)."""

    @property
    def where(self) -> str:
        """`file:offset` of the event at hand."""

class Drained:
    """What `BinlogDecoder.drain` gives. Lists are made anew each time that they are asked for."""

    @property
    def gtids(self) -> list[str]:
        """One a transaction, as `_txn` indexes them: whole ones, then the open one if rows of it are given."""

    def gtid_array(self) -> Batch:
        """The same as an Arrow array of strings."""

    @property
    def commit_us(self) -> list[int]:
        """Original commit times, µs since 1970."""

    def commit_us_bytes(self) -> bytes:
        """The same as the bytes of an array of int64."""

    @property
    def row_events(self) -> list[int]:
        """Of every table; of an open transaction those so far."""

    @property
    def whole(self) -> int:
        """How many of `gtids` are whole."""

    @property
    def executed(self) -> list[tuple[str, int, int]]:
        """Runs of whole transactions, in order: source, first, last."""

    @property
    def changes(self) -> list[tuple[str, str, int, Batch, Batch | None, Batch | None]]:
        """Schema, name, number of the `table` call that the rows were read under (from 0), rows, presence, diffs."""

    @property
    def stops(self) -> list[tuple[int, str, str, str]]:
        """Transaction, schema, name, why: no rows of the table from there on."""

    @property
    def framing(self) -> dict[str, int]:
        """As in `cdc.capture.base.FRAMING`."""

    @property
    def prepared_bytes(self) -> int:
        """Of the binary log's bytes before `offset`, those of transactions that are prepared and no more."""

    @property
    def skipped(self) -> list[str]:
        """GTIDs that were passed over."""

    @property
    def file(self) -> str:
        """With `offset`: the place after everything that belongs to no open transaction."""

    @property
    def offset(self) -> int: ...

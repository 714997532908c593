"""The native module, built from `native/`."""

def crc32(data: bytes) -> int:
    """CRC-32 (IEEE 802.3) of `data`, as MySQL appends it to binlog events. Releases the GIL from 64 KiB on."""

def version() -> str:
    """The version of the crate that this module was built from, such as `0.1.0`."""

def decode_text(charset: str, data: bytes) -> str | None:
    """Bytes of a server's character set as text; None where the server would put a question mark. ValueError: no such character set."""

def charset_of_collation(id: int) -> str | None:
    """The character set of a collation of MySQL or MariaDB, by its number."""

def json_text(data: bytes) -> str:
    """MySQL's binary JSON as the server prints it. ValueError if it is damaged."""

def json_diffs(data: bytes) -> list[tuple[int, str, str | None]]:
    """The differences of a partial update: 0 to replace, 1 to insert, 2 to remove; path; the new value's text. ValueError if damaged."""

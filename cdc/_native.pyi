"""The native module, built from `native/`."""

def crc32(data: bytes) -> int:
    """CRC-32 (IEEE 802.3) of `data`, as MySQL appends it to binlog events. Releases the GIL from 64 KiB on."""

def version() -> str:
    """The version of the crate that this module was built from, such as `0.1.0`."""

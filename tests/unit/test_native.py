"""The native module is there, and counts right on both sides of the size from which it releases the GIL."""

from __future__ import annotations

import zlib

import pytest

import cdc._native as native


@pytest.mark.parametrize("size", [0, 1, 19, 64 * 1024 - 1, 64 * 1024, 1_000_003])
def test_crc32_is_zlibs(size: int) -> None:
    data = bytes(i * 31 & 0xFF for i in range(size))
    assert native.crc32(data) == zlib.crc32(data)


def test_version_is_the_crates() -> None:
    assert native.version() == "0.1.0"

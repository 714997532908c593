"""Names of tables: as people write them, as MySQL quotes them, and as folders and topics.

Folders and topics use an injective encoding: every UTF-8 byte outside `[a-z0-9_]` becomes `-` and two hex digits, `-`
itself too. So two tables never share a folder, nothing lands outside the lake, and readers that cannot open `%XX`, spaces
or other scripts can open every table.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cdc.errors import ConfigError

FOLDER_LIMIT = 255
"""Bytes in a file name on the usual file systems."""
TOPIC_LIMIT = 249
"""Characters in a Kafka topic's name."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_")
_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.\s]+)")


def encode(name: str) -> str:
    """A folder name for `name`; injective, ASCII, without a separator."""
    return "".join(chr(b) if b in _PLAIN else f"-{b:02x}" for b in name.encode())


def decode(encoded: str) -> str:
    """The name that `encode` was given. Raises `ValueError` for what it never returns."""
    raw = re.sub(rb"-([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), encoded.encode())
    name = raw.decode()
    if encode(name) != encoded:
        raise ValueError(f"not an encoded name: {encoded!r}")
    return name


def quote_identifier(name: str) -> str:
    """`name` as a MySQL identifier, in back quotes. Raises `ConfigError` for what MySQL cannot name."""
    if not name or "\0" in name:
        raise ConfigError("not a name that MySQL can have", where=repr(name))
    return "`" + name.replace("`", "``") + "`"


class TableName(NamedTuple):
    """A table of the source."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """`schema.table`; a part with a dot, a space or a back quote is written in back quotes, as in MySQL."""
        parts, at = [], 0
        while at <= len(text):
            match = _PART.match(text, at)
            if not match:
                break
            parts.append(match[1].replace("``", "`") if match[1] is not None else match[2])
            at = match.end()
            if at == len(text):
                if len(parts) == 2:
                    return cls(*parts)
                break
            if text[at] != ".":
                break
            at += 1
        raise ConfigError("not a table name", where=repr(text), hint="write schema.table")

    def __str__(self) -> str:
        return ".".join(p if re.fullmatch(r"[^`.\s]+", p) else quote_identifier(p) for p in self)

    @property
    def id(self) -> str:
        """The table in commit records, topics and the trace: both names encoded, with a dot between."""
        return f"{encode(self.schema)}.{encode(self.name)}"

    @classmethod
    def from_id(cls, text: str) -> TableName:
        """The table with this `id`. Raises `ValueError`."""
        schema, _, name = text.partition(".")
        return cls(decode(schema), decode(name))

    @property
    def quoted(self) -> str:
        """The table in a MySQL statement."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    @property
    def folder(self) -> str:
        """The table's folder under the lake's root. Raises `ConfigError` where a name is too long for one."""
        for part in self:
            if len(encode(part)) > FOLDER_LIMIT:
                raise ConfigError(
                    f"the name needs {len(encode(part))} bytes as a folder, {FOLDER_LIMIT} are possible",
                    where=str(self),
                )
        return f"{encode(self.schema)}/{encode(self.name)}"

    def topic(self, pipeline: str) -> str:
        """The table's Kafka topic. Raises `ConfigError` where it is too long for one."""
        topic = f"{encode(pipeline)}.{self.id}"
        if len(topic) > TOPIC_LIMIT:
            raise ConfigError(
                f"the topic's name needs {len(topic)} characters, {TOPIC_LIMIT} are possible", where=str(self)
            )
        return topic

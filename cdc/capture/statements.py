"""What a statement that the binary log holds as text does, and to which tables. Pure.

The answer errs to one side: a statement may be taken to change a table that it only reads, never the reverse. The words at a
statement's head are read here, with MySQL's and MariaDB's comments and quotes; sqlglot says which tables an UPDATE or DELETE of several tables
changes; of what neither understands, every word counts as a table's name. The text is never shown: it may hold values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from cdc.names import TableName

PARSE_LIMIT = 256 * 1024
"""Characters of a statement that sqlglot is given; a longer one is not parsed, and all its words count."""


class Kind(Enum):
    """What a statement does."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback to"
    XA = "xa"
    CREATE_SELECT = "create select"
    """CREATE TABLE whose rows follow in the same transaction."""
    DEFINITION = "definition"
    """DDL that changes a table's columns, name, existence, or its rows without row events."""
    WRITE = "write"
    """Rows, changed by the statement itself: STATEMENT format."""
    HIDDEN = "hidden"
    """Runs stored code, which may write to any table: SELECT, DO, CALL."""
    OTHER = "other"
    """Nothing that a row image would show."""
    UNKNOWN = "unknown"
    """Not understood."""


@dataclass(frozen=True)
class Statement:
    """A statement, without its values."""

    kind: Kind
    verb: str = ""
    """Its first words, for people."""
    tables: frozenset[TableName] = frozenset()
    """Those that it may change."""
    schemas: frozenset[str] = frozenset()
    """Those that it drops with all tables."""
    savepoint: str = ""
    words: frozenset[str] = frozenset()
    """UNKNOWN: whatever could be a name, case folded."""

    @property
    def empties(self) -> bool:
        """Whether all rows of its tables, those that were there before it, went at once, and nothing else happened to them than what `drops`
        says."""
        return self.verb in ("TRUNCATE TABLE", *_GONE)

    @property
    def drops(self) -> bool:
        """Whether the tables that were there before it are gone: also where it makes one, since it did."""
        return self.verb in _GONE

    def touches(self, tables: Collection[TableName], ignore_case: bool = False) -> list[TableName]:
        """Which of `tables` it may change. `ignore_case`: the server takes names of tables without their case."""
        if self.kind is Kind.UNKNOWN:
            return sorted(t for t in tables if t.name.casefold() in self.words)
        named = {_fold(t, ignore_case) for t in self.tables}
        schemas = {s.casefold() if ignore_case else s for s in self.schemas}
        return sorted(t for t in tables if (f := _fold(t, ignore_case)) in named or f.schema in schemas)


_GONE = ("DROP TABLE", "DROP DATABASE", "DROP SCHEMA", "CREATE TABLE")


def _fold(table: TableName, ignore_case: bool) -> TableName:
    return TableName(table.schema.casefold(), table.name.casefold()) if ignore_case else table


class _Token(NamedTuple):
    kind: str  # word, name (in back quotes), string, sign, bad
    text: str  # without quotes
    raw: str

    @property
    def upper(self) -> str:
        """The word; empty if it is quoted, and so no keyword."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def is_name(self) -> bool:
        return self.kind in ("word", "name")


def _lexer(backslash: bool) -> re.Pattern[str]:
    plain, escaped = (r"\\", r"|\\.") if backslash else ("", "")
    return re.compile(
        rf"""
        (?P<blank>\s+ | \#[^\n]* | --(?=[\s\x00-\x1f]|\Z)[^\n]* | /\*(?!M?!).*?\*/ | /\*M?!\d* | \*/)
      | (?P<name>`(?:[^`]|``)*+`)
      | (?P<word>[\w$@]+)
      | (?P<single>'(?:[^'{plain}]{escaped}|'')*+')
      | (?P<double>"(?:[^"{plain}]{escaped}|"")*+")
      | (?P<bad>['"`] | /\*)
      | (?P<sign>.)
        """,
        re.VERBOSE | re.DOTALL,
    )


_LEXER, _LEXER_NO_ESCAPES = _lexer(True), _lexer(False)


def _tokens(sql: str, ansi_quotes: bool, no_backslash_escapes: bool) -> Iterator[_Token]:
    lexer = _LEXER_NO_ESCAPES if no_backslash_escapes else _LEXER
    for match in lexer.finditer(sql):
        kind, raw = match.lastgroup, match[0]
        if kind in ("name", "double" if ansi_quotes else "name"):
            quote = raw[0]
            yield _Token("name", raw[1:-1].replace(quote * 2, quote), raw)
        elif kind in ("single", "double"):
            yield _Token("string", raw[1:-1], raw)
        elif kind != "blank":
            yield _Token(str(kind), raw, raw)


class _UnclearError(Exception):
    """The words do not stand as MySQL's grammar wants them."""


class _Reader:
    """Tokens, one ahead."""

    def __init__(self, tokens: Iterator[_Token], database: str) -> None:
        self._tokens = tokens
        self._database = database
        self.next = self._pull()

    def _pull(self) -> _Token:
        return next(self._tokens, _Token("end", "", ""))

    def take(self) -> _Token:
        token, self.next = self.next, self._pull()
        return token

    def skip(self, *words: str) -> bool:
        """Take words for as long as they are among these. Whether one was."""
        found = False
        while self.next.upper in words:
            found = True
            self.take()
        return found

    def ident(self) -> str:
        if not self.next.is_name:
            raise _UnclearError
        return self.take().text

    def table(self) -> TableName:
        if self.next.raw == ".":  # MySQL takes `.t` for a table of the default schema
            self.take()
        first = self.ident()
        if self.next.raw != ".":
            return TableName(self._database, first)
        self.take()
        return TableName(first, self.ident())

    def changed(self) -> TableName:
        """A table, with what MariaDB takes around its name: IF EXISTS before it, WAIT n behind."""
        self.skip("IF", "EXISTS")
        found = self.table()
        if self.skip("WAIT"):
            self.take()
        self.skip("NOWAIT")
        return found

    def tables(self) -> Iterator[TableName]:
        yield self.table()
        while self.next.raw == ",":
            self.take()
            yield self.table()

    def until(self, *words: str) -> str:
        """Take up to and with the first of these words, wherever it stands. It, or empty at the end."""
        while self.next.kind != "end":
            if (word := self.take().upper) in words:
                return word
        return ""


_OBJECTS = (
    "TABLE",
    "TABLES",
    "INDEX",
    "DATABASE",
    "SCHEMA",
    "VIEW",
    "TRIGGER",
    "PROCEDURE",
    "FUNCTION",
    "EVENT",
    "USER",
    "ROLE",
    "SERVER",
    "TABLESPACE",
    "LOGFILE",
    "RESOURCE",
    "REFERENCE",
    "LIBRARY",
    "SEQUENCE",
    "PACKAGE",
    "INSTANCE",
    "PREPARE",
)
_HARMLESS = frozenset(
    {
        "ANALYZE",
        "CACHE",
        "CHECK",
        "CHECKSUM",
        "FLUSH",
        "GRANT",
        "IMPORT",
        "INSTALL",
        "KILL",
        "LOCK",
        "OPTIMIZE",
        "PURGE",
        "RELEASE",
        "RESET",
        "REVOKE",
        "SET",
        "SHOW",
        "UNINSTALL",
        "UNLOCK",
        "USE",
    }
)
_HIDING = frozenset({"SELECT", "DO", "CALL", "HANDLER", "EXECUTE", "BINLOG"})
_CONTROL = {"BEGIN": Kind.BEGIN, "COMMIT": Kind.COMMIT, "XA": Kind.XA}


def classify(
    sql: bytes, database: str, *, encoding: str = "utf-8", ansi_quotes: bool = False, no_backslash_escapes: bool = False
) -> Statement:
    """What `sql` does, run with `database` as the default schema.

    `encoding` is Python's name of the client's character set, `ansi_quotes` and `no_backslash_escapes` are of its sql_mode. Never
    raises: what is not understood is UNKNOWN.
    """
    try:
        text = sql.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return _unknown(sql.decode("utf-8", "replace"), "")
    tokens = _tokens(text, ansi_quotes, no_backslash_escapes)
    reader = _Reader(tokens, database)
    verb = reader.next.upper
    try:
        return _statement(reader, text, database, ansi_quotes, no_backslash_escapes)
    except _UnclearError:
        return _unknown(text, verb)


def _unknown(text: str, verb: str) -> Statement:
    words = re.findall(r"[\w$]+|`(?:[^`]|``)+`|\"(?:[^\"]|\"\")+\"", text)
    names = {w if w[0] not in '`"' else w[1:-1].replace(w[0] * 2, w[0]) for w in words}
    return Statement(Kind.UNKNOWN, verb, words=frozenset(n.casefold() for n in names))


def _statement(reader: _Reader, text: str, database: str, ansi_quotes: bool, no_backslash_escapes: bool) -> Statement:
    while reader.next.raw == "(":
        reader.take()
    verb = reader.take().upper
    if verb in _CONTROL:
        return Statement(_CONTROL[verb], verb)
    if verb == "START" and reader.skip("TRANSACTION"):
        return Statement(Kind.BEGIN, "START TRANSACTION")
    if verb == "SAVEPOINT":
        return Statement(Kind.SAVEPOINT, verb, savepoint=reader.ident().casefold())
    if verb == "ROLLBACK":
        reader.skip("WORK")
        if not reader.skip("TO"):
            return Statement(Kind.ROLLBACK, verb)
        # A savepoint may itself be called so.
        if reader.next.upper == "SAVEPOINT":
            word = reader.take()
            return Statement(
                Kind.ROLLBACK_TO,
                "ROLLBACK TO",
                savepoint=(reader.take() if reader.next.is_name else word).text.casefold(),
            )
        return Statement(Kind.ROLLBACK_TO, "ROLLBACK TO", savepoint=reader.ident().casefold())
    if verb in ("ALTER", "CREATE", "DROP", "RENAME", "TRUNCATE", "REPAIR"):
        return _definition(verb, reader)
    if verb in ("INSERT", "REPLACE"):
        reader.skip("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO")
        return Statement(Kind.WRITE, verb, frozenset({reader.table()}))
    if verb == "LOAD":
        if reader.next.upper == "INDEX":
            return Statement(Kind.OTHER, "LOAD INDEX")
        if not reader.until("INTO") or not reader.skip("TABLE"):
            raise _UnclearError
        return Statement(Kind.WRITE, "LOAD DATA", frozenset({reader.table()}))
    if verb in ("UPDATE", "DELETE", "WITH"):
        if len(text) > PARSE_LIMIT:
            raise _UnclearError
        # Without comments, since MySQL executes some of them.
        plain = " ".join(t.raw for t in _tokens(text, ansi_quotes, no_backslash_escapes))
        written = _written(plain, database)
        return Statement(Kind.WRITE if written else Kind.HIDDEN, verb, written)
    if verb == "SET" and reader.skip("STATEMENT") and reader.until("FOR"):
        # MariaDB's: settings for the one statement behind them. What would be parsed as a whole is not cut out of the text.
        if reader.next.upper in ("UPDATE", "DELETE", "WITH", "SET"):
            raise _UnclearError
        return _statement(reader, text, database, ansi_quotes, no_backslash_escapes)
    if verb in _HIDING:
        return Statement(Kind.HIDDEN, verb)
    if verb in _HARMLESS:
        return Statement(Kind.OTHER, verb)
    raise _UnclearError


def _definition(verb: str, reader: _Reader) -> Statement:
    if verb == "TRUNCATE":
        reader.skip("TABLE")
        return Statement(Kind.DEFINITION, "TRUNCATE TABLE", frozenset({reader.table()}))
    temporary = False
    while (word := reader.take()).upper not in _OBJECTS:
        if word.kind == "end":
            raise _UnclearError
        temporary |= word.upper == "TEMPORARY"
    what = word.upper.removesuffix("S") if word.upper == "TABLES" else word.upper
    name = f"{verb} {what}"
    if what in ("DATABASE", "SCHEMA") and verb == "DROP":
        reader.skip("IF", "EXISTS")
        return Statement(Kind.DEFINITION, name, schemas=frozenset({reader.ident()}))
    if what != "TABLE" or temporary:
        return Statement(Kind.OTHER, name)
    if verb == "CREATE":
        if reader.skip("IF", "NOT", "EXISTS"):
            # The server logs it even where the table exists; and that a captured one does is known.
            return Statement(Kind.OTHER, f"{name} IF NOT EXISTS")
        table = reader.table()
        rows_follow = False
        while reader.until("START"):
            rows_follow = reader.next.upper == "TRANSACTION"
        return Statement(Kind.CREATE_SELECT if rows_follow else Kind.DEFINITION, name, frozenset({table}))
    if verb == "RENAME":
        found = set()
        while True:
            found.add(reader.changed())
            if not reader.skip("TO"):
                raise _UnclearError
            found.add(reader.table())
            if reader.next.raw != ",":
                return Statement(Kind.DEFINITION, name, frozenset(found))
            reader.take()
    if verb in ("DROP", "REPAIR"):
        reader.skip("IF", "EXISTS")
        return Statement(Kind.DEFINITION, name, frozenset(reader.tables()))
    found = {reader.changed()}
    while change := reader.until("RENAME", "EXCHANGE", "CONVERT"):
        if change == "CONVERT":
            # MariaDB's CONVERT TABLE t TO PARTITION p and CONVERT PARTITION p TO TABLE t; not CONVERT TO CHARACTER SET.
            if reader.skip("PARTITION"):
                reader.ident()
                reader.skip("TO")
            if reader.skip("TABLE"):
                found.add(reader.table())
        elif change == "EXCHANGE":
            if not reader.until("TABLE"):
                raise _UnclearError
            found.add(reader.table())
        elif reader.next.upper not in ("COLUMN", "INDEX", "KEY"):
            reader.skip("TO", "AS", "=")
            if reader.next.raw == "=":
                reader.take()
            found.add(reader.table())
    return Statement(Kind.DEFINITION, name, frozenset(found))


def _written(text: str, database: str) -> frozenset[TableName]:
    """The tables that an UPDATE, DELETE or WITH may change: all that it names outside subqueries. None for a SELECT."""
    import sqlglot  # late: it takes longer to load than most of lakesync, and few pipelines ever need it
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        tree = sqlglot.parse_one(text, dialect="mysql")
    except (SqlglotError, RecursionError, ValueError, TypeError, AttributeError):
        raise _UnclearError from None
    if isinstance(tree, exp.Query):
        return frozenset()
    if not isinstance(tree, exp.Update | exp.Delete | exp.Insert):
        raise _UnclearError
    found = {
        TableName(table.db or database, table.name)
        for table in tree.find_all(exp.Table)
        if table.name and not table.find_ancestor(exp.Select)
    }
    if not found:
        raise _UnclearError
    return frozenset(found)

"""Taking over a Delta table that someone else wrote (deltalake, Spark, polars): one commit that makes it this pipeline's.

Nothing is converted. The table must hold the source's rows as lakesync would have written them: the same columns in the same types, not
partitioned, each key once, without anything in its protocol that binds a writer. Everything else is refused, with all that is in the
way at once. Of the files only the key columns are read, and the footers; they stay as they are, and the commit states them anew, with
the number of rows and the bounds of the key that were found. `_cdc_ts_ms` and `_cdc_seq` are added, and NULL in every row that was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdc.epoch import Counts
from cdc.errors import LakeDamagedError, LakeError
from cdc.journal import logger
from cdc.lake import deltalog, features
from cdc.lake.columns import (
    SEQ,
    TS_MS,
    configuration,
    delta_type,
    key_columns,
    lake_columns,
    protocol,
)
from cdc.lake.info import Change
from cdc.lake.layout import Layout
from cdc.lake.parquet import DataFile, measured, opened, row_groups
from cdc.lake.snapshot import AddFile, Applied, Snapshot
from cdc.lake.table import LakeTable
from cdc.lake.unique import repeated
from cdc.names import TableName
from cdc.schema import TableSchema

LOGGER = logger("lake")

_READER_VERSIONS, _WRITER_VERSIONS = range(1, 4), range(1, 8)
_INERT = features.UNUSED - {
    "allowColumnDefaults",
    "domainMetadata",
    "icebergCompatV1",
    "icebergCompatV2",
    "inCommitTimestamp",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "variantShredding-preview",
}
"""Features that mean nothing as long as what is looked at besides (properties, columns, files) does not use them, and that leave nothing
behind where a protocol has them no more."""
_FEED = {"delta.enableChangeDataFeed": "its change data feed is on"}
_WRITE_ANEW = "write the table anew in the types that lakesync would give it (docs/adopting.md), with a new position"


class Problem(NamedTuple):
    """One reason why a table cannot be adopted, and the way out."""

    what: str
    hint: str


def _is_ours(snapshot: Snapshot, table: TableName, pipeline: str) -> bool:
    info = snapshot.info or {}
    return (info.get("pipeline"), info.get("table")) == (pipeline, table.id)


def examine(lake: LakeTable, schema: TableSchema) -> list[Problem]:
    """Why the table cannot be adopted, as far as its log tells; empty if nothing is in the way so far. For checks before the adoption.

    Raises `LakeDamagedError`, `LakeError` where the log cannot be read.
    """
    _, problems = _look(lake, schema)
    return problems


@dataclass(frozen=True)
class Looked:
    """A table that can be adopted, as it was when it was looked at: its version, and its files with what was found of them."""

    on: Snapshot
    files: Sequence[AddFile]


def look(lake: LakeTable, schema: TableSchema) -> Looked:
    """Look at the table, and read the key of every row; writes nothing.

    Raises `LakeError` for a table that cannot be adopted, with all that is in the way; `LakeDamagedError`.
    """
    on, problems = _look(lake, schema)
    if on is not None and not problems:
        files, problems = _read(on, schema)
        if not problems:
            return Looked(on, files)
    raise LakeError(
        "the table cannot be adopted: " + "; ".join(p.what for p in problems),
        where=f"{lake.table}: {lake.folder}",
        hint="; ".join(dict.fromkeys(p.hint for p in problems))
        + f"; then `lakesync resume {lake.table}`, or `lakesync resync` it if its entry changed",
    )


def adopt(
    lake: LakeTable, schema: TableSchema, applied: Applied, logged: Counts = Counts(), looked: Looked | None = None
) -> Snapshot:
    """One commit: the table that someone else wrote, which holds everything up to `applied` and nothing beyond, is followed from there.
    `logged` are the changes that the log counts up to there. `looked`: what was found before, of this schema.

    Raises as `look`: nothing was written then; `LakeConflictError` if someone wrote to the table since it was looked at,
    `LakeUnknownError`.
    """
    looked = looked or look(lake, schema)
    on, files = looked.on, looked.files
    columns = lake_columns(schema, Layout())
    kept = {k: v for k, v in (on.metadata.get("configuration") or {}).items() if not k.startswith("delta.feature.")}
    metadata = {
        **on.metadata,
        "schemaString": _schema_string(on, columns),
        "partitionColumns": [],
        "configuration": kept | configuration(Layout()),
    }
    rows = sum(file.num_records or 0 for file in files)
    stated = [DataFile(f.path, f.size, f.num_records or 0, f.stats or "") for f in files]
    change = Change("adopt", Layout(), schema, applied, stated, logged=logged)
    snapshot = lake.take_over(on, change, [{"protocol": protocol(columns, Layout())}, {"metaData": metadata}], files)
    LOGGER.info("table-adopted", table=lake.table.id, version=snapshot.version, rows=rows, files=len(files))
    return snapshot


def _schema_string(on: Snapshot, columns: pa.Schema) -> str:
    """Ours, in the source's order of columns, all nullable; what others said of a column beside (a comment) stays."""
    said = {f["name"]: f.get("metadata") or {} for f in _fields(on)}
    fields = [
        {"name": c.name, "type": delta_type(c.type), "nullable": True, "metadata": said.get(c.name, {})}
        for c in columns
    ]
    return orjson.dumps({"type": "struct", "fields": fields}).decode()


# -- what the log says -------------------------------------------------------------------------------------------------


def _look(lake: LakeTable, schema: TableSchema) -> tuple[Snapshot | None, list[Problem]]:
    if not schema.key:
        return None, [
            Problem("the source's table has no primary key", "give it one; `from_position` is for mode upsert")
        ]
    found = deltalog.load(lake.folder)
    if found is None:
        what = "the folder holds files, and no Delta table" if lake.folder.names() else "there is no table in the lake"
        where = f"put the Delta table into {lake.folder}"
        return None, [Problem(what, f"{where}, or leave `from_position` out: lakesync reads the table itself then")]
    if found.info is not None:
        owner = (
            "this pipeline" if _is_ours(found, lake.table, lake.pipeline) else f"pipeline {found.info.get('pipeline')}"
        )
        return found, [
            Problem(f"{owner} follows it already", "give this pipeline another lake, or a copy of the table")
        ]
    problems = [*_of_protocol(found), *_of_metadata(found), *_of_columns(found, schema), *_of_files(found)]
    return found, problems


def _of_protocol(found: Snapshot) -> Iterator[Problem]:
    reader, writer = found.protocol.get("minReaderVersion"), found.protocol.get("minWriterVersion")
    if reader not in _READER_VERSIONS or writer not in _WRITER_VERSIONS:
        yield Problem(f"protocol version ({reader}, {writer}) is not known", _WRITE_ANEW)
    listed = {*(found.protocol.get("readerFeatures") or ()), *(found.protocol.get("writerFeatures") or ())}
    for name in sorted(listed - _INERT):
        yield Problem(
            f"feature {name} is not one that lakesync writes", f"ALTER TABLE … DROP FEATURE {name}, or {_WRITE_ANEW}"
        )


def _of_metadata(found: Snapshot) -> Iterator[Problem]:
    provider = (found.metadata.get("format") or {}).get("provider", "parquet")
    if provider != "parquet":
        yield Problem(f"its files are of format {provider}, not Parquet", _WRITE_ANEW)
    if partitions := found.metadata.get("partitionColumns"):
        yield Problem(
            f"it is partitioned by {', '.join(partitions)}", f"lakesync's tables have no partitions: {_WRITE_ANEW}"
        )
    properties: Mapping[str, str] = found.metadata.get("configuration") or {}
    for name, why in (features.BINDING | _FEED).items():
        if str(properties.get(name, "")).lower() == "true":
            yield Problem(f"{why} ({name})", f"ALTER TABLE … SET TBLPROPERTIES ('{name}' = 'false')")
    if properties.get("delta.columnMapping.mode", "none") != "none":
        yield Problem("its columns are mapped to other names (delta.columnMapping.mode)", _WRITE_ANEW)
    if properties.get("delta.checkpointPolicy", "classic") != "classic":
        yield Problem(
            "its checkpoints are not classic ones (delta.checkpointPolicy)", "ALTER TABLE … DROP FEATURE v2Checkpoint"
        )
    for name in sorted(properties):
        if name.startswith("delta.constraints."):
            constraint = name.removeprefix("delta.constraints.")
            yield Problem(f"it has a CHECK constraint, {constraint}", f"ALTER TABLE … DROP CONSTRAINT {constraint}")


def _of_columns(found: Snapshot, schema: TableSchema) -> Iterator[Problem]:
    fields = {f["name"]: f for f in _fields(found)}
    wanted = {f.name: delta_type(f.type) for f in schema.arrow}
    own = {TS_MS: "long", SEQ: "long"}
    cased = {name.lower(): name for name in fields}
    for name, want in wanted.items():
        if name in fields:
            have = _bare(fields[name]["type"])
            if have != _bare(want):
                yield Problem(
                    f"column {name} is {_shown(have)}, and {_shown(want)} in the source",
                    _way_out(schema, name, have, want),
                )
        elif name.lower() in cased:
            yield Problem(f"column {name} is called {cased[name.lower()]}", "rename the lake's column: the case counts")
        else:
            out = f"leave it out (`--exclude {name}`), or " if name not in schema.key else ""
            yield Problem(f"column {name} is missing", f"{out}{_WRITE_ANEW}")
    known = {name.lower() for name in wanted}
    for name, field in fields.items():
        if name in own and field["type"] != own[name]:
            yield Problem(
                f"column {name} has the name of one of lakesync's, and is {_shown(field['type'])}", "drop the column"
            )
        elif name not in own and name.lower() not in known:
            yield Problem(f"column {name} is not the source's", "drop the lake's column, or take it out of `exclude:`")
        said = {features.OF_COLUMNS[key] for key in field.get("metadata") or {} if key in features.OF_COLUMNS}
        for why in sorted(said):
            yield Problem(f"column {name} {why}", f"take that from the column, or {_WRITE_ANEW}")


def _way_out(schema: TableSchema, name: str, have: Any, want: Any) -> str:
    column = next(c for c in schema.columns if c.name == name)
    if name in schema.overrides:
        return f"leave `--type {name}={schema.overrides[name]}` out, or {_WRITE_ANEW}"
    if have == "string":
        return f"`--type {name}=string` makes it text, which must be as MySQL prints it, or {_WRITE_ANEW}"
    if have == "boolean" and column.type == "tinyint":
        return f"`--type {name}=boolean` makes it a boolean"
    return f"cast it to {_shown(want)}: {_WRITE_ANEW}"


def _of_files(found: Snapshot) -> Iterator[Problem]:
    vectors = sum(file.deletion_vector is not None for file in found.files.values())
    if vectors:
        yield Problem(
            f"rows of it are deleted by vector, in {vectors} files",
            "REORG TABLE … APPLY (PURGE) writes these files anew",
        )
    if any(file.partition for file in found.files.values()) and not found.metadata.get("partitionColumns"):
        yield Problem("files of it have values of partitions that it does not have", _WRITE_ANEW)
    for file in found.files.values():
        try:
            found.path(file)
        except LakeError:
            yield Problem("files of it lie outside of its folder (a shallow clone?)", "make a deep copy of it")
            return


def _fields(found: Snapshot) -> list[dict[str, Any]]:
    try:
        return [{"name": f["name"], **f} for f in orjson.loads(found.metadata["schemaString"])["fields"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LakeDamagedError(
            "its schema cannot be read", where=str(found.folder), hint="look who wrote it"
        ) from error


def _bare(kind: Any) -> Any:
    """A type without what it says of NULLs inside of it: allowing them changes nothing for who reads."""
    if isinstance(kind, Mapping):
        return {k: _bare(v) for k, v in kind.items() if k not in ("containsNull", "valueContainsNull")}
    return kind


def _shown(kind: Any) -> str:
    if isinstance(kind, Mapping) and kind.get("type") == "array":
        return f"array<{_shown(kind.get('elementType'))}>"
    return str(kind.get("type", "?")) if isinstance(kind, Mapping) else str(kind)


# -- what the files hold -----------------------------------------------------------------------------------------------


def _read(on: Snapshot, schema: TableSchema) -> tuple[list[AddFile], list[Problem]]:
    """The files, with what is known of them now; and what is in the way."""
    keys, files, odd = key_columns(schema), [], dict[str, int]()
    nulls: set[str] = set()
    for file in on.files.values():
        with opened(on.folder, on.path(file), file.size) as parquet:
            rows = int(parquet.metadata.num_rows)
            if file.num_records not in (None, rows):
                raise LakeDamagedError(
                    f"data file {file.path} has {rows} rows, its commit says {file.num_records}",
                    where=str(on.folder),
                    hint="restore the table",
                )
            strange = list(_strange(parquet, schema.arrow))
            for what in strange:
                odd[what] = odd.get(what, 0) + 1
            if strange:
                continue
            bounds: dict[str, tuple[Any, Any]] = {}
            for group in row_groups(parquet, keys):
                for name in keys.names:
                    column = group.column(name)
                    if column.null_count:
                        nulls.add(name)
                    _widen(bounds, name, column)
        files.append(
            replace(file, num_records=rows, stats=measured(file.statistics, rows, bounds, keys), partition=None)
        )
    problems = [
        Problem(f"{what} in {count} of its {len(on.files)} files", _WRITE_ANEW) for what, count in sorted(odd.items())
    ]
    problems += [
        Problem(f"column {name} is in the key, and NULL in some rows", "remove these rows: the source has none")
        for name in sorted(nulls)
    ]
    if problems:
        return files, problems

    def pieces() -> Iterator[pa.Table]:
        for file in files:
            with opened(on.folder, on.path(file), file.size) as parquet:
                yield from row_groups(parquet, keys)

    if twice := repeated(pieces, sum(file.num_records or 0 for file in files)):
        columns = ", ".join(schema.key)
        problems.append(
            Problem(
                f"{twice} rows or more have a key ({columns}) that another row has too",
                f"keep one row a key: SELECT {columns}, count(*) … GROUP BY {columns} HAVING count(*) > 1 finds them",
            )
        )
    return files, problems


def _widen(bounds: dict[str, tuple[Any, Any]], name: str, column: Any) -> None:
    if pa.types.is_boolean(column.type) or not column.null_count < len(column):
        return
    found: Any = pc.min_max(column)
    low, high = found["min"], found["max"]
    if name in bounds:
        least, greatest = bounds[name]
        low = low if pc.less(low, least).as_py() else least
        high = high if pc.greater(high, greatest).as_py() else greatest
    bounds[name] = low, high


def _strange(parquet: pq.ParquetFile, columns: pa.Schema) -> Iterator[str]:
    """What of a file cannot be read as the table's columns without a change of values. A column that it lacks is NULL in it."""
    have = parquet.schema_arrow
    int96 = {
        parquet.schema.column(i).path
        for i in range(len(parquet.schema))
        if parquet.schema.column(i).physical_type == "INT96"
    }
    cased = {name.lower(): name for name in have.names}
    for field in columns:
        places = have.get_all_field_indices(field.name)
        if not places and field.name.lower() in cased:
            yield f"column {field.name} is called {cased[field.name.lower()]}"
        if len(places) > 1:
            yield f"column {field.name} is there {len(places)} times"
        elif places and not is_same(have.field(places[0]).type, field.type, field.name in int96):
            yield f"column {field.name} is stored as {have.field(places[0]).type}"


def is_same(have: Any, want: Any, int96: bool = False) -> bool:
    """Whether a stored type holds the wanted type's values, all of them and unchanged: how strings are laid out, and units and widths
    that are smaller."""
    if have == want:
        return True
    if pa.types.is_dictionary(have):
        return is_same(have.value_type, want)
    if pa.types.is_list(want):
        lists = pa.types.is_list(have) or pa.types.is_large_list(have)
        return lists and is_same(have.value_type, want.value_type)
    if pa.types.is_string(want):
        return bool(pa.types.is_large_string(have) or pa.types.is_string_view(have))
    if pa.types.is_binary(want):
        return bool(
            pa.types.is_large_binary(have) or pa.types.is_binary_view(have) or pa.types.is_fixed_size_binary(have)
        )
    if pa.types.is_signed_integer(want):
        return bool(pa.types.is_signed_integer(have)) and have.bit_width <= want.bit_width
    if pa.types.is_decimal(want):
        return bool(pa.types.is_decimal(have)) and have.scale == want.scale and have.precision <= want.precision
    if pa.types.is_timestamp(want) and pa.types.is_timestamp(have):
        # What is smaller than a microsecond would be lost. INT96 has no zone, and is UTC.
        return have.unit != "ns" and ((have.tz is None) == (want.tz is None) or (int96 and want.tz is not None))
    return False

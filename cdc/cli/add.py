"""`lakesync add`"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import typer

from cdc.cli import findings, options, output
from cdc.errors import ConfigError
from cdc.source.preflight import Finding


def command(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE", help="schema.table; `*` and `?` make it a pattern.")],
    mode: Annotated[
        Literal["upsert", "append", "soft-delete", "history"],
        typer.Option(
            help="upsert: the lake's table is the source's; append: every change is a row; soft-delete: deleted rows stay, marked;"
            " history: every version of a row is a row."
        ),
    ] = "upsert",
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="COLUMN=TYPE",
            help="Make a column boolean or string; may be repeated.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Leave a column out; may be repeated.", show_default=False),
    ] = None,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="append: begin with the rows that are there.", show_default=False)
    ] = False,
    partition_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPR",
            help="A column, or year(c), month(c), day(c), hour(c), that partitions the lake's table; may be repeated.",
            show_default=False,
        ),
    ] = None,
    change_feed: Annotated[
        bool, typer.Option("--change-feed", help="With Delta's change data feed.", show_default=False)
    ] = False,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="They are shards, and land in this one table of the lake.",
            show_default=False,
        ),
    ] = None,
    shard_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column that says of which shard a row is, and is part of the key; default: _cdc_shard.",
            show_default=False,
        ),
    ] = None,
    from_position: Annotated[
        str | None,
        typer.Option(
            metavar="GTIDS",
            help="The lake has the table already, as of this GTID set; it is taken over as it is.",
            show_default=False,
        ),
    ] = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Add tables to the pipeline file.

    They are looked at in the source first. Comments in the file are kept. A running daemon picks the tables up. Exit code 1, and nothing added, if one cannot be followed.

    \b
    Example:
      lakesync add shop.orders 'shop.item_*'
      lakesync add shop.users --type is_admin=boolean --exclude password_hash
      lakesync add shop.log --mode append --backfill
      lakesync add shop.visits --partition-by 'month(created_at)' --change-feed
      lakesync add 'shop_*.orders_*' --into shop.orders
      lakesync add shop.events --from-position 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-77
    """
    pipeline = options.pipeline(config)
    found = pipeline.add(
        *tables,
        mode=mode,
        types=_overrides(types or []),
        exclude=exclude or [],
        backfill=backfill,
        partition_by=partition_by or [],
        change_feed=change_feed,
        into=into,
        shard_column=shard_column,
        from_position=from_position,
    )
    failed = findings.failed(found)
    if as_json:
        output.as_json(
            {"version": 1, "ok": not failed, "added": [] if failed else tables, "findings": findings.as_json(found)}
        )
    else:
        findings.show([f for f in found if f.level != "ok" or into is not None])
        how = f"into {into}" if into is not None else f"mode {mode}" + (", from the rows that are there on" * backfill)
        how += ", taken over from the lake" if from_position is not None else ""
        for table in tables:
            output.say(f"{table}: " + ("not added" if failed else f"added, {how}"))
        if failed and into is None:
            _say_what_can_be(found)
        elif failed:
            output.say("Nothing was added: shards land in one table all together, or not at all")
        else:
            output.say("A running daemon picks it up; else: `lakesync run`")
    if failed:
        raise typer.Exit(1)


def _say_what_can_be(found: Sequence[Finding]) -> None:
    """Where some can be followed and others cannot: the command for those that can."""
    bad = {f.subject for f in found if f.level == "error"}
    good = [f.subject for f in found if f.level == "ok" and f.subject not in bad]
    if good:
        output.say(f"Without what cannot be followed: lakesync add {shlex.join(good)}")


def _overrides(given: list[str]) -> dict[str, Literal["boolean", "string"]]:
    found: dict[str, Literal["boolean", "string"]] = {}
    for text in given:
        column, _, kind = text.rpartition("=")
        if not column or kind not in ("boolean", "string"):
            raise ConfigError(
                "not a type override", where=f"--type {text}", hint="write COLUMN=boolean or COLUMN=string"
            )
        found[column] = cast('Literal["boolean", "string"]', kind)
    return found

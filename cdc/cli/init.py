"""`lakesync init`"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from cdc import pipelinefile
from cdc.cli import options, output
from cdc.errors import ConfigError


def command(
    source: Annotated[str, typer.Option(metavar="URL", help="mysql://user[:password]@host:port, or mariadb://…")],
    lake: Annotated[str, typer.Option(metavar="PATH", help="Folder that the tables land in, or s3://bucket/prefix.")],
    lake_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of the object store (docs/lake.md); may be repeated.", show_default=False
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="sqlite:///path.db or kafka://host:9092. [default: in the state folder]",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="chdb:///folder or clickhouse://user@host:8123/database. [default: in the state folder]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The pipeline's name. [default: that of the file's folder]", show_default=False
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(metavar="REFERENCE", help="env:NAME or file:/path, where the password is.", show_default=False),
    ] = None,
    tls_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="Authority of the server's certificate.", show_default=False)
    ] = None,
    state: Annotated[str, typer.Option(metavar="PATH", help="lakesync's own folder.")] = ".lakesync",
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Write a commented pipeline file.

    A password in the URL goes to a file of its own in the state folder, which only you can read; the pipeline file has a
    reference to it.

    \b
    Example:
      lakesync init --source mysql://lakesync@db.example:3306 --password env:DB_PASSWORD --lake /data/lake
      lakesync init --source mysql://lakesync@db.example --lake s3://company/lake --lake-option region=eu-central-1
    """
    path = options.config_path(config)
    made = pipelinefile.create(
        path,
        source,
        lake=lake,
        lake_options=_pairs(lake_option or ()),
        name=name,
        log=log,
        trace=trace,
        state=state,
        password=password,
        tls_ca=tls_ca,
    )
    if as_json:
        output.as_json({"pipeline": made.name, "path": str(made.path), "state": str(made.state)})
        return
    output.say(f"{path}: pipeline {made.name}, from {made.source.host}:{made.source.port} to {lake}")
    if made.source.password.startswith("file:"):
        output.say(f"The password is in {made.source.password.removeprefix('file:')}.")
    output.say("Next: `lakesync check`, then `lakesync add shop.orders`, then `lakesync run`")


def _pairs(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        key, there, value = pair.partition("=")
        if not there or not key:
            raise ConfigError("is no KEY=VALUE", where="--lake-option", hint="as in --lake-option region=eu-central-1")
        found[key] = value
    return found

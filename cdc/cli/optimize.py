"""`lakesync optimize`"""

from __future__ import annotations

from typing import Annotated

import typer

from cdc.cli import options, output


def command(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE", help="Tables to tidy up.", show_default=False)],
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    """Compact tables of the lake now.

    Few full files instead of many small ones, no deleted rows in them, a checkpoint, and old commits and files gone that nothing needs: what a
    running daemon does by and by. It may run meanwhile. What older versions need stays as long as `merge.keep_files` and `merge.keep_log` say.

    \b
    Example:
      lakesync optimize shop.orders
    """
    pipeline = options.pipeline(config)
    done = pipeline.optimize(*tables)
    if as_json:
        output.as_json({"version": 1, "tables": [one.to_dict() for one in done]})
        return
    for one in done:
        output.say(
            f"{one.table}: files {one.files_before:,} → {one.files_after:,},"
            f" {output.size(one.bytes_before)} → {output.size(one.bytes_after)}; deleted rows purged: {one.rows_purged:,};"
            f" cleaned up: {one.commits_deleted:,} commits, {one.files_deleted:,} files;"
            f" version {one.version}, rows {one.rows:,}, {one.seconds:.1f} s"
        )

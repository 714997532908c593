"""`lakesync check`"""

from __future__ import annotations

import typer

from cdc.cli import findings, options, output


def command(config: options.ConfigFile = None, as_json: options.Json = False) -> None:
    """Check source, tables, log, lake and trace.

    The source's settings and grants, the tables' keys and types, and whether everything else can be reached. Each line that is not fine has its fix. Exit code 1 if one is an error.

    \b
    Example:
      lakesync check
    """
    found = options.pipeline(config).check()
    errors, warnings = (sum(f.level == level for f in found) for level in ("error", "warning"))
    if as_json:
        output.as_json({"version": 1, "ok": not errors, "findings": findings.as_json(found)})
    else:
        findings.show(found)
        output.say("Ready to run." if not errors else f"{errors} to repair.")
        if warnings:
            output.say(f"{warnings} to know about.")
    if errors:
        raise typer.Exit(1)

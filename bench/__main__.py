"""`python -m bench [NAME…]`: measure, print, and with `--record` put the tables into RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from bench import (
    aged,
    captured,
    decode,
    endtoend,
    flat,
    grown,
    large,
    latency,
    reconcile,
    report,
    reread,
    snapshot,
    stages,
    stream,
    traced,
    upsert,
)
from bench.setting import QUICK, Setting, Sizes

BENCHMARKS = {
    "snapshot": snapshot,
    "stream": stream,
    "decode": decode,
    "captured": captured,
    "flat": flat,
    "stages": stages,
    "large": large,
    "latency": latency,
    "reread": reread,
    "upsert": upsert,
    "grown": grown,
    "aged": aged,
    "endtoend": endtoend,
    "reconcile": reconcile,
    "traced": traced,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    for field, what in (
        ("rows", "of the table"),
        ("snapshot_rows", "of the table that is read for the first time"),
        ("changes", "of the stream's backlog"),
        ("seconds", "of writing, for latencies"),
        ("commits", "before a table is read that has aged"),
        ("turns", "of each contestant; figures are medians"),
    ):
        standard = getattr(Sizes(), field)
        parser.add_argument(f"--{_option(field)}", type=int, metavar="N", help=f"{what} (default: {standard:,})")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that everything works")
    parser.add_argument("--record", action="store_true", help="put the tables into bench/RESULTS.md")
    return parser


def sizes_of(options: argparse.Namespace) -> Sizes:
    """As asked for."""
    given = {f.name: getattr(options, f.name) for f in fields(Sizes) if getattr(options, f.name) is not None}
    return replace(QUICK if options.quick else Sizes(), **given)


def command(name: str, sizes: Sizes) -> str:
    """What repeats one benchmark."""
    return " ".join([report.PROGRAM, name, *(f"--{_option(o)} {getattr(sizes, o)}" for o in BENCHMARKS[name].OPTIONS)])


def _option(field: str) -> str:
    return field.replace("_", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parser().parse_args(arguments)
    names = options.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    sizes = sizes_of(options)
    with Setting(sizes) as setting:
        measured_with = report.machine(str(setting.server.execute("SELECT @@version")[0][0]))
        for name in names:
            tables = BENCHMARKS[name].measure(setting)
            text = report.section(name, command(name, sizes), tables, measured_with)
            print("\n".join(line for line in text.splitlines() if not line.startswith("<!--")), "\n", flush=True)
            if options.record:
                report.record(name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

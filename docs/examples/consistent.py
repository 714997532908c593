"""Every table of a lake at one consistent version: what the source was at one moment, over all tables.

    python consistent.py LAKE PIPELINE
    python consistent.py s3://bucket/lake shop AWS_REGION=eu-central-1

Each round of the merger moves all tables to the same epoch, and then writes a manifest that names their versions. Reading those, and not
the newest ones, no transaction of the source is seen in one table and not in another. Needs deltalake, polars, or both; for an
object store obstore too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Consistent:
    """One manifest: at these versions the tables are together the source at `position`."""

    lake: str
    epoch: int
    position: Mapping[str, Any]
    """The source's: `gtids`, and the place in its binary log."""
    versions: Mapping[str, int]
    """Of Delta, by the table's name as its folder's (`shop.order-2ditems` is `shop.order-items`)."""
    options: Mapping[str, str]
    """The object store's."""

    def path(self, table: str) -> str:
        """Where a table lies."""
        return f"{self.lake}/{table.replace('.', '/')}"

    def delta(self, table: str) -> Any:
        """A `deltalake.DeltaTable`. Its rows: `pyarrow.table(t.scan())`; older calls know no deleted rows."""
        import deltalake

        return deltalake.DeltaTable(self.path(table), version=self.versions[table], storage_options=dict(self.options))

    def polars(self, table: str) -> Any:
        """A `polars.LazyFrame`."""
        import polars

        options = dict(self.options) or None
        return polars.scan_delta(self.path(table), version=self.versions[table], storage_options=options)


def consistent(lake: str, pipeline: str, options: Mapping[str, str] | None = None) -> Consistent:
    """The newest round. Tables that are not ready, or are held back by an error, are not in it: they are from another moment.

    Files of a round stay for `merge.keep_files` (an hour) after they were replaced: who reads longer asks for a new round.
    """
    data = json.loads(_read(lake, f"-lakesync/{pipeline}/manifest.json", options or {}))
    tables = {
        name: table["version"]
        for name, table in data["tables"].items()
        if table["state"] == "ready" and table["applied"] is None
    }
    applied = data["applied"]
    return Consistent(lake.rstrip("/"), applied["epoch"], applied["position"], tables, options or {})


def _read(lake: str, name: str, options: Mapping[str, str]) -> bytes:
    if "://" not in lake:
        return (Path(lake) / name).read_bytes()
    from obstore.store import from_url

    config = {key: value for key, value in options.items() if key != "AWS_ALLOW_HTTP"}
    store: Any = from_url(lake, config=config, client_options={"allow_http": len(config) < len(options)})
    return bytes(store.get(name).bytes())


def main() -> None:
    """Count the rows of each table, all at one moment."""
    lake, pipeline, *pairs = sys.argv[1:]
    found = consistent(lake, pipeline, dict(pair.split("=", 1) for pair in pairs))
    at = found.position
    print(f"epoch {found.epoch}, source at {at['file']}:{at['offset']} ({at['gtids']})")
    for table, version in sorted(found.versions.items()):
        rows = found.polars(table).collect().height
        print(f"{table}: {rows:,} rows at version {version}")


if __name__ == "__main__":
    main()

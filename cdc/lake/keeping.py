"""Tables that keep what the source has no more: what their modes have in common for the lake, and for who reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import pyarrow as pa

from cdc.config import Mode
from cdc.lake import history, softdelete
from cdc.lake.steps import Mask, Plan, Steps


class Keeping(Protocol):
    """What a module of such a mode has."""

    def live(self, rows: pa.Table) -> Any: ...

    def needs(self, steps: Steps, others: int) -> Mask: ...

    def plan(self, steps: Steps, found: Mask, base: pa.Table, others: pa.Table | None = None) -> Plan: ...


MODES: Mapping[Mode, Keeping] = {
    "soft-delete": cast("Keeping", softdelete),
    "history": cast("Keeping", history),
}
_TOLD_BY: Mapping[Mode, str] = {"soft-delete": softdelete.DELETED_AT, "history": history.IS_CURRENT}


def told_by(mode: Mode) -> Sequence[str]:
    """The columns that say whether a row of a table of this mode is one that the source has."""
    return [_TOLD_BY[mode]] if mode in _TOLD_BY else []


def live(rows: pa.Table, mode: Mode) -> pa.Table:
    """The rows that the source has, by those columns. Of other modes all."""
    return rows.filter(MODES[mode].live(rows)) if mode in MODES else rows

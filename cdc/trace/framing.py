"""What the source node says of an epoch beside its counts: where it begins and ends, in a form that can be added up. Pure.

`begins` and `ends` name a position (server, file, and the first half of a hash over all of it): an epoch begins where the one before
ended, or something is missing between them. In `totals` are the framing's running totals, and of both ends of the epoch:

    first_gtids, last_gtids     how many transactions are before it, by the GTID set
    first_holes, last_holes     GTIDs that the set lacks below its highest numbers: transactions that are prepared, or out of order. On
                                MariaDB a set has none
    first_offset, last_offset   place in the file
    first_whole, last_whole     1 where it is at a transaction's end
    last_prepared               bytes of transactions that are prepared and no more; not there in records of before this was known
    mariadb                     1 where a GTID's number may be one that no transaction has
    jump                        1 where capture goes on from another history, and every table is added anew

Between two positions in one file of one server, each at a transaction's end, the offsets grow by the bytes of the transactions between
them, and of those that are newly prepared. Holes do not tell of these: a transaction that was never read leaves one too.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import orjson

from cdc.epoch import CommitRecord
from cdc.position import GtidSet, Position


def source(record: CommitRecord) -> dict[str, Any]:
    """Columns `begins`, `ends`, `totals` of the source's row of this epoch."""
    totals = dict(record.framing_totals)
    for end, position in (("first", record.start), ("last", record.end)):
        totals |= {
            f"{end}_gtids": len(position.gtids),
            f"{end}_holes": holes(position.gtids),
            f"{end}_offset": position.end.offset,
            f"{end}_whole": int(position.whole),
        }
    if record.prepared_bytes is not None:
        totals["last_prepared"] = record.prepared_bytes
    totals["mariadb"] = int(record.end.gtids.is_mariadb)
    anew = bool(record.added) and set(record.states or ()) == set(record.added) and not record.transactions
    totals["jump"] = int(anew and record.start.gtids != record.end.gtids)
    return {"begins": place(record.start), "ends": place(record.end), "totals": totals}


def place(position: Position) -> str:
    """Server, file and a hash of the whole position, separated by spaces."""
    digest = hashlib.sha256(orjson.dumps(position.to_dict(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
    return f"{position.server_uuid} {position.end.file} {digest}"


def holes(gtids: GtidSet) -> int:
    """How many GTIDs are missing below the highest of each server."""
    if gtids.is_mariadb:
        return 0
    return sum(b[0] - a[1] - 1 for parts in gtids.sids.values() for a, b in pairwise(parts))

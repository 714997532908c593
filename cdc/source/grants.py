"""What an account may do, from SHOW GRANTS. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = r"(?:`(?:[^`]|``)*`|\*)"
_GRANT = re.compile(
    rf"GRANT (?P<what>.+?) ON (?:TABLE |FUNCTION |PROCEDURE |LIBRARY )?(?P<on>{_NAME}\.{_NAME}) TO ", re.DOTALL
)
_ROLE = r"`[^ ]+`(?:@`[^ ]*`)?"
_ROLES = re.compile(rf"GRANT (?P<roles>{_ROLE}(?:, ?{_ROLE})*) TO ")
_COLUMNS = re.compile(r"\([^)]*\)")

REPLICATION = ("REPLICATION SLAVE", "REPLICATION CLIENT")
"""To be sent the binary log; to be told where it ends."""
_SAME = {"BINLOG MONITOR": "REPLICATION CLIENT", "REPLICATION REPLICA": "REPLICATION SLAVE"}
"""What MariaDB calls them."""
_NEEDED = frozenset({"USAGE", "SELECT", "SHOW VIEW", *REPLICATION})


@dataclass(frozen=True)
class Grants:
    """`globally`: privileges on `*.*`. `elsewhere`: (privilege, object as MySQL quotes it) on schemas and tables. `roles`: granted
    ones; what active ones give is among the privileges already."""

    globally: frozenset[str]
    elsewhere: tuple[tuple[str, str], ...]
    roles: tuple[str, ...]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Grants:
        """The lines of SHOW GRANTS. Revokes (partial ones) take nothing away from what is needed on user tables by themselves."""
        globally: set[str] = set()
        elsewhere: list[tuple[str, str]] = []
        roles: list[str] = []
        for line in lines:
            if role := _ROLES.match(line):
                roles += re.split(r", ?", role["roles"])
                continue
            if not (found := _GRANT.match(line)):
                continue
            names = [p.strip().upper() for p in _COLUMNS.sub("", found["what"]).split(",")]
            names = [_SAME.get(name, name) for name in names]
            if found["on"] == "*.*":
                globally.update(names)
            else:
                elsewhere += [(name, found["on"]) for name in names]
        return cls(frozenset(globally), tuple(elsewhere), tuple(roles))

    @property
    def missing(self) -> tuple[str, ...]:
        """Privileges on `*.*` that capture needs and the account lacks."""
        if self.globally & {"ALL", "ALL PRIVILEGES"}:
            return ()
        return tuple(name for name in REPLICATION if name not in self.globally)

    @property
    def excess(self) -> tuple[str, ...]:
        """What is not needed, as `PRIVILEGE ON object`. SELECT on everything is more than SELECT on the tables."""
        found = [f"{name} ON *.*" for name in sorted(self.globally - _NEEDED)]
        if "SELECT" in self.globally:
            found.append("SELECT ON *.*")
        found += [f"{name} ON {on}" for name, on in self.elsewhere if name not in _NEEDED]
        return tuple(found)

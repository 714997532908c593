"""The equations of the ledger: what a line of it is, and how it is made of the narrowest places that it can be looked at in. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Node = Literal["source", "capture", "log", "window", "snapshot", "merge", "lake", "trace"]
"""Who lost or invented what is missing: of an edge between two nodes the later one."""

GAPS_SHOWN = 20
"""Places where an equation fails that are named."""


@dataclass(frozen=True)
class Gap:
    """One place where an equation fails: `epochs`, first and last, both included. `gap` is right less left."""

    epochs: tuple[int, int]
    left: int
    right: int
    where: str = ""

    @property
    def gap(self) -> int:
        return self.right - self.left

    @property
    def place(self) -> str:
        """Where, in words."""
        first, last = self.epochs
        at = f"epoch {last}" if first >= last else f"epochs {first} to {last}"
        return f"{at}: {self.where}" if self.where else at


@dataclass(frozen=True)
class Equation:
    """One line of the ledger, in row changes, rows, bytes or transactions. `gap` is right less left: what is missing is negative.

    It holds if both sides are equal, and are so at every place that it could be looked at in: `wrong` are the narrowest places where it
    fails, the oldest first, of many the first ones; two of them may cancel out. `epochs` are the ones that it was looked at in; of one that
    fails, those from the first such place to the last.
    """

    name: str
    left: int
    right: int
    where: str = ""
    node: Node = "log"
    epochs: tuple[int, int] = (0, 0)
    wrong: tuple[Gap, ...] = ()

    @property
    def gap(self) -> int:
        return self.right - self.left

    @property
    def holds(self) -> bool:
        return self.gap == 0 and not self.wrong

    def to_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        wrong = [asdict(gap) | {"epochs": list(gap.epochs), "gap": gap.gap} for gap in self.wrong]
        return asdict(self) | {
            "epochs": list(self.epochs),
            "wrong": wrong,
            "holds": self.holds,
            "gap": self.gap,
        }


class Sides:
    """An equation that is being added up, place by place."""

    def __init__(self, name: str, node: Node) -> None:
        self.name, self.node = name, node
        self.left = self.right = 0
        self.looked = 0
        """At how many places."""
        self._wrong: list[Gap] = []
        self._first, self._last = 0, 0

    def add(
        self, epochs: tuple[int, int], left: int, right: int, where: str = "", *, equal: bool | None = None
    ) -> None:
        """One place; `equal`: whether it holds there, where its sums alone do not tell."""
        self.left, self.right, self.looked = self.left + left, self.right + right, self.looked + 1
        self._first = epochs[0] if self.looked == 1 else min(self._first, epochs[0])
        self._last = max(self._last, epochs[1])
        if not (left == right if equal is None else equal):
            self._wrong.append(Gap(epochs, left, right, where))

    @property
    def wrong(self) -> bool:
        """Whether it fails somewhere."""
        return bool(self._wrong)

    def equation(self, left: int | None = None, right: int | None = None) -> Equation:
        """As it stands; with `left` and `right` these sums, which may reach further than the places."""
        wrong = sorted(self._wrong, key=lambda gap: gap.epochs)
        epochs = (wrong[0].epochs[0], max(gap.epochs[1] for gap in wrong)) if wrong else (self._first, self._last)
        return Equation(
            self.name,
            self.left if left is None else left,
            self.right if right is None else right,
            wrong[0].place if wrong else "",
            self.node,
            epochs,
            tuple(wrong[:GAPS_SHOWN]),
        )


def failing(equations: Iterable[Equation]) -> list[Equation]:
    """Those that do not hold."""
    return [equation for equation in equations if not equation.holds]

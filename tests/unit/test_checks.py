"""The table of what each check sees, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

from reconcile import checks

PAGE = Path(__file__).parents[2] / "docs" / "verification.md"


def test_the_page_shows_the_table() -> None:
    """`python -m reconcile.checks docs/verification.md` brings it up to date."""
    page = PAGE.read_text()
    assert page == checks.brought_up_to_date(page)


def test_every_corruption_says_of_every_check_what_it_makes_of_it() -> None:
    names = {check.name for check in checks.CHECKS}
    assert len({one.slug for one in checks.CORRUPTIONS}) == len(checks.CORRUPTIONS)
    for one in checks.CORRUPTIONS:
        assert set(one.sights) == names
        assert set(one.sights.values()) <= set(checks.MARKS)


def test_nothing_is_seen_by_no_check() -> None:
    for one in checks.CORRUPTIONS:
        assert {"sees", "stops"} & set(one.sights.values()), one.slug

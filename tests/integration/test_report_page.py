"""The report's page in a real browser: on a phone and on a desk, light and dark, with what people may write into names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dev import chromium
from reconcile.report import html
from tests.unit import reporting as made

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.timeout(300)
WIDTHS = (360, 768, 1280)
LEAST_CONTRAST = 4.5
"""WCAG 2.2, AA, for text of any size."""

# Colours of text against what is painted behind it, of everything that has text of its own and can be seen.
CONTRASTS = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] / 255 + under[i] * (1 - top[3] / 255));
  const behind = element => {
    const svg = element.ownerSVGElement;
    if (svg) {
      const own = element.getBoundingClientRect();
      for (const box of svg.querySelectorAll('rect.box')) {
        const at = box.getBoundingClientRect();
        if (own.left >= at.left - 1 && own.right <= at.right + 1 && own.top >= at.top - 1 && own.bottom <= at.bottom + 1)
          return rgba(getComputedStyle(box).fill);
      }
      element = svg;
    }
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const opacity = element => {
    let all = 1;
    for (let at = element; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity);
    return all;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('title, desc')) continue;
    const style = getComputedStyle(element);
    const under = behind(element);
    const colour = rgba(element.ownerSVGElement ? style.fill : style.color);
    colour[3] *= opacity(element);
    const [a, b] = [light(over(colour, under)), light(under.slice(0, 3))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}
"""

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a page by its text; at the end nothing was said on its console, and nothing was asked of the network."""
    said: list[str] = []
    contexts = []

    def page(text: str, width: int = 1280, scheme: Any = "light") -> Page:
        path = tmp_path / "report.html"
        path.write_text(text)
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        new = context.new_page()
        new.on("console", lambda message: said.append(message.text))
        new.on("pageerror", lambda error: said.append(str(error)))
        new.on("request", lambda request: None if request.url == path.as_uri() else said.append(request.url))
        new.goto(path.as_uri())
        return new

    yield page
    for context in contexts:
        context.close()
    assert said == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", made.REPORTS)
def test_nothing_is_wider_than_the_screen(opened: Open, name: str, width: int) -> None:
    page = opened(html.page(made.REPORTS[name]().to_dict()), width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """() => {
          const aside = '.scroll, svg, thead' + (innerWidth < 704 ? ', tr' : '');  // rows are cards there, a little wider than the text
          const edge = document.querySelector('main').getBoundingClientRect().right + 0.5;
          return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest(aside)
            && e.getBoundingClientRect().right > edge).map(e => e.outerHTML.slice(0, 80));
        }"""
    )
    assert wide == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["fine", "level", "differing"])
def test_no_text_of_a_picture_lies_over_another(opened: Open, name: str, width: int) -> None:
    page = opened(html.page(made.REPORTS[name]().to_dict()), width)
    met = page.evaluate(
        """() => {
          const met = [];
          for (const svg of document.querySelectorAll('figure svg')) {
            if (!svg.checkVisibility()) continue;
            const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
            const all = svg.getBoundingClientRect();
            texts.forEach(([text, a], i) => {
              if (a.left < all.left - 1 || a.right > all.right + 1) met.push([text, 'leaves the picture']);
              texts.slice(i + 1).forEach(([other, b]) => {
                if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3) met.push([text, other]);
              });
            });
          }
          return met;
        }"""
    )
    assert met == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["fine", "differing", "repaired", "partial"])
def test_text_can_be_read_on_what_is_behind_it(opened: Open, name: str, scheme: str) -> None:
    page = opened(html.page(made.REPORTS[name]().to_dict()), 1280, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [(round(ratio, 2), text) for ratio, text in found if ratio < LEAST_CONTRAST] == []


def test_light_and_dark_are_unlike(opened: Open) -> None:
    text = html.page(made.fine().to_dict())
    papers = {
        opened(text, 1280, scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert len(papers) == 2


def test_hostile_names_are_shown_as_text(opened: Open) -> None:
    page = opened(html.page(made.hostile().to_dict()))
    assert page.evaluate("document.querySelectorAll('script, img, iframe, [onerror]').length") == 0
    shown = page.evaluate("[...document.querySelectorAll('h3 bdi')].map(e => e.textContent)")
    for name in made.NAUGHTY:
        written = name.translate({n: 0x2400 + n for n in range(32)} | {0x7F: 0x2421})
        assert f"s.{written}" in shown
    # What a name turns round stays within it.
    assert page.evaluate(
        "[...document.querySelectorAll('.key bdi')].every(e => getComputedStyle(e).unicodeBidi === 'isolate')"
    )


def test_the_policy_holds_whatever_is_in_the_page(browser: Browser, tmp_path: Path) -> None:
    """Were a name not escaped, it could do nothing all the same."""
    text = html.page(made.fine().to_dict())
    attack = "<script>document.title='ran'</script><img src='https://example.invalid/x'><p id=p style='color:red'>x</p>"
    path = tmp_path / "attacked.html"
    path.write_text(text.replace("</main>", f"{attack}</main>"))
    page = browser.new_page()
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("response", lambda response: asked.append(response.url))
    page.goto(path.as_uri())
    assert page.title() != "ran"
    assert page.evaluate("getComputedStyle(document.querySelector('#p')).color") != "rgb(255, 0, 0)"
    assert {url for url in asked if not url.startswith("file:")} == set()
    page.close()


def test_headings_and_names_make_an_outline(opened: Open) -> None:
    page = opened(html.page(made.differing().to_dict()))
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope]'))"
    )
    unnamed = "svg:not([aria-hidden]):not([role=img][aria-labelledby])"
    assert page.evaluate(f"document.querySelectorAll('{unnamed}').length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    named = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].flatMap(e => e.getAttribute('aria-labelledby').split(' '))"
    )
    assert set(named) <= set(ids)
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
    assert links
    assert {link[1:] for link in links} <= set(ids)


def test_the_picture_marks_where_something_is_missing(opened: Open) -> None:
    page = opened(html.page(made.differing().to_dict()))
    assert page.evaluate("document.querySelector('svg.wide .wrong .name').textContent") == "Merge"
    assert page.evaluate("document.querySelector('svg.wide .wrong .gap').textContent") == "−1"
    assert "a gap of -1 at Merge" in page.evaluate("document.querySelector('svg.wide desc').textContent")
    well = opened(html.page(made.fine().to_dict()))
    assert well.evaluate("document.querySelectorAll('svg .wrong, svg .edge.bad').length") == 0


def test_a_large_report_opens(opened: Open) -> None:
    page = opened(html.page(made.large().to_dict()), 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.responseEnd") < 15_000
    assert page.evaluate("document.querySelectorAll('section.table').length") >= 1000


def test_paper_gets_everything_in_dark_letters(opened: Open) -> None:
    page = opened(html.page(made.fine().to_dict()), 1280, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("[...document.querySelectorAll('details .pairs dd')].every(e => e.checkVisibility())")
    assert page.pdf()[:5] == b"%PDF-"

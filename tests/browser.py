"""Pages looked at in a real browser; tests that need one are skipped, with the reason, where there is none."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# the contrast (WCAG 2) of every element that holds text of its own, against the nearest painted background
CONTRASTS = """() => {
  const lum = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const rgba = text => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const back = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll('h1,h2,h3,h4,p,th,td,dd,dt,figcaption,caption,summary,code,a,small,li,span,svg text')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.includes('svg');
    const a = lum(rgba(svg ? style.fill : style.color).slice(0, 3)), b = lum(back(e).slice(0, 3));
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + ': ' + e.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@contextmanager
def browser():
    """A headless browser; yields a function that opens a file and gives the page, its console errors and requests."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here ({', '.join(NAMES)})")
    with sync.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])

        def show(file, width=1280, dark=False):
            theme = "dark" if dark else "light"
            page = running.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
            errors, requests = [], []
            page.on("console", lambda message: errors.append(message.text))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(file.resolve().as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            return page, errors, requests

        try:
            yield show
        finally:
            running.close()


def check(show, file):
    """Nothing but the file itself is asked for, no complaints, nothing wider than a phone, text legible in both themes."""
    for width, dark in ((390, False), (1280, True), (1280, False)):
        page, errors, requests = show(file, width, dark)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{wide} px too wide at {width}"
        assert not errors, errors
        assert [url for url in requests if not url.startswith("data:")] == [file.resolve().as_uri()]
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 20 and min(contrasts)[0] >= 4.5, min(contrasts)


def focused(show, file, most=12):
    """What the tab key reaches one after another: tag, name, and the outline that shows it."""
    page, _, _ = show(file)
    found = []
    for _ in range(most):
        page.keyboard.press("Tab")
        found.append(
            page.evaluate(
                "(e => [e.tagName, e.getAttribute('aria-label') || e.textContent.slice(0, 30), "
                "getComputedStyle(e).outlineStyle])(document.activeElement)"
            )
        )
    return found

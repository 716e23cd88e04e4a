"""A real browser, offline: pages that ask for nothing and complain about nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]  # fmt: skip
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM} (apt install chromium)")


@contextmanager
def tab(width: int = 390, height: int = 800) -> Iterator:
    """A tab of a fresh browser without network; leaving asserts that no script failed, nothing was asked of the network
    and the console stayed quiet."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS)
        page = browser.new_context(offline=True, viewport={"width": width, "height": height}).new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        yield page
        browser.close()
    assert faults == []


def pictures_loaded(page) -> bool:
    return page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

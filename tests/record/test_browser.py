"""The pages in a real browser. Skipped where there is no Chromium, or no playwright to drive it."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import realistic_run

from pentad.record.comparison import write_comparison
from pentad.record.distributions import DistributionLog
from pentad.record.metrics import MetricsLog
from pentad.record.report import write_report
from pentad.record.run_dir import RunDir
from pentad.record.serving import ReportServer

WIDTHS = (1280, 420)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def looked_at(browser: Any, url: str, width: int) -> tuple[Any, list[str]]:
    """The page, and what the browser complains of."""
    page, complaints = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(url[:5]) else complaints.append(asked.url))
    page.goto(url)
    return page, complaints


def fits(page: Any) -> bool:
    """Nobody has to scroll the page sideways, whatever is opened."""
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def filled_run(path: Path) -> RunDir:
    run_dir = realistic_run(path, 60, 60)
    log = DistributionLog(run_dir)
    for step in range(1, 61):
        log.write(step, {"length": list(range(step, 9 * step)), "entropy": [0.1, 0.5, 1.0]})
    log.close()
    return run_dir


@pytest.mark.parametrize("width", WIDTHS)
def test_report_and_comparison(browser: Any, tmp_path: Path, width: int) -> None:
    run_dir = filled_run(tmp_path / ("a-long-name-" * 9))
    filled_run(tmp_path / "other")
    write_comparison([run_dir.path, tmp_path / "other"], tmp_path / "compare.html")
    for file in (write_report(run_dir), tmp_path / "compare.html"):
        page, complaints = looked_at(browser, file.as_uri(), width)
        assert fits(page) and complaints == []
        assert page.locator("svg").count() > 9


@pytest.mark.parametrize("width", WIDTHS)
def test_the_served_page_renews_itself(browser: Any, tmp_path: Path, width: int) -> None:
    run_dir = filled_run(tmp_path / "run")
    server = ReportServer(run_dir, 0)
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        page, complaints = looked_at(browser, server.url, width)
        page.get_by_text("renews itself").wait_for()
        page.evaluate("document.querySelector('summary').click()")
        assert page.get_by_text("60 of 60").count() == 1
        log = MetricsLog(run_dir)
        log.write(61, {"reward/mean": 0.5})
        log.close()
        page.get_by_text("61 of 60").wait_for(timeout=30_000)
        assert page.evaluate("document.querySelector('details').open"), "what was opened stays open"
        assert fits(page) and complaints == []
    finally:
        server.close()

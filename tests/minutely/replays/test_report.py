"""The report in a real browser: every plot is drawn, nothing is asked of any network, nothing fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.commands import ROOT, execute, missing

_COVERED = """[...document.querySelectorAll('.js-plotly-plot')].filter(plot => {
    const legend = plot.querySelector('.legend')?.getBoundingClientRect();
    return legend && [...plot.querySelectorAll('.modebar')].some(bar => {
        const box = bar.getBoundingClientRect();
        const beside = box.left >= legend.right || box.right <= legend.left;
        return box.width && !beside && box.top < legend.bottom && box.bottom > legend.top;
    });
}).map(plot => plot.id)"""
_OVER = """[...document.querySelectorAll('.js-plotly-plot')].filter(plot => {
    const legend = plot.querySelector('.legend')?.getBoundingClientRect();
    return legend && legend.bottom > plot.querySelector('.nsewdrag').getBoundingClientRect().top;
}).map(plot => plot.id)"""
_WIDTHS = """(() => {
    const table = document.querySelector('.wide');
    return [document.documentElement.scrollWidth, table.scrollWidth > table.clientWidth];
})()"""
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_report_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("Chromium (Debian: apt-get install chromium)")
    logs, out = tmp_path / "shop-logs", tmp_path / "out"
    subprocess.run([sys.executable, ROOT / "examples/shop/make_logs.py", logs], check=True)
    lines = (logs / "impressions.csv").read_text().splitlines()[:1000]
    (logs / "impressions.csv").write_text("\n".join(lines) + "\n")
    done = execute(f"minutely compare examples/shop/shop.yaml --data {logs} --out {out}")
    assert done.returncode == 0, done.stderr
    asked: list[str] = []
    failed: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.goto(f"file://{out / 'report.html'}")
        page.wait_for_selector("#plot-5 .main-svg")
        drawn = page.locator(".js-plotly-plot").count()
        lines_drawn = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data.length)")
        headings = page.locator("h2").all_inner_texts()
        cadences = page.locator("th").all_inner_texts()
        shown = [row.all_inner_texts() for row in (each.locator("td") for each in page.locator("tr").all())]
        phone = browser.new_page(viewport={"width": 390, "height": 800}, is_mobile=True, color_scheme="dark")
        phone.goto(page.url)
        phone.wait_for_selector("#plot-5 .main-svg")
        covered = phone.evaluate(_COVERED)
        width, scrolled = phone.evaluate(_WIDTHS)
        background = phone.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        over = phone.evaluate(_OVER)
        browser.close()
    assert covered == [], "on a phone nothing lies on a plot's legend"
    assert over == [], "nor is it over a plot's lines"
    assert (width, scrolled, background) == (390, True, "rgb(255, 255, 255)"), "the table scrolls, the page does not"
    printed = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[1:] for row in shown[1:10]] == [row[1:] for row in printed[:9]], "the numbers are those of the terminal"
    assert drawn == len(headings) == 6
    assert {"Freshness", "Served AUC: click", "Rows", "Delta size"} <= set(headings)
    assert min(lines_drawn) >= 1
    assert cadences[1:] == ["60s", "5m", "1h", "24h", "never"]
    assert not failed
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []

"""The page in a browser: what is read back from it, that it asks nobody for anything, and how it looks."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from madiff import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLOT, HEADING = (0x00, 0x72, 0xB2), (0xF3, 0xF5, 0xF7)  # the first colour of the plots, and that of the tables' heads
# Laid into a copy of the page alone: it leaves what the browser made of it in the page.
READ_BACK = """<script>addEventListener("load", () => {
  const told = {
    images: [...document.images].map(image => [image.alt, image.naturalWidth, image.naturalHeight]),
    rows: [...document.querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.textContent)),
    asked: performance.getEntriesByType("resource").map(entry => entry.name),
    cut: [...document.querySelectorAll("table")].filter(table => table.scrollWidth > table.clientWidth).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  }
  const made = document.createElement("pre")
  made.id = "read-back"
  made.textContent = JSON.stringify(told)
  document.body.append(made)
})</script>"""


def browser():
    """The path of one that starts; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed (any of {', '.join(NAMES)})")
    asked = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=120)
    if asked.returncode != 0:
        pytest.skip(f"{found} does not start: {asked.stderr.strip()[:200]}")
    return found


def opened(page, folder):
    """(what the page says of itself, its picture (height, width, 3)) in a browser that reaches no network."""
    copy, picture = folder / "copy.html", folder / "picture.png"
    copy.write_text(page.read_text().replace("</body>", f"{READ_BACK}</body>"))
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1280,4000", "--dump-dom", f"--screenshot={picture}",
        copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="read-back">(.*?)</pre>', done.stdout, re.DOTALL)
    assert done.returncode == 0 and found and picture.exists(), done.stderr[-2000:]
    with Image.open(picture) as image:
        return json.loads(html.unescape(found[1])), np.asarray(image.convert("RGB"), np.int16)


def like(pixels, colour):
    return (np.abs(pixels - np.array(colour, np.int16)).max(-1) < 8).sum()


def test_a_browser_shows_the_whole_page_and_asks_nobody_for_it(finished, workplace):
    bench, run = workplace / "bench", workplace / "run"
    shutil.copytree(finished, bench, ignore=shutil.ignore_patterns("checkpoints", "logs", ".lock"))
    shutil.copytree(finished / "cells/2m/bc/seed0", run)
    frames = [Image.new("RGB", (40 + 8, 30), (i * 60, 0, 200)) for i in range(4)]
    for folder in (bench / "cells/2m/bc/seed0", run):
        frames[0].save(folder / "rollout.gif", save_all=True, append_images=frames[1:], duration=80)
    assert report.main(["bench", "run", "out=page.html"]) == 0
    told, pixels = opened(workplace / "page.html", workplace)
    plots = [path.stem for folder in (bench, run) for path in (folder / "plots").glob("*.png")]
    films = [image for image in told["images"] if image[0].endswith("rollout")]
    assert len(told["images"]) == len(plots) + 2 and all(wide > 0 and high > 0 for _, wide, high in told["images"])
    assert [image[1:] for image in films] == [[48, 30]] * 2
    assert all(name.startswith("data:") for name in told["asked"]) and (told["cut"], told["overflow"]) == (0, 0)
    lines = [line for line in (bench / "tables.md").read_text().splitlines() if line.startswith("| 2m |")]
    assert lines and all([cell.strip() for cell in line.strip("|").split("|")] in told["rows"] for line in lines)
    for record in json.loads((bench / "results.json").read_text()):
        assert any(row and record["command"] in row[-1] for row in told["rows"])
    assert pixels.shape == (4000, 1280, 3)
    assert like(pixels, PLOT) > 1000 and like(pixels, HEADING) > 5000 and (pixels.max(-1) < 80).sum() > 5000

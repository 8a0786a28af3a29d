"""A real browser opens the page from disk: tables and figures are drawn, and nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from genomem.report.plots import PALETTE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--virtual-time-budget=3000",
]
SIZE = (1200, 9000)
BY_BROWSER = "not an origin"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Writes where every figure and table landed into the document, for --dump-dom to show.
PROBE = """<script>
addEventListener("load", () => {
  const boxes = {};
  for (const element of document.querySelectorAll("figure svg, table")) {
    const box = element.getBoundingClientRect();
    const name = element.tagName === "TABLE" ? element.id : element.parentElement.id;
    boxes[name] = [box.left, box.top, box.right, box.bottom].map(Math.round);
  }
  document.body.dataset.boxes = JSON.stringify(boxes);
});
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on PATH: looked for {', '.join(BROWSERS)}")


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """Opens a file; returns the document as it is in the end, and the addresses that it asked for beside itself.

    Everything goes to a proxy that does not exist, so that the test leaves the machine alone. The browser asks for
    pages of its own accord; its log of requests tells them from the document's by the initiator.
    """
    log = folder / "network.json"
    own = [
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        f"--window-size={SIZE[0]},{SIZE[1]}",
        "--proxy-server=http://127.0.0.1:9",
    ]
    command = [str(BROWSER), *FLAGS, *own, *flags, "--dump-dom", page.resolve().as_uri()]
    document = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    requests = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    return document, [
        r["url"] for r in requests if r.get("initiator", BY_BROWSER) != BY_BROWSER and not r["url"].startswith(("file:", "data:"))
    ]


def test_tables_and_figures_are_drawn_and_nothing_is_fetched(tiny, tmp_path):
    html = tiny.layout.report.read_text(encoding="utf-8")
    page, picture = tmp_path / "probe.html", tmp_path / "page.png"
    page.write_text(POLICY.sub("", html).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    document, requests = browse(page, tmp_path, f"--screenshot={picture}")
    assert requests == []
    boxes = json.loads(unescape(re.search(r'data-boxes="([^"]*)"', document).group(1)))
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(np.int16)
    figures = {name: box for name, box in boxes.items() if name.startswith("plot-")}
    assert len(figures) == 6
    for name, (left, top, right, bottom) in figures.items():
        assert right - left > 600, name
        area = pixels[top:bottom, left:right]
        for model, colour in zip(tiny.study.models, PALETTE, strict=False):
            is_drawn = bool((abs(area - 255 * np.array(to_rgb(colour))).max(axis=2) < 40).sum() > 20)
            assert is_drawn == (model in tiny.study.pretrained_models or "coding" in name or "promoters" in name), (name, model)
        assert (area.max(axis=2) < 120).mean() > 0.002, f"{name}: no text or axes"
    for name in ("table-language_bits", "table-scores_coding", "table-stages"):
        left, top, right, bottom = boxes[name]
        assert (pixels[top:bottom, left:right].max(axis=2) < 120).mean() > 0.01, name
        assert right <= SIZE[0], f"{name} is wider than the window"


@pytest.mark.parametrize("is_guarded", [True, False])
def test_the_policy_stops_what_the_log_would_have_seen(tiny, tmp_path, is_guarded):
    html = tiny.layout.report.read_text(encoding="utf-8").replace("</body>", '<img src="http://pixel.example/1.png" alt=""></body>')
    page = tmp_path / "leak.html"
    page.write_text(html if is_guarded else POLICY.sub("", html), encoding="utf-8")
    _, requests = browse(page, tmp_path)
    assert requests == ([] if is_guarded else ["http://pixel.example/1.png"])

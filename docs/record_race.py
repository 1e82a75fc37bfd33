"""Record docs/race.gif: start the race of batch sizes in Chromium and take pictures of it."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import CHROMIUM, FLAGS, serve_dashboard

FILE = Path(__file__).with_name("race.gif")
SIZE = {"width": 1280, "height": 1020}
WIDTH_PX, COLORS, MARGIN_PX = 900, 128, 10
EVERY_S, MOST_FRAMES = 0.75, 40
FRAME_MS, LAST_FRAME_MS = 300, 4_000


def record(page: Page, url: str) -> list[Image.Image]:
    """Pictures of the live race from its first point to its result."""
    page.goto(f"{url}/compare?preset=batch-vs-stochastic")
    page.get_by_role("button", name="Start").click(timeout=60_000)
    race = page.locator(".st-key-run-view")
    page.locator(".st-key-run-view .js-plotly-plot").first.wait_for(timeout=60_000)
    box = race.bounding_box()
    assert box is not None
    left, top = box["x"] - MARGIN_PX, box["y"] - MARGIN_PX
    clip = {"x": left, "y": top, "width": box["width"] + 2 * MARGIN_PX, "height": SIZE["height"] - top}
    frames: list[Image.Image] = []
    for _ in range(MOST_FRAMES):
        frames.append(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))
        if page.get_by_text("3 of 3 runs done").count():
            break
        time.sleep(EVERY_S)
    return frames


def write(frames: list[Image.Image]) -> None:
    """Write the frames as one GIF. They share the palette of the last one, which has every colour."""
    height = round(WIDTH_PX * frames[0].height / frames[0].width)
    small = [frame.resize((WIDTH_PX, height), Image.Resampling.LANCZOS) for frame in frames]
    palette = small[-1].quantize(COLORS, method=Image.Quantize.FASTOCTREE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(FILE, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, serve_dashboard(Path(home)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        write(record(url.new_context(browser, viewport=SIZE).new_page(), url))
        browser.close()
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB")

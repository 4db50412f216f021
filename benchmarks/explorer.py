"""The explorer in headless Chromium: bytes loaded, codes decoded a second, frames a second, pixels.

Pixels are compared with those of `model.sample`. Needs Playwright (in the extras dev and bench) and
a Chromium on this machine: `chromium` or `google-chrome` on the path, or $CHROMIUM. Where one is
missing it says so, measures nothing, and ends with status 0. --picture FILE saves what the page
looks like.
"""

import quiet  # noqa: F401  (before TensorFlow)

import contextlib
import gzip
import importlib.util
import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from common import log, machine, options, rounded, save, summary

from vae_course.data import load_mnist, preprocess_images
from vae_course.engine.runs import load_pretrained
from vae_course.live.explorer import build_explorer
from vae_course.live.serving import serve

sys.path.append(str(Path(__file__).parent.parent / "tools"))

from chromium import find_chromium

DECODES = """([n, size]) => explorer.then(({ decode }) => {
  const codes = Array.from({ length: 2 * size }, (_, i) => Math.sin(i));
  for (let i = 0; i < 20; i += 1) decode(codes);
  const begun = performance.now();
  for (let i = 0; i < n; i += 1) { codes[0] = i / n; decode(codes); }
  return n * size * 1000 / (performance.now() - begun);
})"""
# The pointer goes round in a circle; each frame is decoded, painted, and counted by the page.
FRAMES = """(seconds) => explorer.then(({ moveTo, frames }) => new Promise((resolve) => {
  const begun = performance.now(), before = frames();
  const move = (now) => {
    const t = (now - begun) / 1000;
    moveTo([2 * Math.cos(t), 2 * Math.sin(t)]);
    if (t < seconds) requestAnimationFrame(move);
    else resolve((frames() - before) / t);
  };
  requestAnimationFrame(move);
}))"""
SAMPLE = "(codes) => explorer.then(({ decode }) => Array.from(decode(codes)))"


@contextlib.contextmanager
def served(model, card):
    "The page of a model on the loopback address; gives its URL."
    grey, labels = load_mnist()[1]
    with tempfile.TemporaryDirectory() as folder:
        build_explorer(model, card, preprocess_images(grey), labels, Path(folder) / "page")
        with serve(Path(folder) / "page") as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.url
            server.shutdown()


def load(browser, url) -> tuple:
    "An open page, and the body of each file that it loaded."
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    answers = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(url)
    error = page.evaluate("explorer.then(({ error }) => error)")
    if error:
        sys.exit(f"the page did not start: {error}")
    return page, [answer.body() for answer in answers if answer.url.startswith("http")]


def difference(page, model, codes) -> float:
    "The largest difference of a pixel probability between the page and Python."
    pixels = page.evaluate(SAMPLE, codes.ravel().tolist())
    return float(np.abs(np.reshape(pixels, (len(codes), 28, 28, 1)) - model.sample(codes)).max())


def measure_page(page, model, quick) -> dict:
    "All figures of an open page."
    rounds, n = (2, 20) if quick else (7, 300)
    rates = {"one_at_a_time": [], "eight_at_a_time": []}
    for i in range(rounds):
        rates["one_at_a_time"].append(page.evaluate(DECODES, [n, 1]))
        rates["eight_at_a_time"].append(page.evaluate(DECODES, [n // 4, 8]))
        log(f"round {i + 1}/{rounds}: " + ", ".join(f"{k} {v[-1]:.0f}/s" for k, v in rates.items()))
    frames = [page.evaluate(FRAMES, 0.5 if quick else 3) for _ in range(1 if quick else 3)]
    codes = np.random.default_rng(0).normal(0, 2, (100 if quick else 1000, 2)).astype(np.float32)
    return {name: summary(values, "codes_per_s") for name, values in rates.items()} | {
        "pointer_moving": summary(frames, "frames_per_s"), "codes_compared": len(codes),
        "max_difference_of_probability": rounded(difference(page, model, codes))}


def main():
    parser = options(__doc__)
    parser.add_argument("--picture", help="a .jpeg file")
    parser.add_argument("--print", action="store_true", help="the figures as JSON; save nothing")
    chosen, facts, path = parser.parse_args(), machine(), find_chromium()
    if path is None or importlib.util.find_spec("playwright") is None:
        missing = "no Chromium found; install it, or set CHROMIUM to its path" if path is None else \
            "Playwright is not installed; it is in the extras dev and bench"
        # With --print, another program waits for figures.
        sys.exit(missing) if chosen.print else log(f"explorer: skipped, {missing}")
        return
    from playwright.sync_api import sync_playwright

    model, card = load_pretrained()
    with served(model, card) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page, bodies = load(browser, url)
        figures = {"files_loaded": len(bodies), "bytes_loaded": sum(map(len, bodies)),
                   "bytes_with_gzip": sum(len(gzip.compress(body)) for body in bodies)}
        figures |= measure_page(page, model, chosen.quick)
        if chosen.picture:
            page.evaluate("explorer.then(({ moveTo }) => moveTo([0.4, -1.2]))")
            page.wait_for_timeout(300)
            page.screenshot(path=chosen.picture, type="jpeg", quality=60)
        facts |= {"browser": f"Chromium {browser.version}"}
        browser.close()
    log(f"{figures['bytes_loaded'] / 1e6:.2f} MB, {figures['bytes_with_gzip'] / 1e6:.2f} with gzip; "
        f"{figures['pointer_moving']['median_frames_per_s']:.0f} frames/s; "
        f"difference {figures['max_difference_of_probability']:.1e}")
    if chosen.print:
        print(json.dumps(figures))
    else:
        save("explorer", figures, facts, chosen.quick)


if __name__ == "__main__":
    main()

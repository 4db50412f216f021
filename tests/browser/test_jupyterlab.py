"""Every chapter in JupyterLab, as a reader has it: opened in Chromium, Run All Cells, looked at.

Cells marked `#| slow` are taken out of the copies that are opened: Run All would train for many
minutes, and `make test-all` runs them. Two chapters run at a time; each prints its seconds (`-s`).

Every chapter is run by nbdev_test anyway. So a plain `pytest` opens the chapter with the sliders only,
`--long` one for each kind of output too, and the others only if LAB_CHAPTERS=all is set.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vae_course.reparameterization import draw_eps
from vae_course.live.sliders import digit_png

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (lab extra)")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (dev extra)")
NBS = Path(__file__).parents[2] / "nbs"
sys.path.insert(0, str(NBS.parent / "tools"))

import course  # noqa: E402

SLIDERS = "35_sliders"
WIDGETS = {SLIDERS, "02_reparameterization"}  # where a person is there, a widget stands for a picture
# Pictures and folded code; a film; signatures and solutions.
KINDS = {"01_data", "07_animation", "11_families"}
ALL = os.environ.get("LAB_CHAPTERS") == "all"
others = pytest.mark.skipif(not ALL, reason="nbdev_test runs it too; set LAB_CHAPTERS=all to see it in JupyterLab")
NAMES = [pytest.param(path.stem, marks=[] if path.stem in KINDS else [others])
         for path in course.notebooks() if path.stem != SLIDERS]
PATIENCE = 300  # seconds for one chapter on a busy machine; most take 10

PANEL = "jupyterapp.shell.currentWidget"
READY = f"""(async () => {{
  const {{ context, revealed, sessionContext }} = {PANEL};
  await Promise.all([context.ready, revealed, sessionContext.ready]);
  await sessionContext.session.kernel.info;
}})()"""
# JupyterLab fills the cells below the fold in when it has nothing better to do.
FILLED = f"{PANEL}.content.widgets.every((cell) => !cell.isPlaceholder())"
# An error ends the run: the cells after it get no number.
DONE = f"""() => {{
  const {{ content, sessionContext }} = {PANEL};
  const cells = content.widgets.map(({{ model }}) => model).filter(({{ type }}) => type === "code");
  const failed = cells.some(({{ outputs }}) => outputs.toJSON().some((out) => out.output_type === "error"));
  return failed || (sessionContext.session.kernel.status === "idle"
    && cells.every(({{ executionCount }}) => executionCount !== null));
}}"""
NOTEBOOK = f"{PANEL}.content.model.toJSON()"
IMAGES = """Array.from(document.querySelectorAll(".jp-Notebook img"),
  (image) => image.complete && image.naturalWidth > 1)"""
# Cells whose code, and outputs, are folded away.
FOLDED = f"""{PANEL}.content.widgets.map((cell) => cell.model.type === "code"
  ? [cell.inputArea.isVisible, cell.outputArea.isVisible] : [true, true])"""


def is_slow(cell):
    return cell["cell_type"] == "code" and "#| slow" in "".join(cell["source"])


def pictures(cells):
    """How many outputs show a picture, a film, or sliders."""
    kinds = [(kind, "".join(value)) for cell in cells for out in cell.get("outputs", ())
             for kind, value in out.get("data", {}).items() if isinstance(value, str | list)]
    return sum(kind.startswith("image/") or (kind == "text/markdown" and "![" in text)
               for kind, text in kinds)


def saved_cells(name):
    "The cells of a chapter that are opened here."
    cells = json.loads(course.path_of(name).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if not is_slow(cell)]


def count_images(cells):
    "How many images a page with these cells shows: pictures of outputs, and images in the text."
    return pictures(cells) + sum(len(re.findall(r"!\[|<img ", "".join(cell["source"]))) for cell in cells
                                 if cell["cell_type"] == "markdown")


def loaded(page, count):
    "Whether each image of the page is there, once there are as many as asked for or 20 seconds are over."
    wanted = f"((all) => all.length === {count} && all.every(Boolean))({IMAGES})"
    with contextlib.suppress(api.TimeoutError):
        page.wait_for_function(wanted, timeout=20_000)
    return page.evaluate(IMAGES)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on copies of the chapters, with settings of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(NBS, home / "nbs", ignore=lambda folder, names: {n for n in names if n[0] in "._"})
    for path in course.find_notebooks(home / "nbs"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if not is_slow(cell)]
        path.write_text(json.dumps(notebook), encoding="utf-8")
    asks = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    asks.parent.mkdir(parents=True)
    asks.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # it would ask for news
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{(port := free.getsockname()[1])}/"
    own = {"HOME": home, "IPYTHONDIR": home / "ipython"} | {
        f"JUPYTER_{kind}_DIR": home / kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = {"ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.ip": "127.0.0.1",
               "ServerApp.root_dir": home / "nbs", "IdentityProvider.token": "",
               "LabApp.user_settings_dir": home / "settings", "LabApp.workspaces_dir": home / "spaces"}
    with open(home / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                                   "--expose-app-in-browser", *(f"--{k}={v}" for k, v in options.items())],
                                  env=os.environ | {k: str(v) for k, v in own.items()},
                                  stdout=log, stderr=log)
    try:
        wait_for_server(server, url, home / "log")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:  # it waits for kernels that still compute
            server.kill()
            server.wait()


def wait_for_server(server, url, log):
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url + "api").close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("JupyterLab did not start:\n" + log.read_text()[-2000:])


class Chapters:
    """Pages of chapters, each with a kernel of its own."""

    def __init__(self, browser, url):
        self.browser, self.url, self.outside = browser, url, []
        self.pages, self.before = {}, {}

    def start(self, name):
        """Open a chapter in a page of its own, note what shows, and choose Run All Cells."""
        page = self.browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: None if re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", request.url)
                else self.outside.append(request.url))
        page.goto(f"{self.url}doc/tree/{course.path_of(name).relative_to(NBS).as_posix()}")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.ready")
        page.evaluate(READY)
        page.wait_for_function(FILLED)
        # A folded output has no picture on the page until its cell runs.
        unfolded = [cell for cell in saved_cells(name) if not cell["metadata"].get("jupyter", {}).get("outputs_hidden")]
        self.before[name] = page.evaluate(FOLDED), (loaded(page, count_images(unfolded)), count_images(unfolded))
        self.pages[name] = page, time.monotonic()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def finish(self, name):
        """The page of a chapter whose cells have all run, or one of them failed."""
        page, begun = self.pages.pop(name)
        page.wait_for_function(DONE, timeout=1000 * PATIENCE, polling=250)
        print(f"{name}: {time.monotonic() - begun:.0f} s")
        return page

    def close(self, page):
        page.evaluate(f"{PANEL}.sessionContext.shutdown()")
        page.close()
        assert not self.outside, self.outside


@pytest.fixture(scope="module")
def chapters(browser, lab):
    return Chapters(browser, lab)


@pytest.fixture
def run(chapters, request):
    """A function that runs a chapter, and starts the next one of this session meanwhile."""
    names = [item.callspec.params["name"] for item in request.session.items
             if item.originalname == "test_run_all_cells"]
    names = [name for name in names if ALL or name in KINDS]
    pages = []

    def run(name):
        i = names.index(name) if name in names else len(names)
        for wanted in [name, *names[i + 1:i + 2]]:
            if wanted not in chapters.pages:
                chapters.start(wanted)
        pages.append(chapters.finish(name))
        return pages[-1], chapters.before[name]

    yield run
    for page in pages:
        chapters.close(page)


def check(page, before, name):
    """Before: pictures and folded solutions as saved. After: no error, no stderr, every figure."""
    saved = saved_cells(name)
    for cell in (shown := page.evaluate(NOTEBOOK)["cells"]):
        for out in cell.get("outputs", ()):
            said = "\n".join(out.get("traceback", [])) + "".join(out.get("text", ""))
            assert out["output_type"] != "error" and out.get("name") != "stderr", said
    if name not in WIDGETS:
        assert pictures(shown) == pictures(saved)
    folded_before, images_before = before
    count = count_images(saved) + 2 * (name == SLIDERS)  # three images of widgets for one picture
    for images, wanted in (images_before, (loaded(page, count), count)):
        assert all(images) and len(images) == wanted
    for cell, then, now in zip(saved, folded_before, page.evaluate(FOLDED), strict=True):
        state = cell["metadata"].get("jupyter", {})
        assert then == [not state.get(f"{part}_hidden", False) for part in ("source", "outputs")]
        assert now[0] == then[0]  # JupyterLab shows the outputs of what was run, but not its code


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_run_all_cells(run, name):
    check(*run(name), name)


def picture(page, number=0):
    """The pixels that an image widget shows: the digit, the plane, or the samples."""
    source = page.locator(".widget-image").nth(number).evaluate(
        "(image) => fetch(image.src).then((answer) => answer.bytes()).then((bytes) => Array.from(bytes))")
    with PIL.Image.open(io.BytesIO(bytes(source))) as image:
        return np.asarray(image, int)


@pytest.mark.long
def test_sliders_follow_keys_and_mouse(run, pretrained):
    page, before = run(SLIDERS)
    check(page, before, SLIDERS)
    first, second = (page.locator(".widget-slider").nth(i) for i in range(2))
    start = picture(page)
    first.locator(".noUi-handle").focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    box = second.locator(".noUi-base").bounding_box()
    second.locator(".noUi-handle").hover()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    z = [float(slider.locator(".widget-readout").text_content().replace("−", "-"))
         for slider in (first, second)]
    assert z[0] == pytest.approx(0.4) and -3 < z[1] < -1
    with PIL.Image.open(io.BytesIO(digit_png(pretrained[0], z))) as image:
        expected = np.asarray(image, int)
    for _ in range(200):  # the kernel draws each place on the way
        if np.abs(picture(page) - expected).max() <= 1:  # a grey level, where float32 rounds otherwise
            break
        page.wait_for_timeout(100)
    assert np.abs(picture(page) - expected).max() <= 1
    assert np.abs(start - expected).max() > 50


@pytest.mark.long
def test_sliders_walk_and_sample(run, pretrained):
    page, before = run(SLIDERS)
    plane, samples = picture(page, 1), picture(page, 2)
    readouts = page.locator(".widget-slider .widget-readout")
    page.locator(".widget-slider").nth(2).locator(".noUi-handle").focus()  # the way
    page.keyboard.press("End")
    for number, old in ((1, plane), (2, samples)):
        if number == 2:
            page.locator(".widget-slider").nth(3).locator(".noUi-handle").focus()  # the seed
            page.keyboard.press("ArrowRight")
        for _ in range(200):
            if np.abs(picture(page, number) - old).max() > 50:
                break
            page.wait_for_timeout(100)
        assert np.abs(picture(page, number) - old).max() > 50
    z = [float(readouts.nth(i).text_content().replace("−", "-")) for i in range(2)]
    assert z[0] > 0.5 and z[1] < -0.5  # where the walk ends: in the cloud of the nines
    with PIL.Image.open(io.BytesIO(digit_png(pretrained[0], draw_eps(1, 0, (8, 2)), enlarge=3))) as image:
        assert np.abs(picture(page, 2) - np.asarray(image, int)).max() <= 1

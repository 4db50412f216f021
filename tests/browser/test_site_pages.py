"""The pages of `make site-check` in Chromium: what they load, how they fit, what axe-core finds.

The site's own pages come from Quarto, which is not at hand in every place; these come from the same
processed notebooks through pandoc.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402

# As nbdev names them: "engine/recipes.html" for engine/12_recipes.ipynb.
PAGES = [re.sub(r"(^|/)\d+_", r"\1", path.relative_to(ROOT / "nbs").with_suffix(".html").as_posix())
         for path in course.notebooks()]
pytestmark = pytest.mark.long  # the pages of all chapters take a minute to build
LIMIT = 1_000_000  # bytes of a page with all that it loads; the explorer in it comes on top
EXPLORER_LIMIT = 1_500_000
# What sticks out to the right, unless something around it scrolls.
WIDER = """() => Array.from(document.querySelectorAll("main *")).filter((element) => {
  if (element.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let e = element.parentElement; e; e = e.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return false;
  }
  return true;
}).map((element) => element.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The preview, built afresh."""
    pytest.importorskip("pypandoc", reason="pandoc is not installed (dev extra)")
    folder = tmp_path_factory.mktemp("site") / "pages"
    done = subprocess.run([sys.executable, "tools/build_site.py", "check", "--out", str(folder)],
                          cwd=ROOT, capture_output=True, text=True)
    # What it finds fault with is its own matter: `make site-check` fails then.
    assert (folder / "pages.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def site(folder, serving):
    return serving(folder)


def bring_all_into_view(page):
    """Unfold the solutions, scroll to the end step by step, so that lazy pages load, and ask for every lazy image.

    An image that the page moves while it scrolls may never have been near the window.
    """
    page.evaluate("""async () => {
      document.querySelectorAll("details").forEach((element) => { element.open = true; });
      for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
        scrollTo(0, y);
        await new Promise((done) => setTimeout(done, 20));
      }
      document.querySelectorAll("img").forEach((image) => { image.loading = "eager"; });
    }""")
    page.wait_for_load_state("networkidle")


def test_every_notebook_has_its_page(folder):
    assert {name for name in [*PAGES, "explorer/index.html"] if not (folder / name).is_file()} == set()


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_and_fits_a_phone(opened, site, name):
    page, answers = opened("about:blank", width=390, height=844), []
    page.on("response", lambda answer: answers.append(answer) if answer.url.startswith("http") else None)
    page.goto(site + name)
    bring_all_into_view(page)
    page.wait_for_function("[...document.images].every((image) => image.complete)")  # loaded, or broken
    images = page.locator("img").evaluate_all(
        "(images) => images.map((image) => [image.alt, image.complete && image.naturalWidth > 1])")
    assert all(alt.strip() and loaded for alt, loaded in images), images
    assert page.evaluate(WIDER) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = [("/explorer/" in answer.url, len(answer.body())) for answer in answers]
    own, explorer = (sum(size for inner, size in sizes if inner == kind) for kind in (False, True))
    print(f"{name}: {own:,} bytes, explorer in it {explorer:,}")
    assert own <= LIMIT and explorer <= EXPLORER_LIMIT


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@pytest.mark.parametrize("name", ["index.html", "tutorial/manifold.html"])  # the explorer has a file of its own
def test_axe_finds_nothing_serious(opened, serious, site, name, width, scheme):
    page = opened(site + name, width=width, color_scheme=scheme)
    bring_all_into_view(page)
    assert serious(page) == []


@pytest.mark.parametrize("name", ["index.html", "tutorial/manifold.html"])
@pytest.mark.parametrize("width", [390, 500, 640, 1000, 1280])
def test_the_explorer_runs_inside_the_page(opened, site, name, width):
    page = opened(site + name, width=width)
    frame = page.locator("iframe")
    frame.scroll_into_view_if_needed()
    inside = page.frame_locator("iframe")
    inside.locator("#check", has_text="8 codes").wait_for()
    # Nothing in it is cut off, and nothing scrolls inside something that scrolls.
    extent = inside.locator("html").evaluate("(html) => [html.scrollWidth - html.clientWidth, html.scrollHeight - html.clientHeight]")
    assert extent == [0, 0], extent
    before = inside.locator("#z2-value").text_content()
    inside.locator("#plane").focus()
    page.keyboard.press("ArrowUp")
    inside.locator("#z2-value", has_text="0.10").wait_for()
    assert before == "0.00"


def test_the_explorer_follows_the_switch_of_the_page(opened, site):
    page = opened(site + "index.html", color_scheme="light")
    page.locator("iframe").scroll_into_view_if_needed()
    inside = page.frame_locator("iframe")
    inside.locator("#check", has_text="8 codes").wait_for()
    for theme, dark in (("dark", True), ("light", False)):  # as Quarto's switch does
        page.evaluate("(theme) => { document.body.className = `quarto-${theme}`; }", theme)
        inside.locator(f"html[data-theme={theme}]").wait_for()
        back = inside.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
        corner = inside.locator("#plane").evaluate(
            "(canvas) => canvas.getContext('2d').getImageData(60, 2, 1, 1).data[0]")
        assert (int(back.strip("rgb()").split(",")[0]) < 128) == (corner < 128) == dark

"""The book: what becomes of links, anchors and figures, and that each planted fault is found."""

import json
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
from test_site import figure, processed, text  # noqa: E402

SETTINGS = {"title": "A course", "description": "of two chapters", "author": "us", "copyright": "2026 us"}
ENTRIES = [("Part one", "part/01_first.ipynb", None), ("Part two", "02_second.ipynb", None)]
FIRST = """## A heading

See [(2.1)](../02_second.ipynb#eq-one), [the second](../02_second.ipynb), [here](#a-heading),
[a file](../../README.md) and [a page](https://example.org).

<details open><summary>A fold</summary>

Its text.

</details>"""
SECOND = """## Sums

The first words of the section. Its next.

More words.

<a id="eq-one"></a>
$$x = 1 \\qquad (2.1)$$"""
SHOWN = "#| fig-cap: What to *see*.\n#| fig-alt: A picture of nothing\n1"


def made(folder, first=FIRST, second=SECOND, shown=SHOWN):
    """pandoc's document of two chapters."""
    processed(folder / "processed", text(first), name="part/01_first")
    processed(folder / "processed", text(second), figure(shown), text("## Recap\n\n- One.\n- Two.\n\nMore."), name="02_second")
    (folder / "figures").mkdir()
    return book.whole_book(folder / "processed", folder / "figures", ENTRIES)


def epub_of(folder, *changes):
    path = folder / "book.epub"
    book.write_epub(made(folder, *changes), path, SETTINGS, ROOT)
    return path


def test_links_lead_within_the_book(tmp_path):
    path = epub_of(tmp_path)
    assert book.check_epub(path) == []
    with zipfile.ZipFile(path) as archive:
        pages = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if name.endswith("xhtml")}
        assert sum("/media/" in name for name in archive.namelist()) == 2  # the cover and the figure
    (first,) = [page for page in pages.values() if "A fold" in page]
    (name,) = [name for name, page in pages.items() if 'id="ch-02_second.eq-one"' in page]
    for link in (f"{name}#ch-02_second.eq-one", f"{name}#ch-02_second", "#ch-01_first.a-heading", "https://example.org"):
        assert f'{link}"' in first
    assert "README" not in first and "a file" in first
    assert 'alt="A picture of nothing"' in pages[name] and "<em>see</em>" in pages[name] and "<math" in pages[name]


@pytest.mark.parametrize("changes, words", [
    ((FIRST + "\n\n[gone](#nowhere)",), "no #ch-01_first.nowhere"),
    ((FIRST + "\n\n[gone](../02_second.ipynb#eq-two)",), "no #ch-02_second.eq-two"),
    ((FIRST, SECOND, "#| fig-cap: No text for who cannot see\n1"), "picture without a text"),
    ((FIRST + "\n\n<p>an open paragraph",), "mismatched tag"),
])
def test_planted_faults_are_found(tmp_path, changes, words):
    faults = book.check_epub(epub_of(tmp_path, *changes))
    assert faults and words in " ".join(faults)


def test_a_warning_of_pandoc_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="Could not convert TeX math"):
        book.page_of(made(tmp_path, FIRST + "\n\n$\\nonsense{x$"), SETTINGS)


def test_the_long_page_is_whole_and_open(tmp_path):
    page = book.page_of(made(tmp_path), SETTINGS)
    assert book.check_page(page) == [] and "<details open>" in page and "<script" not in page
    assert book.check_page(page.replace('href="#ch-02_second"', 'href="#ch-03_third"')) == ["no #ch-03_third"] * 2
    assert "without a text" in book.check_page(page.replace('alt="A picture of nothing"', 'alt=""'))[0]


def test_slides_have_the_sections_with_something_to_see(tmp_path):
    made(tmp_path)
    slides = book.slides_of("02_second.ipynb", tmp_path / "processed", tmp_path / "figures")
    assert slides.count("## Sums") == 2 and "The first words of the section. Its next." in slides
    assert "More words" not in slides and "$$x = 1" in slides and "- One.\n- Two." in slides
    out = tmp_path / "slides.pptx"
    book.write_pptx(slides, out)
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
    assert sum(name.startswith("ppt/slides/slide") for name in names) == 4
    assert sum(name.startswith("ppt/notesSlides/notesSlide") for name in names) == 2


def test_lectures_name_chapters_that_are_there():
    there = {path.stem for path in (ROOT / "nbs").rglob("*.ipynb")}
    assert {name for chapters in book.LECTURES.values() for name in chapters} <= there


def test_blocks_are_what_this_pandoc_reads(tmp_path):
    document = made(tmp_path)
    assert json.loads(json.dumps(document)) == document and len(document["blocks"]) > 10
    assert nbformat.read(tmp_path / "processed" / "02_second.ipynb", as_version=4).cells

"""The printed book: page numbers in its contents, fonts in the file."""

import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

import book  # noqa: E402
from test_book import ENTRIES, SETTINGS, made  # noqa: E402

pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed (dev extra)")


def test_contents_name_the_pages(tmp_path, browser):
    path = tmp_path / "book.pdf"
    book.print_page(book.page_of(made(tmp_path), SETTINGS), path, browser)
    reader = pypdf.PdfReader(path)
    pages = [unicodedata.normalize("NFKC", page.extract_text()) for page in reader.pages]  # without ligatures
    for title in ("Title of part/01_first", "Title of 02_second"):
        (contents,) = [page for page in pages[:2] if title in page]
        number = int(contents.split(title)[1].split()[0])
        assert title in pages[number - 1] and pages[number - 1].rstrip().endswith(f"\n{number}")
    assert book.check_pdf(path) == [] and len(reader.outline) >= len(ENTRIES)
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]  # tagged, for those who listen to it


def test_a_font_that_is_missing_is_named(tmp_path):
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(100, 100)
    name = pypdf.generic.NameObject
    font = pypdf.generic.DictionaryObject({name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"),
                                           name("/BaseFont"): name("/Helvetica")})
    page[name("/Resources")] = pypdf.generic.DictionaryObject(
        {name("/Font"): pypdf.generic.DictionaryObject({name("/F1"): font})})
    writer.write(tmp_path / "one.pdf")
    assert book.check_pdf(tmp_path / "one.pdf") == ["font /Helvetica is not in the file"]

"""Citations: each leads to an entry of the bibliography, and says its authors and year."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import references  # noqa: E402

CITED = sorted({(words, url) for _, words, url in references.citations()})


@pytest.mark.parametrize("words, url", CITED, ids=[re.sub(r"\W+", "_", f"{words}-{url[-12:]}") for words, url in CITED])
def test_a_citation_says_whose_work_it_is(words, url):
    assert url in references.entries(), f"{url} ({words}) is not in nbs/references.bib"
    entry = references.entries()[url]
    who = re.fullmatch(r"(.+?),? \(?((?:19|20)\d\d)\)?", words)
    if who:  # else the link says what the work is, not whose
        named = re.split(r", | & | and ", who[1].removesuffix(" et al."))
        assert who[2] == references.year(entry)
        assert named == references.names(entry)[:len(named)]
        assert len(named) == len(entry["author"]) or who[1].endswith(" et al.")


def test_every_entry_is_cited():
    assert set(references.entries()) == {url for _, url in CITED}


def test_entries_are_whole():
    for url, entry in references.entries().items():
        assert references.SCHOLARLY.match(url) and entry["title"] and entry["author"] and references.year(entry)


def test_the_page_is_written_from_the_bibliography():
    page = nbformat.read(references.PAGE, as_version=4)
    assert references.table() in [cell.source for cell in page.cells], "run tools/references.py"

"""The bibliography: nbs/references.bib has each work once, the page of references is written from it.

    python tools/references.py     writes the table of nbs/appendix/references.ipynb

A text cites by a link to the work's address with its authors and year, as `[Burda et al., 2015](https://…)`;
tests/test_references.py holds the words of the link to the entry, and every entry to a citation.
"""

import json
import re
from functools import cache
from pathlib import Path

import nbformat
from course import ROOT, notebooks, number_of
from preview import run_pandoc

BIB = ROOT / "nbs" / "references.bib"
PAGE = ROOT / "nbs" / "appendix" / "references.ipynb"
SCHOLARLY = re.compile(r"https?://(?:arxiv\.org|(?:dx\.)?doi\.org|dl\.acm\.org|openreview\.net|proceedings\.mlr\.press"
                       r"|papers\.nips\.cc|www\.jmlr\.org|jmlr\.org|approximateinference\.org)/")
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((https?://[^)\s]+)\)")


@cache
def entries() -> dict:
    """The entries of references.bib by address, as pandoc reads them."""
    found, _ = run_pandoc("--from=bibtex", "--to=csljson", str(BIB))
    return {entry["URL"]: entry for entry in json.loads(found)}


def citations() -> list[tuple[Path, str, str]]:
    """Notebook, words and address of each link to a work."""
    found = []
    for path in notebooks():
        if path != PAGE:
            text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
            found += [(path, *link.groups()) for link in LINK.finditer(text) if SCHOLARLY.match(link[2])]
    return found


def year(entry: dict) -> str:
    return str(entry["issued"]["date-parts"][0][0])


def names(entry: dict) -> list[str]:
    """The authors' family names, with their particles."""
    parts = ("dropping-particle", "non-dropping-particle", "family")
    return [" ".join(author[part] for part in parts if part in author) for author in entry["author"]]


def short(entry: dict) -> str:
    """Authors and year, as a text would say them."""
    who = names(entry)
    who = f"{who[0]} et al." if len(who) > 2 else " and ".join(who)
    return f"{who}, {year(entry)}"


def table() -> str:
    """A line for each entry: who, what, and the chapters that cite it."""
    lines = ["| work | title | cited in |", "|------------------|------------------------------|----------|"]
    found = citations()
    for url, entry in sorted(entries().items(), key=lambda item: short(item[1]).lower()):
        where = dict.fromkeys(path for path, _, address in found if address == url)
        cited = ", ".join(f"[{number_of(path) or path.stem}](../{path.relative_to(ROOT / 'nbs').as_posix()})" for path in where)
        lines.append(f"| [{short(entry)}]({url}) | {entry['title']} | {cited} |")
    return "\n".join(lines)


def main():
    page = nbformat.read(PAGE, as_version=4)
    (cell,) = [cell for cell in page.cells if cell.source.startswith("| work")]
    cell.source = table()
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The course as a book, from the same processed notebooks as the site.

    python tools/book.py [--out DIR] [--only NAME ...]     into _book/

It writes vae_course.epub (pandoc), vae_course.pdf (Chromium prints one long page, with contents and page
numbers), and slides for two lectures (pandoc's .pptx, to be edited). Each is checked: links, alternative
texts, fonts. Chromium must be installed; without it there is no PDF, and that is said.
"""

import argparse
import html
import json
import re
import shutil
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from build_site import process
from chromium import find_chromium
from course import ROOT, sidebar
from links import read_settings
from preview import TOOLS, read_page, run_pandoc

LECTURES = {"lecture_1": ["00_one_page", "01_data", "02_reparameterization", "03_elbo"],
            "lecture_2": ["04_model", "05_training", "06_generation", "07_animation", "08_manifold"]}
FIGURE = re.compile(r'<figure><img src="([^"]*)" alt="([^"]*)" loading="lazy"><figcaption>\n\n(.*?)\n\n'
                    r"</figcaption></figure>", re.S)
CONTENTS = re.compile(r'<a href="#([^"]+)"([^>]*)>(.*?)</a>', re.S)


def pandoc(*arguments: str, text: str = "") -> str:
    """What pandoc answers; its warnings are errors."""
    return run_pandoc("--fail-if-warnings", *arguments, text=text)[0]


def with_figures(text: str) -> str:
    """The figures of a page as pandoc's own, so that they come into the book."""
    return FIGURE.sub(lambda found: f'![{found[3]}]({found[1]}){{alt="{found[2]}"}}', text)


def chapter_blocks(file: str, processed: Path, figures: Path, files: list[str]) -> list:
    """pandoc's blocks of one page, with its title as a heading of the second level."""
    front, text = read_page(processed / file, figures, str(figures))
    name = Path(file).stem
    known = json.dumps({"chapter": name, "known": [Path(each).name for each in files]})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as metadata:
        metadata.write(known)
        metadata.flush()
        tree = json.loads(pandoc("--from=markdown", "--to=json", "--shift-heading-level-by=1",
                                 f"--metadata-file={metadata.name}", f"--resource-path={processed / Path(file).parent}",
                                 f"--lua-filter={TOOLS / 'book.lua'}",
                                 text=with_figures(text).replace("<details open>", '<details open="open">')))
    lead = json.loads(pandoc("--from=markdown", "--to=json", text=front.get("description") or ""))["blocks"]
    title = json.loads(pandoc("--from=markdown", "--to=json", text=f"## {front['title']} {{#ch-{name}}}"))["blocks"]
    return title + lead + tree["blocks"]


def whole_book(processed: Path, figures: Path, entries: list) -> dict:
    """One document of all pages, the sidebar's sections as its parts."""
    blocks, last, version = [], None, json.loads(pandoc("--to=json"))["pandoc-api-version"]
    files = [file for _, file, _ in entries]
    for section, file, _ in entries:
        if section and section != last:
            blocks += json.loads(pandoc("--to=json", text=f"# {section}"))["blocks"]
        blocks += chapter_blocks(file, processed, figures, files)
        last = section
    return {"pandoc-api-version": version, "meta": {}, "blocks": blocks}


def write_epub(book: dict, out: Path, settings: dict, root: Path):
    """The book for readers of e-books; a file for each chapter."""
    metadata = {"title": settings["title"], "subtitle": settings["description"], "lang": "en",
                "author": settings["author"], "rights": f"© {settings['copyright']}"}
    pandoc("--from=json", "--to=epub3", "--mathml", "--toc", "--toc-depth=2", "--split-level=2", f"--output={out}",
           f"--css={TOOLS / 'book.css'}", f"--epub-cover-image={root / 'nbs/images/manifold.png'}",
           *(f"--metadata={name}={value}" for name, value in metadata.items()), text=json.dumps(book))


def check_epub(path: Path) -> list[str]:
    """Files that are no XML, links that lead nowhere, pictures without a text."""
    faults, anchors, links = [], {}, []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".xhtml"):
                continue
            short = Path(name).name
            try:
                tree = ElementTree.fromstring(archive.read(name))
            except ElementTree.ParseError as error:
                faults.append(f"{short}: {error}")
                continue
            elements = list(tree.iter())
            anchors[short] = {element.get("id") for element in elements}
            links += [(short, element.get("href")) for element in elements if element.get("href")]
            faults += [f"{short}: picture without a text: {element.get('src')}" for element in elements
                       if element.tag.endswith("}img") and not (element.get("alt") or "").strip()]
    for short, link in links:
        file, _, anchor = link.partition("#")
        target = Path(file).name or short
        if not re.match(r"\w+:", link) and target in anchors and anchor and anchor not in anchors[target]:
            faults.append(f"{short}: no {link}")
    return faults


def page_of(book: dict, settings: dict) -> str:
    """One long HTML page with contents, its folds open, for Chromium to print."""
    text = pandoc("--from=json", "--to=html5", "--standalone", "--mathml", "--toc", "--toc-depth=2", "--embed-resources",
                  f"--css={TOOLS / 'book.css'}", f"--metadata=title={settings['title']}", "--metadata=lang=en",
                  f"--metadata=subtitle={settings['description']}", text=json.dumps(book))
    return re.sub(r"<details[^>]*>", "<details open>", text)


def check_page(text: str) -> list[str]:
    """Links of the long page that lead nowhere, pictures without a text."""
    ids = set(re.findall(r'\sid="([^"]+)"', text))
    return ([f"no #{html.unescape(link)}" for link in re.findall(r'href="#([^"]+)"', text) if link not in ids]
            + [f"picture without a text: {tag[:80]}" for tag in re.findall(r"<img[^>]*>", text)
               if not re.search(r'alt="[^"]*\S[^"]*"', tag)])


def with_number(numbers: dict, link: re.Match) -> str:
    """A line of the contents with the page it leads to; other links as they are."""
    if 'id="toc-' not in link[2]:
        return link[0]
    return f'<a href="#{link[1]}"{link[2]}>{link[3]}<span class="page">{numbers.get(link[1], "")}</span></a>'


def print_page(text: str, path: Path, browser):
    """Print twice: the first print says on which page each chapter stands, the second has that in its contents."""
    from pypdf import PdfReader
    footer = ('<div style="width: 100%; font-size: 8px; text-align: center; font-family: sans-serif">'
              '<span class="pageNumber"></span></div>')
    numbers = {}
    for _ in range(2):
        numbered = CONTENTS.sub(partial(with_number, numbers), text)
        page = browser.new_page()
        page.set_content(numbered, wait_until="load")
        page.pdf(path=path, format="A4", tagged=True, outline=True, print_background=True, display_header_footer=True, header_template="<i></i>",
                 footer_template=footer, margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"})
        page.close()
        reader, before = PdfReader(path), numbers
        numbers = {name.lstrip("/"): reader.get_destination_page_number(place) + 1
                   for name, place in reader.named_destinations.items()}
    assert all(before.get(name) == number for name, number in numbers.items()), "the contents moved what they count"


def check_pdf(path: Path) -> list[str]:
    """Fonts that are not in the file."""
    from pypdf import PdfReader
    faults = set()
    for page in PdfReader(path).pages:
        for font in (page.get("/Resources", {}).get("/Font") or {}).values():
            font = font.get_object()
            for part in font.get("/DescendantFonts", [font]):
                descriptor = part.get_object().get("/FontDescriptor")
                if font["/Subtype"] != "/Type3" and not any(
                        name in (descriptor or {}) for name in ("/FontFile", "/FontFile2", "/FontFile3")):
                    faults.add(f"font {font['/BaseFont']} is not in the file")
    return sorted(faults)


def slides_of(file: str, processed: Path, figures: Path) -> str:
    """A slide for each section of a chapter that has a figure or an equation, the section's first words as notes."""
    front, text = read_page(processed / file, figures, str(figures))
    parts = [f"# {front['title']}\n\n{front.get('description') or ''}"]
    for section in re.split(r"^## ", with_figures(text), flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        if re.match("Recap", title):
            parts.append(f"## {title}\n\n{body.strip().split(chr(10) + chr(10))[0]}")
        if re.match("Recap|Exercises", title):
            continue
        words = re.sub(r"<[^>]*>|^(`{3,}).*?\1$|!\[.*?\]\(.*?\)\{.*?\}|\$\$.*?\$\$", "", body, flags=re.S | re.M).strip()
        notes = "::: notes\n" + words.split("\n\n")[0] + "\n:::"
        for caption, image, alt in re.findall(r'^!\[(.*?)\]\((.*?)\)\{alt="(.*?)"\}', body, flags=re.M | re.S)[:2]:
            parts.append(f'## {title}\n\n![{caption}]({image}){{alt="{alt}"}}\n\n{notes}')
        for equation in re.findall(r"\$\$.*?\$\$", body, flags=re.S)[:2]:
            parts.append(f"## {title}\n\n{equation}\n\n{notes}")
    # Links would lead out of the lecture.
    return re.sub(r"(?<!!)\[([^\]]*)\]\([^)]*\)", r"\1", "\n\n".join(parts))


def write_pptx(slides: str, path: Path):
    """Slides in markdown as a file."""
    run_pandoc("--from=markdown", "--to=pptx", "--slide-level=2", f"--output={path}", text=slides)


def write_slides(processed: Path, figures: Path, entries: list, out: Path):
    """A file for each lecture, to be edited by whoever holds it."""
    files = {Path(file).stem: file for _, file, _ in entries}
    for name, chapters in LECTURES.items():
        text = "\n\n".join(slides_of(files[chapter], processed, figures) for chapter in chapters)
        write_pptx(text, out / f"{name}.pptx")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_book")
    parser.add_argument("--only", nargs="*", help="names of chapters, for a look at a part")
    parser.add_argument("--processed", type=Path, help="notebooks that a build of the site has processed")
    arguments = parser.parse_args()
    from vae_course.support import quiet_tensorflow
    quiet_tensorflow()
    settings, faults = read_settings(ROOT), []
    processed = arguments.processed or process(ROOT, settings)
    entries = [entry for entry in sidebar(ROOT) if not arguments.only or Path(entry[1]).stem in arguments.only]
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as figures:
        book = whole_book(processed, Path(figures), entries)
        write_epub(book, arguments.out / "vae_course.epub", settings, ROOT)
        faults += check_epub(arguments.out / "vae_course.epub")
        if chromium:
            from playwright.sync_api import sync_playwright
            text = page_of(book, settings)
            faults += check_page(text)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                print_page(text, arguments.out / "vae_course.pdf", browser)
            faults += check_pdf(arguments.out / "vae_course.pdf")
        if not arguments.only:
            write_slides(processed, Path(figures), entries, arguments.out)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")
    if not chromium:
        print("No PDF: Chromium, which prints it, is not installed.")
    print(*faults, sep="\n", file=sys.stderr)
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()

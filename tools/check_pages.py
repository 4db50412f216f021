"""What every page of the site must hold to: links, anchors, images, weight."""

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LIMIT = 1_000_000  # bytes that opening a page may load
PACKED = {".html", ".css", ".js", ".json", ".svg"}  # servers send text packed
# MathML of "log" with a letter, number or fraction right behind it; a bracket may stand there.
TIGHT = re.compile(r'(?<!<msub>)(?<!<msup>)(?<!<munder>)<mrow><mi mathvariant="normal">(\w+)</mi><mo>(?:&#8289;|\u2061)</mo></mrow>'
                   r'(?=<m(?:i|n|frac|sup|text|(?:sub|subsup|over|under)\b(?!><mo))\b)')
LOADED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"),
          ("link", "href")}


class Page(HTMLParser):
    """The links, anchors and faults of one HTML text."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.faults, self.headings, self.code = set(), [], [], 0, 0
        self.feed(text)
        self.faults += [f"no space between an operator and what follows: {word}" for word in TIGHT.findall(text)]
        # A page of the site has an icon; what the repository's own texts become here is no page.
        if "<html" in text and 'rel="icon"' not in text and 'rel="shortcut icon"' not in text and "quarto" in text:
            self.faults.append("page without an icon")

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.headings += tag == "h1"
        for name in ("href", "src"):
            # A link element that only names an address (canonical, next) loads nothing.
            named = tag == "link" and not re.search("stylesheet|icon|preload", found.get("rel") or "")
            if found.get(name) is not None and not named:
                self.links.append((tag, name, found[name].strip()))
        # No picture here is mere decoration, so none may have an empty text.
        if tag == "img" and not (found.get("alt") or "").strip():
            self.faults.append(f"image without alt text: {(found.get('src') or '')[:60]}")
        if tag == "iframe" and not found.get("title"):
            self.faults.append(f"iframe without title: {found.get('src')}")
        # A page may name its picture for social networks by its place on the site.
        if tag == "meta" and found.get("property") == "og:image" and found.get("content"):
            self.links.append((tag, "content", re.sub(r"^https?://[^/]+/[^/]+/", "", found["content"])))
        self.code += tag == "pre"
        # A box that folds by a script's attributes on a div is opened by no key.
        if tag == "div" and (found.get("data-collapse") or found.get("data-bs-toggle") == "collapse"):
            self.faults.append(f"a box that folds and that no key opens: {found.get('title') or found.get('aria-label') or ''}")
        # pandoc's sign of a formula that it could not turn into MathML.
        if tag == "span" and "math" in (found.get("class") or "").split():
            self.faults.append("formula left as TeX")
        if "citation" in (found.get("class") or "").split():
            self.faults.append(f"reference to an equation that is not there: @{found.get('data-cites')}")

    def handle_endtag(self, tag):
        self.code -= tag == "pre"

    def handle_data(self, data):
        # nbdev's signatures: links do not work inside code, and kinds of parameters are no Python.
        for wrong in re.findall(r"\w+:VAR_\w+|\[`\w+`\]\(\S*", data) if self.code else ():
            self.faults.append(f"code that is none: {wrong}")


def check_pages(pages: dict[Path, Page]) -> list[str]:
    """Every fault of these pages, with the file it is in."""
    faults = []
    for path, page in pages.items():
        faults += [f"{path.name}: {fault}" for fault in page.faults]
        for tag, name, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if (tag, name) in LOADED and parts.scheme != "data":
                    faults.append(f"{path.name}: loads {link} from elsewhere")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if target not in pages and not target.exists():
                faults.append(f"{path.name}: link to {link}, which does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                faults.append(f"{path.name}: link to {link}, but there is no such anchor")
    return sorted(set(faults))


def weigh_pages(folder: Path, pages: dict[Path, Page]) -> dict[str, int]:
    """Bytes that opening each page loads from the site: itself, and what it shows or runs; text as sent, packed.

    The explorer is a page inside pages, loads when it comes into view, and fetches most of its files
    by itself; a browser test weighs it.
    """
    weights = {}
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        if name.parts[0] in ("explorer", "site_libs"):
            continue
        files = {path} | {(path.parent / unquote(urlsplit(link).path)).resolve()
                          for tag, name, link in page.links
                          if (tag, name) in LOADED and tag != "iframe" and not urlsplit(link).scheme}
        for sheet in [file for file in files if file.suffix == ".css" and file.is_file()]:
            files |= {(sheet.parent / urlsplit(link).path).resolve() for link in
                      re.findall(r"url\([\"']?([^\"')]+)", sheet.read_text(encoding="utf-8"))
                      if not link.startswith(("data:", "#"))}
        weights[name.as_posix()] = sum(map(size_as_sent, files))
    return weights


def size_as_sent(file: Path) -> int:
    """Bytes on the way to the browser; 0 for what is no file."""
    if not file.is_file():
        return 0
    return len(gzip.compress(file.read_bytes())) if file.suffix in PACKED else file.stat().st_size

"""A plain page of each processed notebook, by pandoc alone: what `make site-check` looks at."""

import base64
import html
import posixpath
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import nbformat
import pypandoc
import yaml

TOOLS = Path(__file__).parent.resolve()

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – {site}</title>
<meta name="description" content="{description}">
<meta property="og:title" content="{title}">
<meta property="og:description" content="{description}">
<meta property="og:site_name" content="{site}">
<link rel="icon" href="{top}images/favicon.svg">
<link rel="stylesheet" href="{top}preview.css">
<link rel="stylesheet" href="{top}site.css">
</head>
<body>
<div class="layout">
<nav class="chapters" aria-label="Chapters">{chapters}</nav>
<main>
<h1>{title}</h1>
<p class="subtitle">{description}</p>
{body}
<nav class="turn" aria-label="Previous and next">{previous}{next}</nav>
</main>
</div>
<footer>{footer}</footer>
</body>
</html>
"""


def directives(cell) -> dict:
    """The `#| name: value` lines of a code cell."""
    found = re.findall(r"^#\| ?([\w-]+):? *(.*)$", cell.source, flags=re.M)
    return {name: str(yaml.safe_load(value)) if value else "" for name, value in found}


def run_pandoc(*options: str, text: str = "") -> tuple[str, str]:
    """What pandoc answers, and what it warned of; RuntimeError with its words if it fails."""
    done = subprocess.run([pypandoc.get_pandoc_path(), *options], input=text, capture_output=True, text=True,
                          encoding="utf-8")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout, done.stderr


def pandoc(text: str, *options: str) -> tuple[str, str]:
    """HTML of a markdown text, and what pandoc warned of."""
    return run_pandoc("--to=html5", "--mathml", *options, text=text)


def code_markdown(cell, figures: Path, folder: str) -> str:
    """A code cell with its outputs, as Quarto would show them; `folder` leads from the page to the figures."""
    options, parts = directives(cell), []
    lines = [line for line in cell.source.split("\n") if not line.startswith("#|")]
    if options.get("echo") != "False" and "".join(lines).strip():
        parts.append("````python\n" + "\n".join(lines) + "\n````")
        if "code-fold" in options:
            state = " open" if options["code-fold"] == "show" else ""
            summary = html.escape(options.get("code-summary", "Code"))
            parts = [f'<details class="code-fold"{state}><summary>{summary}</summary>', *parts, "</details>"]
    for number, output in enumerate(cell.outputs):
        data = output.get("data", {})
        kind = next((kind for kind in data if kind.startswith("image/")), None)
        if output.output_type == "stream":
            parts.append("````output\n" + output.text.rstrip() + "\n````")
        elif "text/markdown" in data:
            parts.append(data["text/markdown"])
        elif kind:
            file = figures / f"{cell.id}-{number}.{kind.split('/')[1].split('+')[0]}"
            content = data[kind]
            file.write_bytes(content.encode() if "svg" in kind else base64.b64decode(content))
            parts.append(f'<figure><img src="{folder}/{file.name}" alt="'
                         f'{html.escape(options.get("fig-alt", ""))}" loading="lazy"><figcaption>\n\n'
                         f'{options.get("fig-cap", "")}\n\n</figcaption></figure>')
        elif "text/plain" in data:
            parts.append("````output\n" + data["text/plain"] + "\n````")
    return "\n\n".join(parts)


def read_page(path: Path, figures: Path, folder: str) -> tuple[dict, str]:
    """Front matter and markdown of a processed notebook or .qmd file."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        parts = [code_markdown(cell, figures, folder) if cell.cell_type == "code" else cell.source
                 for cell in cells]
        text = "\n\n".join(parts)
    else:
        text = path.read_text(encoding="utf-8")
    front, text = re.match(r"---\n(.*?)\n---\s*(.*)", text, flags=re.S).groups()
    return yaml.safe_load(front), text


def link(target: str, page: str) -> str:
    """The way from one page of the site to another, or to a file."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def point(file: str, names: dict, match) -> str:
    """A link of `file` to another notebook, as a link to that one's page."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), match[1]))
    to = link(names[target], names[file]) if target in names else match[1]
    return f'href="{to}{match[2] or ""}"'


def chapter_list(entries: list, titles: dict, names: dict, current: str) -> str:
    """The sidebar."""
    parts, last = ["<ul>"], None
    for section, file, text in entries:
        if section != last:
            parts.append(f"</ul><h2>{html.escape(section)}</h2><ul>")
        here = ' aria-current="page"' if file == current else ""
        parts.append(f'<li><a href="{link(names[file], names[current])}"{here}>{html.escape(text or titles[file])}</a></li>')
        last = section
    return "".join(parts) + "</ul>"


def plain_rules(processed: Path) -> str:
    """The site's own rules, which are plain CSS, with their colours for light and for dark."""
    def rules(name: str) -> str:
        path = processed / name
        return path.read_text(encoding="utf-8").split("/*-- scss:rules --*/")[-1] if path.exists() else ""

    both = re.sub(r"^//.*$", "", rules("site.scss"), flags=re.M)
    return f"{rules('light.scss')}@media screen and (prefers-color-scheme: dark) {{{rules('dark.scss')}}}{both}"


def make_preview(processed: Path, out: Path, entries: list, site: str, footer: str = "") -> list[str]:
    """Write a page of each sidebar entry into `out`; the faults that turned up."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "figures").mkdir(parents=True)
    shutil.copy(TOOLS / "preview.css", out)
    shutil.copytree(processed / "images", out / "images")
    (out / "site.css").write_text(plain_rules(processed), encoding="utf-8")
    files, faults, bodies, fronts = [file for _, file, _ in entries], [], {}, {}
    for file in files:
        fronts[file], text = read_page(processed / file, out / "figures", link("figures", file))
        bodies[file], warnings = pandoc(text, "--from=markdown")
        faults += [f"{file}: {line}" for line in warnings.strip().split("\n") if line]
    names = {file: posixpath.join(posixpath.dirname(file), fronts[file].get("output-file", Path(file).stem + ".html"))
             for file in files}
    titles = {file: fronts[file]["title"] for file in files}
    for twice in {name for name in names.values() if list(names.values()).count(name) > 1}:
        faults.append(f"{twice}: two notebooks have this page")
    for number, file in enumerate(files):
        around = []
        for word, other in (("Previous: ", number - 1), ("Next: ", number + 1)):
            there = files[other] if 0 <= other < len(files) else None
            around.append(f'<a href="{link(names[there], names[file])}">{word}{html.escape(titles[there])}</a>'
                          if there else "<span></span>")
        body = re.sub(r'href="([\w./-]+\.(?:ipynb|qmd))(#[^"]*)?"', partial(point, file, names), bodies[file])
        # What may scroll sideways must be reachable by keyboard; Chromium and Firefox see to that by themselves now.
        body = re.sub(r"<pre(?=[\s>])", '<pre tabindex="0"', body)
        body = body.replace('<math display="block"', '<math display="block" tabindex="0"')
        body = body.replace("<table", '<table class="table"')
        (out / names[file]).parent.mkdir(exist_ok=True)
        (out / names[file]).write_text(PAGE.format(
            title=html.escape(titles[file]), site=html.escape(site), body=body, footer=html.escape(footer), previous=around[0], next=around[1],
            top=link("preview.css", names[file]).removesuffix("preview.css"),
            description=html.escape(fronts[file].get("description") or ""),
            chapters=chapter_list(entries, titles, names, file)), encoding="utf-8")
    return faults

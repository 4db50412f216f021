"""Build the site with Quarto, or preview and check it without.

    python tools/build_site.py site                 into _docs/, with Quarto
    python tools/build_site.py check [--out DIR]    into _site_check/, with pandoc alone

Both process the notebooks as nbdev does, into _proc/. `check` then makes a plain page of each with
pandoc, whose warnings count as errors, as Quarto's do in `site`. Both make the checks of check_look.py,
on sheets, settings and processed cells, and end with those of check_pages.py, on finished pages. What only
Quarto decides is out of their sight: its own styles around the text, its sidebar, its search box.
"""

import argparse
import ast
import base64
import html
import inspect
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType

import mend_text
import nbformat
import yaml
import workbook
from check_look import check_configuration, check_notebook, check_sheets, notes_of
from check_pages import LIMIT, Page, check_pages, weigh_pages
from course import find_notebooks, number_of, sidebar
from links import read_settings
from preview import directives, make_preview, pandoc

ROOT = Path(__file__).resolve().parent.parent
NO_QUARTO = """Quarto is not on the PATH, so there is no site; nothing was installed or changed.
Get it from https://quarto.org/docs/get-started/ and run this again, or let the workflow
.github/workflows/site.yml build it. `make site-check` needs no Quarto."""

# The names that TensorFlow's classes give themselves, and those that people use.
TENSORFLOW = {"tensorflow.python.data.ops.dataset_ops.DatasetV2": "tf.data.Dataset",
              "tensorflow.python.distribute.distribute_lib.Strategy": "tf.distribute.Strategy",
              "tensorflow.python.framework.tensor.Tensor": "tf.Tensor",
              "DatasetV2": "tf.data.Dataset"}
WIDE = 1000  # pixels; a wider figure has details that a phone's width would hide


def write_nbdev_yml(root: Path, settings: dict):
    """nbdev's own file; without addresses as long as there are none, else with links to the source."""
    from nbdev.quarto import refresh_quarto_yml
    refresh_quarto_yml()
    path = root / "nbs" / "nbdev.yml"
    text = path.read_text(encoding="utf-8")
    footer = footer_text(settings)
    if settings["user"]:
        text += "  repo-subdir: nbs\n  repo-actions: [edit, issue]\n"
        footer += f" · [source]({settings['git_url']})"
    else:
        text = re.sub(r"^  (site-url|repo-url|repo-branch):.*\n", "", text, flags=re.M)
    text += f"  page-footer:\n    left: {json.dumps(footer, ensure_ascii=False)}\n"
    path.write_text(text, encoding="utf-8")


def footer_text(settings: dict) -> str:
    """What stands below every page."""
    licence = {"apache2": "Apache License 2.0"}.get(settings["license"], settings["license"])
    return f"{settings['lib_name']} {settings['version']} · © {settings['copyright']} · {licence}"


def mend_links(text: str, settings: dict, folder: str = "") -> str:
    """Links that nbdev made: to pages of this site in relative form, to the source if it is online.

    `folder` is the part of the course that the text stands in, "" for the top.
    """
    from vae_course._modidx import d as index  # with the addresses of the last nbdev_export
    was = index["settings"]
    online = f"{settings['git_url']}/blob/{settings['branch']}/"
    if settings["user"]:
        text = re.sub(r"\[source\]\(\S*?/blob/[^/]+/", f"[source]({online}", text)
    else:
        text = re.sub(r"\[source\]\([^)]*\)\{[^}]*\}\s*", "", text)
    def lead_outside(link) -> str:
        """Files of the repository outside of nbs/ are no pages."""
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if not target.startswith("../"):
            return link[0]
        return f"[{link[1]}]({online}{target.removeprefix('../')})" if settings["user"] else link[1]

    text = re.sub(r"\[([^\]]*)\]\((\.\./[^)]*)\)", lead_outside, text)
    own = re.escape(was["doc_host"] + was["doc_baseurl"] + "/")
    # Only functions and classes have an anchor, so a method's link leads to its class.
    text = re.sub(own + r"([\w/-]+\.html)(#\w+)(?:\.\w+)?",
                  lambda link: posixpath.relpath(link[1], folder or ".") + link[2], text)
    # Commands have no entry (see `is_command`); what is called like one is meant, or its `--help` is on the page.
    text = re.sub(r"\[(`[^`]+`)\]\((?:[\w./]+/)?cli\.html#(?:main|train|evaluate_run|explore)\)", r"\1", text)
    # nbdev takes Keras's functions for ours of the same name.
    text = re.sub(r"(Keras's (?:own )?)\[(`\w+`)\]\([^)]*\)", r"\1\2", text)
    # The picture of a Colab badge comes from another server; its link does as well.
    return re.sub(r"\[!\[([^\]]*)\]\(https:[^)]*badge[^)]*\)\]", r"[\1]", text)


def numbered(file: str, title: str) -> str:
    """A chapter's title with the number that the text calls it by; pages to look things up in have none."""
    own = title.removeprefix("Appendix: ")  # the sidebar has a section of that name
    title = own if own == title else own[0].upper() + own[1:]
    return f"{number_of(file)} {title}".lstrip()


def folded(cell) -> str:
    """What a cell marked `#| folded TEXT` is, as the text of its fold; "" for other cells."""
    mark = re.search(r"^#\| folded (.+)$", cell.source, flags=re.M)
    return mend_text.curly(mark[1].strip()) if mark else ""


def fold(cell, text: str):
    """Let the site show a cell's code only when asked; nbdev shows what is exported unfolded."""
    code = re.sub(r"^#\| code-(fold|summary).*\n", "", cell.source, flags=re.M)
    cell.source = f"#| code-fold: true\n#| code-summary: {quoted(text)}\n{code}"


def mend(processed: Path, file: Path, settings: dict):
    """What nbdev leaves to be mended in a notebook of its folder `processed`, which lies beside nbs/."""
    notebook = nbformat.read(processed / file, as_version=4)
    folder = file.parent.as_posix().removeprefix(".")
    source = nbformat.read(processed.parent / "nbs" / file, as_version=4)
    folds = {cell.id: folded(cell) for cell in source.cells if cell.cell_type == "code" and folded(cell)}
    front = yaml.safe_load(notebook.cells[0].source.strip().strip("-"))
    # nbdev takes the title from the first cell and drops the rest of it; list items with a colon
    # become metadata. Here the rest comes back, and the title gets the number that the text uses.
    first = source.cells[0].source
    rest = re.sub(r"\A# .*\n+(?:> .*\n+)?", "", first + "\n\n")
    front = {"title": numbered(file.name, front["title"]),
             "description": front.get("description", ""), "output-file": front["output-file"]}
    if file.name == "index.ipynb":  # a reader asks what it is, and only then what the package is called
        front |= {"title": front["description"].rstrip("."), "description": f"{front['title']}: a course, and the "
                  "library that its chapters export."}
    notebook.cells[0].source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"
    names, page = names_of(source), posixpath.join(folder, front["output-file"])
    ours = {name: number for name, (home, number) in doubtful_names().items() if home != page}

    def mended(text: str) -> str:
        """What a text needs, wherever it stands."""
        text = mend_text.false_links(mend_links(text, settings, folder), ours, names.local)
        return mend_text.boxed_tables(mend_text.space_maths(mend_text.here(text)))

    cells, figures = [notebook.cells[0]], 0
    following = [*notebook.cells[2:], None]
    rest = [nbformat.v4.new_markdown_cell(rest)]
    for cell, after in zip([*rest, *notebook.cells[1:]], [None, *following], strict=True):
        if cell.cell_type == "markdown":
            text = mend_text.same_names(cell.source, titles(processed.parent)) if file.name == "index.ipynb" else cell.source
            cell.source = mended(text)
            download = f"`make workbook` (or [download it]({'../' * len(file.parent.parts)}workbook.zip))"
            cell.source = cell.source.replace("`make workbook`", download)
        if is_command(cell):
            continue
        shown = None
        if cell.cell_type == "code":
            shown = re.search(r"^show_doc\((\w+)\)", cell.source, flags=re.M)
            if re.search(r"^#\| fig-cap:", cell.source, flags=re.M):
                figures += 1
                caption_with_number(cell, figure_number(file, figures))
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                text = "".join(output.data["text/markdown"])
                picture = mend_text.film(text, figure_number(file, figures + 1))
                figures += picture is not None
                text = picture or mended(tidy(text, names.exported))
                # The code that follows on the page shows the signature, unless it is folded away.
                if shown and after is not None and after.cell_type == "code" and after.id not in folds and re.search(
                        rf"^(?:def|class) {shown[1]}\b", after.source, flags=re.M):
                    text = mend_text.without_signature(text)
                output.data["text/markdown"] = text
        if cell.id in folds:  # nbdev drops directives that it does not know
            fold(cell, folds[cell.id])
        elif cell.cell_type == "code" and (summary := directives(cell).get("code-summary")):
            line = f"#| code-summary: {quoted(summary)}"
            cell.source = re.sub(r"^#\| code-summary:.*$", line.replace("\\", r"\\"), cell.source, flags=re.M)
        # Solutions, checks and answers fold with their output; `code-fold` would leave the result in sight. Quarto's
        # callouts fold as well, but are opened by no key.
        title = directives(cell).get("code-summary", "") if cell.cell_type == "code" else ""
        if re.match(r"(Solution|Check|Answer) \d", title):
            cell.source = re.sub(r"^#\| code-(fold|summary).*\n", "", cell.source, flags=re.M)
            cells += boxed(cell, f'<details class="task">\n<summary>{title}</summary>', "</details>")
        elif is_wide(cell):  # on a phone it keeps a size at which it can be read, and scrolls
            cells += boxed(cell, '::: {.wide tabindex="0"}', ":::")
        else:
            cells.append(cell)
    notebook.cells = cells
    nbformat.write(notebook, processed / file)


@cache
def titles(root: Path) -> dict:
    """What the sidebar calls each notebook."""
    found = {}
    for path in find_notebooks(root / "nbs"):
        first = nbformat.read(path, as_version=4).cells[0].source
        heading = re.match(r"# (.+)", first)
        if heading:
            found[path.relative_to(root / "nbs").as_posix()] = numbered(path.name, heading[1].strip())
    return found


def boxed(cell, before: str, after: str) -> list:
    """A cell between two pieces of markdown."""
    return [nbformat.v4.new_markdown_cell(before), cell, nbformat.v4.new_markdown_cell(after)]


def quoted(text: str) -> str:
    """A fold's summary as Quarto can take it: markdown, where @pixels would be a reference, in an attribute."""
    return json.dumps(mend_text.curly(re.sub(r"(?<!\\)@", r"\@", text)), ensure_ascii=False)


def figure_number(file: Path, figure: int) -> str:
    """What a figure is called: with the number of its chapter, where that has one."""
    chapter = number_of(file).lstrip("0") or ("0" if number_of(file) else "")
    return f"Figure {chapter}.{figure}" if chapter else f"Figure {figure}"


def caption_with_number(cell, number: str):
    """Number a figure in its caption. Quarto would count by itself only what has a label, and other figures apart."""
    caption = mend_text.space_maths(directives(cell)["fig-cap"])
    line = f"#| fig-cap: {json.dumps(f'{number}: {caption}', ensure_ascii=False)}"
    cell.source = re.sub(r"^#\| fig-cap:.*$", lambda _: line, cell.source, flags=re.M)


def is_wide(cell) -> bool:
    """Whether a cell shows a PNG of more than 1000 pixels; its width stands in its first bytes."""
    pictures = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    return any(int.from_bytes(base64.b64decode("".join(picture)[:32])[16:20], "big") > WIDE
               for picture in pictures if picture)


class Names:
    """What the code of a notebook calls so: `local` for itself, `exported` for the library."""

    def __init__(self, local: set, exported: dict):
        self.local, self.exported = local, exported


def names_of(notebook) -> Names:
    """The names that a notebook gives at the top of its cells, and those of its module."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    module = re.search(r"^#\| default_exp ([\w.]+)", "\n".join(code), flags=re.M)
    exported = vars(import_module(f"vae_course.{module[1]}")) if module else {}
    local = set()
    for text in code:
        if re.search(r"^#\| exports?$", text, flags=re.M):
            continue
        text = re.sub(r"^[%!].*", "", text, flags=re.M)
        try:
            body = ast.parse(text).body
        except SyntaxError:
            continue
        local |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        local |= {name.id for node in body if isinstance(node, ast.Assign) for target in node.targets
                  for name in ast.walk(target) if isinstance(name, ast.Name)}
    return Names(local - set(exported), exported)


@cache
def doubtful_names() -> dict:
    """Functions of the course whose names Keras's models have, too, or a padding or a module: page and chapter."""
    import keras
    from vae_course._modidx import d as index
    found = {}
    modules = {name.rpartition(".")[2] for name in index["syms"]}
    for module, symbols in index["syms"].items():
        for symbol, (page, file) in symbols.items():
            name = symbol.removeprefix(module + ".")
            if hasattr(keras.Model, name) or name in modules | {"same", "valid"}:
                text = (ROOT / "vae_course" / file.removeprefix("vae_course/")).read_text(encoding="utf-8")
                home = re.search(r"nbs/([\w/]+\.ipynb)", text)
                found[name] = page.partition("#")[0], number_of(home[1]) if home else ""
    return found


def is_command(cell) -> bool:
    """Whether nbdev documents a command of click here: its signature is click's own, its help is on the page."""
    return any("### Command" in output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", []))


def tidy(text: str, names: dict | None = None) -> str:
    """What nbdev's signatures need to look like Python; `names` are those of the module."""
    text = re.sub(r"(\w+):VAR_POSITIONAL", r"*\1", re.sub(r"(\w+):VAR_KEYWORD", r"**\1", text))
    text = re.sub(r"```python\n+", "```python\n", re.sub(r"\n+```\n", "\n```\n", text))
    # No link works inside code, and a tensor's full name says where it is hidden, not what it is.
    text = re.sub(r"```python\n.*?```", lambda code: re.sub(r"\[(`\w+`)\]\(\S+?\)", r"\1", code[0]), text, flags=re.S)
    for hidden, public in TENSORFLOW.items():
        text = text.replace(hidden, public)
    text = text.replace(":Annotated=", "=")  # what a field of `Recipe` means stands in the code above it
    text = mend_text.true_classes(re.sub(r"\(\s*\n\)", "()", text), names or {})
    text = re.sub(r"```python\n(?:def|class) .*?```", lambda code: mend_text.short_types(code[0]), text, flags=re.S)
    return mend_text.plain_docstring(text)


def api_page(root: Path, settings: dict) -> str:
    """Every exported name with its documented signature, folded to a line each, and where it is taught."""
    from nbdev.showdoc import show_doc
    parts = ["---\ntitle: API\ndescription: Every function and class of the library, and where it is "
             "taught.\n---\n\nThis page is generated from the code of the chapters. The names of a "
             "module unfold to a line each, and each line to what it takes and gives."]
    for _, file, _ in sidebar(root):
        path = root / "nbs" / file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        module_name = re.search(r"#\| default_exp ([\w.]+)", text)
        if not module_name:
            continue
        name, title = module_name[1], numbered(file, re.search(r'"# (.*?)(?:\\n)?"', text)[1])
        module = import_module(f"vae_course.{name}")
        parts.append(f"## vae_course.{name}\n\n{module.__doc__ or ''} Taught in [{title}]({file}).")
        summary = " ".join(f"<code>{symbol}</code>" for symbol in module.__all__)
        parts.append(f'<details class="module">\n<summary>{summary}</summary>')
        for symbol in module.__all__:
            value = getattr(module, symbol)
            plain = isinstance(value, type | FunctionType)
            value = inspect.unwrap(getattr(value, "python_function", value))  # of a tf.function, of a gradient
            if not isinstance(value, type | FunctionType) or value.__module__ != module.__name__:
                parts.append(api_entry(symbol, "", describe(value, name), f"{name}.{symbol}"))
                continue
            inside = [tidy(documented(show_doc(value)), vars(module))]
            for method, function in vars(value).items() if isinstance(value, type) else ():
                if isinstance(function, FunctionType) and function.__doc__ and method[0] != "_":
                    inside.append(f"[**{symbol}.{method}**]{{#{name}.{symbol}.{method}}}\n\n"
                                  + tidy(documented(show_doc(function))))
            inside.append(f"`{symbol}` is taught in [{title}]({file}{'#' + symbol.lower() if plain else ''}).")
            first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
            parts.append(api_entry(symbol, first, "\n\n".join(inside), f"{name}.{symbol}"))
        parts.append("</details>")
    return mend_text.space_maths(mend_links("\n\n".join(parts) + "\n", settings))


def describe(value, module: str) -> str:
    """A constant, or a name that a module passes on."""
    origin = getattr(value, "__module__", "")
    home = origin.removeprefix("vae_course.")
    if isinstance(value, type | FunctionType) and home not in (module, origin):  # of another module of the course
        return f"The same as [{home}.{value.__name__}](#{home}.{value.__name__})."
    shown = repr(value)
    return f"`{shown}`" if len(shown) <= 400 and " at 0x" not in shown else f"A value of type `{type(value).__name__}`."


def documented(shown) -> str:
    """What nbdev says of an object, below its heading."""
    text = shown._repr_markdown_().removeprefix("---\n\n")
    return re.sub(r"^#+ .*\n+", "", text, count=1, flags=re.M)


def api_entry(name: str, line: str, text: str, anchor: str) -> str:
    """One name as a line that unfolds; a link to the anchor inside unfolds it, too."""
    line = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(line, quote=False))
    return (f'<details class="entry">\n<summary><code>{name}</code> {line}</summary>\n\n'
            f"[]{{#{anchor}}}\n\n{text}\n\n</details>")


def process(root: Path, settings: dict) -> Path:
    """Write what Quarto renders into _proc/: nbdev's notebooks, mended, and the API page."""
    from nbdev.serve import proc_nbs
    write_nbdev_yml(root, settings)
    folder = proc_nbs(force=True, n_workers=0)  # TensorFlow is loaded here already, and quiet
    for path in find_notebooks(folder):
        mend(folder, path.relative_to(folder), settings)
    (folder / "api.qmd").write_text(api_page(root, settings), encoding="utf-8")
    return folder


def render(processed: Path) -> list[str]:
    """Let Quarto make its pages; its own warnings and those of pandoc, which it passes on, as faults."""
    faults = []
    with subprocess.Popen(["quarto", "render", "--no-cache"], cwd=processed, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace") as running:
        for line in running.stdout:
            print(line, end="")
            faults += notes_of(line)
    if running.returncode:
        sys.exit(f"quarto render failed with {running.returncode}")
    return faults


def clean_search(out: Path):
    """Take the TeX of formulas out of the search index, which has each formula's signs and its source."""
    path = out / "search.json"
    if not path.exists():
        return
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        page = out / entry["href"].partition("#")[0]
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        sources = {html.unescape(tex) for tex in re.findall(r"<annotation[^>]*>(.*?)</annotation>", text, flags=re.S)}
        for tex in sorted(sources, key=len, reverse=True):
            if "\\" in tex or re.search(r"[_^{}]", tex):  # of a mere letter, signs and source are one
                pattern = r"\s+".join(map(re.escape, tex.split()))
                entry["text"] = re.sub(pattern, "", entry["text"])
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")


def build_explorer(out: Path):
    """The page that chapter 34 builds, from the weights that come with the course."""
    from vae_course.data import load_mnist, preprocess_images
    from vae_course.live.explorer import build_explorer as build
    from vae_course.engine.runs import load_pretrained
    grey, labels = load_mnist()[1]
    build(*load_pretrained(), preprocess_images(grey), labels, out / "explorer")


def build_workbook(out: Path):
    """The workbook as an archive, for those who read the course on the site."""
    with tempfile.TemporaryDirectory() as folder:
        workbook.make(Path(folder, "workbook"))
        shutil.make_archive(str(out / "workbook"), "zip", folder)


def check_notebooks(root: Path) -> list[str]:
    """Every notebook has one place in the sidebar, and every place a notebook."""
    listed = [file for _, file, _ in sidebar(root)]
    there = {path.relative_to(root / "nbs").as_posix() for path in find_notebooks(root / "nbs")} | {"api.qmd"}
    return ([f"_quarto.yml: {name} is not in the sidebar" for name in sorted(there - set(listed))]
            + [f"_quarto.yml: {name} does not exist" for name in sorted(set(listed) - there)]
            + [f"_quarto.yml: {name} is there twice" for name in set(listed) if listed.count(name) > 1])


def check_texts(root: Path) -> list[str]:
    """pandoc's warnings and the dead links of the repository's own markdown files."""
    pages, faults = {}, []
    for path in sorted([*root.glob("*.md"), *root.glob("[a-z]*/*.md")]):
        text, warnings = pandoc(path.read_text(encoding="utf-8"), "--from=gfm")
        faults += [f"{path.name}: {line}" for line in warnings.strip().split("\n") if line]
        pages[path.resolve()] = Page(text)
    return faults + [fault for fault in check_pages(pages) if " from elsewhere" not in fault]


def report(out: Path, faults: list[str]) -> int:
    """Check the finished pages, print their weights and all faults; the number of faults."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    faults = faults + check_pages(pages)
    weights = dict(sorted(weigh_pages(out, pages).items()))
    (out / "pages.json").write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
    for name, weight in weights.items():
        print(f"{weight / 1000:8.1f} kB  {name}")
        if weight > LIMIT:
            faults.append(f"{name}: {weight:,} bytes, more than {LIMIT:,}")
    print(*faults, sep="\n", file=sys.stderr)
    print(f"{len(weights)} pages, {len(faults)} faults")
    return len(faults)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["site", "check"])
    parser.add_argument("--out", type=Path, help="where to put the preview [_site_check]")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout, for tests")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    out = (arguments.out or root / "_site_check").resolve()
    if arguments.what == "site" and not shutil.which("quarto"):
        sys.exit(NO_QUARTO)
    from vae_course.support import quiet_tensorflow
    quiet_tensorflow()
    os.chdir(root)  # nbdev looks for settings.ini from here
    settings = read_settings(root)
    faults = check_notebooks(root) + check_sheets(root / "nbs") + check_configuration(root)
    # The explorer first: the chapters' cells, which nbdev runs, give Keras the model's classes anew.
    build_explorer(explorer := Path(tempfile.mkdtemp()))
    processed = process(root, settings)
    for path in find_notebooks(processed):
        faults += [f"{path.relative_to(processed)}: {fault}" for fault in check_notebook(path, set(doubtful_names()))]
    if arguments.what == "site":
        faults += render(processed)
        out = root / "_docs"
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(processed / "_docs", out)
        clean_search(out)
    else:
        entries = [entry for entry in sidebar(root) if (processed / entry[1]).exists()]
        faults += make_preview(processed, out, entries, settings["title"], footer_text(settings)) + check_texts(root)
    shutil.move(explorer / "explorer", out)
    explorer.rmdir()
    build_workbook(out)
    sys.exit(report(out, faults) > 0)


if __name__ == "__main__":
    main()

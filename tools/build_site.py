"""Build the site with Quarto, or preview and check it without.

    python tools/build_site.py site                 into _docs/, with Quarto
    python tools/build_site.py check [--out DIR]    into _site_check/, with pandoc alone

Both process the notebooks as nbdev does, into _proc/. `check` then makes a plain page of each with
pandoc, whose warnings count as errors. Both end with the checks of check_pages.py.
"""

import argparse
import inspect
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import FunctionType

import nbformat
import yaml
import workbook
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
              "tensorflow.python.framework.tensor.Tensor": "tf.Tensor"}


def write_nbdev_yml(root: Path, settings: dict):
    """nbdev's own file; without addresses as long as there are none, else with links to the source."""
    from nbdev.quarto import refresh_quarto_yml
    refresh_quarto_yml()
    path = root / "nbs" / "nbdev.yml"
    text = path.read_text(encoding="utf-8")
    if settings["user"]:
        text += "  repo-subdir: nbs\n  repo-actions: [edit, issue]\n"
    else:
        text = re.sub(r"^  (site-url|repo-url|repo-branch):.*\n", "", text, flags=re.M)
    path.write_text(text, encoding="utf-8")


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
    return mark[1].strip().translate({ord("“"): '"', ord("”"): '"'}) if mark else ""


def fold(cell, text: str):
    """Let the site show a cell's code only when asked; nbdev shows what is exported unfolded."""
    code = re.sub(r"^#\| code-(fold|summary).*\n", "", cell.source, flags=re.M)
    text = text.replace("@", r"\@")  # Quarto reads markdown here, where @pixels would be a reference
    cell.source = f"#| code-fold: true\n#| code-summary: {json.dumps(text, ensure_ascii=False)}\n{code}"


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
    notebook.cells[0].source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"
    cells = [notebook.cells[0], nbformat.v4.new_markdown_cell(rest)]
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            cell.source = mend_links(cell.source, settings, folder)
            download = f"`make workbook` (or [download it]({'../' * len(file.parent.parts)}workbook.zip))"
            cell.source = cell.source.replace("`make workbook`", download)
        if is_command(cell):
            continue
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = tidy(
                    mend_links(output.data["text/markdown"], settings, folder))
        if cell.id in folds:  # nbdev drops directives that it does not know
            fold(cell, folds[cell.id])
        # Solutions, checks and answers fold with their output; `code-fold` would leave the result in sight.
        title = directives(cell).get("code-summary", "") if cell.cell_type == "code" else ""
        if re.match(r"(Solution|Check|Answer) \d", title):
            cell.source = re.sub(r"^#\| code-(fold|summary).*\n", "", cell.source, flags=re.M)
            opening = f'::: {{.callout-tip collapse="true" icon="false" title="{title}"}}'
            cells += [nbformat.v4.new_markdown_cell(opening), cell, nbformat.v4.new_markdown_cell(":::")]
        else:
            cells.append(cell)
    notebook.cells = cells
    nbformat.write(notebook, processed / file)


def is_command(cell) -> bool:
    """Whether nbdev documents a command of click here: its signature is click's own, its help is on the page."""
    return any("### Command" in output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", []))


def tidy(text: str) -> str:
    """What nbdev's signatures need to look like Python."""
    text = re.sub(r"(\w+):VAR_POSITIONAL", r"*\1", re.sub(r"(\w+):VAR_KEYWORD", r"**\1", text))
    text = re.sub(r"```python\n+", "```python\n", re.sub(r"\n+```\n", "\n```\n", text))
    # No link works inside code, and a tensor's full name says where it is hidden, not what it is.
    text = re.sub(r"```python\n.*?```", lambda code: re.sub(r"\[(`\w+`)\]\(\S+?\)", r"\1", code[0]), text, flags=re.S)
    for hidden, public in TENSORFLOW.items():
        text = text.replace(hidden, public)
    text = text.replace(":Annotated=", "=")  # what a field of `Recipe` means stands in the code above it
    return re.sub(r"\(\s*\n\)", "()", text)


def api_page(root: Path, settings: dict) -> str:
    """Every exported name with its documented signature, and where it is taught."""
    from nbdev.showdoc import show_doc
    parts = ["---\ntitle: API\ndescription: Every function and class of the library, and where it is "
             "taught.\n---\n\nThis page is generated from the code of the chapters."]
    for _, file, _ in sidebar(root):
        path = root / "nbs" / file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        module_name = re.search(r"#\| default_exp ([\w.]+)", text)
        if not module_name:
            continue
        name, title = module_name[1], numbered(file, re.search(r'"# (.*?)(?:\\n)?"', text)[1])
        module = import_module(f"vae_course.{name}")
        parts.append(f"## vae_course.{name}\n\n{module.__doc__ or ''} Taught in [{title}]({file}).")
        for symbol in module.__all__:
            value = getattr(module, symbol)
            plain = isinstance(value, type | FunctionType)
            value = inspect.unwrap(getattr(value, "python_function", value))  # of a tf.function, of a gradient
            if not isinstance(value, type | FunctionType) or value.__module__ != module.__name__:
                parts.append(f"### {symbol} {{#{name}.{symbol}}}\n\n{describe(value, name)}")
                continue
            parts.append(api_entry(show_doc(value), f"{name}.{symbol}", 3))
            for method, function in vars(value).items() if isinstance(value, type) else ():
                if isinstance(function, FunctionType) and function.__doc__ and method[0] != "_":
                    parts.append(api_entry(show_doc(function), f"{name}.{symbol}.{method}", 4))
            parts.append(f"`{symbol}` is taught in [{title}]({file}{'#' + symbol.lower() if plain else ''}).")
    return tidy(mend_links("\n\n".join(parts) + "\n", settings))


def describe(value, module: str) -> str:
    """A constant, or a name that a module passes on."""
    origin = getattr(value, "__module__", "")
    home = origin.removeprefix("vae_course.")
    if isinstance(value, type | FunctionType) and home not in (module, origin):  # of another module of the course
        return f"The same as [{home}.{value.__name__}](#{home}.{value.__name__})."
    shown = repr(value)
    return f"`{shown}`" if len(shown) <= 400 and " at 0x" not in shown else f"A value of type `{type(value).__name__}`."


def api_entry(shown, anchor: str, level: int) -> str:
    """One documented object, under a heading with an anchor of its own."""
    text = shown._repr_markdown_().removeprefix("---\n\n")
    title = ".".join(anchor.split(".")[2 - level:])  # of a function its name, of a method its class too
    return re.sub(r"^#+ .*$", f"{'#' * level} {title} {{#{anchor}}}", text, count=1, flags=re.M)


def process(root: Path, settings: dict) -> Path:
    """Write what Quarto renders into _proc/: nbdev's notebooks, mended, and the API page."""
    from nbdev.serve import proc_nbs
    write_nbdev_yml(root, settings)
    folder = proc_nbs(force=True, n_workers=0)  # TensorFlow is loaded here already, and quiet
    for path in find_notebooks(folder):
        mend(folder, path.relative_to(folder), settings)
    (folder / "api.qmd").write_text(api_page(root, settings), encoding="utf-8")
    return folder


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
    faults = check_notebooks(root)
    # The explorer first: the chapters' cells, which nbdev runs, give Keras the model's classes anew.
    build_explorer(explorer := Path(tempfile.mkdtemp()))
    processed = process(root, settings)
    if arguments.what == "site":
        subprocess.run(["quarto", "render", "--no-cache"], cwd=processed, check=True)
        out = root / "_docs"
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(processed / "_docs", out)
    else:
        entries = [entry for entry in sidebar(root) if (processed / entry[1]).exists()]
        faults += make_preview(processed, out, entries, settings["title"]) + check_texts(root)
    shutil.move(explorer / "explorer", out)
    explorer.rmdir()
    build_workbook(out)
    sys.exit(report(out, faults) > 0)


if __name__ == "__main__":
    main()

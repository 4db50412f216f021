"""The repository keeps to its own rules: saved outputs, form of the chapters, links, names."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]
MODULES = sorted(path for path in (ROOT / "vae_course").glob("*.py") if path.stem[0] != "_")
TEXTS = [*NOTEBOOKS, *ROOT.glob("*.md")]

by_name = {"ids": lambda path: path.stem}


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def prose(path):
    """The markdown of a file, without fenced code."""
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        text = "\n\n".join(source(cell) for cell in cells(path, "markdown"))
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M)


def shows_something(code):
    """Whether a code cell must have a saved output: it prints, or ends in a value that is no None."""
    body = ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.M)).body
    # What a function would print, and a program kept as text, print nothing here.
    quiet = (ast.FunctionDef, ast.ClassDef)
    run = "\n".join(ast.unparse(node) for node in body if not isinstance(node, quiet)
                    and not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)))
    if re.search(r"\bprint\(|\bplt\.|\bshow_gif\(", run):
        return True
    last = body[-1] if body else None
    return (isinstance(last, ast.Expr) and not code.rstrip().endswith(";")
            and re.match(r"(plot_\w+|fig)\b", ast.unparse(last)) is not None)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_outputs_are_saved_and_clean(path):
    for cell in cells(path, "code"):
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, source(cell)
        for output in cell["outputs"]:
            text = "".join(output.get("text", ""))
            assert output.get("name") != "stderr", text
            assert not re.search(r"warning|oneDNN|\r", text, flags=re.I), text
        if "#| export" not in source(cell) and shows_something(source(cell)):
            assert cell["outputs"], "no saved output:\n" + source(cell)
        if re.search(r"#\| fig-cap", source(cell)):
            assert any("image/" in key for out in cell["outputs"] for key in out.get("data", {}))


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_notebooks_are_small(path):
    assert path.stat().st_size <= 300_000


@pytest.mark.parametrize("path", CHAPTERS, **by_name)
def test_chapter_has_its_form(path):
    text = prose(path)
    first = source(cells(path)[0])
    assert re.match(r"# \S.*\n\n> \S", first), first[:80]
    assert re.search(r"minutes", first + text[:1500])
    assert "## Recap" in text
    if path.stem != "00_setup":
        assert "you can" in text and "## Exercises" in text
    assert re.search(r"(Next: |Back to |next|appendix).*\]\(\w+\.ipynb\)", text[-400:])


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_code_cells_are_short(path):
    lengths = []
    for cell in cells(path, "code"):
        lines = [line for line in source(cell).split("\n") if not line.startswith("#|")]
        long = [line for line in lines if len(line) > 100]
        assert not long, long
        lengths.append(len([line for line in lines if line.strip()]))
        assert lengths[-1] <= 30, source(cell)
        definitions = [line for line in lines if re.match(r"(def|class) ", line)]
        if "#| export" in source(cell):
            assert len(definitions) <= 1, source(cell)
    assert sum(length > 16 for length in lengths) <= 0.2 * len(lengths) + 1


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_imports_stand_in_cells_of_their_own(path):
    """The site's build runs import cells afresh; code beside them would run without its data."""
    for cell in cells(path, "code"):
        body = ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M)).body
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in body]
        rest = [ast.unparse(node) for node, is_import in zip(body, imports, strict=True) if not is_import]
        assert not any(imports) or set(rest) <= {"quiet_tensorflow()"}, source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_at_most_three_visible_code_cells_between_texts(path):
    run = 0
    for cell in cells(path)[4:]:  # set-up and imports come first
        hidden = "#| hide" in source(cell)
        run = 0 if cell["cell_type"] == "markdown" else run + (not hidden)
        assert run <= 3, source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_figures_have_caption_and_alt_text(path):
    for cell in cells(path, "code"):
        pictures = [key for out in cell["outputs"] for key in out.get("data", {}) if key.startswith("image/")]
        if pictures:
            assert "#| fig-cap:" in source(cell) and "#| fig-alt:" in source(cell), source(cell)


@pytest.mark.parametrize("path", CHAPTERS, **by_name)
def test_equations_have_numbers_and_references_exist(path):
    text = prose(path)
    labels = re.findall(r"\{#(eq-[\w-]+)\}", text)
    assert len(labels) == len(set(labels)) == len(re.findall(r"^\$\$.+?\$\$", text, flags=re.M | re.S))
    assert set(re.findall(r"@(eq-[\w-]+)", text)) <= set(labels)


@pytest.mark.parametrize("path", MODULES, **by_name)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 250


def test_modules_import_only_earlier_chapters():
    order = [re.search(r"^#\| default_exp (\w+)", source(cell), flags=re.M).group(1)
             for path in CHAPTERS for cell in cells(path, "code") if "default_exp" in source(cell)]
    assert {path.stem for path in MODULES} == set(order)
    for path in MODULES:
        # nbdev writes imports of the library's own modules in relative form.
        imported = re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), flags=re.M)
        assert imported or order.index(path.stem) == 0 or path.stem in ("reparameterization", "layers")
        assert all(order.index(name) < order.index(path.stem) for name in imported), path.name


@pytest.mark.parametrize("path", TEXTS, **by_name)
def test_links_inside_the_repository_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(path))
    for target in (a or b for a, b in targets):
        if re.match(r"https?:|#|data:", target):
            continue
        assert (path.parent / target.split("#")[0]).exists(), target


def test_pretrained_card_and_weights_are_listed():
    names = {path.name for path in (ROOT / "vae_course" / "pretrained").iterdir()}
    assert names == {"tutorial.keras", "tutorial.json"}


def test_figures_in_prose_about_seeds_match_the_saved_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    outputs = "".join("".join(out.get("text", "")) for cell in cells(ROOT / "nbs" / "05_training.ipynb", "code")
                      for out in cell["outputs"])
    finals = re.search(r"seeds 0, 1, 2: \[(.*?)\]", outputs).group(1).split()
    for elbo in finals:
        assert elbo.replace("-", "−") in text, elbo

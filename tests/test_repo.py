"""The repository keeps to its own rules: saved outputs, form of the chapters, links, names."""

import ast
import json
import re
import statistics
from pathlib import Path

import prose_numbers
import pytest
from prose_numbers import course  # puts tools/ on the path

import equations

ROOT = Path(__file__).parent.parent
NBS, PACKAGE = ROOT / "nbs", ROOT / "vae_course"
NOTEBOOKS = course.notebooks(ROOT)  # in reading order
# Pages that are no chapters: nothing to recapitulate, no exercises.
PAGES = {"index", "glossary", "teaching", "map", "references"}
CHAPTERS = [path for path in NOTEBOOKS if path.stem not in PAGES]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem[0] != "_")
TEXTS = [*NOTEBOOKS, *ROOT.glob("*.md")]

# The self-test asks questions all along.
FULL_CHAPTERS = [path for path in NOTEBOOKS if path.stem not in PAGES | {"selftest"}]

# The notation table of the glossary, as names and spellings that are not used.
OTHER_NAMES = {"log_var": "logvar", "logsigma": "logvar", "log_sigma": "logvar", "z_mean": "mean", "mu": "mean",
               "z_log_var": "logvar", "z_logvar": "logvar", "epsilon": "eps", "logpx_z": "log_px_z",
               "logpz": "log_pz", "logqz_x": "log_qz_x", "x_logit": "x_logits"}
OTHER_SPELLINGS = {r"\\mathrm\{KL\}|D_\{": r"\text{KL}", r"\|\||\\parallel": r"\|", r"reparam\w+isation": "reparameterization",
                   r"\\varepsilon": r"\epsilon",
                   r"\blog variance": "log-variance", r"\b(normal|minim|maxim|general|visual|regular)iz": "-is-",
                   r"\b(col|behavi|neighb)or": "-our", r"\bgray\b": "grey"}

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
    if re.search(r"\bprint\(|\bplt\.(?!style\.use)|\bshow_gif\(", run):
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
    assert "## Recap" in text
    assert "you can" in text
    assert "## Exercises" in text or path.stem == "selftest"
    assert re.search(r"(Next: |Back to |next|appendix).*\]\([\w./]+\.ipynb\)", text[-400:])


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


def test_half_of_the_cells_have_seven_lines_and_nine_in_ten_have_sixteen():
    lengths = []
    for cell in (cell for path in NOTEBOOKS for cell in cells(path, "code")):
        body = ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M)).body
        if any(not isinstance(node, ast.Import | ast.ImportFrom) for node in body):
            lengths.append(sum(bool(line.strip()) and line[:2] != "#|" for line in source(cell).split("\n")))
    assert statistics.median(lengths) <= 7
    assert sum(length <= 16 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_imports_stand_in_cells_of_their_own(path):
    """The site's build runs import cells afresh; code beside them would run without its data."""
    for cell in cells(path, "code"):
        body = ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M)).body
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in body]
        rest = [ast.unparse(node) for node, is_import in zip(body, imports, strict=True) if not is_import]
        assert not any(imports) or set(rest) <= {"quiet_tensorflow()", "plt.style.use('vae_course.figures')"}, source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_at_most_three_visible_code_cells_between_texts(path):
    run = 0
    for cell in cells(path)[4:]:  # set-up and imports come first
        hidden = re.search(r"^#\| (hide|folded)", source(cell), flags=re.M)
        run = 0 if cell["cell_type"] == "markdown" else run + (not hidden)
        assert run <= 3, source(cell)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_figures_have_caption_and_alt_text(path):
    for cell in cells(path, "code"):
        pictures = [key for out in cell["outputs"] for key in out.get("data", {}) if key.startswith("image/")]
        if pictures:
            assert "#| fig-cap:" in source(cell) and "#| fig-alt:" in source(cell), source(cell)
        for text in ("".join(out.get("data", {}).get("text/markdown", "")) for out in cell["outputs"]):
            # A film: its alternative text stands in the brackets, its caption in the line below.
            for film in re.findall(r".*data:image/.*\n?.*", text):
                assert re.fullmatch(r"!\[[^]]+\]\(data:image/[^)]+\)\\\n\*[^*]+\*", film), film[:80]


@pytest.mark.parametrize("path", CHAPTERS, **by_name)
def test_equations_have_numbers(path):
    text = prose(path)
    assert len(equations.EQUATION.findall(text)) == len(re.findall(r"^\$\$.+?\$\$", text, flags=re.M | re.S))


def test_equations_are_numbered_in_order_and_references_are_right():
    assert equations.main(check=True) == [], "run tools/equations.py"


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_nothing_that_only_quarto_understands_stands_on_the_page(path):
    found = re.search(r"\{#[\w-]+|(?<![\w`])@(?:eq|fig|sec|tbl|lst)-|^:::|\{\.[\w-]+|\{\{<", prose(path), flags=re.M)
    assert not found, prose(path)[max(0, found.start() - 80):found.end() + 80]


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_equations_are_followed_by_code(path):
    found = cells(path)
    for number, cell in enumerate(found):
        if cell["cell_type"] == "markdown" and "$$" in source(cell):
            after = [source(near) for near in found[number + 1:number + 3] if near["cell_type"] == "code"]
            assert any("#| hide" not in code for code in after), source(cell)


def box(path):
    """What a chapter needs, what its reader can do afterwards, how long it takes: folded, near the top."""
    (text,) = [source(cell) for cell in cells(path, "markdown") if source(cell).startswith("<details>\n<summary>What you need")]
    assert text.endswith("\n\n</details>"), text
    return text


@pytest.mark.parametrize("path", FULL_CHAPTERS, **by_name)
def test_chapter_says_what_comes_before(path):
    assert re.search(r"^\*\*Before\*\*: .+\n\nAfter this chapter you can", box(path), flags=re.M)


@pytest.mark.parametrize("path", FULL_CHAPTERS, **by_name)
def test_chapter_comes_to_its_first_code_at_once(path):
    """At most 150 words before the first code that is no import; the box, which is folded, is not counted."""
    words = 0
    for cell in cells(path):
        text = source(cell)
        if cell["cell_type"] == "markdown":
            words += 0 if text.startswith("<details>") else len(text.split())
        elif not re.search(r"^#\| ?(hide|default_exp)", text) and any(
                not isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(re.sub(r"^[%!].*$", "", text, flags=re.M)).body):
            break
    assert words <= 150, words


# "Predict: …", "Predict the …", "Before you run it: …", "Before you go on, make a guess".
ASKS = re.compile(r"\bPredict\b|\b(?:before|Before) you (?:go on|look|read on|run)\b|[:;,] predict\b"
                  r"|\bGuess (?:before|first|the)\b")


@pytest.mark.parametrize("path", FULL_CHAPTERS, **by_name)
def test_chapter_asks_the_reader_to_predict(path):
    """At least two texts before the exercises ask what will come out, and code that answers follows."""
    asked = 0
    for number, cell in enumerate(found := cells(path)):
        text, *exercises = source(cell).split("## Exercises")
        if cell["cell_type"] == "markdown" and ASKS.search(text):
            after = found[number + 1:number + 4]
            assert any(near["cell_type"] == "code" for near in after), f"nothing answers: {text}"
            asked += 1
        if exercises:
            break
    assert asked >= 2, f"{asked} predictions; ask for one before each main result"


@pytest.mark.parametrize("path", FULL_CHAPTERS, **by_name)
def test_chapter_ends_with_checked_exercises(path):
    text = prose(path).split("## Exercises")[-1]
    numbers = re.findall(r"^\*\*(\d)\. \w.*?\*\*", text, flags=re.M)
    assert numbers in [[str(n + 1) for n in range(size)] for size in (3, 4, 5, 6)], numbers
    marks = [re.search(r'code-summary: "(Solution|Check) (\d)', source(cell)) for cell in cells(path, "code")]
    marks = [match.groups() for match in marks if match]
    solved = [number for kind, number in marks if kind == "Solution"]
    assert marks == [(kind, number) for number in solved for kind in ("Solution", "Check")], marks
    assert len(solved) >= 2 and set(solved) <= set(numbers)


def minutes(path, without=()):
    """By one rule: 180 words a minute, 0.5 for a code cell, 1.5 for an answer of the self-test, 4 for an exercise."""
    total, section = 0, ""
    for cell in cells(path):
        text = source(cell)
        if cell["cell_type"] == "code":
            body = ast.parse(re.sub(r"^[%!].*$", "", text, flags=re.M)).body
            shown = any(not isinstance(node, ast.Import | ast.ImportFrom) for node in body)
            folded = re.search(r"^#\| ?(hide|default_exp|code-summary|folded)", text, flags=re.M)
            cost = 1.5 * ('"Answer' in text) + 0.5 * (shown and not folded)
            total += cost * (section not in without)
            continue
        for part in re.split(r"^(?=## )", text, flags=re.M):
            section = part.split("\n")[0].strip("# ") if part.startswith("## ") else section
            if section in without:
                continue
            plain = re.sub(r"<!--.*?-->|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)", " ", part, flags=re.S)
            total += len(re.findall(r"\w[\w'’-]*", plain)) / 180
            total += 4 * len(re.findall(r"^\*\*\d\. ", part, flags=re.M)) * (section == "Exercises")
    return total


def minutes_said(path):
    return int(re.search(r"takes about (\d+) minutes", box(path)).group(1))


def tables_of_start_page():
    """(notebook, cells of its row) for each row that begins with a link to a chapter."""
    text = prose(NBS / "index.ipynb")
    rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| [")]
    return [(NBS / re.search(r"\]\(([\w./]+\.ipynb)\)", row[0]).group(1), row) for row in rows]


@pytest.mark.parametrize("path", CHAPTERS, **by_name)
def test_minutes_of_a_chapter_follow_the_rule(path):
    # They are rounded to 5, and a small change of the text need not change them.
    assert abs(minutes_said(path) - minutes(path)) <= 5, f"{minutes(path):.0f}"


# What a chapter may say of its code, and how many seconds that is at most.
TIMES = {"seconds": 30, "a few seconds": 30, "half a minute": 40, "about half a minute": 40, "under a minute": 60,
         "about a minute": 90, "one to two minutes": 120, "about two minutes": 150, "about three minutes": 210}


@pytest.mark.parametrize("path", [path for path in CHAPTERS if path.stem != "20_cli"], **by_name)
def test_time_of_a_chapters_code_is_one_of_a_few_phrases_and_was_measured(path):
    said = re.search(r"[Ii]ts code runs in (.+?)(?: on two cores|,|\.|;)", box(path))
    assert said and said.group(1) in TIMES, said and said.group()
    measured = json.loads((ROOT / "benchmarks" / "results" / "chapters.json").read_text(encoding="utf-8"))["seconds"]
    assert set(measured) <= {notebook.stem for notebook in NOTEBOOKS}, "run tools/execute_notebooks.py --times"
    assert measured.get(path.stem, 0) <= TIMES[said.group(1)]


def stems_linked(text):
    """The notebooks that a text links to, from whatever folder."""
    return {Path(link).stem for link in re.findall(r"\]\(([\w./]+\.ipynb)", text)}


def test_start_page_lists_every_chapter_with_its_minutes_and_what_comes_before():
    rows = {path: row for path, row in tables_of_start_page() if len(row) == 5}
    assert list(rows) == CHAPTERS
    for path, row in rows.items():
        assert int(row[4]) == minutes_said(path), path.stem
        if path in FULL_CHAPTERS:
            known = re.search(r"^\*\*Before\*\*: (.+)", box(path), flags=re.M).group(1)
            assert stems_linked(row[3]) == stems_linked(known), path.stem


def test_readme_lists_every_notebook_with_its_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = {path: name for name, path in exported().items()}
    rows = re.findall(r"^\| \[([^]]*)\]\((nbs/[\w/]+\.ipynb)\) \| (.*?)\| ", text, flags=re.M)
    assert [file for _, file, _ in rows] == [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS
                                             if path.stem != "index"]
    for title, file, module in rows:
        assert title.startswith(course.number_of(file)), title
        assert module.strip(" `") == modules.get(ROOT / file, ""), file


def test_paths_on_the_start_page_take_the_time_they_say():
    rows = tables_of_start_page()
    two_hours = [(path, row) for path, row in rows if len(row) == 3]
    for path, row in two_hours:
        left_out = re.findall("“(.*?)”", row[1])
        headings = re.findall(r"^## (.*)", prose(path), flags=re.M)
        assert set(left_out) <= set(headings), path.stem
        assert abs(int(row[2]) - minutes(path, [*left_out, "Exercises"])) <= 5, path.stem
    assert abs(sum(int(row[2]) for _, row in two_hours) - 120) <= 10
    hours = sum(int(row[4]) for path, row in rows if len(row) == 5 and course.number_of(path)) / 60
    said = int(re.search(r"with their exercises: about (\d+) hours", prose(NBS / "index.ipynb")).group(1))
    assert abs(hours - said) <= 1


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_symbols_are_those_of_the_notation_table(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))):
            name = (node.arg if isinstance(node, ast.arg)
                    else node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None)
            assert name not in OTHER_NAMES, f"{name}: write {OTHER_NAMES.get(name)}"
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", prose(path))
    for wrong, right in OTHER_SPELLINGS.items():
        match = re.search(wrong, text)
        assert not match, f"{match.group()}: write {right}"


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_numbers_in_prose_are_in_the_outputs(path):
    found = prose_numbers.unbacked(path.stem)
    assert not found, "\n".join(f"{number} in: {sentence}" for number, sentence in found)


@pytest.mark.parametrize(("number", "chapter"), prose_numbers.KNOWN.items(), ids=str)
def test_numbers_of_the_whole_course_come_from_a_chapter(number, chapter):
    assert prose_numbers.backed(prose_numbers.NUMBER.match(number), prose_numbers.evidence_of(chapter), "about ")


def test_a_number_without_its_output_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(prose_numbers, "NBS", tmp_path)

    def unbacked(prose, output="ELBO: -151.26, gap 0.5349, share 0.42", code="x = 784 * 0.25"):
        cell = {"cell_type": "code", "source": code, "outputs": [{"output_type": "stream", "text": output}]}
        text = {"cell_type": "markdown", "source": "## One\n\n" + prose}
        other = {"cell_type": "markdown", "source": "## Two\n\nElsewhere."}
        late = {"cell_type": "code", "source": "", "outputs": [{"output_type": "stream", "text": "77.77"}]}
        (tmp_path / "05_x.ipynb").write_text(json.dumps({"cells": [text, cell, other, late]}), encoding="utf-8")
        for cached in (prose_numbers.notebook, prose_numbers.evidence_of):
            cached.cache_clear()
        return [number for number, _ in prose_numbers.unbacked("05_x")]

    assert unbacked("It is −151.3, the gap 0.53, 42 % of it, near 150, for 784 pixels.") == []
    assert unbacked("It is −151.3.", output="ELBO: -151.36") == ["151.3"]  # the output changed
    assert unbacked("Gap 0.54, 43 %, exactly 150, 1.5 · 10³ and 12 %.") == ["0.54", "43 %", "150", "1.5 · 10³", "12 %"]
    assert unbacked("From another section: 77.77.") == ["77.77"]
    assert unbacked("Chapter 05 says 77.77. [Paper](https://x.org) says 88.88. In $0.77$ and `0.99` nothing.") == []
    assert unbacked("The sum is 0.9549. <!-- 0.9549 = 0.5349 + 0.42 -->") == []
    assert unbacked("The sum is 0.9649. <!-- 0.9649 = 0.5349 + 0.42 -->") == ["0.9649"]
    assert unbacked("The sum is 1.5349. <!-- 1.5349 = 0.5349 + 1.001 -->") == ["1.5349"]
    assert unbacked("Above 77.77 stood. <!-- 77.77 from 05_x -->") == []
    # A small number with a unit is a result; without one it is none.
    assert unbacked("It gains 7 nats, or 12 nats, with 2 images.", code="x = 7") == ["12"]
    assert unbacked("It is 3–5 times as fast, 6-fold, 8×, or 9 to 11 MB; 3 × 3 filters.") == ["3", "5", "6", "8", "9", "11"]
    assert unbacked("It is about 360 times as much. <!-- 360 = 151.26 / 0.42 -->") == []
    assert unbacked("It is 350 times as much. <!-- 350 = 151.26 / 0.42 -->") == ["350"]
    assert unbacked("It is about 400 times as much. <!-- 400 = 151.26 / 0.42 -->") == []
    assert unbacked("It is 400 times as much. <!-- 400 = 151.26 / 0.42 -->") == ["400"]
    assert unbacked("Take 0.123. <!-- 0.123 given: an example -->") == []
    assert unbacked("A picture.", code='#| fig-cap: "At 0.53 and 0.66."\nx = 1') == ["0.66"]
    assert unbacked("A picture.", code='#| fig-cap: "At 0.66."\n# 0.66 given: read off the figure\nx = 1') == []
    for cached in (prose_numbers.notebook, prose_numbers.evidence_of):
        cached.cache_clear()


@pytest.mark.parametrize("path", MODULES, **by_name)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 250


def module_name(path):
    """ "engine.recipes" for vae_course/engine/recipes.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULE_NAMES = {module_name(path) for path in MODULES}
PARTS = {name: name.partition(".")[0] if "." in name else "tutorial" for name in MODULE_NAMES}
PARTS |= dict.fromkeys(("support", "contracts", "pictures", "sources"), "ground") | {"engine.cli": "command"}
# The floors of the house: of which other parts a part may import. The command may import all, and nobody imports it.
MAY_IMPORT = {"ground": {"ground"}, "tutorial": {"ground", "tutorial"}}
MAY_IMPORT |= {part: {"ground", "tutorial", "engine", "truth"} for part in ("engine", "truth")}
MAY_IMPORT |= {part: {"ground", "tutorial", "engine", "truth", "further", "live", "beyond"}
               for part in ("further", "live", "beyond")}
MAY_IMPORT |= {"appendix": {"ground", "tutorial", "appendix"}, "command": set(PARTS.values()) - {"command"}}


def named(text, level, package):
    """The modules that `text` with so many dots before it means inside a package of the library, as a list."""
    if level == 0:
        text = text.removeprefix("vae_course.") if text.startswith("vae_course.") else "-"
    elif base := package[:len(package) - (level - 1)]:
        text = ".".join([*base, *filter(None, [text])])
    return [text] if text in MODULE_NAMES else []


def imports(path):
    """(the modules that a module imports, those that it names in a tuple LATER of strings).

    An import inside a function counts, and so does a module's name in a string, for it can have no other use.
    """
    tree, package = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(PACKAGE).parts[:-1]
    tuples = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
              and ast.unparse(node.targets[0]) == "LATER"]
    listed = {id(item) for node in tuples for item in node.elts}
    found, later = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(name for alias in node.names for name in named(alias.name, 0, package))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.update(named(module, node.level, package))
            for alias in node.names:  # from ..further import likelihoods
                found.update(named(".".join(filter(None, [module, alias.name])), node.level, package))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            dots, text = re.fullmatch(r"(\.*)(.*)", node.value, flags=re.S).groups()
            (later if id(node) in listed else found).update(named(text, len(dots), package))
    return found, later


def test_imports_of_every_form_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "engine").mkdir()
    path = tmp_path / "engine" / "new.py"
    path.write_text("""from ..data import load_mnist
from .recipes import SHORT
import vae_course.model
class Lazy:
    LATER = ("vae_course.further.likelihoods", ".devices")
    OTHER = ("vae_course.support", "elbo")

def late():
    "As vae_course.elbo does."
    from ..truth import evaluation
    from vae_course.live.sliders import digit_png
    return import_module("..manifold", __name__), import_module("vae_course.training"), "data", "vae_course.nothing"
""", encoding="utf-8")
    assert imports(path) == ({"data", "engine.recipes", "model", "truth.evaluation", "live.sliders", "manifold", "training",
                              "support"},
                             {"further.likelihoods", "engine.devices"})


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_import_nothing_of_a_higher_floor(path):
    name = module_name(path)
    found, later = imports(path)
    if name == "engine.families":
        # Who registers a model family, an objective or a likelihood imports `families`. So that a name in a recipe
        # is found before anybody has imported its module, `families` knows the modules of `further` to look in, by
        # name, and imports them when it is asked for a name that it does not know. Nothing else may do so.
        assert later and {PARTS[module] for module in later} <= {"further", "beyond"}
    else:
        found |= later
    wrong = {module for module in found if PARTS[module] not in MAY_IMPORT[PARTS[name]]}
    assert not wrong, f"{PARTS[name]} stands below {sorted(wrong)}"
    assert name != "contracts" or found <= {"support"}
    assert name != "support" or not found


def exported():
    """{module: its notebook}, in reading order."""
    found = {}
    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            if match := re.search(r"^#\| default_exp ([\w.]+)", source(cell), flags=re.M):
                assert match.group(1) not in found, path
                found[match.group(1)] = path
    return found


def test_every_module_has_its_notebook_and_the_notebook_its_place():
    found = exported()
    assert set(found) == MODULE_NAMES
    for name, path in found.items():
        part = path.parent.name
        own = re.sub(r"^\d\d_", "", path.stem)
        top = part == "tutorial" or PARTS[name] == "ground"
        assert name == (own if top else f"{part}.{own}"), path
        assert PARTS[name] != "ground" or part == "appendix"


def test_modules_import_only_earlier_chapters():
    order = list(exported())
    for path in MODULES:
        name = module_name(path)
        if PARTS[name] not in ("ground", "command"):
            late = [other for other in imports(path)[0]
                    if PARTS[other] != "ground" and order.index(other) >= order.index(name)]
            assert not late, f"{name} imports {late}"


def test_parts_are_folders_with_a_twin_in_the_package():
    parts = {path.parent.name for path in NOTEBOOKS if path.parent != NBS}
    assert all(path.parent.parent == NBS for path in NOTEBOOKS if path.parent != NBS)
    twins = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts - {"tutorial"} == twins  # the tutorial's modules are the top of the package
    assert (NBS / "index.ipynb").exists() and [path for path in NOTEBOOKS if path.parent == NBS] == [NBS / "index.ipynb"]


def test_chapters_have_one_sequence_of_numbers_in_reading_order():
    there = {path.relative_to(NBS).as_posix() for path in NOTEBOOKS} | {"api.qmd"}
    listed = [file for _, file, _ in course.sidebar(ROOT)]
    assert sorted(listed) == sorted(there)
    stems = [path.stem for path in NOTEBOOKS]
    assert len(set(stems)) == len(stems), "exercises, links and results call a notebook by its stem alone"
    numbers = [course.number_of(path) for path in NOTEBOOKS if path.parent.name not in ("nbs", "appendix")]
    assert numbers == [f"{n:02}" for n in range(len(numbers))]
    assert not any(re.match(r"\d", path.stem) for path in NOTEBOOKS if path.parent.name in ("nbs", "appendix"))


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_folded_cells_are_folded_in_jupyterlab_too(path):
    """On the site, `#| folded` does it; in JupyterLab, the cell's metadata, which nbdev_clean keeps."""
    for cell in cells(path, "code"):
        mark = re.search(r"^#\| folded\b(.*)", source(cell), flags=re.M)
        if mark:
            assert len(mark.group(1).split()) >= 2 and len(mark.group(1)) <= 80, "say what it is"
            assert cell["metadata"].get("jupyter", {}).get("source_hidden") is True, mark.group()
            assert "code-summary" not in source(cell)
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert re.search(r"^allowed_cell_metadata_keys *=.*\bjupyter\b", settings, flags=re.M)


NUMBERED = [path for path in NOTEBOOKS if course.number_of(path)]


@pytest.mark.parametrize(("path", "after"), list(zip(NUMBERED, NUMBERED[1:], strict=False)),
                         ids=[path.stem for path in NUMBERED[:-1]])
def test_a_chapter_leads_to_the_next(path, after):
    last = source(cells(path, "markdown")[-1])
    leads = re.search(r"^Next: .*?\[(\d\d)?[^]]*\]\(([\w./]+\.ipynb)\)", last, flags=re.M)
    assert leads, last[-200:]
    assert (path.parent / leads.group(2)).resolve().stem == after.stem
    assert leads.group(1) in (None, course.number_of(after))


@pytest.mark.parametrize("path", [path for path in NUMBERED if path.stem != "20_cli"], **by_name)
def test_what_comes_before_a_chapter_comes_before_it(path):
    """The command is the exception: it calls what later chapters build."""
    known = re.search(r"^\*\*Before\*\*: (.+)", box(path), flags=re.M).group(1)
    numbers = {course.number_of(stem + ".ipynb") for stem in stems_linked(known)}
    assert all(number < course.number_of(path) for number in numbers), known  # "" is an appendix


@pytest.mark.parametrize("path", [path for path in TEXTS if path.stem != "CHANGELOG"], **by_name)
def test_links_to_chapters_bear_their_numbers(path):
    """`[05](…)`, `[05, Training](…)` and `chapter [05](…)` lead to chapter 05; and no number is one of old."""
    for text, stem in re.findall(r"\[(\d\d)\b[^]]*\]\((?:[\w./]*/)?(\w+)\.ipynb", prose(path)):
        assert text == course.number_of(stem), f"[{text}]({stem})"
    assert not re.search(r"\b[Cc]hapters? (9\d|\d\d[abc])\b", prose(path))


@pytest.mark.parametrize("path", TEXTS, **by_name)
def test_links_inside_the_repository_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(path))
    for target in (a or b for a, b in targets):
        # The site's build makes the explorer's page; tools/build_site.py checks links to it.
        if re.match(r"https?:|#|data:|(\.\./)?explorer/", target):
            continue
        assert (path.parent / target.split("#")[0]).exists(), target


def test_pretrained_card_and_weights_are_listed():
    names = {path.name for path in (ROOT / "vae_course" / "pretrained").iterdir()}
    assert names == {"tutorial.keras", "tutorial.json"}


def test_figures_in_prose_about_seeds_match_the_saved_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    outputs = "".join("".join(out.get("text", "")) for path in NOTEBOOKS for cell in cells(path, "code")
                      for out in cell["outputs"])
    finals = re.search(r"seeds 0, 1, 2: \[(.*?)\]", outputs).group(1).split()
    for elbo in finals:
        assert elbo.replace("-", "−") in text, elbo

"""Numbers in a chapter's prose are bound to its saved outputs and its code.

    python tests/prose_numbers.py [NAME ...]    lists the numbers that nothing backs

Which numbers: those with a decimal point, a percent sign, a unit of measurement ("7 nats", "3 times"), or three
digits and more, in markdown cells, captions and alt texts; not those in maths, code spans, links' targets, years.
A sentence that links to another site or cites (Name, year) tells that source's numbers, which are not ours.

What backs a number: an output or the code of the same section (`##`); in the recap and the exercises, of the
notebook; if the paragraph links to a chapter or names it ("chapter 05"), of that chapter; or KNOWN. Signs are
not compared. The number must be the other one rounded to the digits given, or as a percentage; after "about" and
the like zeros at the end need not be digits: about 500 may stand for 543.

For the rest the cell holds a comment, <!-- … -->, or a line `# …` in the code cell of a caption:

    7.6 = 156.4 - 148.8          arithmetic on numbers of this notebook, or KNOWN; a quotient for "7 times as fast"
    205.85 from 01_data          a number of that notebook, which may be this one
    0.75 given: why              not a result: an assumption, or read off a figure
"""

import ast
import bisect
import functools
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402

# Numbers of the whole course, and the chapter where each comes from.
KNOWN = {"784": "03_elbo", "60,000": "01_data", "10,000": "01_data", "70,000": "01_data", "45.53": "01_data",
         "205.85": "01_data", "543": "03_elbo", "69,989": "04_model", "157": "14_loop"}

DIGITS = r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
POWER = r"(?:e(?P<e>[-+−]?\d+)| ?[·×] ?10(?P<power>[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+))?"
NUMBER = re.compile(rf"(?<![\w.,^/#]){DIGITS}{POWER}(?P<percent> ?%)?(?![\w]|[.,]\d)")
PRINTED = re.compile(r"(?<![A-Za-z_\d.])\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?|(?<![\w.])\.\d+")
# What makes a number of one or two digits a result; "four minutes" and "2 dimensions" are none.
UNIT = re.compile(r"\*{0,2}(?: ?[-–] ?\d+| (?:to|or|and) \d+)?\*{0,2}"
                  r"(?:[ \u00a0-](?:nats?|bits?|[kMG]B|megabytes?|seconds?|ms|milliseconds?|times|fold)\b|-fold\b| ?×(?! ?\d))")
ROUGHLY = re.compile(r"\b(about|some|roughly|near|nearly|almost|around|over|under|beyond|above|below|than|least|most)"
                     r"( the| a)?[ −-]*$", re.I)
ELSEWHERE = re.compile(r"\]\(https?:|et al\.|\([A-Z][^()]*, (19|20)\d\d\)")
REMARK = re.compile(r"(?:<!--|^#) *([\d.,e−-]+) ?%? *(?:= *([^\n>]+?)|from (\w+)|given: [^\n>]+?) *(?:-->|$)", re.M)


def source(cell):
    return "".join(cell["source"])


def printed_numbers(text):
    text = text.replace("−", "-").replace("\u202f", "")
    return [abs(float(m.group().replace(",", ""))) for m in PRINTED.finditer(text)]


@functools.cache
def code_numbers(code):
    """Constants, and numbers in strings; not those in comments, captions and formats (".4f")."""
    tree = ast.parse(re.sub(r"^(#\||[%!]).*$", "", code, flags=re.M))
    formats = {id(part) for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec
               for part in ast.walk(node.format_spec)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in formats:
            if isinstance(node.value, str):
                found += printed_numbers(node.value)
            elif isinstance(node.value, int | float):
                found.append(abs(float(node.value)))
    return found


def evidence(cells):
    """All numbers in outputs and code, sorted."""
    found = []
    for cell in cells:
        if cell["cell_type"] == "code":
            found += code_numbers(source(cell))
            for output in cell["outputs"]:
                texts = [output.get("text", ""), *(value for key, value in output.get("data", {}).items()
                                                   if key in ("text/plain", "text/markdown"))]
                found += [n for text in texts if "base64" not in text for n in printed_numbers("".join(text))]
    return sorted(found)


@functools.cache
def notebook(name):
    (path,) = [path for path in course.find_notebooks(NBS) if path.stem == name]
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@functools.cache
def evidence_of(name):
    return evidence(notebook(name))


def chapters_named(paragraph):
    """The notebooks that a paragraph links to, or names by their number."""
    numbers = re.findall(r"\b\d\d\b", " ".join(re.findall(r"[Cc]hapters? [\d andto,]+", paragraph)))
    linked = [Path(link).name for link in re.findall(r"\]\(([\w./-]+)\.ipynb", paragraph)]
    return {path.stem for path in course.find_notebooks(NBS)
            if path.stem in linked or course.number_of(path) in numbers}


def backed(match, pool, before=""):
    """Whether a number of the sorted `pool` rounds to the one in `match`."""
    digits = match["digits"]
    exponent = int((match["e"] or (match["power"] or "0").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")))
                   .replace("−", "-"))
    unit = 10.0 ** (exponent - len(digits.partition(".")[2]))
    if "." not in digits and ROUGHLY.search(before):
        unit *= 10 ** (len(digits) - len(digits.rstrip("0,").replace(",", "")) - digits.count(","))
    value = float(digits.replace(",", "")) * 10.0**exponent
    for scale in (1, 100) if match["percent"] else (1,):
        low, high = (value - 0.500001 * unit) / scale, (value + 0.500001 * unit) / scale
        place = bisect.bisect_left(pool, low)
        if place < len(pool) and pool[place] <= high:
            return True
    return False


def parts(cells):
    """(section, text, cell) of all prose; a section begins at `##`, also within a cell."""
    section, found = "", []
    for cell in cells:
        if cell["cell_type"] == "code":
            found.append((section, " ".join(re.findall(r'^#\| fig-(?:cap|alt): "(.*)"', source(cell), flags=re.M)), cell))
            continue
        for text in re.split(r"^(?=## )", source(cell), flags=re.M):
            section = text.split("\n")[0] if text.startswith("## ") else section
            found.append((section, text, cell))
    return found


def sentences(text):
    """(sentence, its paragraph); a row of a table and a list's item is a paragraph of its own."""
    text = re.sub(r"^(```|~~~).*?^\1|\$\$.*?\$\$|<!--.*?-->|<[^>]+>", " ", text, flags=re.S | re.M)
    text = re.sub(r"\$[^$\n]+\$|`[^`\n]*`|\[\([\w.]+\)\](?=\([^)]*#eq-)", " ", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", text):
        for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z*(\d])", paragraph):
            yield sentence, paragraph


def claims(text):
    """(match, what stands before it, sentence, paragraph) of each number that needs backing."""
    for sentence, paragraph in sentences(text):
        if ELSEWHERE.search(sentence):
            continue
        plain = re.sub(r"\]\([^)]*\)", "]", sentence)
        for match in NUMBER.finditer(plain):
            digits, before = match["digits"], plain[:match.start()]
            short = "." not in digits and len(digits.replace(",", "")) < 3
            year = re.fullmatch(r"(19|20)\d\d", digits)
            exact = match["percent"] or match["e"] or match["power"] or UNIT.match(plain[match.end():])
            version = re.search(r"(Python|TensorFlow|Keras|Probability|version) $", before)
            if exact or not (short or year or version):
                yield match, before, sentence.strip(), paragraph


def arithmetic(number, formula, pool, before=""):
    """Whether the formula's numbers are backed, and its value is the number."""
    numbers = list(NUMBER.finditer(formula.replace("(", " ").replace(")", " ")))
    assert re.fullmatch(r"[\d.,e+*/() −-]+", formula), f"not arithmetic: {formula}"
    value = abs(eval(formula.replace(",", "").replace("−", "-")))
    known = [float(key.replace(",", "")) for key in KNOWN]
    return backed(number, [value], before) and all(backed(n, pool) or float(n["digits"].replace(",", "")) in known
                                           or len(n["digits"]) < 3 for n in numbers)


def unbacked(name):
    """The claims of a notebook that nothing backs, as (number, sentence)."""
    cells, found = notebook(name), []
    prose = parts(cells)
    for section, text, cell in prose:
        late = section in ("## Recap", "## Exercises")
        near = evidence_of(name) if late else evidence([c for s, _, c in prose if s == section])
        remarks = {m[1].replace("−", ""): m for m in REMARK.finditer(source(cell))}
        for match, before, sentence, paragraph in claims(text):
            remark = remarks.get(match["digits"] + (f"e{match['e']}" if match["e"] else ""))
            if remark and remark[2]:
                fine = arithmetic(match, remark[2], evidence_of(name), before)
            elif remark and remark[3]:
                fine = backed(match, evidence_of(remark[3]), before)
            else:
                fine = (bool(remark) or backed(match, near, before) or match["digits"] in KNOWN
                        or any(backed(match, evidence_of(other), before) for other in chapters_named(paragraph)))
            if not fine:
                found.append((match.group(), sentence))
    return found


if __name__ == "__main__":
    for notebook_name in sys.argv[1:] or [path.stem for path in course.notebooks()]:
        for number, where in unbacked(notebook_name):
            print(f"{notebook_name}: {number} in: {where[:200]}")

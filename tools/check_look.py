"""What makes the site hard to read and can be seen without Quarto: in its sheets, its settings, its cells."""

import base64
import io
import re
from pathlib import Path

import nbformat
import yaml
from PIL import Image

from preview import directives

LEAST = 4.5  # contrast of text that WCAG's level AA asks for
LONGEST = 100  # characters in a line of code
# What Bootstrap and Quarto take where a sheet says nothing, if the sheet is for light, if it is for dark.
DEFAULTS = {"body-bg": "#ffffff", "body-color": "#212529", "link-color": "#0d6efd", "code-color": "#9753b8",
            "code-bg": "#f8f9fa", "code-block-bg": "#f1f3f5", "pre-color": "#212529", "body-emphasis-color": "#000000",
            "text-muted": "#6c757d", "sidebar-bg": "#ffffff"}
# Which colour is read on which; links and words of code stand on the ground of code, too.
PAIRS = [("body-color", "body-bg"), ("body-emphasis-color", "body-bg"), ("text-muted", "body-bg"),
         ("link-color", "body-bg"), ("link-color", "code-bg"), ("link-color", "sidebar-bg"), ("pre-color", "body-bg"),
         ("pre-color", "code-block-bg"), ("code-color", "code-bg"), ("body-color", "sidebar-bg")]


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, as WCAG defines it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place:place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(sheet: str) -> dict:
    """The colours that a sheet's variables stand for, without the dollar."""
    found = dict(re.findall(r"^\$([\w-]+):\s*([^;!]+?)\s*(?:!default)?;", sheet, flags=re.M))
    for _ in range(5):
        found = {name: found.get(value.removeprefix("$"), value) if value[0] == "$" else value
                 for name, value in found.items()}
    return {name: value for name, value in found.items() if re.fullmatch("#(?:[0-9a-fA-F]{3}){1,2}", value)}


def rules_of(sheet: str) -> list[tuple[str, str]]:
    """Selectors and declarations of a sheet's rules, those inside a media query too."""
    return [(selector.strip(), body) for selector, body in re.findall(r"([^{};]+)\{([^{}]*)\}", re.sub(
        r"/\*.*?\*/|^\s*//[^\n]*$", "", sheet, flags=re.S | re.M))]


def check_sheets(folder: Path) -> list[str]:
    """Weak contrasts of light.scss and dark.scss, and boxes that scroll where they should not."""
    faults, rules = [], []
    for name in ("light.scss", "dark.scss", "site.scss"):
        path = folder / name
        if not path.exists():
            continue
        sheet = path.read_text(encoding="utf-8")
        rules += [(name, *rule) for rule in rules_of(sheet)]
        if name == "site.scss":
            continue
        there = DEFAULTS | colours(sheet)
        for front, back in PAIRS:
            ratio = contrast(there[front], there[back])
            if ratio < LEAST:
                faults.append(f"{name}: ${front} {there[front]} on ${back} {there[back]} has a contrast of {ratio:.2f} "
                              f"to 1, less than {LEAST}")
    for name, selector, body in rules:
        if re.search(r"overflow-x:\s*(auto|scroll)", body) and not re.search(r"overflow-y:\s*hidden", body):
            faults.append(f"{name}: {selector} scrolls sideways and, without `overflow-y: hidden`, upwards too")
    joined = "".join(f"{selector}{{{body}}}" for _, selector, body in rules)
    for words, needed in (("tables' links break inside words", r"\.table a\s*\{[^}]*word-break:\s*normal"),
                          ("what is cut at an edge has no sign of it", r"background-attachment:\s*local")):
        if rules and not re.search(needed, joined):
            faults.append(f"site.scss: {words}")
    return faults


def check_configuration(root: Path) -> list[str]:
    """Settings of _quarto.yml without which pages are hard to read, and files that it names."""
    config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    page, website = (config.get("format") or {}).get("html") or {}, config["website"]
    if not page:  # a small course of a test
        return []
    faults = []
    if page.get("tbl-colwidths") is not True:
        faults.append("_quarto.yml: without `tbl-colwidths: true` tables with links lose their columns' widths")
    if page.get("code-overflow", "scroll") != "scroll":
        faults.append("_quarto.yml: `code-overflow: wrap` breaks lines of Python without an indent")
    icon = website.get("favicon")
    if not icon or not (root / "nbs" / icon).is_file():
        faults.append(f"_quarto.yml: no favicon {icon or ''}".rstrip())
    for theme in ("light", "dark"):
        for sheet in page.get("theme", {}).get(theme, []):
            if sheet.endswith(".scss") and not (root / "nbs" / sheet).is_file():
                faults.append(f"_quarto.yml: no sheet {sheet}")
    return faults


def check_notebook(path: Path, doubtful: set) -> list[str]:
    """Faults of the cells of a processed notebook; `doubtful` are names that Keras has as well as the course."""
    faults, notebook = [], nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        said = cell_faults(cell, doubtful) if cell.cell_type == "code" else text_faults(cell.source, doubtful)
        faults += [f"cell {cell.get('id', '')}: {fault}" for fault in said]
    return faults


def cell_faults(cell, doubtful: set) -> list[str]:
    """Of a code cell: its fold's name, its caption, its lines, what nbdev says in it of a function."""
    faults, options = [], directives(cell)
    if '"' in options.get("code-summary", ""):
        faults.append(f"straight quotation marks in a fold's name, which Quarto does not escape: {options['code-summary']}")
    if "fig-cap" in options and not re.match(r"Figure (\d+\.)?\d+: ", options["fig-cap"]):
        faults.append(f"figure without a number: {options['fig-cap'][:40]}")
    if options.get("echo", "").lower() != "false":
        faults += [f"line of {len(line)} characters: {line[:40].strip()}" for line in cell.source.split("\n")
                   if len(line) > LONGEST and not line.startswith("#|")]
    for output in cell.get("outputs", []):
        text = "".join(output.get("data", {}).get("text/markdown", ""))
        faults += text_faults(text, doubtful)
        if "image/png" in output.get("data", {}) and is_slab(output.data["image/png"]):
            faults.append("figure on a white ground, a slab in the dark: is the course's style on?")
        if re.match(r"!\[[^\]]*\]\(", text):
            faults.append("a picture or a film without a caption")
    return faults


def is_slab(picture: str | list) -> bool:
    """Whether the four corners of a picture are opaque and as good as white."""
    image = Image.open(io.BytesIO(base64.b64decode("".join(picture)))).convert("RGBA")
    right, bottom = image.width - 1, image.height - 1
    return all(min(image.getpixel(corner)) >= 250 for corner in ((0, 0), (right, 0), (0, bottom), (right, bottom)))


def text_faults(text: str, doubtful: set) -> list[str]:
    """Of markdown: signatures that say nothing, half sentences in italics, boxes that no key opens, false links."""
    faults = []
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        if re.search(r"^(?:def|class) \w+\(\s*\*args, \*\*kwargs\s*\)", code):
            faults.append(f"a signature that says nothing: {code.split('(')[0]}(*args, **kwargs)")
        faults += [f"a type that hides: {hidden}" for hidden in
                   re.findall(r":NoneType=None|(?<=[:>])(?:tensorflow|keras|numpy)\.\w+\.[\w.]+", code)]
    faults += [f"half a sentence in italics: {line[:40]}" for line in
               re.findall(r"^```\n+(\*(?!\*).*[^.!?…)]\*)\n(?=\S)", text, flags=re.M)]
    if re.search(r"^:::+ *\{[^}]*collapse=", text, flags=re.M):
        faults.append("a box that folds and that no key opens; <details> does")
    if "On the published site" in text:
        faults.append("speaks on the published site of the published site")
    for sentence in re.split(r"(?<=[.!?:;])\s|\n\n|\s\|\s", text):
        for name in re.findall(r"\[`(\w+)`\]\([^()\s]+\.html#\w+\)", sentence):
            if name in doubtful and re.search(r"\bKeras\b|\bpadding\b|`compile`|`predict`", sentence):
                faults.append(f"`{name}` of Keras leads to a function of the course: {sentence.strip()[:60]}")
    return faults


def notes_of(line: str) -> list[str]:
    """A line of Quarto's output as a list of faults: of one, if it warns, or of none."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
    return [f"quarto: {line}"] if re.search(r"\bWARN(ING)?\b|^\[WARNING\]|Could not convert TeX", line) else []

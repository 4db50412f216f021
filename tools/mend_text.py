"""Rules by which the site's copy of a text is made to look right; the notebooks themselves stay as they are."""

import html
import inspect
import re
from itertools import cycle
from typing import get_type_hints

# What is no text: code, in blocks and inside lines, and comments.
CODE = r"(?:^|(?<=\n))[ >]*(?P<fence>`{3,}|~{3,})(?:.|\n)*?\n[ >]*(?P=fence)[ \t]*(?=\n|$)|(?P<tick>`+)[^`](?:.|\n)*?(?P=tick)(?!`)|<!--(?:.|\n)*?-->"
MATHS = r"\$\$(?:[^$]|\\\$)+\$\$|(?<![\\$\w])\$(?=[^\s$])(?:[^$\n]|\\\$|\n(?!\n))*?(?<=[^\s\\])\$(?!\d)"
WORD = r"\\(?:log|ln|exp|max|min|sinh|cosh|tanh|sin|cos|det|Pr|operatorname\*?\{[^{}]*\})(?![a-zA-Z])"
# With an index or a power: \max_\phi, \log_2, \min_{i < n}, \log^2.
OPERATOR = re.compile(WORD + r"(?:\s*[_^]\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-zA-Z]+|\w))*")
# Commands beside which an operator's word needs no space: relations, spaces, brackets, large signs.
APART = set("""left right big bigl bigr Big Bigl Bigr bigg biggl biggr quad qquad cdot times odot le leq ge geq
             approx sim equiv neq ne in mid to mapsto Rightarrow propto pm mp ll gg sum prod int lvert rvert lVert rVert
             Vert langle lfloor lceil begin end limits nolimits middle colon dots ldots cdots""".split())
THIN = "\\,"


def outside(pattern: str, change, text: str) -> str:
    """`change` every match of a pattern that stands in no code and in no comment."""
    found = re.compile(f"(?P<code>{CODE})|(?P<found>{pattern})")
    return found.sub(lambda match: match[0] if match["code"] is not None else change(match), text)


def thin_spaces(tex: str) -> str:
    """Thin spaces between the word of an operator and a letter or number beside it.

    TeX and MathJax set them by themselves; pandoc's MathML has none, and a browser writes "logp".
    """
    parts, end = [], 0
    for found in OPERATOR.finditer(tex):
        between = tex[end:found.start()]
        if re.search(r"[\w)\]}']\s*$", between) and not ends_apart(between):
            between = between.rstrip() + THIN
        parts.append(between)
        parts.append(found[0])
        end, after = found.end(), tex[found.end():].lstrip()
        command = re.match(r"\\([a-zA-Z]+)", after)
        if (command and command[1] not in APART) or re.match(r"[\w{]", after):
            parts.append(THIN + (" " if after[0] != "{" else ""))
            end = len(tex) - len(after)
    return "".join(parts) + tex[end:]


def ends_apart(tex: str) -> bool:
    """Whether a piece of TeX ends in a command that brings its own space, or in an index of an operator's sign."""
    command = re.search(r"\\([a-zA-Z]+)(?:\{[^{}]*\})?(?:[_^](?:\{[^{}]*\}|\w))*\s*$", tex)
    return bool(command) and command[1] in APART


def space_maths(text: str) -> str:
    """A markdown text with `thin_spaces` in all its formulas."""
    return outside(MATHS, lambda match: thin_spaces(match[0]), text)


def curly(text: str) -> str:
    """Quotation marks as print has them: Quarto puts a fold's summary into an attribute, and escapes no straight one."""
    marks = cycle("“”")
    return re.sub('"', lambda _: next(marks), text)


def seen(cell: str) -> str:
    """What a reader sees of a table's cell."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`$\\{}]", r"\1", cell).strip()


def cells_of(row: str) -> list[str]:
    """The cells of a pipe table's row; a pipe in code or in maths, or behind a backslash, is none of its bars."""
    parts = re.split(r"(?<!\\)\|", row.strip().removeprefix("|").removesuffix("|"))
    return [seen(part) for part in parts]


def spread(table: str) -> str:
    """A pipe table whose dashes say how wide its columns should be; equal dashes say nothing and are set anew.

    pandoc takes the dashes for widths as soon as a row is longer than its line, links and all.
    """
    rows = table.strip("\n").split("\n")
    bars = rows[1].strip().strip("|").split("|")
    if max(map(len, rows)) > 72 and len({part.count("-") for part in bars}) == 1:
        columns = list(zip(*(row for row in map(cells_of, [rows[0], *rows[2:]]) if len(row) == len(bars)), strict=True))
        for place, column in enumerate(columns):
            word = max((len(part) for cell in column for part in cell.split()), default=1)
            mean = sum(map(len, column)) / len(column)
            width = max(4, word + 2, min(60, round(1.4 * mean)))
            bars[place] = re.sub("-+", "-" * width, bars[place], count=1)
        rows[1] = "|" + "|".join(bars) + "|"
    return "\n".join(rows)


TABLE = r"(?:(?<=\n)|^)\|[^\n]*\n\|[ :|-]*-[ :|-]*\|[ ]*\n(?:\|[^\n]*(?:\n|$))+"


def boxed_tables(text: str) -> str:
    """Each table in a box of its own, which scrolls sideways on a narrow page and takes the keyboard's focus."""
    return outside(TABLE, lambda match: f'\n::: {{.scroll tabindex="0"}}\n{spread(match[0])}\n:::\n\n', text)


def film(text: str, number: str) -> str | None:
    """A picture in a markdown output, with its line below as a numbered caption; None for other outputs."""
    found = re.fullmatch(r"!\[([^\]]*)\]\((\S+)\)(?:\\\n\*(.*)\*)?\s*", text, flags=re.S)
    if not found:
        return None
    alt, source, caption = found.groups()
    return (f'<figure class="figure"><img class="figure-img" src="{source}" alt="{html.escape(alt)}">'
            f'<figcaption class="figure-caption">\n\n{number}: {caption or alt}\n\n</figcaption></figure>')


def here(text: str) -> str:
    """What a notebook says of the published site, said on that site."""
    return re.sub(r"\bOn the published site,? (\w)", lambda found: found[1].upper(), text)


def same_names(text: str, titles: dict) -> str:
    """Tables that call each page in their first column as the sidebar does; `titles` are those of the files."""
    return re.sub(r"^\| \[([^\]]*)\]\(([\w/]+\.ipynb)\)", lambda row: f"| [{titles.get(row[2], row[1])}]({row[2]})",
                  text, flags=re.M)


# -- Signatures and docstrings, as nbdev writes them

def plain_docstring(text: str) -> str:
    """nbdev sets the first line of a docstring in italics; of a sentence on two lines that is half."""
    return re.sub(r"^\*(?!\*)(\S.*?)\*$", r"\1", text, count=1, flags=re.M)


def short_types(code: str) -> str:
    """The types of a signature by their own names, without the modules that hide them."""
    code = re.sub(r":NoneType=None", "=None", code)
    code = re.sub(r"\bnumpy\.ndarray\b", "ndarray", code.replace("=<factory>", "=…"))
    public = r"(?:tf|np|keras)\.(?:\w+\.)?[A-Z]\w*"
    return re.sub(rf"(?<=[:>|\[,( ])(?!{public}\b)(?:[a-z_]\w*\.)+([A-Z]\w*)", r"\1", code)


def typed(annotation) -> str:
    """An annotation as a signature shows it."""
    if annotation is inspect.Parameter.empty:
        return ""
    return ":" + (annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation)))


def class_signature(value: type) -> str:
    """A class with the arguments that its own `__init__` takes, where `inspect` sees only `*args, **kwargs`."""
    own = next((base for base in value.__mro__ if "__init__" in vars(base)), object)
    fields = get_type_hints(value) if hasattr(value, "_fields") or hasattr(value, "__total__") else {}
    if fields:  # a NamedTuple, a TypedDict
        kind = "NamedTuple" if hasattr(value, "_fields") else "TypedDict"
        return f"class {value.__name__}({kind}):\n    " + "\n    ".join(f"{name}{typed(of)}" for name, of in fields.items())
    try:
        parameters = list(inspect.signature(own.__init__).parameters.values())[1:]
        hints = get_type_hints(own.__init__)
    except (TypeError, ValueError, NameError):
        parameters, hints = [], {}
    if [one.kind.name for one in parameters] == ["VAR_POSITIONAL", "VAR_KEYWORD"] or own is object:
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        return f"class {value.__name__}({bases})"
    shown = []
    for one in parameters:
        star = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(one.kind.name, "")
        default = "" if one.default is one.empty else f"={one.default!r}"
        shown.append(f"{star}{one.name}{typed(hints.get(one.name, one.annotation)) if not star else ''}{default}")
    return f"class {value.__name__}(\n    {', '.join(shown)}\n)" if shown else f"class {value.__name__}()"


def true_classes(text: str, names: dict) -> str:
    """A documented entry whose signature says what a class takes; `names` are those of its module."""
    def mended(found) -> str:
        value = names.get(found[1])
        if not isinstance(value, type):
            return found[0]
        if re.sub(r"\s", "", found[2]) in ("*args,**kwargs", "args:VAR_POSITIONAL,kwargs:VAR_KEYWORD"):
            return "```python\n" + class_signature(value) + "\n```"
        return f"```python\nclass {found[1]}(" + found[2].rstrip("\n") + "\n)\n```"

    return re.sub(r"```python\n+(?:def )?(\w+)\(((?:.|\n)*?)\n?\)(?:->[^\n]*)?:?\s*\n```", mended, text)


def without_signature(text: str) -> str:
    """A documented entry whose code follows on the page: the code shows the signature."""
    return re.sub(r"```python\n(?:def|class) (?:.|\n)*?\n```\n*", "", text, count=1)


# -- Links to functions of the course

def false_links(text: str, doubtful: dict, local: set) -> str:
    """A text without the links of names that mean something else here.

    `doubtful` are names of the course that Keras, TensorFlow or a module has, too, each with the number of
    the chapter that defines it: they are linked only where the text names that chapter right behind.
    `local` are names that the page gives to something of its own.
    """
    def kept(found) -> str:
        name = found[1]
        behind = text[found.end():found.end() + 40]
        ours = name in doubtful and re.match(rf"[^.;\n]{{0,12}}\b(?:of|chapter) (?:chapter )?\[?{doubtful[name]}\b", behind)
        return f"`{name}`" if name in local or (name in doubtful and not ours) else found[0]

    return re.sub(r"\[`(\w+)`\]\(([^()\s]+\.html#\w+)\)", kept, text)

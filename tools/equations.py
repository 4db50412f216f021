"""Number the equations of all notebooks, and what refers to them.

    python tools/equations.py            write the numbers
    python tools/equations.py --check    only say which notebooks would change

An equation is an anchor, and below it the formula with its number; a text refers to it by a link:

    <a id="eq-kl"></a>
    $$\\text{KL} = \\ldots \\qquad (3.9)$$

    By [(3.9)](#eq-kl) the price is …, or from another chapter: [(3.9)](../tutorial/03_elbo.ipynb#eq-kl)

Every reader of notebooks shows both as they are meant; the site needs nothing of its own. The number is the
chapter's and the place in it; pages without a number have letters. Nobody needs to type one: write (0).
"""

import json
import posixpath
import re
import sys
from pathlib import Path

import course

EQUATION = re.compile(r'^<a id="(eq-[\w-]+)"></a>\n\$\$((?:(?!\$\$).)+?) \\qquad \(([\w.]+)\)\$\$$', flags=re.M | re.S)
REFERENCE = re.compile(r"\[\(([\w.]+)\)\]\(([\w./-]*)#(eq-[\w-]+)\)")


def prefix(path: Path) -> str:
    """What stands before the point in the numbers of a notebook: "3" for 03_elbo."""
    number = course.number_of(path)
    return str(int(number)) if number else path.stem[0].upper()


def texts(notebook: dict) -> str:
    """All markdown of a notebook."""
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def numbers(root: Path = course.ROOT) -> dict:
    """The number of each equation, by (file below nbs/, label)."""
    found = {}
    for path in course.notebooks(root):
        name = path.relative_to(root / "nbs").as_posix()
        labels = [label for label, _, _ in EQUATION.findall(texts(json.loads(path.read_text(encoding="utf-8"))))]
        if len(labels) != len(set(labels)):
            raise ValueError(f"{name} has two equations of one name: {labels}")
        found.update({(name, label): f"{prefix(path)}.{i}" for i, label in enumerate(labels, 1)})
    return found


def numbered(text: str, name: str, found: dict) -> str:
    """A markdown cell of the notebook `name` with the right numbers."""
    def refer(match):
        file = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2])) if match[2] else name
        if (file, match[3]) not in found:
            raise ValueError(f"{name} refers to an equation that is not there: {match[0]}")
        return f"[({found[file, match[3]]})]({match[2]}#{match[3]})"

    text = EQUATION.sub(lambda m: f'<a id="{m[1]}"></a>\n$${m[2]} \\qquad ({found[name, m[1]]})$$', text)
    return REFERENCE.sub(refer, text)


def main(root: Path = course.ROOT, check: bool = False) -> list[str]:
    """Number everything; the notebooks that changed, or would."""
    found, changed = numbers(root), []
    for path in course.notebooks(root):
        name = path.relative_to(root / "nbs").as_posix()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        before = texts(notebook)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = numbered("".join(cell["source"]), name, found).splitlines(keepends=True)
        if texts(notebook) != before:
            changed.append(name)
            if not check:
                text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
                path.write_text(text + "\n", encoding="utf-8")
    return changed


if __name__ == "__main__":
    changed = main(check="--check" in sys.argv[1:])
    print("\n".join(changed) or "every number is right")
    sys.exit(bool(changed) and "--check" in sys.argv[1:])

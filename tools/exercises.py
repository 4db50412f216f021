"""Make the student's copy of every chapter's exercises, from the solutions in nbs/.

    python tools/exercises.py

Under `## Exercises`, a chapter has for each task its text, a cell "Solution N" and a cell
"Check N (P points)". The copy, exercises/CHAPTER.ipynb, has the text, the solution with the bodies of
its functions removed, and the check. The copies lie in one folder, whatever part a chapter belongs to.
The folder is written over, unless somebody's answers are in it.
"""

import ast
import json
import posixpath
import re
import sys
from pathlib import Path

from course import ROOT, notebooks
from equations import EQUATION

SOLUTION = r'^#\| code-summary: "Solution (\d+)"'
CHECK = r'^#\| code-summary: "Check (\d+) \((\d+) points?\)"'
HELP = """# Exercises: {title}

From [the chapter]({link}). Write your answer into the cell that begins with `# Exercise N: answer`,
in place of `raise NotImplementedError`; all that belongs to it must stand in that cell. Then run the
check below it: it says `right`, or what may be wrong. `pytest {name}.ipynb` counts your points."""


def source(cell):
    return "".join(cell["source"])


def code(cell):
    """The source without its directives."""
    return re.sub(r"^#\|.*\n?", "", source(cell), flags=re.M).strip("\n")


def stub(solution: str, number: str) -> str:
    """The solution with its public functions' bodies replaced; signature and docstring stay."""
    lines, kept = solution.split("\n"), []

    def walk(body):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                first = node.body[0]
                end = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
                kept.extend(["", *lines[node.lineno - 1:end]])
                walk(node.body)
            elif isinstance(node, ast.FunctionDef) and (node.name[:2] == "__" or node.name[0] != "_"):
                first = node.body[0]
                documented = ast.get_docstring(node) is not None
                if not documented and node.col_offset == 0:
                    raise ValueError(f"Solution {number}: {node.name} needs a docstring, the task in one line.")
                start = min([node.lineno, *(line.lineno for line in node.decorator_list)])
                end = first.end_lineno if documented else first.lineno - 1
                kept.extend(["", *lines[start - 1:end],
                             " " * first.col_offset + f'raise NotImplementedError("exercise {number}")'])

    walk(ast.parse(solution).body)
    if not kept:
        raise ValueError(f"Solution {number} defines no function that the check could call.")
    return "\n".join(kept).strip("\n")


def imports(cells, module, used):
    """The import lines that `used` names need: the chapter's own imports, and its module's names."""
    found = {}
    for cell in cells:
        exported = re.search(r"^#\| exports?\b", source(cell), flags=re.M)
        for node in ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M)).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    name = alias.name + (f" as {alias.asname}" if alias.asname else "")
                    origin = node.module if isinstance(node, ast.ImportFrom) else None
                    found[(alias.asname or alias.name).split(".")[0]] = (origin, name)
            elif exported and isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = (f"vae_course.{module}", node.name)
            elif exported and isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
                for name in getattr(node.targets[0], "elts", node.targets[:1]):  # of `ONE, OTHER = …` both
                    if isinstance(name, ast.Name):
                        found[name.id] = (f"vae_course.{module}", name.id)
    needed = {found[name] for name in used & set(found)}
    plain = sorted(f"import {name}" for origin, name in needed if origin is None)
    origins = sorted({origin for origin, _ in needed if origin})
    return plain + [f"from {origin} import {', '.join(sorted(n for o, n in needed if o == origin))}"
                    for origin in origins]


def text_for_students(text, equations, folder):
    """Links to chapters lead to nbs/, from `folder` there; equations referred to are written out below the text."""
    text = re.sub(r"\]\(([\w./-]+\.ipynb)", lambda link: f"]({posixpath.normpath(f'{folder}/{link[1]}')}", text)
    labels = dict.fromkeys(re.findall(r"\]\(#(eq-[\w-]+)\)", text))
    text = re.sub(r"\[(\([\w.]+\))\]\(#eq-[\w-]+\)", r"\1", text)
    return text + "".join(f"\n\n$${equations[label]}$$" for label in labels)


def cell(kind, name, text):
    rest = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, **rest, "source": text.splitlines(keepends=True)}


def tasks(cells):
    """(text, number, solution, points, check) of each task; a task without a solution has None there."""
    after = next((i for i, c in enumerate(cells) if re.search("^## Exercises$", source(c), flags=re.M)), len(cells))
    found = []
    for c in cells[after:]:
        if c["cell_type"] == "markdown":
            text = source(c).split("## Exercises")[-1]
            for part in re.split(r"^(?=\*\*\d+\. )", text, flags=re.M):
                if match := re.match(r"\*\*(\d+)\. ", part):
                    text = re.split(r"^Next: |^#", part.strip(), flags=re.M)[0].strip()
                    found.append({"text": text, "number": match.group(1)})
        elif match := re.search(SOLUTION, source(c), flags=re.M):
            found[-1]["solution"] = code(c)
        elif match := re.search(CHECK, source(c), flags=re.M):
            if match.group(1) != found[-1]["number"] or "solution" not in found[-1]:
                raise ValueError(f"{match.group(0)} must follow its solution.")
            found[-1] |= {"points": int(match.group(2)), "check": code(c)}
    return found


def student_copy(path: Path, solved: bool = False) -> dict | None:
    """The student's notebook for a chapter, or None without checked tasks; `solved` keeps solutions."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    programs = [c for c in cells if c["cell_type"] == "code"]
    checked = [task for task in tasks(cells) if "check" in task]
    if not checked:
        return None
    given = [code(c) for c in programs if re.search(r"^#\| given$", source(c), flags=re.M)]
    module = next((m.group(1) for c in programs if (m := re.search(r"default_exp ([\w.]+)", source(c)))), None)
    all_code = "\n".join(given + [task[key] for task in checked for key in ("solution", "check")])
    used = {node.id for node in ast.walk(ast.parse(all_code)) if isinstance(node, ast.Name)}
    text = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
    equations = {label: f"{body} \\qquad ({number})" for label, body, number in EQUATION.findall(text)}
    title = re.match(r"# (.*)", source(cells[0])).group(1)
    link = f"../{path.relative_to(ROOT).as_posix()}"
    setup = ["from vae_course.support import quiet_tensorflow", "", "quiet_tensorflow()", "",
             *imports(programs, module, used)]
    folder = posixpath.dirname(link)
    result = [cell("markdown", "title", HELP.format(title=title, link=link, name=path.stem)),
              cell("code", "given", "\n".join(["# Given", *setup]))]
    result += [cell("code", f"given-{i}", f"# Given\n{text}") for i, text in enumerate(given, 1)]
    for task in tasks(cells):
        number = task["number"]
        result.append(cell("markdown", f"text-{number}", text_for_students(task["text"], equations, folder)))
        if "check" in task:
            answer = task["solution"] if solved else stub(task["solution"], number)
            points = f"{task['points']} point" + "s" * (task["points"] > 1)
            result += [cell("code", f"answer-{number}", f"# Exercise {number}: answer\n{answer}"),
                       cell("code", f"check-{number}", f"# Exercise {number}: check ({points})\n{task['check']}")]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": result, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
            "nbformat": 4, "nbformat_minor": 5}


def write(folder: Path, solved: bool = False):
    """Write the copies of all chapters, and remove those of chapters that are gone."""
    copies = {path.name: student_copy(path, solved) for path in notebooks()}
    for old in folder.glob("*.ipynb"):
        for c in json.loads(old.read_text(encoding="utf-8"))["cells"]:
            if re.match(r"# Exercise \d+: answer", source(c)) and "raise NotImplementedError" not in source(c):
                sys.exit(f"{old} holds an answer. Move it to a copy of the folder; nothing was written.")
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for name, copy in copies.items():
        if copy:
            (folder / name).write_text(json.dumps(copy, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(ROOT / "exercises")

"""Make the workbook: a package in which the learner writes what makes a VAE, with checks beside it.

    python tools/workbook.py [--out FOLDER] [--solved]    make workbook: the package my_vae, check.py, README.md
    python tools/workbook.py --measure                    train the course's own functions with eight seeds, and
                                                          write what a right package reaches (interval.json)

The package comes from the cells that the tutorial exports. Of the functions in TASKS the body is left out, and
what they need besides stands there or is imported from vae_course. An answer is never written over.
"""

import argparse
import ast
import json
import shutil
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vae_course"
PARTS = Path(__file__).parent / "workbook"  # check.py, README.md, interval.json: copied as they are

# What the learner writes, in this order: (module, function): (chapter, what to write).
TASKS = {
    ("data", "preprocess_images"): ("01", "Scale, compare with the threshold, give the images their channel."),
    ("reparameterization", "reparameterize"): ("02", "One line: from ε to z."),
    ("elbo", "log_normal_pdf"): ("03", "The log-density of each number, then the sum over `raxis`."),
    ("elbo", "bernoulli_log_prob"): ("03", "TensorFlow has the cross-entropy of logits; mind its sign."),
    ("elbo", "kl_standard_normal"): ("03", "The closed form, summed over the latent axis."),
    ("elbo", "ElboTerms.elbo"): ("03", "Put the terms together; the single-sample form needs no `kl`."),
    ("elbo", "elbo_terms"): ("03", "Encode, draw, and fill in the four terms."),
    ("model", "make_encoder"): ("04", "Two convolutions with stride 2, flatten, a dense layer of 2 · latent_dim."),
    ("model", "make_decoder"): ("04", "A dense layer, a reshape, three transposed convolutions; logits come out."),
    ("model", "CVAE.encode"): ("04", "Split what the encoder gives into its halves."),
    ("training", "compute_loss"): ("05", "One number to minimise: a mean over the batch."),
    ("training", "apply_step"): ("05", "Loss on a tape, gradients, update; return the loss."),
    ("manifold", "latent_image"): ("08", "A grid of quantiles, decoded in one call, laid on one sheet; z₂ grows upwards."),
}
# What stands there beside it, because it must call what the learner writes.
GIVEN = {"elbo": ["ElboTerms"], "model": ["CVAE"], "training": ["traced_step", "train_step", "train"]}


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def without_body(lines: list[str], function: ast.FunctionDef, name: str, task: tuple[str, str]) -> list[str]:
    """The lines of a function's head and docstring, and what is left to do."""
    indent = " " * (function.col_offset + 4)
    head = lines[first_line(function) - 1:function.body[0].end_lineno]
    return [*head, f"{indent}# Chapter {task[0]}. {task[1]}",
            f'{indent}raise NotImplementedError("{name} is not written yet")']


def source_of(module: str, solved: bool) -> str:
    """The learner's copy of a module of the tutorial."""
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    tasks = {name: task for (home, name), task in TASKS.items() if home == module}
    wanted = {name.split(".")[0] for name in tasks} | set(GIVEN.get(module, ()))
    kept, home, origin = [], {}, {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in node.names:
                origin[name.asname or name.name.split(".")[0]] = node, name
        elif set(names_of(node)) & wanted:
            kept.append(node)
        home.update(dict.fromkeys(names_of(node), module))
    blocks = []
    for node in kept:
        methods = [node, *node.body] if isinstance(node, ast.ClassDef) else [node]
        block, line = [], first_line(node)
        for method in methods:
            name = names_of(node)[0] + (f".{method.name}" if method is not node and hasattr(method, "name") else "")
            if name in tasks and not solved:
                block += lines[line - 1:first_line(method) - 1] + without_body(lines, method, name, tasks[name])
                line = method.end_lineno + 1
        blocks.append("\n".join(block + lines[line - 1:node.end_lineno]))
    used = {name.id for node in kept for name in ast.walk(node) if isinstance(name, ast.Name)}
    defined = {name for node in kept for name in names_of(node)}
    mine = {name.split(".")[0]: other for other, name in TASKS} | {
        name: other for other, names in GIVEN.items() for name in names}
    whole, parts = set(), {}
    for name in sorted((used & (set(origin) | set(home))) - defined):
        if name in origin:
            node, alias = origin[name]
            if isinstance(node, ast.Import) or not node.level:
                whole.add(ast.unparse(type(node)(**{**vars(node), "names": [alias]})))
                continue
            place = "." + mine[name] if mine.get(name) == node.module else f"vae_course.{node.module}"
        else:
            place = f"vae_course.{module}"
        parts.setdefault(place, []).append(name)
    doc = f'"""{ast.get_docstring(tree)}"""'
    groups = [sorted(whole, key=lambda line: (line.startswith("from"), line)),
              *([f"from {place} import {', '.join(parts[place])}" for place in sorted(parts) if (place[0] == ".") == own]
                for own in (False, True))]
    head = [doc, *("\n".join(group) for group in groups if group)]
    return "\n\n\n".join(["\n\n".join(head), *blocks]) + "\n"


def answers(folder: Path) -> list[str]:
    """The functions of a workbook that somebody has begun to write."""
    found = []
    for (module, name) in TASKS:
        path = folder / "my_vae" / f"{module}.py"
        if path.exists() and f'raise NotImplementedError("{name} is not written yet")' not in path.read_text(encoding="utf-8"):
            found.append(name)
    return found


def make(folder: Path, solved: bool = False):
    """Write the workbook; SystemExit if the folder holds an answer."""
    if found := answers(folder):
        sys.exit(f"{folder} holds answers ({', '.join(found)}). Move it away first; nothing was written.")
    package = folder / "my_vae"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text('"""A variational autoencoder, written by me."""\n', encoding="utf-8")
    for module in dict.fromkeys(module for module, _ in TASKS):
        (package / f"{module}.py").write_text(source_of(module, solved), encoding="utf-8")
    for part in PARTS.iterdir():
        if part.is_file():
            shutil.copy(part, folder)
    rows = []
    for (module, chapter), tasks in groupby(TASKS, lambda task: (task[0], TASKS[task][0])):
        names = ", ".join(f"`{name}`" for _, name in tasks)
        rows.append(f"| `{module}.py` | {names} | {chapter} |")
    text = (PARTS / "README.md").read_text(encoding="utf-8").replace("TASKS", "\n".join(rows))
    (folder / "README.md").write_text(text, encoding="utf-8")
    tasks = [[module, name, chapter] for (module, name), (chapter, _) in TASKS.items()]
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")


def measure(seeds=range(8)):
    """What the course's own functions reach, and the interval in which another right run falls."""
    import numpy as np
    import tensorflow_probability as tfp

    sys.path.insert(0, str(PARTS))
    import check

    elbos = [check.train_a_minute("vae_course", seed)[1] for seed in seeds]
    mean, s, n = np.mean(elbos), np.std(elbos, ddof=1), len(elbos)
    # A new result differs from the mean of n by more than this once in 100 runs.
    reach = tfp.distributions.StudentT(n - 1.0, 0.0, 1.0).quantile(0.995).numpy() * s * np.sqrt(1 + 1 / n)
    result = {"settings": check.SETTINGS, "elbos": [round(float(elbo), 3) for elbo in elbos],
              "mean": round(float(mean), 3), "low": round(float(mean - reach), 2), "high": round(float(mean + reach), 2)}
    (PARTS / "interval.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "workbook", help="the folder to make [workbook]")
    parser.add_argument("--solved", action="store_true", help="with the course's own functions, for tests")
    parser.add_argument("--measure", action="store_true", help="measure what a right package reaches")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
    else:
        make(arguments.out, arguments.solved)
        print(f"Made {arguments.out}. Begin with its README.md; python check.py says what is next.")


if __name__ == "__main__":
    main()

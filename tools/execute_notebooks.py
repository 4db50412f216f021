"""Run notebooks from top to bottom and save their outputs in place.

    python tools/execute_notebooks.py [--slow] [NOTEBOOK ...]

Cells marked `#| slow` are run only with --slow; without it they keep the outputs they have.
A notebook is written only if all of its cells ran, and nobody changed the file meanwhile.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NBS = Path(__file__).parent.parent / "nbs"


def last_state(text: str) -> str:
    """What a terminal shows of a text: after a carriage return, a line is written over."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part):]
        lines.append(shown.rstrip())
    return re.sub(r"^\n+", "", "\n".join(lines))


def tidy(cell):
    """Drop what a progress bar left in a cell's text output."""
    for output in cell.outputs:
        if output.output_type == "stream":
            output.text = last_state(output.text)
    cell.outputs = [out for out in cell.outputs if out.output_type != "stream" or out.text.strip()]


def execute(path: Path, slow: bool):
    """Run one notebook in a fresh kernel and write it with its outputs."""
    before = path.read_bytes()
    notebook = nbformat.reads(before.decode(), as_version=4)
    client = NotebookClient(notebook, timeout=7200, coalesce_streams=True,
                            resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or ("#| slow" in cell.source and not slow):
                continue
            cell.outputs = []
            client.execute_cell(cell, index)
            tidy(cell)
    if path.read_bytes() != before:
        raise RuntimeError(f"{path} was changed while it ran; nothing was written. Run it again.")
    nbformat.write(notebook, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slow", action="store_true", help="run cells marked #| slow too")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in nbs/")
    arguments = parser.parse_args()
    for path in arguments.notebooks or sorted(NBS.glob("*.ipynb")):
        print(path.name, flush=True)
        execute(path, arguments.slow)


if __name__ == "__main__":
    main()

"""Run notebooks from top to bottom and save their outputs in place.

    python tools/execute_notebooks.py [--slow] [NOTEBOOK ...]
    python tools/execute_notebooks.py --times [NOTEBOOK ...]

Cells marked `#| slow` are run only with --slow; without it they keep the outputs they have.
A notebook is written only if all of its cells ran, and nobody changed the file meanwhile.

With --times no notebook is written. The seconds that the cells without `#| slow` took, together
and in a fresh kernel, go to benchmarks/results/chapters.json with the facts of the machine. Leave
the machine alone meanwhile.
"""

import argparse
import base64
import io
import json
import re
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import PIL.Image
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import common  # noqa: E402
from course import notebooks  # noqa: E402

LARGE = 60_000  # bytes; above, a picture gets the 256 colours that fit it best


def last_state(text: str) -> str:
    """What a terminal shows of a text: after a carriage return, a line is written over."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part):]
        lines.append(shown.rstrip())
    return re.sub(r"^\n+", "", "\n".join(lines))


def small(png: bytes) -> bytes:
    """A picture with a palette if 256 colours draw it, and a large one with the 256 that fit it best: a third of the bytes."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGBA"))
    for steps in (255, 63):
        coarse = np.uint8(np.rint(np.rint(pixels / 255 * steps) * 255 / steps))
        coarse[coarse[..., 3] == 0] = 0  # a colour that nobody sees
        colours, index = np.unique(coarse.reshape(-1, 4), axis=0, return_inverse=True)
        if len(colours) <= 256:
            picture = PIL.Image.fromarray(np.uint8(index.reshape(pixels.shape[:2])), "P")
            picture.putpalette(colours.tobytes(), "RGBA")
            file = io.BytesIO()
            picture.save(file, "PNG", optimize=True)
            return min(png, file.getvalue(), key=len)
    if len(png) < LARGE:
        return png
    file = io.BytesIO()
    picture = PIL.Image.open(io.BytesIO(png)).convert("RGBA")
    picture.quantize(256, PIL.Image.Quantize.FASTOCTREE, kmeans=3).save(file, "PNG", optimize=True)
    return min(png, file.getvalue(), key=len)


def tidy(cell):
    """Drop what a progress bar left in a cell's text output; make its pictures small."""
    for output in cell.outputs:
        if output.output_type == "stream":
            output.text = last_state(output.text)
        elif "image/png" in output.get("data", {}):
            png = small(base64.b64decode(output.data["image/png"]))
            output.data["image/png"] = base64.b64encode(png).decode()
    cell.outputs = [out for out in cell.outputs if out.output_type != "stream" or out.text.strip()]


def execute(path: Path, slow: bool, write: bool = True) -> float:
    """Run one notebook in a fresh kernel and write it with its outputs; the seconds of its cells."""
    before = path.read_bytes()
    notebook = nbformat.reads(before.decode(), as_version=4)
    client = NotebookClient(notebook, timeout=7200, coalesce_streams=True,
                            resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        start = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or ("#| slow" in cell.source and not slow):
                continue
            cell.outputs = []
            client.execute_cell(cell, index)
            tidy(cell)
        seconds = time.perf_counter() - start
    if not write:
        return seconds
    if path.read_bytes() != before:
        raise RuntimeError(f"{path} was changed while it ran; nothing was written. Run it again.")
    nbformat.write(notebook, path)
    return seconds


def save_times(seconds: dict, facts: dict):
    """Add the seconds to the result, or begin a new one if it is of another machine or software."""
    path = common.RESULTS / "chapters.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": {}, "seconds": {}}
    passing = {"date_utc": "", "load_average_1_min": 0}
    same = old["machine"] | passing == facts | passing
    known = old["seconds"] if same else {}
    common.save("chapters", {"seconds": dict(sorted((known | seconds).items()))}, facts, quick=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slow", action="store_true", help="run cells marked #| slow too")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in nbs/")
    parser.add_argument("--times", action="store_true", help="measure the cells, write no notebook")
    arguments = parser.parse_args()
    if arguments.slow and arguments.times:
        parser.error("--times measures the cells that are not slow; leave out one of the two options")
    facts, seconds = common.machine(), {}
    for path in arguments.notebooks or notebooks():
        print(path.name, flush=True)
        seconds[path.stem] = round(execute(path, arguments.slow, write=not arguments.times), 1)
    if arguments.times:
        save_times(seconds, facts)


if __name__ == "__main__":
    main()

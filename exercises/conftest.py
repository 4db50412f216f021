"""pytest counts points: every check in the notebooks of this folder is a task.

    pytest FOLDER                    points for the answers in FOLDER
    ANSWERS=STUDENT pytest FOLDER    given cells and checks from FOLDER, answers from STUDENT

(An option in place of the variable would not do: pytest runs a conftest.py in every folder that
the command line names.)

For each task it runs the given cells, the answer, and the check, in this order, in an empty temporary
folder. Only cells of these two folders and the library run; no other file in them is collected. All
answers share one process: they are programs, and could change the library that checks them. So read
the answers of a class that is graded by these points, and run those of strangers in a container.
"""

import ast
import contextlib
import functools
import io
import json
import os
import re
import signal
import tempfile
import warnings
from pathlib import Path

import pytest

SECONDS = 60  # for the answer and the check of one task


def pytest_configure(config):
    config.points = []
    config.option.showcapture = "no"  # TensorFlow's start-up lines


def pytest_ignore_collect(collection_path):
    """Whatever else lies in this folder, such as a student's own tests, does not run."""
    if collection_path.parent == Path(__file__).parent and collection_path.suffix != ".ipynb":
        return True


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return Notebook.from_parent(parent, path=file_path)


def sources(path):
    """The sources of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


class Notebook(pytest.File):
    """One chapter's tasks."""

    def collect(self):
        for source in sources(self.path):
            if match := re.match(r"# Exercise (\d+): check \((\d+)", source):
                yield Task.from_parent(self, name=match.group(1), points=int(match.group(2)), check=source)


class Task(pytest.Item):
    """One task: the answer passes the check or it does not."""

    def __init__(self, points, check, **rest):
        super().__init__(**rest)
        self.points, self.check = points, check
        self.earned, self.remark = 0, "not run"

    def runtest(self):
        folder = Path(os.environ.get("ANSWERS") or self.path.parent).absolute()
        head = f"# Exercise {self.name}: answer"
        self.remark = "no answer"
        path = folder / self.path.name
        answers = [source for source in sources(path) if source.startswith(head)] if path.exists() else []
        if len(answers) != 1:
            raise AssertionError(f"{path} must have one cell that begins with '{head}', it has {len(answers)}.")
        own = sources(self.path)
        (stub,) = [source for source in own if source.startswith(head)]
        self.remark = "wrong"
        run(self.path, answers[0], names_in(stub), self.check)
        self.earned, self.remark = self.points, ""

    def repr_failure(self, excinfo, style=None):
        error = excinfo.value
        if isinstance(error, NotImplementedError):
            self.remark = "not done"
        elif not isinstance(error, AssertionError):
            self.remark = "error"
        where = [entry.lineno + 1 for entry in excinfo.traceback if str(entry.path) == str(self.path)]
        lines = f" (line {where[-1]} of the cell)" if where and self.remark == "error" else ""
        return f"{self.remark}: {type(error).__name__}: {error}{lines}"

    def reportinfo(self):
        return self.path, None, f"{self.path.stem} exercise {self.name}"

    def teardown(self):
        self.config.points.append(self)


def names_in(stub):
    """What the answer must define."""
    return [node.name for node in ast.parse(stub).body if hasattr(node, "name")]


@functools.lru_cache(maxsize=2)
def given(path, place):
    """The names of the given cells; each `place`, answer or check, has its own."""
    space = {"__name__": "__main__"}
    for source in sources(path):
        if source.startswith("# Given"):
            exec(compile(source, str(path), "exec"), space)
    return space


def run(path, answer, names, check):
    """Run the given cells, the answer and the check; raise what they raise."""
    home = os.getcwd()
    with (tempfile.TemporaryDirectory() as empty, warnings.catch_warnings(),
          contextlib.redirect_stdout(io.StringIO())):
        warnings.simplefilter("ignore")
        os.chdir(empty)
        try:
            mine, fresh = dict(given(path, "answer")), dict(given(path, "check"))
            with time_limit():
                exec(compile(answer, str(path), "exec"), mine)
                if missing := [name for name in names if name not in mine]:
                    raise AssertionError(f"The answer must define {', '.join(missing)}.")
                # The check sees what the answer defines; its other names the answer never touched.
                exec(compile(check, str(path), "exec"), fresh | {name: mine[name] for name in names})
        finally:
            os.chdir(home)


@contextlib.contextmanager
def time_limit():
    """Stop after SECONDS, where the system has this signal (Windows has not)."""
    def stop(*_):
        raise TimeoutError(f"longer than {SECONDS} seconds")

    if hasattr(signal, "SIGALRM"):
        old = signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
    try:
        yield
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.section("points")
    for task in config.points:
        terminalreporter.write_line(f"{task.path.stem:25} {task.name:>2}  {task.earned} of {task.points}  {task.remark}")
    earned, total = (sum(getattr(task, key) for task in config.points) for key in ("earned", "points"))
    terminalreporter.write_line(f"total {earned} of {total}")

"""The student's copies in exercises/: in step with the chapters, solvable, with hints, and graded safely."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "exercises"
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402



def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load(ROOT / "tools" / "exercises.py", "exercise_maker")
grader = load(FOLDER / "conftest.py", "exercise_grader")
grader.SECONDS = 600  # a test must not depend on how busy the machine is
COPIES = sorted(FOLDER.glob("*.ipynb"))

# A file for each chapter: solutions into which a mistake is planted, by replacing a text that is right by one
# that is wrong, and words of the hint that the check must give.
MISTAKES = [(path.stem, *(mistake[key] for key in ("exercise", "right", "wrong", "hint")))
            for path in sorted((Path(__file__).parent / "mistakes").glob("*.json"))
            for mistake in json.loads(path.read_text(encoding="utf-8"))]


@cache
def answers(path, solved):
    """{number: (answer, stub, check)} of a chapter, with solutions or stubs as answers."""
    cells = ["".join(cell["source"]) for cell in maker.student_copy(course.path_of(path.stem), solved)["cells"]]
    stubs = ["".join(cell["source"]) for cell in maker.student_copy(course.path_of(path.stem))["cells"]]
    found = {}
    for cell, stub, check in zip(cells, stubs, [*cells[1:], ""], strict=True):
        if match := re.match(r"# Exercise (\d+): answer", cell):
            found[int(match.group(1))] = cell, stub, check
    return found


def attempt(path, number, replace=None):
    """Run one task as the grader does; `replace` is a text in the solution and what to put there."""
    answer, stub, check = answers(path, solved=replace is not None)[number]
    if replace:
        assert replace[0] in answer, f"{replace[0]!r} is not in the solution"
        answer = answer.replace(*replace)
    grader.run(path, answer, grader.names_in(stub), check)


TASKS = [(path, number) for path in COPIES for number in answers(path, False)]
# Their checks train for seconds. The chapters run their solutions, too.
TRAIN = {("05_training", 2), ("05_training", 3), ("16_speed", 3), ("17_keras_fit", 2), ("17_keras_fit", 4),
         ("23_diagnosis", 2), ("23_diagnosis", 4), ("28_variants", 4)}


SHORT_TASKS = [(path, number) for path, number in TASKS if (path.stem, number) not in TRAIN]


def parameters(rows, is_long):
    """The rows for `parametrize`, some of which are marked long."""
    return [pytest.param(*row, marks=pytest.mark.long if is_long(row) else ()) for row in rows]


tasks = pytest.mark.parametrize(("path", "number"), parameters(TASKS, lambda row: (row[0].stem, row[1]) in TRAIN),
                                ids=[f"{path.stem}-{n}" for path, n in TASKS])
# The first mistake of each check that does not train is quick to try; `pytest --long` tries all.
FIRST = {row[:2]: row for row in reversed(MISTAKES) if row[:2] not in TRAIN}


def test_copies_are_in_step_with_the_chapters(tmp_path):
    maker.write(tmp_path)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in COPIES}, "run make exercises"


def test_answers_in_the_folder_are_not_written_over(tmp_path):
    maker.write(tmp_path, solved=True)
    before = (tmp_path / "checks.ipynb").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="holds an answer"):
        maker.write(tmp_path)
    assert (tmp_path / "checks.ipynb").read_text(encoding="utf-8") == before


@tasks
def test_stub_fails_only_because_it_is_not_done(path, number):
    with pytest.raises(NotImplementedError, match=f"exercise {number}$"):
        attempt(path, number)


@pytest.mark.long
@pytest.mark.parametrize(("path", "number"), SHORT_TASKS, ids=[f"{path.stem}-{n}" for path, n in SHORT_TASKS])
def test_solution_passes_its_check(path, number):
    """With what a student's copy holds, no more; those that train run in their chapters only."""
    attempt(path, number, ("", ""))


@pytest.mark.parametrize(("chapter", "number", "right", "wrong", "words"), parameters(MISTAKES, lambda row: FIRST.get(row[:2]) != row),
                         ids=[f"{chapter}-{number}-{words}" for chapter, number, _, _, words in MISTAKES])
def test_mistake_gives_its_hint(chapter, number, right, wrong, words):
    with pytest.raises(AssertionError, match=re.escape(words)):
        attempt(FOLDER / f"{chapter}.ipynb", number, (right, wrong))


# Answers that differ from the solution and are right, too: (chapter, exercise, text in the solution, what replaces it).
ALSO_RIGHT = [
    ("21_evaluation", 3, """    log_joint = log_sum(flat_decoder(model), x.reshape(1, -1), z[:, None])[0]
    return np.logaddexp.reduce(log_joint - log_q) - np.log(len(eps))""",  # the broad half alone
     """    log_joint = log_sum(flat_decoder(model), x.reshape(1, -1), z[half:, None])[0]
    return np.logaddexp.reduce(log_joint - log_normal_pdf(z[half:], 0.0, broad)) - np.log(half)"""),
]


@pytest.mark.parametrize(("chapter", "number", "right", "other"), ALSO_RIGHT,
                         ids=[f"{chapter}-{number}" for chapter, number, *_ in ALSO_RIGHT])
def test_another_right_answer_passes(chapter, number, right, other):
    attempt(FOLDER / f"{chapter}.ipynb", number, (right, other))


def test_every_check_is_tried_with_three_wrong_answers():
    planted = Counter((chapter, number) for chapter, number, *_ in MISTAKES)
    assert set(planted) == {(path.stem, number) for path, number in TASKS}
    assert min(planted.values()) >= 3, [task for task, count in planted.items() if count < 3]


def test_a_stub_keeps_signature_and_docstring_and_nothing_else():
    solution = '''def _helper():
    return 1


class Ball:
    "A ball."

    def area(
        self,
        r,  # radius
    ) -> float:  # its area
        "4 π r²."
        # The derivation.
        return 4 * _helper() * r**2'''
    stub = maker.stub(solution, "7")
    assert "r,  # radius" in stub and '"4 π r²."' in stub and "A ball" in stub
    assert "derivation" not in stub and "_helper" not in stub
    namespace = {}
    exec(stub, namespace)
    with pytest.raises(NotImplementedError, match="exercise 7"):
        namespace["Ball"]().area(1)
    with pytest.raises(ValueError, match="docstring"):
        maker.stub("def f():\n    return 1", "1")
    with pytest.raises(ValueError, match="no function"):
        maker.stub("f = 1", "1")


@pytest.fixture
def student(tmp_path):
    """A student's folder: exercise 1 of checks solved, and whatever must not run or count."""
    folder = tmp_path / "student"
    folder.mkdir()
    trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    shutil.copy(FOLDER / "conftest.py", folder)
    with open(folder / "conftest.py", "a", encoding="utf-8") as file:
        file.write(trace)
    copy = json.loads((FOLDER / "checks.ipynb").read_text(encoding="utf-8"))
    solved = maker.student_copy(course.path_of("checks"), solved=True)
    for cell, right in zip(copy["cells"], solved["cells"], strict=True):
        if cell["id"] == "answer-1":
            cell["source"] = right["source"]
        elif cell["id"] == "answer-2":
            cell["source"] = ["# Exercise 2: answer\n", "check = lambda *rest: None\n",
                              "def check_kl(kl):\n", "    return 'fine'\n"]
        elif cell["id"] == "answer-3":
            cell["source"] = ["# Exercise 3: answer\n", "while True:\n", "    pass\n"]
        elif cell["id"].startswith("check"):
            cell["source"] = [cell["source"][0], trace]
        elif cell["cell_type"] == "code":
            cell["source"].append("\n" + trace)
    (folder / "checks.ipynb").write_text(json.dumps(copy), encoding="utf-8")
    add_strangers(folder, trace)
    return folder


def add_strangers(folder, trace):
    """Files that pytest would run elsewhere."""
    (folder / "test_evil.py").write_text(trace, encoding="utf-8")
    (folder / "below").mkdir()
    for name in ("conftest.py", "test_evil.py"):
        (folder / "below" / name).write_text(trace, encoding="utf-8")


@pytest.mark.long
def test_no_other_file_of_the_folder_runs(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("conftest.py", "checks.ipynb"):
        shutil.copy(FOLDER / name, folder)
    add_strangers(folder, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    for target in (folder, folder / "checks.ipynb"):
        report = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", target], cwd=ROOT,
                                capture_output=True, text=True).stdout
        assert "total 0 of 4" in report, report
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_points_of_a_student_come_from_answers_alone(student, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    program = (FOLDER / "conftest.py").read_text(encoding="utf-8")
    (teacher / "conftest.py").write_text(re.sub(r"SECONDS = \d+", "SECONDS = 5", program), encoding="utf-8")
    shutil.copy(FOLDER / "checks.ipynb", teacher)
    report = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", teacher], cwd=ROOT,
                            env=os.environ | {"ANSWERS": str(student)}, capture_output=True, text=True).stdout
    assert re.search(r"checks +1  1 of 1", report), report
    assert re.search(r"checks +2  0 of 2  wrong", report), report  # its own `check` did not count
    assert re.search(r"checks +3  0 of 1  error", report) and "longer than 5 seconds" in report, report
    assert "total 1 of 4" in report
    assert "a wrong sign: 'fine' is not right" in report  # the hint
    assert not (tmp_path / "ran").exists(), "something besides the answers ran"

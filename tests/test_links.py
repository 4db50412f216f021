"""`make links`: what it writes for a named repository, and that it takes all of it out again."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402
import links  # noqa: E402


@pytest.fixture
def copy(tmp_path):
    """The files that links.py may change, in a folder of their own."""
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*", "images"))
    for name in ("README.md", "settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def name_repository(folder, user):
    """Change the one line that a fork changes."""
    path = folder / "settings.ini"
    lines = path.read_text(encoding="utf-8").split("\n")
    (place,) = [number for number, line in enumerate(lines) if line.startswith("user =")]
    lines[place] = f"user = {user}"
    path.write_text("\n".join(lines), encoding="utf-8")


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_this_repository_is_in_step(copy):
    """Nothing to do: `make links` was run after the last change of settings.ini."""
    before = contents(copy)
    links.main(copy)
    assert contents(copy) == before


def test_one_line_names_the_repository(copy):
    name_repository(copy, "someone")
    links.main(copy)
    assert len(course.notebooks(copy)) == len(course.notebooks()) > 30
    for path in course.notebooks(copy):
        badge, install = cells(path)[1:3]
        name = path.relative_to(copy).as_posix()  # with the folder of its part
        assert f"/github/someone/vae_course/blob/main/{name})" in badge["source"][0]
        assert '"git+https://github.com/someone/vae_course@main"' in "".join(install["source"])
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert "https://github.com/someone/vae_course/actions/workflows/test.yml/badge.svg" in readme
    assert "https://someone.github.io/vae_course/" in readme
    assert (ROOT / ".github/workflows/test.yml").exists()


def test_a_second_run_changes_nothing_and_an_empty_name_removes_all(copy):
    name_repository(copy, "")
    links.main(copy)
    bare = contents(copy)
    name_repository(copy, "someone")
    links.main(copy)
    once = contents(copy)
    assert once != bare
    links.main(copy)
    assert contents(copy) == once
    name_repository(copy, "")
    links.main(copy)
    assert contents(copy) == bare


def test_as_long_as_there_is_no_name_there_is_no_address():
    settings = links.read_settings(ROOT)
    if settings["user"]:
        pytest.skip("settings.ini names a repository")
    for path in [*course.notebooks(), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "colab.research.google.com/github" not in text and "badge.svg" not in text, path.name


class Shell:
    """Stands in for IPython's shell; Colab's own says in its name where it comes from."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def __str__(self):
        return f"<{self.name} object>"

    def run_line_magic(self, *call):
        self.calls.append(call)


@pytest.mark.parametrize("name, installs", [("google.colab._shell.Shell", True),
                                            ("ipykernel.zmqshell.ZMQInteractiveShell", False),
                                            ("execnb.shell.CaptureShell", False)])
def test_the_install_cell_does_nothing_outside_colab(name, installs):
    settings = {"git_url": "https://github.com/someone/vae_course", "branch": "main"}
    shell = Shell(name)
    exec("".join(links.install_cell(settings)["source"]), {"get_ipython": lambda: shell})
    command = ("pip", "install --quiet git+https://github.com/someone/vae_course@main")
    assert shell.calls == ([command] if installs else [])


def test_a_linked_notebook_keeps_the_form_of_a_chapter_and_runs_in_nbdev(copy, monkeypatch):
    """The repository's own rules, and nbdev_test's runner, on a notebook with both cells."""
    import test_repo
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    name_repository(copy, "someone")
    links.main(copy)
    path = course.path_of("support", copy)
    for check in (test_repo.test_outputs_are_saved_and_clean, test_repo.test_code_cells_are_short,
                  test_repo.test_imports_stand_in_cells_of_their_own, test_repo.test_chapter_has_its_form,
                  test_repo.test_at_most_three_visible_code_cells_between_texts):
        check(path)
    shell = CaptureShell(mpl_format=None)
    install = next(cell for cell in read_nb(path).cells if cell.id == links.INSTALL)
    shell.cell(install)
    assert not shell.exc

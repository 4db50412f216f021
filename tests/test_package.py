"""The wheel: it holds the data and works from an empty folder."""

import ast
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import vae_course
assert vae_course.__file__.startswith(sys.argv[1]), vae_course.__file__
from vae_course.data import load_mnist, preprocess_images
from vae_course.engine.runs import load_pretrained
from vae_course.training import evaluate
from vae_course.live.explorer import build_explorer
model, card = load_pretrained()
elbo = evaluate(model, preprocess_images(load_mnist()[1][0]))["elbo"]
assert abs(elbo - card["test_elbo"]) < 0.01, elbo
x, labels = (array[:50] for array in load_mnist()[1])
page = build_explorer(model, card, preprocess_images(x), labels, sys.argv[2])
assert (page / "runtime" / "tf-core.min.js").is_file()
print("works")
"""


def test_modules_import_only_what_pip_installs_with_them():
    """The tests' own environment holds more than a learner's, so a run would not show it."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    declared = {re.match(r"[\w-]+", name).group().replace("-", "_")
                for name in config["DEFAULT"]["requirements"].split()}
    declared |= {"PIL"} if "pillow" in declared else set()
    for path in (ROOT / "vae_course").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in {name.split(".")[0] for name in names}:
                assert name in sys.stdlib_module_names or name in declared | {"vae_course"}, (path.name, name)


@pytest.mark.long
def test_wheel_works_from_an_empty_folder(tmp_path):
    # A source archive first, then the wheel from it. Without isolation the build needs no network;
    # the dev extra holds what it uses.
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist",
                    ROOT], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    for name in ("datasets/mnist.npz", "datasets/README.md", "pretrained/tutorial.keras",
                 "pretrained/tutorial.json", "data.py", "engine/cli.py"):
        assert f"vae_course/{name}" in names
    assets = ROOT / "vae_course" / "live" / "explorer_assets"
    for path in assets.rglob("*"):
        assert path.is_dir() or path.relative_to(ROOT).as_posix() in names, path.name
    assert any(name.endswith("LICENSE") for name in names)
    empty = tmp_path / "empty"
    empty.mkdir()
    result = subprocess.run([sys.executable, "-I", "-c", PROGRAM, str(tmp_path / "site"),
                             str(tmp_path / "page")], cwd=empty, capture_output=True, text=True)
    assert result.stdout.strip() == "works", result.stderr[-2000:]
    assert not list(empty.iterdir())


def test_the_readme_says_what_the_benchmarks_results_say(tmp_path):
    def check(readme):
        return subprocess.run([sys.executable, ROOT / "benchmarks" / "table.py", "--check", "--readme", readme],
                              capture_output=True, text=True)

    done = check(ROOT / "README.md")
    assert done.returncode == 0, done.stderr
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text.replace("times as fast", "times as quick"), encoding="utf-8")
    done = check(tmp_path / "README.md")
    assert done.returncode == 1 and "README.md differs from the results" in done.stderr

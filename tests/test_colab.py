"""The chapters as Colab runs them: a fresh environment, only the install cell, another folder.

This downloads TensorFlow, so it runs only where COLAB_CHAPTERS is set: to `all`, or to names of
notebooks with spaces between, such as COLAB_CHAPTERS="01_data 02_reparameterization".
"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402
import links  # noqa: E402

WANTED = os.environ.get("COLAB_CHAPTERS", "").split()
CHAPTERS = [path for path in course.notebooks()
            if WANTED == ["all"] or path.stem in WANTED]
# What Colab brings besides Python and what the install cell installs.
COLAB_BRINGS = ["ipykernel", "scikit-learn", "ipywidgets", "tensorboard", "scipy"]

pytestmark = pytest.mark.skipif(not WANTED, reason="downloads TensorFlow; set COLAB_CHAPTERS to all or to names")


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """Python of a fresh environment, after the install cell's command."""
    folder = tmp_path_factory.mktemp("colab")
    # A repository with the files as they are now, committed or not, in the place of the one online.
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "repository" / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", str(folder / "repository"), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "-m", "now"]):
        subprocess.run([*git, *command], check=True)
    settings = links.read_settings(ROOT) | {"git_url": (folder / "repository").as_uri()}
    source = "".join(links.install_cell(settings)["source"])
    package = re.search(r'package = "(.*)"', source)[1]
    (arguments,) = re.findall(r'magic\("pip", f"(.*?)"\)', source)
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    for command in (COLAB_BRINGS, arguments.removeprefix("install ").format(package=package).split()):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *command], check=True)
    return python


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_as_in_colab(path, colab, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    kernel = tmp_path / "kernels" / "colab"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({
        "argv": [str(colab), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "colab", "language": "python"}), encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    # The slow cells train for minutes; everywhere else, they are left out of quick runs as well.
    notebook.cells = [cell for cell in notebook.cells if "#| slow" not in cell.source]
    work = tmp_path / "content"
    work.mkdir()
    client = NotebookClient(notebook, timeout=900, kernel_name="colab",
                            resources={"metadata": {"path": str(work)}})
    client.create_kernel_manager()
    client.km.kernel_spec_manager = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")])
    client.execute()
    errors = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert not errors

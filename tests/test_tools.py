"""The tools beside the library: one set of facts for two generations of nbdev, and the notebooks' runner."""

import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent


def test_nbdev_3s_table_says_what_settings_ini_says():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["nbdev"]
    assert table.pop("cell_timeout") == 0  # nbdev 2 knows no such limit
    for key, value in table.items():
        text = config["DEFAULT"][key]
        assert value == (text == "True" if isinstance(value, bool) else text.split() if isinstance(value, list) else text)
    assert {"lib_path", "tst_flags", "allowed_cell_metadata_keys"} <= table.keys()


@pytest.mark.long
def test_the_runner_tells_what_failed_and_how(tmp_path):
    """As nbdev_test does: marked cells are left out, a failed cell is shown, and the exit code is 1."""
    sources = {"good": ["1 + 1", "#| slow\nslow_one", "#| long\nlong_one", "import tensorflow as tf\ntf.zeros(3)"], "wrong": ["number = 12345\nnumber / 0"],
               "dead": ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"]}
    for name, cells in sources.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]),
                       tmp_path / f"{name}.ipynb")
    command = [sys.executable, "tools/test_notebooks.py", *(str(tmp_path / f"{name}.ipynb") for name in sources)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and f"passed {tmp_path}/good.ipynb: " in done.stdout
    assert "number / 0" in done.stderr and "ZeroDivisionError" in done.stderr
    assert f"killed by signal {signal.SIGKILL}" in done.stderr
    listed = done.stderr.split("Failed On The Following Notebooks:")[1]
    assert [Path(line).stem for line in listed.split()[1:]] == ["dead", "wrong"]
    again = subprocess.run([*command[:3], "--long"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "'long_one' is not defined" in again.stderr and "slow_one" not in again.stderr


def test_the_runner_refuses_what_is_no_notebook():
    done = subprocess.run([sys.executable, "tools/test_notebooks.py", "99_nowhere"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "99_nowhere is no notebook" in done.stderr

"""Try the course on the other Pythons that it allows, as far as this machine has them.

    python tools/other_pythons.py [VERSION ...]

Builds the wheel once. For each version, by default all but the one that runs this script: a fresh
environment with the wheel in it, a short training by `vae-course`, and the tests of the tutorial's
modules. Two versions at a time; TensorFlow is downloaded for each of them (600 MB, 2 GB on the disk
meanwhile). An interpreter is taken from the path or from pyenv (PYENV_ROOT, or ~/.pyenv). Where
there is none, the version is skipped and a line says so.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ["3.10", "3.11", "3.12", "3.13"]
# What is in the wheel is what is tested: of the repository, only these files and pytest's settings are there.
FILES = ["pyproject.toml", *(f"tests/{name}.py" for name in (
    "conftest", "children", "test_tutorial_names", "test_data", "test_reparameterization", "test_densities",
    "test_model", "test_training", "test_pictures"))]
TOOLS = ("pytest", "hypothesis", "scipy")  # what those tests need besides the course


def find_python(version: str) -> str | None:
    """An interpreter of this version that works: pyenv's shims are on the path without one behind them."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for place in filter(None, places):
        asked = subprocess.run([place, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"],
                               capture_output=True, text=True)
        if asked.stdout.strip() == version:
            return str(place)
    return None


def build_wheel(folder: Path) -> Path:
    """The wheel, made from the source archive; by what the dev extra holds, so without a network."""
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
                   check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def requirements() -> list[str]:
    """The tests' own tools in the versions that the dev extra asks for."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return [one for one in settings["DEFAULT"]["dev_requirements"].split() if one.startswith(TOOLS)]


def check(python: str, wheel: Path, folder: Path):
    """Install, import, train and test in a folder; CalledProcessError at the first thing that fails."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    own = folder / "environment" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with open(folder / "log.txt", "w") as log:
        for command in (
            [python, "-m", "venv", "environment"],
            [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, *requirements()],
            [own, "-c", "import vae_course; assert 'environment' in vae_course.__file__, vae_course.__file__"],
            [own.with_name("vae-course"), "train", "--recipe", "short", "--epochs", "1", "--train-images", "640"],
            [own.with_name("pytest"), "-p", "no:cacheprovider", "tests"],
        ):
            start = time.monotonic()
            subprocess.run(command, cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL,
                           stdout=log, stderr=log)
            log.write(f"-- {Path(command[0]).name} {command[1]}: {time.monotonic() - start:.0f} s\n")
            log.flush()


def try_version(version: str, wheel: Path, folder: Path) -> bool:
    """Whether all went well with this version, or it is not here; says which."""
    python, start = find_python(version), time.monotonic()
    if python is None:
        print(f"Python {version}: skipped, it is neither on the path nor in pyenv", flush=True)
        return True
    folder.mkdir()
    try:
        check(python, wheel, folder)
    except subprocess.CalledProcessError as error:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        print(f"Python {version} ({python}): FAILED\n{text}\n{error}", flush=True)
        return False
    finally:
        shutil.rmtree(folder / "environment", ignore_errors=True)
    last = [line for line in (folder / "log.txt").read_text().splitlines() if " passed" in line][-1]
    print(f"Python {version} ({python}): {last.strip(' =')}; {time.monotonic() - start:.0f} s in all", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    this = "{}.{}".format(*sys.version_info)
    parser.add_argument("versions", nargs="*", help="such as 3.12; default: all that the course allows but this one")
    versions = parser.parse_args().versions or [version for version in VERSIONS if version != this]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        wheel = build_wheel(folder)
        passed = list(pool.map(lambda version: try_version(version, wheel, folder / version), versions))
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()

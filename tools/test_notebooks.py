"""Test the notebooks as nbdev_test does, in less time: TensorFlow is loaded once, not once for each.

    python tools/test_notebooks.py [--long] [--slow] [NAME ...]

A NAME is a notebook's path or a part of it: nbs/truth/21_evaluation.ipynb, 05_training, tutorial. This
process loads the libraries, runs nothing of TensorFlow, and forks a child for each notebook, so that a
notebook starts at once, shares nothing with another, and gives its memory back at its end. The child
calls nbdev's own `test_nb`. Needs a system that can fork: Linux or macOS.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import resource
import sys
import tempfile
import time
from configparser import ConfigParser
from multiprocessing.connection import wait
from pathlib import Path

import course

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
FORK = multiprocessing.get_context("fork")


def find_notebooks(names: list[str]) -> list[Path]:
    """The notebooks that nbdev_test would take, or those that the names are the paths of, or parts of their paths."""
    every, found = course.find_notebooks(NBS), {}
    for name in names:
        path = Path(name).resolve()
        matches = [path] if path.is_file() else [path for path in every if name in str(path.relative_to(ROOT))]
        if not matches:
            sys.exit(f"{name} is no notebook, and part of no path in {NBS.relative_to(ROOT)}/")
        found.update(dict.fromkeys(matches))
    return list(found) if names else every


def longest_first(paths: list[Path]) -> list[Path]:
    """The order in which two at a time end soonest, by the seconds that were measured once."""
    measured = json.loads((ROOT / "benchmarks/results/chapters.json").read_text(encoding="utf-8"))["seconds"]
    seconds = {bare(name): value for name, value in measured.items()}
    return sorted(paths, key=lambda path: -seconds.get(bare(path.stem), float("inf")))


def bare(stem: str) -> str:
    """A chapter's name without its number."""
    return re.sub(r"^\d+[a-z]?_", "", stem)


def load_libraries():
    """All that most notebooks import, and nothing of TensorFlow run: a fork would not survive that."""
    sys.path.insert(0, str(ROOT))
    # nbdev's shell chooses this too, but too late for a matplotlib that is loaded already.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["IN_TEST"] = "1"
    import vae_course
    from vae_course.support import quiet_tensorflow

    quiet_tensorflow()
    modules = [module.name for module in pkgutil.walk_packages(vae_course.__path__, "vae_course.")]
    for name in [*modules, "matplotlib.pyplot", "tensorflow_probability", "nbdev.test"]:
        with contextlib.suppress(Exception):  # the notebooks that import it will say what is wrong
            importlib.import_module(name)


def test(path: Path, flags: dict, log: str):
    """Runs in a fork: one notebook; what it writes goes to the log."""
    from nbdev.test import test_nb

    stream = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    passed, _ = test_nb(path, basepath=ROOT, **flags)
    sys.exit(not passed)


def run_all(paths: list[Path], flags: dict, workers: int) -> list[Path]:
    """Test the notebooks, so many at a time, and tell of each; those that failed."""
    waiting, running, failed = list(paths), {}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    path = waiting.pop(0)
                    log = Path(folder, f"{len(waiting)}.txt")
                    log.touch()
                    process = FORK.Process(target=test, args=(path, flags, str(log)))
                    process.start()
                    running[process.sentinel] = process, path, log, time.monotonic()
                for sentinel in wait(running):
                    process, path, log, start = running.pop(sentinel)
                    before = cpu_seconds()
                    process.join()
                    seconds = time.monotonic() - start, cpu_seconds() - before
                    if process.exitcode:
                        failed.append(path)
                    report(path, process.exitcode, log, seconds)
        finally:
            for process, *_ in running.values():
                process.kill()
    return failed


def short(path: Path) -> str:
    """A notebook's path for the eye."""
    return str(path.relative_to(NBS) if path.is_relative_to(NBS) else path)


def cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(path: Path, exitcode: int, log: Path, seconds: tuple[float, float]):
    """A line for each notebook; of one that failed, all that it wrote."""
    print(f"{'FAILED' if exitcode else 'passed'} {short(path)}: {seconds[0]:.0f} s, "
          f"{seconds[1]:.0f} s of a processor", flush=True)
    if exitcode:
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
    if exitcode < 0:
        print(f"its process was killed by signal {-exitcode}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--long", action="store_true", help="run cells marked #| long too, ten seconds and more each")
    parser.add_argument("--slow", action="store_true", help="run cells marked #| slow too, minutes each, and the long ones")
    parser.add_argument("--workers", type=int, default=2, help="so many notebooks at a time (2)")
    parser.add_argument("names", nargs="*", help="parts of the notebooks' paths; default: all in nbs/")
    arguments = parser.parse_args()
    paths = longest_first(find_notebooks(arguments.names))
    load_libraries()
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    skip = settings["DEFAULT"]["tst_flags"].split()
    force = ["long"] * (arguments.long or arguments.slow) + ["slow"] * arguments.slow
    failed = run_all(paths, {"skip_flags": skip, "force_flags": force}, arguments.workers)
    if failed:
        names = "\n\t".join(short(path) for path in sorted(failed))
        sys.exit(f"\nnbdev Tests Failed On The Following Notebooks:\n{'=' * 50}\n\t{names}")
    print("Success.")


if __name__ == "__main__":
    main()

"""What the benchmarks share: options, clocks, machine facts, results. Imports no TensorFlow."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LIBRARIES = ["tensorflow", "keras", "tensorflow-probability", "numpy"]


def options(text: str) -> argparse.ArgumentParser:
    "The options that every script has; a script may add its own."
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--quick", action="store_true",
                        help="only check that it runs; the figures mean nothing")
    return parser


def log(text: str):
    "A line of progress; standard output stays free."
    print(text, file=sys.stderr, flush=True)


def cpu_model() -> str:
    "The processor's name, as far as the system tells."
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def system() -> str:
    "The operating system's name, without the build of its kernel."
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def library_versions(names) -> dict:
    "The versions of those libraries that are installed."
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def machine() -> dict:
    "The facts that figures depend on."
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": system(),
        # More than the cores can bear means that others were at work.
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "date_utc": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
    } | library_versions(LIBRARIES)


def seconds_of(task) -> float:
    "Wall time of one call."
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def in_turns(names: list, rounds: int):
    "Each name once a round; a later round starts one further, so that no place is a privilege."
    for i in range(rounds):
        yield i, [names[(i + j) % len(names)] for j in range(len(names))]


def measure(tasks: dict, rounds: int) -> dict:
    "Seconds of each task in each round, the tasks in turns."
    seconds = {name: [] for name in tasks}
    for i, names in in_turns(list(tasks), rounds):
        for name in names:
            seconds[name].append(seconds_of(tasks[name]))
        log(f"round {i + 1}/{rounds}: "
            + ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in tasks))
    return seconds


def rounded(value: float) -> float:
    "Five digits, which is more than any clock here deserves."
    return float(f"{value:.5g}")


def summary(values: list, unit: str) -> dict:
    "Median, least and most of the rounds, and the rounds themselves."
    return {f"median_{unit}": rounded(statistics.median(values)),
            f"min_{unit}": rounded(min(values)), f"max_{unit}": rounded(max(values)),
            f"rounds_{unit}": [rounded(value) for value in values]}


def median_ratio(above: list, below: list) -> float:
    "The median of the ratios of each round: what slows a whole round down cancels."
    return rounded(statistics.median(a / b for a, b in zip(above, below, strict=True)))


def save(name: str, figures: dict, facts: dict, quick: bool):
    "Write results/NAME.json, or results/quick/NAME.json."
    path = (RESULTS / "quick" if quick else RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "quick": quick, "machine": facts} | figures
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log(f"wrote {path.relative_to(HERE.parent)}")

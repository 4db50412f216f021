"""Count how often the recipe and the images enter another module, from the command to the last picture.

    python tools/crossings.py [--list]

A short `vae-course train` runs under a profiler. A *stay* is a function that got the recipe, or images, from a
function of another module; each is counted once. It *climbs* if that function belongs to a module of a later
chapter than its caller: control goes up again, against the order of the course. Lines that declare arguments
(`@pixels`, `@integers`) are looked through: what they wrap counts. Batches inside a graph are no images here.

It also counts the entries one by one, and the questions: calls that ask how many images there are, of which size,
whether their pixels are right.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def order() -> list[str]:
    """The modules of the library in reading order, the ground first and the command last."""
    sys.path.insert(0, str(ROOT / "tools"))
    import re

    from course import notebooks

    found = [re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8")) for path in notebooks(ROOT)]
    names = [f"vae_course.{match[1]}" for match in found if match]
    ground = [f"vae_course.{name}" for name in ("support", "contracts", "pictures", "sources")]
    top = ["vae_course.engine.cli"]
    return ground + [name for name in names if name not in ground + top] + top


# What asks which images these are: how many, of which size, whether their pixels are right.
ASKS = {"check_images", "valid_pixels", "check_source", "count_images", "first_images", "fingerprint", "batches_of",
        "make_dataset", "batches_in_order"}


def is_carried(value, kinds) -> bool:
    """Whether a value is a recipe, or images: of a run, or an array of whole pictures."""
    if isinstance(value, kinds):
        return True
    shape = getattr(value, "shape", ())
    return type(value).__name__ in ("ndarray", "EagerTensor") and len(shape) == 4 and tuple(shape[1:]) == (28, 28, 1)


def count(modules: list[str]) -> tuple[dict, Counter, Counter]:
    """{(module, function): module of the first caller} of all stays; entries by module; questions by function."""
    from vae_course.support import quiet_tensorflow

    quiet_tensorflow()
    import tensorflow as tf
    from click.testing import CliRunner

    from vae_course.engine.cli import main
    from vae_course.engine.images import Images
    from vae_course.engine.recipes import Recipe

    kinds, stays, entries, questions = (Recipe, Images, tf.data.Dataset), {}, Counter(), Counter()

    def home(frame):
        """The module of a frame, or of what it was called from if it is a line that declares arguments."""
        while frame is not None:
            name, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if name in modules and not (function == "call" and name in ("vae_course.contracts", "vae_course.data")):
                return name
            frame = frame.f_back
        return None

    def watch(frame, event, _):
        name, code = frame.f_globals.get("__name__", ""), frame.f_code
        if event != "call" or name not in modules or code.co_name.startswith("<"):
            return
        names = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]
        if any(is_carried(frame.f_locals.get(argument), kinds) for argument in names):
            questions[code.co_name] += code.co_name in ASKS
            caller = home(frame.f_back)
            if caller and caller != name and home(frame) == name:
                entries[name] += 1
                stays.setdefault((name, code.co_qualname if hasattr(code, "co_qualname") else code.co_name), caller)

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(watch)
        try:
            result = CliRunner().invoke(main, ["train", "--epochs", "1", "--train-images", "640", "--out",
                                               str(Path(folder) / "run")], catch_exceptions=False)
        finally:
            sys.setprofile(None)
    assert result.exit_code == 0, result.output
    return stays, entries, +questions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="name each of them")
    arguments = parser.parse_args()
    modules = order()
    stays, entries, questions = count(modules)
    climbs = {place: caller for place, caller in stays.items() if modules.index(place[0]) > modules.index(caller)}
    if arguments.list:
        for place, caller in stays.items():
            print(f"{'climbs' if place in climbs else '      '} {caller} -> {place[0]}.{place[1]}")
    print("questions:", ", ".join(f"{name} {n}" for name, n in questions.items()), "- in all", questions.total())
    print(f"{entries.total()} entries;", ", ".join(f"{name[11:]} {n}" for name, n in entries.items()))
    print(f"{len(stays)} stays in {len({module for module, _ in stays})} modules, {len(climbs)} of them climb")

"""Every public function and method, one argument at a time replaced by what it cannot be.

It says which argument is wrong (ValueError, TypeError, or an error that its docstring names), or its result is right.
New functions come in by themselves: what `valid` does not know how to call fails with a line that says what to add.
`python tests/test_every_function.py` counts.
"""

import inspect
import re
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import get_args, get_type_hints

import numpy as np
import pytest
import tensorflow as tf
from every_function import ANYTHING, DOCUMENTED, FAR_FILES, HEAVY, MEANS, RANDOM, World, is_long, out_of_scope, valid

import vae_course

NAN, INF = float("nan"), float("inf")


# --- What there is -------------------------------------------------------------------------------

def public():
    """{"module.function" or "module.Class.method": (function, class or None)} of the whole library."""
    found = {}
    for info in walk_packages(vae_course.__path__, "vae_course."):
        module = import_module(info.name)
        home = info.name.removeprefix("vae_course.")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isfunction(value) or hasattr(value, "__wrapped__") and not hasattr(value, "get_concrete_function"):
                found[f"{home}.{name}"] = value, None
            elif inspect.isclass(value):
                if value.__init__ is not object.__init__:
                    found[f"{home}.{name}"] = value, None
                for key, method in vars(value).items():
                    if isinstance(method, classmethod):
                        found[f"{home}.{name}.{key}"] = getattr(value, key), None
                    elif inspect.isfunction(method) and (key[0] != "_" or key == "__call__"):
                        found[f"{home}.{name}.{key}"] = method, value
    return found


PUBLIC = public()
TRIED = [name for name in PUBLIC if not out_of_scope(name)]


def parameters(function):
    """The parameters that a caller gives by name."""
    kinds = inspect.Parameter
    return {name: parameter for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) and name != "self"}


# --- What it is fed with -------------------------------------------------------------------------

NEVER = {  # no argument is any of these, unless it is one that takes anything
    "an object": lambda: object(), "an array of objects": lambda: np.array([object(), None, "a"], object),
    "a ragged list": lambda: [[1.0], [1.0, 2.0]], "a complex number": lambda: 1j,
    "a complex array": lambda: np.ones((2, 2), complex), "an array of words": lambda: np.array(["a", "b"]),
    "dates": lambda: np.array(["2024-01-01"], "datetime64[D]"),
    "a RaggedTensor": lambda: tf.ragged.constant([[1.0], [1.0, 2.0]]),
}
DOUBTFUL = {  # some take them; then the result must be finite
    "None": lambda: None, "NaN": lambda: NAN, "inf": lambda: INF, "-inf": lambda: -INF, "text": lambda: "text",
    "bytes": lambda: b"", "True": lambda: True, "a half": lambda: 0.5, "a negative integer": lambda: -1,
    "zero": lambda: 0, "a huge integer": lambda: 10**30, "an empty list": lambda: [], "an empty tuple": lambda: (),
    "an empty dict": lambda: {}, "a set": lambda: {1.5}, "a function": lambda: len, "a class": lambda: int,
    "[None]": lambda: [None], "[NaN]": lambda: [NAN], "(-1, 2)": lambda: (-1, 2), "('a', 'b')": lambda: ("a", "b"),
} | {f"zeros of rank {rank}": lambda rank=rank: np.zeros((2,) * rank, np.float32) for rank in range(6)} | {
    f"empty of rank {rank}": lambda rank=rank: np.zeros((0,) + (2,) * (rank - 1), np.float32) for rank in range(1, 5)}


def is_array(value):
    return isinstance(value, np.ndarray | tf.Tensor) and value.shape != ()


def spoilt(good):
    """Arguments that look like a good one and are wrong."""
    if not is_array(good):
        return {}
    array, made = np.array(good), {}
    if array.dtype.kind == "f":
        for name, value in (("NaN", NAN), ("inf", INF), ("-inf", -INF)):
            one = array.copy()
            one.flat[-1] = value
            made |= {f"one {name}": one, f"all {name}": np.full_like(array, value)}
    made |= {"one axis more": array[None], "one axis less": array[0], "one row less": array[1:],
             "no row": array[:0], "as objects": array.astype(object), "as words": array.astype(str),
             "as complex": array.astype(complex), "as booleans": array.astype(bool)}
    return made


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def alike(good):
    """{name: (the same in another form, whether it must work)}."""
    if is_array(good):
        array = np.array(good)
        made = {"read-only": (frozen(array), True), "in Fortran's order": (np.asfortranarray(array), True),
                "a tensor": (tf.constant(array), False), "a variable": (tf.Variable(array), False),
                "a list": (array.tolist(), False)}
        for kind in ("float64", "float16", "int64", "int32", "uint8", "uint16"):
            with np.errstate(invalid="ignore"):
                other = array.astype(kind)
            if kind != array.dtype.name and np.array_equal(other, array):
                made[kind] = other, False
        return made
    if isinstance(good, bool) or good is None:
        return {}
    if isinstance(good, int):
        return {"int64": (np.int64(good), True), "int32": (np.int32(good), True), "a float": (float(good), False)}
    if isinstance(good, float):
        return {"float32": (np.float32(good), True), "float64": (np.float64(good), True)}
    if isinstance(good, Path):
        return {"as text": (str(good), True)}
    if isinstance(good, tuple) and type(good) is tuple:
        return {"as a list": (list(good), False)}
    return {}


# --- What comes of it ----------------------------------------------------------------------------

def called(function, arguments):
    """The result, a generator's or a context's first value with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "Even though")
        result = function(**arguments)
        if isinstance(result, AbstractContextManager) and hasattr(result, "gen"):
            with ExitStack() as stack:
                entered = stack.enter_context(result)
                if isinstance(entered, Path) and not entered.is_dir():
                    entered.write_bytes(b"")
                return entered
        if isinstance(result, tf.data.Dataset):
            return list(result.take(2))
    if hasattr(result, "server_close"):
        result.server_close()
    for worker in result if isinstance(result, list) else ():
        if isinstance(worker, subprocess.Popen):
            worker.wait()
    return result


def plain(result):
    """The numbers and words of a result, as a flat list; what holds none of them by its type."""
    if isinstance(result, dict):
        return [part for key in result for part in [key, *plain(result[key])]]
    if isinstance(result, tuple | list):
        return [part for each in result for part in plain(each)]
    if isinstance(result, np.ndarray | tf.Tensor | tf.Variable | np.generic | int | float | bool):
        return [np.asarray(result)]
    return [result if isinstance(result, str | bytes | type(None)) else type(result)]


def is_finite(result):
    for part in plain(result):
        if isinstance(part, np.ndarray) and part.dtype.kind == "f" and not np.isfinite(part).all():
            return False
        if isinstance(part, str) and re.search(r"\bnan\b|\binf\b", part, re.I):
            return False
    return True


def is_same(one, other):
    parts, others = plain(one), plain(other)
    return len(parts) == len(others) and all(
        type(a) is type(b) and (a.shape == b.shape and np.allclose(a, b, 1e-3, 1e-4, equal_nan=True)
                                if isinstance(a, np.ndarray) and a.dtype.kind in "fiub" else
                                isinstance(a, np.ndarray) or a == b)
        for a, b in zip(parts, others, strict=True))


def named(name, message):
    words = [name, *MEANS.get(name, ())]
    return any(re.search(rf"(?<![a-z]){re.escape(word)}s?(?![a-z])", message, re.I) for word in words)


# A shape that does not fit another argument may be told of either.
OF_EITHER = re.compile("rank|axis|row|empty|set")


def verdict(where, name, what, make, expected, reference):
    """None if all is well, else what is wrong. `expected`: "refused", "finite", "same" or "same or refused"."""
    try:
        result = make()
    except Exception as error:
        kinds = (ValueError, TypeError, OSError, *DOCUMENTED.get(where, ()))
        odd = UnicodeError, tf.errors.OpError, np.exceptions.AxisError
        names = [name, *(parameters(PUBLIC[where][0]) if OF_EITHER.search(what) else ()),
                 *(["text"] if what == "text" else ())]  # a path may be called by its own name
        if expected == "same" and where not in FAR_FILES:
            return f"{type(error).__name__}: {error}"
        if not isinstance(error, kinds) or isinstance(error, odd):
            return f"{type(error).__name__}: {error}"
        told = any(named(each, str(error)) for each in names)
        return None if told or isinstance(error, OSError) else f"does not name it: {type(error).__name__}: {error}"
    if expected == "refused":
        return f"taken; result {result!r}"
    if not is_finite(result):
        return f"result not finite: {result!r}"
    if expected.startswith("same") and where not in RANDOM and not is_same(result, reference):
        return f"another result: {result!r} instead of {reference!r}"
    return None


def cases(where, function, world):
    """(argument, what it is fed with, the value, what is expected), one after the other."""
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:
        hints = {}
    good = valid(where, function, world)
    for name, parameter in parameters(function).items():
        if (where, name) in ANYTHING or name in ANYTHING:
            continue
        value = good.get(name, parameter.default)
        optional = parameter.default is None or type(None) in get_args(hints.get(name))
        for what, make in NEVER.items():
            yield name, what, make, "refused"
        for what, make in DOUBTFUL.items():
            if what in ("a function", "a class") and callable(value):
                continue  # one that fails is the caller's
            refused = what == "None" and not optional or what == "text" and not isinstance(value, str | Path)
            if refused and value is not inspect.Parameter.empty:
                yield name, what, make, "refused"
            elif where not in HEAVY:
                yield name, what, make, "finite"
        if where in HEAVY:
            continue
        for what, bad in spoilt(value).items():
            yield name, what, lambda bad=bad: bad, "finite"
        for what, (other, must) in alike(value).items():
            yield name, what, lambda other=other: other, "same" if must else "same or refused"


@contextmanager
def eagerly(where):
    """A few training steps are not worth a graph for each case; a quadrature is."""
    tf.config.run_functions_eagerly(where.startswith(("training", "animation", "engine.loop")))
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def faults(where, world, tally=None):
    """Lines about what is wrong with one function."""
    with eagerly(where):
        return faults_of(where, world, tally)


def faults_of(where, world, tally):
    function, owner = PUBLIC[where]
    def call(**changes):
        world.renew()
        arguments = valid(where, function, world) | changes
        return called(function.__get__(world.instance(owner)) if owner else function, arguments)

    try:
        reference = call()
    except FileNotFoundError:
        if where not in FAR_FILES:
            raise
        reference = None
    found = [] if is_finite(reference) else [f"{where}: the valid call gives {reference!r}"]
    for name, what, make, expected in cases(where, function, world):
        problem = verdict(where, name, what, lambda name=name, make=make: call(**{name: make()}), expected, reference)
        if tally is not None:
            tally["cases"] += 1
        if problem:
            found.append(f"{where}({name}={what}): {' '.join(problem.split())[:240]}")
    return found


@pytest.mark.parametrize("path", sorted(Path(vae_course.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_holds_its_functions_to_their_annotations(path):
    text = path.read_text(encoding="utf-8")
    if re.search("^def ", text, re.M) and path.stem not in ("support", "contracts", "__main__"):  # the ground, and the command
        assert text.rstrip().endswith("\ncheck_annotations(globals())"), "CONTRIBUTING.md, The house, says how"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("every"))


@pytest.mark.parametrize("where", [pytest.param(name, marks=pytest.mark.long if is_long(name) else ()) for name in TRIED])
def test_it_says_what_is_wrong_or_is_right(where, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what another function left in a folder "text" is not there
    found = faults(where, world)
    assert not found, "\n" + "\n".join(found[:40])


if __name__ == "__main__":
    import contextlib
    import os
    import tempfile
    import time
    import traceback

    tally, bad, failing = Counter(), [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        world, start = World(Path(folder)), time.perf_counter()
        for where in TRIED:
            if len(sys.argv) > 1 and not re.search(sys.argv[1], where):
                continue
            before, begun = tally["cases"], time.perf_counter()
            try:
                with contextlib.redirect_stdout(None):
                    lines = faults(where, world, tally)
            except Exception:
                lines = [f"{where}: the valid call fails: {traceback.format_exc().strip()[-600:]}"]
            bad += lines
            failing[where] = len(lines)
            print(f"{len(lines):4} of {tally['cases'] - before:4} {time.perf_counter() - begun:6.1f} s {where}", flush=True)
            print("".join(f"       {line}\n" for line in lines), end="", flush=True)
    print(f"{len(TRIED)} functions, {tally['cases']} cases, {len(bad)} faults in {sum(n > 0 for n in failing.values())} "
          f"functions, {time.perf_counter() - start:.0f} s; not tried: {len(PUBLIC) - len(TRIED)}")

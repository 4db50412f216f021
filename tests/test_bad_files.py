"""Settings and cards as nobody should write them: each is refused in one line, or is what it seems.

More than a thousand files: every field of both with every value of a table, and bytes that a disk, an
editor or a stranger may have left. Nothing is trained: a run that may begin ends where `fit` is called.
"""

import copy
import json
import os
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from vae_course.engine import cli, runs
from vae_course.engine.recipes import LIMITS, Recipe
from vae_course.engine.run_folder import read_settings, write_settings
from vae_course.engine.runs import load_run, save_run
from vae_course.further import other_data
from vae_course.live.explorer import describe_run

DEEP = json.loads("[" * 60 + "]" * 60)
VALUES = [None, True, False, -1, 0, 1, 3, 2**31, 10**12, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e12, 1e30, 1e308,
          float("nan"), float("inf"), -float("inf"), "", "mnist", "cifar10", "photographs", "bernoulli", "x" * 5000,
          "\ud800", "two\nlines", "\x1b[31mred", "\x00", "../../up", [], [1], [1, 2], [10**7, 64], [64, 10**7],
          [1.5, 2], [None, None], ["a", "b"], [True, True], [["width", 10**9]], [["width", "x"]], [[[], 1]],
          [["width", 1], [3, 1]], [[1, 2, 3]], {}, {"width": 10**9}, {"a": {"b": {}}}, {"": None}, DEEP]
FIELDS = [*Recipe.__dataclass_fields__, "a field of the future", "\ud800", "two\nlines"]
PATHS = [("recipe",), ("data",), ("train_images",), ("test_elbo",), ("sha256",), ("versions",), ("other",),
         *(("recipe", name) for name in FIELDS)]


class Begins(RuntimeError):
    """Raised where a run would begin to train."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A run's settings, weights and card, of which nothing is wrong."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    write_settings(folder, Recipe(epochs=1), "mnist", 64)
    save_run(folder, "cvae", model, Recipe(epochs=1), [{"test_elbo": -200.0}])
    return folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch, mnist, model):
    """A copy of the run; data are few, models are not loaded but there, and nothing trains."""
    few = tuple((x[:20], y[:20]) for x, y in mnist)
    colours = tuple((np.stack([x[:20]] * 3, axis=-1), None) for x, _ in mnist)
    for name in other_data.DATASETS:
        found = few if "mnist" in name else colours
        monkeypatch.setitem(other_data.DATASETS, name, lambda found=found, **_: found)

    def begin(*_, **__):
        raise Begins("it begins")

    monkeypatch.setattr(cli, "fit", begin)
    monkeypatch.setattr(cli, "report_run", begin)
    monkeypatch.setattr(runs, "load_model", lambda _: model)
    return shutil.copytree(whole, tmp_path / "run")


def ends_in_one_line(*arguments):
    """The code with which a command ends, after exactly one line that says `Error:`; and that line."""
    result = CliRunner().invoke(cli.main, [str(word) for word in arguments])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    errors = [line for line in re.split("[\r\n]", result.output) if line.startswith("Error: ")]
    assert len(errors) == 1 and result.output.endswith(f"{errors[0]}\n"), result.output[-3000:]
    assert len(errors[0]) < 1200 and errors[0].isprintable()
    return result.exit_code, errors[0]


def changed(content, path, value):
    """A copy of an object in which one place has another value."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(content)


def each_planted(file, path):
    """One strange value after the other stands in the file."""
    right = json.loads(file.read_text())
    for value in VALUES:
        file.write_text(changed(right, path, value))
        yield value


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[-1].encode("unicode_escape").decode())
def test_settings_with_a_strange_value(run, path):
    for _ in each_planted(run / "settings.json", path):
        code, line = ends_in_one_line("train", "--resume", "--out", run)
        begins = line == "Error: it begins"
        assert code == (1 if begins else code) and code in (1, 2), line
        if begins:  # then it is a recipe like any other
            recipe = read_settings(run, {})[1]
            assert all(0 <= number <= LIMITS["filters"] for number in recipe.filters)
            assert recipe.epochs <= LIMITS["epochs"] and recipe.batch_size <= LIMITS["batch_size"]
        assert ends_in_one_line("evaluate", run)[0] in (1, 2)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[-1].encode("unicode_escape").decode())
def test_a_card_with_a_strange_value(run, path):
    for _ in each_planted(run / "cvae.json", path):
        code, line = ends_in_one_line("evaluate", run)
        assert code == 1
        if line == "Error: it begins":
            assert "20" in describe_run(load_run(run, "cvae")[1], 20)
        else:
            assert "cvae.json" in line


def damaged(text):
    """What a disk, an editor or a stranger may make of a file of JSON; some of it is still JSON."""
    rng, content = np.random.default_rng(0), text.encode()
    yield from (content[:n] for n in rng.integers(len(content), size=60))
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        yield bytes(flipped)
    for _ in range(30):
        a, b = sorted(rng.integers(len(content), size=2))
        yield content[:a] + content[b:]
        yield content[:b] + content[a:]
    yield from (rng.bytes(n) for n in (1, 10, 1000))
    yield from (text.encode("utf-16"), b"\xef\xbb\xbf" + content, b"\xff" + content, b"\x00" * 100, b"", b" ")
    yield from (b"[" * 100_000, b'{"recipe":' * 100_000, b"9" * 5000, b"1e999", b"NaN", b"null", b"[]", b"3", b'"a"')


@pytest.mark.parametrize("name", ["settings.json", "cvae.json"])
def test_damaged_bytes(run, name):
    text = (run / name).read_text()
    for content in damaged(text):
        (run / name).write_bytes(content)
        code, line = ends_in_one_line("evaluate", run)
        told = name in line or line == "Error: it begins" or "name must be one of mnist" in line  # a letter changed
        assert code in (1, 2) and told, (content[:200], line)


@pytest.mark.parametrize("name", ["settings.json", "cvae.json", "cvae.keras", "frames.npz"])
def test_no_file_at_all(run, name):
    """A folder in its place, a link to nowhere, a link to itself, and a pipe, which would keep a reader waiting."""
    for make in (os.mkdir, lambda path: os.symlink("nowhere", path), lambda path: os.symlink(path, path), os.mkfifo):
        (run / name).unlink(missing_ok=True)
        make(run / name)
        for arguments in (["train", "--resume", "--out"], ["evaluate"]):
            code, line = ends_in_one_line(*arguments, run)
            assert code in (1, 2) and (name in line or line == "Error: it begins")
        os.rmdir(run / name) if (run / name).is_dir() else os.unlink(run / name)


@pytest.mark.parametrize(("field", "most"), LIMITS.items(), ids=LIMITS)
def test_the_largest_number_is_fine_and_twice_as_much_is_refused(field, most):
    whole = {"filters": lambda n: {"filters": (n, 1)},
             "sizes": lambda n: {"model": "residual", "sizes": {"width": n}},
             "samples": lambda n: {"samples": n, "batch_size": 1, "objective": "iwae"},
             "warmup": lambda n: {"warmup": n, "schedule": "cosine"}}.get(field, lambda n: {field: n})
    Recipe(**whole(most))
    with pytest.raises(ValueError, match=f"{field} must be at most"):
        Recipe(**whole(most * 2))


def test_many_samples_of_many_images_are_refused():
    with pytest.raises(ValueError, match="batch_size times samples.*at most 16384, got 1024 × 17"):
        Recipe(objective="iwae", batch_size=1024, samples=17)


@pytest.mark.parametrize(("fields", "message"), [
    ({"learning_rate": "fast"}, "learning_rate must be .*got 'fast'"), ({"beta": None}, "beta must be .*got None"),
    ({"beta_1": True}, "beta_1 must be .*got True"), ({"optimizer": ["adam"]}, "optimizer must be .*got \\['adam'\\]"),
    ({"model": 3}, "model must be .*got 3"), ({"sizes": 5}, "sizes must be .*got 5"),
    ({"sizes": {"width": [512]}, "model": "residual"}, "sizes must be .*got"),
])
def test_a_field_of_another_type_is_named(fields, message):
    with pytest.raises(TypeError, match=message):
        Recipe(**fields)


FOUND = {"images": 20, "elbo": -200.0, "iwae": {"k": 50}}


def report_of_20(model, test, n, samples, told):
    told("IWAE bound")
    return FOUND


def test_evaluate_says_what_it_is_at_and_only_on_stderr(run, monkeypatch):
    monkeypatch.setattr(cli, "report_run", report_of_20)
    monkeypatch.setattr(cli, "report_table", "ELBO {elbo:.3f}".format_map)
    result = CliRunner().invoke(cli.main, ["evaluate", str(run)])
    assert result.exit_code == 0 and json.loads((run / "evaluation.json").read_text()) == FOUND
    assert "IWAE bound [00:0" in result.stderr and "[00:" not in result.stdout
    assert result.stdout == "ELBO -200.000\n"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "run"), OSError(30, "Read-only file system")])
def test_a_run_that_may_only_be_read_is_evaluated(run, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(cli, "report_run", report_of_20)
    monkeypatch.setattr(cli, "report_table", "ELBO {elbo:.3f}".format_map)
    monkeypatch.setattr("pathlib.Path.write_text", refuse)  # the super-user may write everywhere
    result = CliRunner().invoke(cli.main, ["evaluate", str(run)])
    assert result.exit_code == 0 and result.stdout == "ELBO -200.000\n"
    last = result.stderr.split("\r")[-1]
    assert last.startswith("evaluation.json could not be written: ") and error.strerror in last and last.count("\n") == 1
    assert not (run / "evaluation.json").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the super-user may write everywhere")
def test_a_folder_that_may_only_be_read(run, monkeypatch):
    monkeypatch.setattr(cli, "report_run", report_of_20)
    monkeypatch.setattr(cli, "report_table", "ELBO {elbo:.3f}".format_map)
    os.chmod(run, 0o555)
    try:
        result = CliRunner().invoke(cli.main, ["evaluate", str(run)])
    finally:
        os.chmod(run, 0o755)
    assert result.exit_code == 0 and "could not be written" in result.stderr and "ELBO" in result.stdout


def test_absurd_options_are_refused_before_any_work(tmp_path):
    for option in ("--epochs", "--batch-size", "--latent-dim", "--max-steps", "--seed", "--samples"):
        code, _ = ends_in_one_line("train", option, 10**30, "--out", tmp_path / "run")
        assert code == 2 and not any(tmp_path.iterdir())
    assert ends_in_one_line("train", "--filters", 10**7, 64, "--out", tmp_path / "run")[0] == 2


def test_a_place_that_cannot_be_written_is_told_in_a_line(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "run", tmp_path / ("long" * 100), "a\0b", "/proc/nothing/run"):
        code, _ = ends_in_one_line("train", "--out", out)
        assert code in (1, 2)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/above"), OSError(30, "Read-only file system")])
@pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "pathlib.Path.exists", "pathlib.Path.is_dir"])
def test_a_parent_that_may_not_be_looked_into(run, tmp_path, monkeypatch, call, error):
    """As the super-user one may look everywhere, so the system's refusal is put in its mouth."""
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(call, refuse)
    code, line = ends_in_one_line("train", "--out", tmp_path / "new" / "run")
    assert code in (1, 2) and error.strerror in line

"""The workbook: the learner's package, its checks with their hints, and the judge of a VAE in one file."""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import workbook  # noqa: E402

# (function, text of the course's own code, the mistake, words of the hint)
MISTAKES = [
    ("preprocess_images", "> threshold", "< threshold", "swapped"),
    ("preprocess_images", "> threshold", "> 0.5", "whatever the argument"),
    ("preprocess_images", "(scaled > threshold)", "scaled", "grey values"),
    ("preprocess_images", "astype(np.float32)", "astype(np.float64)", "float32"),
    ("reparameterize", "logvar / 2", "logvar", "σ² stands where σ"),
    ("reparameterize", "tf.exp(logvar / 2) * eps", "eps", "off by up to"),
    ("reparameterize", "tf.exp(logvar / 2)", "logvar", "logvar stands where σ"),
    ("reparameterize", "mean + ", "", "mean is missing"),
    ("log_normal_pdf", " + np.log(2 * np.pi)", "", "2π is missing"),
    ("log_normal_pdf", "-0.5 * (", "-(", "twice the right"),
    ("log_normal_pdf", "tf.exp(-logvar)", "tf.exp(-logvar / 2)", "σ stands where σ²"),
    ("log_normal_pdf", "tf.reduce_sum(density, axis=raxis)", "tf.reduce_sum(density, axis=1)", "with raxis"),
    ("log_normal_pdf", "reduce_sum", "reduce_mean", "mean over the components"),
    ("bernoulli_log_prob", "-tf.reduce_sum", "tf.reduce_sum", "sign"),
    ("bernoulli_log_prob", "reduce_sum(cross_entropy, axis=[1, 2, 3])", "reduce_mean(cross_entropy, axis=[1, 2, 3])", "mean over the pixels"),
    ("bernoulli_log_prob", "labels=x", "labels=1 - x", "off by up to"),
    ("kl_standard_normal", "0.5 * ", "", "twice the right"),
    ("kl_standard_normal", "tf.math.expm1(logvar)", "tf.exp(logvar)", "−1 is missing"),
    ("kl_standard_normal", "mean**2 + ", "", "means are missing"),
    ("kl_standard_normal", "expm1(logvar)", "expm1(logvar / 2)", "σ stands where σ²"),
    ("ElboTerms.elbo", "self.log_qz_x - self.log_pz", "self.log_pz - self.log_qz_x", "swapped"),
    ("ElboTerms.elbo", "beta * kl", "kl", "β is not used"),
    ("ElboTerms.elbo", "self.log_px_z - beta * kl", "beta * kl - self.log_px_z", "This is the loss"),
    ("elbo_terms", "model.log_likelihood(x, z)", "model.log_likelihood(x, mean)", "decode the drawn z"),
    ("elbo_terms", "log_normal_pdf(z, 0.0, 0.0)", "log_normal_pdf(z, 0.0, 1.0)", "log-variance 0"),
    ("elbo_terms", "log_normal_pdf(z, mean, logvar)", "log_normal_pdf(eps, 0.0, 0.0)", "density of ε"),
    ("make_encoder", "Dense(2 * latent_dim", "Dense(latent_dim", "shape"),
    ("make_encoder", '"strides": 2', '"strides": 1', "shape"),
    ("make_encoder", "keras.layers.Dense(2 * latent_dim", 'keras.layers.Dense(2 * latent_dim, activation="relu"', "any real number"),
    ("make_decoder", "last(channels", "last(filters[0]", "shape"),
    ("make_decoder", "filters[1], **up", "filters[0], **up", "shape"),
    ("make_decoder", 'last(channels, 3, padding="same"', 'last(channels, 3, padding="same", activation="sigmoid"', "any real number"),
    ("CVAE.encode", "mean, logvar = tf", "logvar, mean = tf", "first half is the mean"),
    ("CVAE.encode", "bounded(logvar, LOGVAR_BOUND)", "tf.exp(logvar)", "This is the variance"),
    ("CVAE.encode", "return mean, bounded(logvar, LOGVAR_BOUND)", "return mean, mean", "This is the mean"),
    ("compute_loss", "-tf.reduce_mean", "tf.reduce_mean", "This is the ELBO"),
    ("compute_loss", "-tf.reduce_mean", "-tf.reduce_sum", "sum over the batch"),
    ("compute_loss", ".elbo(estimator, beta)", ".log_px_z", "KL is missing"),
    ("compute_loss", ".elbo(estimator, beta)", ".elbo()", "estimator is not used"),
    ("apply_step", "model.trainable_variables", "model.decoder.trainable_variables", "Both networks"),
    ("apply_step", "optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))", "pass", "did not move"),
    ("apply_step", "zip(tape.gradient(loss, variables)", "zip([-g for g in tape.gradient(loss, variables)]", "loss after one step"),
    ("latent_image", "[::-1]", "", "upside down"),
    ("latent_image", "np.stack([z1.ravel(), z2.ravel()]", "np.stack([z2.ravel(), z1.ravel()]", "swapped"),
    ("latent_image", "model.sample(z)", "model.decode(z)", "logits"),
]
HOME = {name: module for module, name in workbook.TASKS}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A workbook with the course's own functions in it."""
    folder = tmp_path_factory.mktemp("solved")
    workbook.make(folder, solved=True)
    return folder


@pytest.fixture(scope="module")
def check(solved):
    spec = importlib.util.spec_from_file_location("workbook_check", solved / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(solved))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of a workbook importable under the name my_vae, anew."""
    def use(folder):
        for name in [name for name in sys.modules if name.split(".")[0] == "my_vae"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
    yield use
    for name in [name for name in sys.modules if name.split(".")[0] == "my_vae"]:
        del sys.modules[name]


def test_the_courses_own_functions_pass_every_check(check, solved, package, capsys):
    package(solved)
    assert check.check_all()
    assert capsys.readouterr().out.count("  right: ") == len(workbook.TASKS) == len(check.CHECKS)


def test_in_a_new_workbook_every_function_is_missing(check, tmp_path, package):
    workbook.make(tmp_path)
    package(tmp_path)
    for module, name in workbook.TASKS:
        with pytest.raises(NotImplementedError, match="is not written yet"):
            check.CHECKS[name](importlib.import_module(f"my_vae.{module}"))
    for path in (tmp_path / "my_vae").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "AUTOGENERATED" not in text and "# %%" not in text
        assert all(len(line) <= 130 for line in text.splitlines())


def test_the_first_that_is_missing_is_named_with_its_chapter(check, tmp_path, package, monkeypatch, capsys):
    workbook.make(tmp_path)
    package(tmp_path)
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    assert not check.check_all()
    assert "1 of 13, my_vae/data.py: preprocess_images" in (out := capsys.readouterr().out) and "Chapter 01" in out


def test_an_answer_is_never_written_over(tmp_path):
    workbook.make(tmp_path)
    workbook.make(tmp_path)  # nothing was written yet, so nothing is lost
    path = tmp_path / "my_vae" / "reparameterization.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub("raise NotImpl.*", "return mean", text), encoding="utf-8")
    with pytest.raises(SystemExit, match="holds answers .reparameterize."):
        workbook.make(tmp_path)
    assert "return mean" in path.read_text(encoding="utf-8")


def test_every_function_has_three_mistakes_planted():
    for name in HOME:
        assert sum(mistake[0] == name for mistake in MISTAKES) >= 3, name


@pytest.mark.parametrize(("name", "right", "wrong", "words"), MISTAKES,
                         ids=[f"{mistake[0]}-{mistake[3]}" for mistake in MISTAKES])
def test_a_mistake_gives_its_hint(check, solved, tmp_path, package, name, right, wrong, words):
    shutil.copytree(solved / "my_vae", tmp_path / "my_vae")
    path = tmp_path / "my_vae" / f"{HOME[name]}.py"
    head, mark, rest = path.read_text(encoding="utf-8").partition(f"def {name.split('.')[-1]}(")
    assert right in rest, f"{right!r} is not in the course's own {name}"
    path.write_text(head + mark + rest.replace(right, wrong, 1), encoding="utf-8")
    package(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(words)):
        check.CHECKS[name](importlib.import_module(f"my_vae.{HOME[name]}"))


def test_the_interval_is_measured_and_says_from_what():
    measured = json.loads((ROOT / "tools" / "workbook" / "interval.json").read_text(encoding="utf-8"))
    assert len(measured["elbos"]) >= 5 and measured["mean"] == pytest.approx(np.mean(measured["elbos"]), abs=2e-3)
    assert measured["low"] < min(measured["elbos"]) < max(measured["elbos"]) < measured["high"]
    assert measured["high"] - measured["low"] < 20  # narrow enough to notice a missing term


@pytest.mark.parametrize(("elbo", "words"), [(float("nan"), "not finite"), (-543.0, "untrained"),
                                             (-204.0, "mean over pixels"), (-180.0, "learned something")])
def test_an_elbo_that_is_too_low_gets_advice(check, elbo, words):
    assert words in check.advice(elbo)


FILE = """import keras
encoder = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(784), keras.layers.Reshape((28, 28, 1))])
"""


@pytest.mark.parametrize(("right", "wrong", "words"), [
    ("", "", "where an untrained model stands"),
    ("Dense(4)", "Dense(3)", "has shape (2, 3), expected (2, 2 * latent_dim)"),
    ("Dense(784)", 'Dense(784, activation="sigmoid")', "these are probabilities"),
    ("decoder =", "generator =", "It leaves no decoder behind"),
    ("Dense(784), keras.layers.Reshape((28, 28, 1))", "Dense(100)", "expected (2, 28, 28, 1)"),
    ("import keras", "import keras\nfrom vae_course.model import CVAE", "only vae_course.data may be used"),
    ("import keras", "import keras\n" + "a = 1\n" * 40, "lines of code, 40 are allowed"),
])
def test_the_judge_says_what_is_wrong_with_a_file(check, tmp_path, capsys, right, wrong, words):
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace(right, wrong, 1), encoding="utf-8")
    assert not check.judge_file(path)
    assert words in capsys.readouterr().out


def test_lines_are_counted_without_comments_and_docstrings(check):
    assert check.lines_of_code('"""A\nB"""\n\n# c\na = 1; b = 2\nf(a,\n  b)\n') == 4


@pytest.mark.long
def test_the_judge_accepts_a_vae_of_forty_lines(check, capsys):
    assert check.judge_file(ROOT / "tests" / "forty_lines.py"), capsys.readouterr().out


@pytest.mark.long
def test_a_solved_workbook_lands_in_the_interval(check, solved, package, monkeypatch):
    package(solved)
    assert check.check_training()
    assert (solved / "plane.png").stat().st_size > 10_000

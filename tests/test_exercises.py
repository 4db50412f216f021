"""The student's copies in exercises/: in step with the chapters, solvable, with hints, and graded safely."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "exercises"
sys.path.insert(0, str(ROOT / "tools"))

import course  # noqa: E402



def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load(ROOT / "tools" / "exercises.py", "exercise_maker")
grader = load(FOLDER / "conftest.py", "exercise_grader")
grader.SECONDS = 600  # a test must not depend on how busy the machine is
COPIES = sorted(FOLDER.glob("*.ipynb"))

# Solutions into which a mistake is planted, by replacing a text, and words of the hint it must give:
# (chapter, exercise, text in the solution, the mistake, words of the hint).
MISTAKES = [
    ("support", 2, '"fine", "TypeError", "ValueError"', '"fine", "fine", "ValueError"', "The type decides"),
    ("support", 3, "atomic_path(path) as temporary, open(temporary,", "open(path,", "Half a file"),
    ("01_data", 2, "test.mean(), independent_pixels(train, test)", "train.mean(), independent_pixels(train, test)",
     "training images"),
    ("01_data", 3, "in (right, wrong)", "in (wrong, right)", "swapped"),
    ("01_data", 4, "np.log(1 - g) - np.log(g)", "-np.log(g)", "product rule"),
    ("01_data", 5, "uniform < images / 255", "uniform > images / 255", "inverted"),
    ("02_reparameterization", 2, "0.5 * ", "", "½ missing"),
    ("02_reparameterization", 2, "np.exp(logvar / 2)", "np.exp(logvar)", "σ² stands where σ"),
    ("02_reparameterization", 2, "0.5 *", "-0.5 *", "sign"),
    ("02_reparameterization", 3, "path.var(), score.var()", "path.std(), score.std()", "standard deviations"),
    ("02_reparameterization", 3, "path.var(), score.var()", "score.var(), path.var()", "swapped"),
    ("02_reparameterization", 4, "lambda z: f(z) - baseline", "f", "baseline is not subtracted"),
    ("02_reparameterization", 4, "score_function(lambda z: f(z) - baseline, mean, sigma, eps)",
     "[g - baseline for g in score_function(f, mean, sigma, eps)]", "belongs to f"),
    ("02_reparameterization", 5, "eps**2", "np.ones_like(eps)", "E[f]"),
    ("03_elbo", 1, "x / 2, 0.5", "0.0, 1.0", "prior"),
    ("03_elbo", 1, "0.5", "0.5**0.5", "σ stands where σ²"),
    ("03_elbo", 2, "/ 4", "/ 2", "½ missing"),
    ("03_elbo", 2, "logvar**2 / 4", "0.5 * (np.exp(logvar) - 1 - logvar)", "exact KL"),
    ("03_elbo", 3, "np.std", "np.var", "variance"),
    ("03_elbo", 4, "kl - reconstruction", "kl + reconstruction", "wrong sign"),
    ("03_elbo", 5, "0.5 * ", "", "½ missing"),
    ("03_elbo", 5, "0.5 * ", "-0.5 * ", "sign"),
    ("03_elbo", 5, "np.sum", "np.mean", "a mean stand where a sum"),
    ("03_elbo", 5, "np.exp(", "np.exp(0.5 * ", "σ stands where σ²"),
    ("03_elbo", 5, "mean_q, logvar_q, mean_p, logvar_p)", "mean_p, logvar_p, mean_q, logvar_q)", "KL(p ‖ q)"),
    ("03_elbo", 5, ", axis=1)", ", axis=1, keepdims=True)", "shape"),
    ("03_elbo", 5, " - 1 +", " +", "Is a constant wrong"),
    ("03_elbo", 6, "np.log(np.mean(np.exp(groups), axis=1))", "groups", "logarithm is taken before"),
    ("25_likelihoods", 1, "np.interp(x, continuous_bernoulli_mean(a), a)", "np.log(x / (1 - x))", "is not the sigmoid"),
    ("25_likelihoods", 3, "np.logaddexp(0, left)", "np.logaddexp(0, -left)", "σ(-l) is due"),
    ("25_likelihoods", 3, " + width", "", "last factor"),
    ("25_likelihoods", 4, "np.sqrt(np.mean((x - reconstructions)**2))", "np.mean((x - reconstructions)**2)",
     "This is σ²"),
    ("04_model", 6, "1.0, 0.0", "0.0, 1.0", "swapped"),
    ("09_layers", 1, "= patch", "= patch[::-1, ::-1]", "turned by half"),
    ("09_layers", 4, "conv2d(dy, kernel,", "conv2d(dy, kernel[::-1, ::-1],", "wrong side"),
    ("04_model", 1, "2 * 2305", "2305", "mean and logvar"),
    ("04_model", 2, "+ 9 * first + 1", "+ (9 * first + 1) * first", "one filter"),
    ("04_model", 3, "np.sum(1 - x,", "np.sum(x,", "ink pixels"),
    ("04_model", 4, "2**(layers + 1) - 1", "2 * layers + 1", "stride 1"),
    ("04_model", 5, "np.sqrt(np.mean((one - other)**2))", "np.mean((one - other)**2)", "Take the root"),
    ("12_recipes", 1, "steps * TUTORIAL.batch_size / 60_000", "steps / 60_000", "batch of images"),
    ("12_recipes", 2, "np.sqrt(1 - beta_2)", "(1 - beta_2)", "square root"),
    ("12_recipes", 3, "(steps - warmup)", "steps", "T - W steps"),
    ("12_recipes", 4, "p / (1 - p)), 784", "(1 - p) / p), 784", "ink is above"),
    ("12_recipes", 4, "784 * (", "(", "per pixel"),
    ("13_checkpoints", 1, '{"steps", "averages"}', '{"steps"}', "averages are missing"),
    ("13_checkpoints", 2, "found[name].tobytes() == arrays[name].tobytes()", "(found[name] == arrays[name]).all()",
     "tobytes"),
    ("13_checkpoints", 4, "3 * weights + 2", "3 * weights", "step count"),
    ("13_checkpoints", 5, "generator.bit_generator.state = json.loads(text)", "return np.random.default_rng(5)",
     "starts anew"),
    ("05_training", 1, " - terms.kl", "", "not subtracted"),
    ("05_training", 3, "terms.kl - terms.log_px_z / divisor", "(terms.kl - terms.log_px_z) / divisor",
     "Only the reconstruction"),
    ("05_training", 4, "share = len(x[part]) / len(x)", "share = 1", "mean of them"),
    ("05_training", 5, "8 * (s / d)**2", "4 * (s / d)**2", "one mean"),
    ("15_runs", 2, "set()", '{"small.keras"}', "temporary name"),
    ("15_runs", 3, "vars(recipe_from_card(each))", 'each["recipe"]', "lists of tuples"),
    ("06_generation", 2, "np.exp(-((r / s) ** 2) / 2)", "1 - np.exp(-((r / s) ** 2) / 2)", "share inside"),
    ("06_generation", 3, "np.mean(at_mean) - np.mean(elbo_terms(model, x, eps).log_px_z)",
     "np.mean(elbo_terms(model, x, eps).log_px_z) - np.mean(at_mean)", "sign"),
    ("06_generation", 4, "reconstruct(model, copies, eps)", "reconstruct(model, copies)", "ε is not used"),
    ("06_generation", 4, "reconstruct(model, copies, eps)", "model.sample(eps)", "prior"),
    ("06_generation", 6, "eps_prior)) - drawn", "eps_prior)) - images", "not from the images"),
    ("07_animation", 1, '{"eps", "z"}', '{"eps"}', "computed from ε"),
    ("07_animation", 2, "draw_eps(0, 1, ", "draw_eps(0, len(self.frames), ", "jitters"),
    ("07_animation", 3, "1, 400 * n", "1, 400", "not lost"),
    ("07_animation", 4, "10 * int(100 / per_second)", "1000 / per_second", "no fractions"),
    ("07_animation", 5, ".astype(float)", "", "254 in uint8"),
    ("08_manifold", 1, "(high - low)**dim", "high - low", "This is one axis"),
    ("08_manifold", 2, "axis[::-1]", "axis", "upside down"),
    ("08_manifold", 4, " / 2)", ")", "ratios of variances"),
    ("21_evaluation", 1, '{"b", "d"}', '{"b"}', "One more is random"),
    ("21_evaluation", 2, ".mean()", ".sum()", "This is the sum"),
    ("21_evaluation", 3, "broad)) - np.log(2)", "broad))", "too low by log 2"),
    ("21_evaluation", 4, "np.all(np.abs(z) < limit, axis=1)", "np.abs(z[:, 0]) < limit", "Only one axis"),
    ("21_evaluation", 5, "w.sum(axis=1)**2 / (w**2).sum(axis=1)", "(w**2).sum(axis=1) / w.sum(axis=1)**2", "upside down"),
    ("22_posterior", 1, '"amortisation"', '"approximation"', "belongs to the Gaussian"),
    ("22_posterior", 2, "-0.5 * np.log(1 - rho**2)", "1 / (1 - rho**2) - 1 + 0.5 * np.log(1 - rho**2)", "too wide"),
    ("22_posterior", 3, "np.eye(2) + ", "", "prior is missing"),
    ("22_posterior", 3, "(p * (1 - p))[:, None]", "p[:, None]", "not p"),
    ("22_posterior", 4, "np.linalg.cholesky(covariance)", "np.diag(np.diag(covariance))**0.5", "slant is lost"),
    ("23_diagnosis", 1, "28 * 28", "28", "28 rows of 28"),
    ("23_diagnosis", 3, "max(0.0, 0.5 * np.log(2 * a / beta))", "0.5 * np.log(2 * a / beta)", "cannot be negative"),
    ("23_diagnosis", 3, "2 * a / beta", "a / beta", "factor -2"),
    ("24_protocols", 1, '{"c", "e"}', '{"b", "c", "e"}', "tighter bound"),
    ("24_protocols", 2, "2 * g", "g", "half of the right value"),
    ("24_protocols", 3, "np.sqrt(np.sum(variances)) / len(g)", "np.sqrt(np.mean(variances))", "one image"),
    ("24_protocols", 3, "np.sqrt(np.sum(variances)) / len(g)", "np.sum(variances) / len(g)**2", "variance"),
    ("24_protocols", 4, "max(axis=1).mean", "mean", "not of the best"),
    ("17_keras_fit", 2, "images[epoch_order(len(images), 0, epoch)]", "images[epoch_order(len(images), 0, 1)]", "order of epoch 1"),
    ("17_keras_fit", 3, "np.repeat(x, weights, axis=0), np.repeat(eps, weights, axis=0)", "x, eps", "plain mean"),
    ("17_keras_fit", 4, "0.5 * (", "(", "½ missing"),
    ("18_devices", 1, "np.sum(means * sizes) / np.sum(sizes)", "np.mean(means)", "same weight"),
    ("18_devices", 2, "(images % size or size)", "(images % size)", "last batch of 0"),
    ("18_devices", 2, "none_left(size) or ", "", "full batch can be too small"),
    ("18_devices", 2, "(devices - 1) * part >= batch", "batch < devices", "parts are 2, 2 and 0"),
    ("18_devices", 3, "k * step_ms", "step_ms", "4 times too small"),
    ("18_devices", 4, "1.0]", "k]", "do not grow"),
    ("18_devices", 5, "2 * (k - 1) * g", "(k - 1) * g", "first rounds only"),
    ("18_devices", 5, "gradients.copy()", "gradients", "were changed"),
    ("31_explorer", 2, "np.float16", "np.float32", "Nothing was rounded"),
    ("31_explorer", 3, " + bias", "", "bias is missing"),
    ("31_explorer", 3, "(0, 0, 1), (0, 2, 0)", "(0, 2, 1), (0, 0, 0)", "changed places"),
    ("31_explorer", 4, "h.shape[1] - bottom", "-bottom", "slice that ends"),
    ("31_explorer", 4, "top:h.shape[1] - bottom, left:h.shape[2] - right", ":", "Nothing is cut off"),
    ("16_speed", 1, "2 * (3 * products - first)", "2 * products", "forward pass alone"),
    ("16_speed", 1, "- first)", ")", "passes no gradient"),
    ("16_speed", 2, "np.median(", "np.mean(", "Take the median"),
    ("26_larger", 2, "h + np.maximum", "np.maximum", "not added"),
    ("26_larger", 2, "np.maximum(h @ w1 + b1, 0)", "(h @ w1 + b1)", "ReLU is missing"),
    ("27_other_data", 2, "* np.log(2)", "", "A bit is not a nat"),
    ("27_other_data", 3, ".any(axis=1)", ".all(axis=1)", "One training patch"),
    ("27_other_data", 5, "np.log2(green.std() / left)", "np.log(green.std() / left)", "nats"),
    ("28_variants", 1, "np.sqrt(beta / 2)", "beta / 2", "This is s²"),
    ("28_variants", 1, "np.prod(image_shape)", "np.prod(image_shape[:2])", "channels"),
    ("28_variants", 3, "+ tf.math.log(diagonal)", "", "log det L is missing"),
    ("29_objectives", 1, '"L5", "joint"', '"L5", "joint", "conditional"', "bounds log p(x|y)"),
    ("29_objectives", 3, "1 / np.sum(share**2", "np.sum(share**2", "inverse"),
    ("32_sliders", 2, "kind in bundle", 'kind == "text/plain"', "picture says more"),
    ("32_sliders", 3, "quantile", "cdf", "share below a value"),
    ("32_sliders", 4, "1000 * ", "", "Multiply seconds"),
    ("32_sliders", 4, " / n", "", "time of all calls"),
    ("19_run_folder", 2, "len(text))", "len(text) + 1)", "whole text is no cut"),
    ("19_run_folder", 3, " > self.elbo", " > -1000", "last weights"),
    ("20_cli", 1, "--recipe tutorial", "", "default recipe"),
    ("20_cli", 3, '.replace("_", "-")', "", "The command says"),
    ("20_cli", 4, "self.model = model", "", "Keep it"),
    ("20_cli", 4, "max(elbos[-2:]) <= max(elbos[:-2])", "elbos[-1] <= max(elbos[:-1])", "not enough"),
    ("30_pitfalls", 2, "pixels / latent_dim", "latent_dim / pixels", "A mean divides"),
    ("30_pitfalls", 4, "np.float32", "np.float64", "limit of float64"),
    ("probability", 1, "-p * np.log(p) - (1 - p) * np.log(1 - p)", "-np.log(p)", "cost of heads"),
    ("probability", 3, "variance / n", "variance * n", "variance of the sum"),
    ("probability", 5, " / (s**2 / 2)", "", "divide by the gap"),
    ("checks", 1, '"off"', '"mean"', "not right"),
    ("02_reparameterization", 1, '"mean", "logvar", "z"', '"mean", "logvar", "z", "eps"', "eps is drawn outside"),
    ("06_generation", 1, '"sample", "reconstruction", "reconstruction"', '"sample", "reconstruction", "sample"',
     "around the mean of an image"),
    ("32_sliders", 1, "watched and installed", "installed", "nobody can move a slider"),
    ("support", 1, 'return "old"', 'return "new"', "The rename comes last"),
    ("01_data", 1, '"dynamic"', '"fixed"', "drawn once, before training"),
    ("25_likelihoods", 2, "np.array([784 * np.log(2), 1.0,", "np.array([0.0, 1.0,", "the formula has a floor"),
    ("25_likelihoods", 2, "1.0, np.tanh", "0.5, np.tanh", "normaliser C(a) is missing"),
    ("25_likelihoods", 5, "np.arange(-4, 0.5, 0.25)", "np.arange(0, 0.5, 0.25)", "Let the location fall below 0"),
    ("25_likelihoods", 5, "nats / np.log(2), location", "nats, location", "These are nats"),
    ("09_layers", 2, " * filters * 9", " * 9", "One filter only?"),
    ("09_layers", 2, " * 9", "", "A patch has nine weights"),
    ("09_layers", 3, "[4.0, 5.0, 4.0], [3.0, 2.0, 1.0]", "[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]", "A test would notice"),
    ("09_layers", 3, "[[1.0, 2.0, 3.0], [4.0, 5.0, 4.0], [3.0, 2.0, 1.0]]", "np.zeros((3, 3))", "any program gives 0"),
    ("12_recipes", 5, ", 320", ", 60_000", "enough for the warm-up"),
    ("13_checkpoints", 3, "return 10", "return 8", "Two good ones are still beside it"),
    ("05_training", 2, 'history[-1]["test_elbo"]', '-history[-1]["test_elbo"]', "This is a loss"),
    ("05_training", 2, "-(-len(x_train) // batch_size)", "len(x_train) // batch_size", "smaller batch is a step too"),
    ("10_images", 1, '["one image more"]', '["another image", "one image more"]', "read the stream"),
    ("10_images", 2, "return dataset.apply(tf.data.experimental.assert_cardinality(len(names)))", "return dataset",
     "use assert_cardinality"),
    ("10_images", 2, "for name in names", "for name in reversed(names)", "reverse order"),
    ("11_families", 1, "return batch, samples, latent_dim", "return batch, latent_dim, samples", "samples before latent_dim"),
    ("11_families", 1, "return batch, samples, latent_dim", "return samples, latent_dim, batch", "the batch comes first"),
    ("11_families", 2, ", axis=[1, 2, 3])", ")", "not of the batch"),
    ("11_families", 2, "terms.log_px_z - ", "terms.log_px_z + ", "The KL is subtracted"),
    ("14_loop", 1, "return epoch + 1", "return epoch", "counted from 1"),
    ("14_loop", 1, "count_steps(recipe, images)[0]", "images // recipe.batch_size", "smaller batch is a step too"),
    ("14_loop", 2, "2.0, 1.0", "1.0, 2.0", "The others count twice"),
    ("14_loop", 2, "weight * ", "", "Nothing is doubled"),
    ("14_loop", 3, "if epoch == 1", "if epoch == 9", "nothing in it is broken"),
    ("contracts", 1, " / tf.reduce_sum(weights)", "", "Divide by the sum"),
    ("contracts", 1, "tf.linalg.matvec(values, weights, transpose_a=True) / tf.reduce_sum(weights)",
     "tf.reduce_mean(values, axis=0)", "the plain mean"),
    ("contracts", 2, '"ValueError"', '"fine"', "asks for one axis"),
    ("15_runs", 1, "recipe_from_card(card).seed", "SHORT.seed", "another recipe's seed"),
    ("15_runs", 4, "path.write_text(json.dumps(json.loads(path.read_text())", "str(json.dumps(json.loads(path.read_text())",
     "The card has not changed"),
    ("06_generation", 5, "model.decode(z - 10)", "model.decode(z)", "no good codes"),
    ("06_generation", 5, "return mean + 10, logvar", "return mean, logvar", "no good codes"),
    ("08_manifold", 3, "confusion + confusion.T", "np.maximum(confusion, confusion.T)", "Only one direction is counted"),
    ("08_manifold", 3, "k=1)", "k=0)", "the diagonal is counted twice"),
    ("08_manifold", 5, "np.linspace(-0.6, 0.6, 9)", "[0.0]", "not a tenth less fog"),
    ("08_manifold", 5, "(1 - t) * start + t * end", "start + t * end", "The ends are not those of the line"),
    ("23_diagnosis", 2, "return 10", "return 2", "Would a third be useful"),
    ("23_diagnosis", 4, "model.fit(", "0 and model.fit(", "still near 0"),
    ("16_speed", 3, "learning_rate=rate, ", "", "the model should be worse than the mean image"),
    ("17_keras_fit", 1, 'return "y"', 'return "sample_weight"', "scale each image's loss"),
    ("26_larger", 1, "(36 * f + 1) * 4", "(36 * f + 1) * 2", "off by up to"),
    ("26_larger", 3, "tf.reduce_sum(out)", "tf.reduce_mean(out)", "gradient of the mean of the outputs"),
    ("27_other_data", 1, "mtime=1), gzip", "mtime=2), gzip", "What does a gzip header hold"),
    ("27_other_data", 4, "picture[:, border:], size, size)", "picture[:, border:], size, step)", "overlap each other"),
    ("27_other_data", 4, "picture[:, border:], size, size)", "picture, size, size)", "share columns"),
    ("28_variants", 2, "2 * largest / (", "largest / (", "The ½ of s²"),
    ("28_variants", 2, "2 * largest / (", "2 * largest**0.5 / (", "not the standard deviation"),
    ("28_variants", 4, 'found["elbo"]', 'found["reconstruction"] + found["kl"]', "An ELBO subtracts it"),
    ("29_objectives", 2, "np.cos(np.radians(degrees)), np.sin(np.radians(degrees))", "np.cos(degrees), np.sin(degrees)",
     "Is the angle in degrees?"),
    ("29_objectives", 4, " + log_py", "", "log p(y) is not added"),
    ("31_explorer", 1, "{name: np.size(array)", "{name: 1", "not the arrays"),
    ("30_pitfalls", 1, "{1, 3, 4, 5, 6, 8, 12, 13, 14, 15, 16}", "{1, 3, 4, 6, 7, 8, 12, 13, 14, 15, 16}",
     "something is said there"),
    ("30_pitfalls", 1, "14, 15, 16}", "14, 15}", "1 more without any message"),
    ("30_pitfalls", 3, "if not any(moved):", "if False:", "from before and after"),
    ("19_run_folder", 1, '{"settings.json"}', '{"cvae.json"}', "not the data set"),
    ("20_cli", 2, '{"manifold.png"}', '{"cvae.gif"}', "in any number of dimensions"),
    ("probability", 2, "2.0**2 / 2, -np.log(0.1) - 0.5 + 0.1**2 / 2", "2.0, 0.5 / 0.1**2 - 0.5 + np.log(0.1)",
     "You took KL(standard ‖ q)"),
    ("probability", 4, "m if np.isfinite(m) else 0.0", "m", "what is -inf - (-inf)"),
    ("probability", 4, "m = np.max(a)", "m = 0.0", "take the largest one out"),
    ("checks", 2, "< 0:", "< -1e9:", "a wrong sign"),
    ("checks", 3, "return 2 * kl", "return kl", "This is the right KL"),
    ("checks", 3, "return 2 * kl_standard_normal(mean, logvar)", "return kl_standard_normal(mean, logvar) - 0.5",
     "at the prior"),
]


def answers(path, solved):
    """{number: (answer, stub, check)} of a chapter, with solutions or stubs as answers."""
    cells = ["".join(cell["source"]) for cell in maker.student_copy(course.path_of(path.stem), solved)["cells"]]
    stubs = ["".join(cell["source"]) for cell in maker.student_copy(course.path_of(path.stem))["cells"]]
    found = {}
    for cell, stub, check in zip(cells, stubs, [*cells[1:], ""], strict=True):
        if match := re.match(r"# Exercise (\d+): answer", cell):
            found[int(match.group(1))] = cell, stub, check
    return found


def attempt(path, number, replace=None):
    """Run one task as the grader does; `replace` is a text in the solution and what to put there."""
    answer, stub, check = answers(path, solved=replace is not None)[number]
    if replace:
        assert replace[0] in answer, f"{replace[0]!r} is not in the solution"
        answer = answer.replace(*replace)
    grader.run(path, answer, grader.names_in(stub), check)


TASKS = [(path, number) for path in COPIES for number in answers(path, False)]
# Their checks train for seconds. The chapters run their solutions, too.
TRAIN = {("05_training", 2), ("05_training", 3), ("06_generation", 6), ("16_speed", 3), ("17_keras_fit", 2),
         ("17_keras_fit", 4), ("21_evaluation", 3), ("23_diagnosis", 1), ("23_diagnosis", 2), ("23_diagnosis", 4),
         ("28_variants", 1), ("28_variants", 2), ("28_variants", 4), ("29_objectives", 4)}


def parameters(rows, chapter=lambda row: row[0]):
    """The rows for `parametrize`; those of a check that trains are marked long."""
    return [pytest.param(*row, marks=pytest.mark.long if (chapter(row), row[1]) in TRAIN else ()) for row in rows]


tasks = pytest.mark.parametrize(("path", "number"), parameters(TASKS, lambda row: row[0].stem),
                                ids=[f"{path.stem}-{n}" for path, n in TASKS])


def test_copies_are_in_step_with_the_chapters(tmp_path):
    maker.write(tmp_path)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in COPIES}, "run make exercises"


def test_answers_in_the_folder_are_not_written_over(tmp_path):
    maker.write(tmp_path, solved=True)
    before = (tmp_path / "checks.ipynb").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="holds an answer"):
        maker.write(tmp_path)
    assert (tmp_path / "checks.ipynb").read_text(encoding="utf-8") == before


@tasks
def test_stub_fails_only_because_it_is_not_done(path, number):
    with pytest.raises(NotImplementedError, match=f"exercise {number}$"):
        attempt(path, number)


@pytest.mark.long
@tasks
def test_solution_passes_its_check(path, number):
    attempt(path, number, ("", ""))


@pytest.mark.parametrize(("chapter", "number", "right", "wrong", "words"), parameters(MISTAKES),
                         ids=[f"{chapter}-{number}-{words}" for chapter, number, _, _, words in MISTAKES])
def test_mistake_gives_its_hint(chapter, number, right, wrong, words):
    with pytest.raises(AssertionError, match=re.escape(words)):
        attempt(FOLDER / f"{chapter}.ipynb", number, (right, wrong))


def test_every_task_has_a_mistake_planted():
    planted = {(chapter, number) for chapter, number, *_ in MISTAKES}
    assert planted == {(path.stem, number) for path, number in TASKS}


def test_a_stub_keeps_signature_and_docstring_and_nothing_else():
    solution = '''def _helper():
    return 1


class Ball:
    "A ball."

    def area(
        self,
        r,  # radius
    ) -> float:  # its area
        "4 π r²."
        # The derivation.
        return 4 * _helper() * r**2'''
    stub = maker.stub(solution, "7")
    assert "r,  # radius" in stub and '"4 π r²."' in stub and "A ball" in stub
    assert "derivation" not in stub and "_helper" not in stub
    namespace = {}
    exec(stub, namespace)
    with pytest.raises(NotImplementedError, match="exercise 7"):
        namespace["Ball"]().area(1)
    with pytest.raises(ValueError, match="docstring"):
        maker.stub("def f():\n    return 1", "1")
    with pytest.raises(ValueError, match="no function"):
        maker.stub("f = 1", "1")


@pytest.fixture
def student(tmp_path):
    """A student's folder: exercise 1 of checks solved, and whatever must not run or count."""
    folder = tmp_path / "student"
    folder.mkdir()
    trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    shutil.copy(FOLDER / "conftest.py", folder)
    with open(folder / "conftest.py", "a", encoding="utf-8") as file:
        file.write(trace)
    copy = json.loads((FOLDER / "checks.ipynb").read_text(encoding="utf-8"))
    solved = maker.student_copy(course.path_of("checks"), solved=True)
    for cell, right in zip(copy["cells"], solved["cells"], strict=True):
        if cell["id"] == "answer-1":
            cell["source"] = right["source"]
        elif cell["id"] == "answer-2":
            cell["source"] = ["# Exercise 2: answer\n", "check = lambda *rest: None\n",
                              "def check_kl(kl):\n", "    return 'fine'\n"]
        elif cell["id"] == "answer-3":
            cell["source"] = ["# Exercise 3: answer\n", "while True:\n", "    pass\n"]
        elif cell["id"].startswith("check"):
            cell["source"] = [cell["source"][0], trace]
        elif cell["cell_type"] == "code":
            cell["source"].append("\n" + trace)
    (folder / "checks.ipynb").write_text(json.dumps(copy), encoding="utf-8")
    add_strangers(folder, trace)
    return folder


def add_strangers(folder, trace):
    """Files that pytest would run elsewhere."""
    (folder / "test_evil.py").write_text(trace, encoding="utf-8")
    (folder / "below").mkdir()
    for name in ("conftest.py", "test_evil.py"):
        (folder / "below" / name).write_text(trace, encoding="utf-8")


@pytest.mark.long
def test_no_other_file_of_the_folder_runs(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("conftest.py", "checks.ipynb"):
        shutil.copy(FOLDER / name, folder)
    add_strangers(folder, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    for target in (folder, folder / "checks.ipynb"):
        report = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", target], cwd=ROOT,
                                capture_output=True, text=True).stdout
        assert "total 0 of 4" in report, report
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_points_of_a_student_come_from_answers_alone(student, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    program = (FOLDER / "conftest.py").read_text(encoding="utf-8")
    (teacher / "conftest.py").write_text(re.sub(r"SECONDS = \d+", "SECONDS = 5", program), encoding="utf-8")
    shutil.copy(FOLDER / "checks.ipynb", teacher)
    report = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", teacher], cwd=ROOT,
                            env=os.environ | {"ANSWERS": str(student)}, capture_output=True, text=True).stdout
    assert re.search(r"checks +1  1 of 1", report), report
    assert re.search(r"checks +2  0 of 2  wrong", report), report  # its own `check` did not count
    assert re.search(r"checks +3  0 of 1  error", report) and "longer than 5 seconds" in report, report
    assert "total 1 of 4" in report
    assert "a wrong sign: 'fine' is not right" in report  # the hint
    assert not (tmp_path / "ran").exists(), "something besides the answers ran"

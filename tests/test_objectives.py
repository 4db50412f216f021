"""The mutual information gap, the IWAE objective, the conditional VAE, and the loop that trains them."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from vae_course.data import epoch_order
from vae_course.elbo import elbo_terms
from vae_course.engine.checkpoints import start_run
from vae_course.engine.families import OBJECTIVES, FastCVAE, Objective
from vae_course.engine.images import Images
from vae_course.engine.loop import fit
from vae_course.engine.recipes import FAST
from vae_course.further.objectives import (
    ConditionalVAE,
    information_gap,
    iwae,
    label_numbers,
    log_px_by_label,
    mutual_information,
)
from vae_course.reparameterization import draw_eps
from vae_course.training import compute_loss
from vae_course.truth.evaluation import iwae_bound, log_weights, sample_log_weights

FEW = replace(FAST, filters=(4, 8), max_steps=4, warmup=1, estimator="monte_carlo")


@pytest.fixture(scope="module")
def conditional():
    """An untrained model of two labels; tests must not train it."""
    return ConditionalVAE(labels=2, filters=(4, 8), seed=0)


def grid(*counts):
    """All combinations of factors, (n, len(counts))."""
    return np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1).reshape(-1, len(counts))


# Training by name.

IWAE = replace(FEW, objective="iwae", samples=3)
LABELLED = replace(FEW, model="conditional", sizes={"labels": 2})


def test_a_run_is_a_function_of_its_recipe(x_test):
    first, again, other = (fit(recipe, x_test[:100], x_test[:5], verbose=False)[1]
                           for recipe in (IWAE, IWAE, replace(IWAE, seed=1)))
    assert first == again and first != other


def test_one_sample_trains_as_the_elbo(x_test):
    x = x_test[:128]
    by_elbo, by_iwae = (fit(recipe, x, x[:5], verbose=False)[1] for recipe in (FEW, replace(IWAE, samples=1)))
    assert np.isclose(by_elbo[-1]["train_loss"], by_iwae[-1]["train_loss"], rtol=1e-4)


def test_labels_stay_with_their_images(x_test, monkeypatch):
    seen, numbers = [], np.arange(100) % 10

    def bound(model, x, eps, recipe):
        tf.py_function(lambda *t: seen.append([a.numpy() for a in t]), (x, model.y), [])
        return elbo_terms(model, x, eps).elbo()

    monkeypatch.setitem(OBJECTIVES, "spy", Objective(bound, lambda recipe: (recipe.latent_dim,), ()))
    recipe = replace(FEW, model="conditional", objective="spy")
    fit(recipe, Images(x_test[:100], numbers), Images(x_test[:5], numbers[:5]), verbose=False)
    order = epoch_order(100, recipe.seed, 1)
    assert np.array_equal(np.concatenate([x for x, _ in seen]), x_test[:100][order])
    assert np.array_equal(np.concatenate([y for _, y in seen]), numbers[order])  # 4 steps: one epoch


def test_a_bound_that_overflows_is_an_error(x_test, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "broken", Objective(
        lambda model, x, eps, recipe: elbo_terms(model, x, eps).elbo() * np.inf, lambda recipe: (2,), ()))
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        fit(replace(FEW, objective="broken"), x_test[:50], x_test[:5], verbose=False)


@pytest.mark.long
def test_a_larger_beta_gives_a_smaller_kl(x_test):
    x, y = x_test[:200], np.zeros(200, int)
    images, kls = Images(x, y), []
    for beta in (1.0, 16.0):
        recipe = replace(FEW, epochs=20, max_steps=100, estimator="closed_form", beta=beta)
        by_label = replace(recipe, model="conditional", sizes={"labels": 1})
        kls.append([fit(r, images, images, verbose=False)[1][-1]["test_kl"] for r in (recipe, by_label)])
    assert all(0.1 < kl_1 and kl_16 < kl_1 / 10 for kl_1, kl_16 in zip(*kls, strict=True)), kls


@pytest.mark.parametrize("estimator", ["monte_carlo", "closed_form"])
def test_conditional_loss_is_that_of_the_recipe(x_test, estimator):
    recipe = replace(LABELLED, epochs=1, max_steps=1, warmup=0, batch_size=50, estimator=estimator, beta=3.0)
    x, y = x_test[:50], np.arange(50) % 2
    history = fit(recipe, Images(x, y), Images(x, y), verbose=False)[1]
    model = start_run(recipe, Images(x, y)).model
    order = epoch_order(50, recipe.seed, 1)
    expected = compute_loss(model.given(y[order]), x[order], draw_eps(recipe.seed, 0, (50, 2)), estimator, 3.0)
    assert np.isclose(history[0]["train_loss"], expected, rtol=1e-5)


def test_the_test_elbo_of_a_conditional_model_is_that_of_its_labels(x_test):
    x, y = x_test[:60], np.arange(60) % 2
    model, history = fit(replace(LABELLED, seed=4), Images(x, y), Images(x, y), verbose=False)
    terms = elbo_terms(model.given(y), x, draw_eps(4, -1, (60, 2)))
    assert np.isclose(history[-1]["test_elbo"], np.mean(terms.elbo()), rtol=1e-5)


# Mutual information.

@settings(max_examples=15, deadline=None)
@given(distance=st.floats(0.0, 8.0), std=st.floats(0.1, 2.0))
@example(distance=8.0, std=0.16015625)  # shares of a bin that fall below the smallest float
def test_information_of_a_noisy_bit_agrees_with_scipy(distance, std):
    means = np.array([0.0, distance])

    def integrand(z):
        parts = stats.norm.pdf(z, means, std)
        total = parts.mean()
        return sum(p * np.log(p / total) for p in parts if p > 0) / 2

    span = np.unique([-6 * std, 0, distance / 2, distance, distance + 6 * std])
    expected = sum(integrate.quad(integrand, a, b)[0] for a, b in zip(span[:-1], span[1:], strict=True))
    found = mutual_information(means[:, None], np.full((2, 1), 2 * np.log(std)), np.array([[0], [1]]), bins=1000)
    # Binning only loses information: with bins of σ/11 or less, about width² / (24 σ²) of it at most.
    assert -2e-3 < found[0, 0] - expected < 1e-4


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_information_ignores_units_and_finer_bins_never_lose(seed, scale, shift):
    rng, factors = np.random.default_rng(seed), grid(3, 4)
    mean, logvar = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    found = mutual_information(mean, logvar, factors, bins=60)
    moved = mutual_information(scale * mean + shift, logvar + 2 * np.log(scale), factors, bins=60)
    assert np.allclose(found, moved, atol=1e-8)
    finer = mutual_information(mean, logvar, factors, bins=120)  # each bin cut in two
    assert np.all(finer >= found - 1e-10)
    assert np.all(found >= -1e-12) and np.all(finer <= np.log([3, 4]) + 1e-12)


def test_information_does_not_depend_on_the_names_of_the_values():
    rng, factors = np.random.default_rng(0), grid(3, 4)
    mean, logvar = rng.normal(size=(12, 2)), np.zeros((12, 2))
    renamed = np.stack([np.array([7, -1, 3])[factors[:, 0]], factors[:, 1] * 10], axis=1)
    found = [mutual_information(mean, logvar, f) for f in (factors, renamed)]
    assert np.allclose(*found)


def test_gap_of_perfect_shared_and_turned_codes():
    factors = grid(6, 6)
    sharp = np.full((36, 2), -8.0)

    def gap(code):
        return information_gap(mutual_information(code, sharp, factors), factors)

    # σ = 0.02 in a code of integers: no two values are ever confused.
    assert np.allclose(gap(factors), 1, atol=1e-6)
    assert np.allclose(gap(factors[:, [0, 0]])[0], 0, atol=1e-9)  # both dimensions know it
    assert np.allclose(gap(factors @ np.array([[1, 1], [-1, 1]])), 0, atol=0.05)


def test_gap_does_not_ask_whether_a_dimension_holds_one_factor():
    factors = grid(6, 6)
    number = np.stack([np.arange(36), np.zeros(36)], axis=1)  # one dimension tells both factors
    information = mutual_information(number, np.full((36, 2), -8.0), factors)
    assert np.allclose(information_gap(information, factors), 1, atol=1e-6)


# IWAE.

def test_weights_agree_with_tensorflow_probability(pretrained, x):
    model, tfd = pretrained[0], tfp.distributions
    eps = draw_eps(0, 0, (len(x), 5, 2))
    mean, logvar = model.encode(x)
    q = tfd.MultivariateNormalDiag(mean[:, None], tf.exp(logvar / 2)[:, None])
    z = mean[:, None] + tf.exp(logvar / 2)[:, None] * eps
    x_logits = tf.reshape(model.decode(tf.reshape(z, (-1, 2))), (len(x), 5, 784))
    pixels = tfd.Independent(tfd.Bernoulli(x_logits), 1)
    prior = tfd.MultivariateNormalDiag(tf.zeros(2))
    expected = pixels.log_prob(x.reshape(len(x), 1, 784)) + prior.log_prob(z) - q.log_prob(z)
    # Sums of 784 float32 terms of up to 10 nats.
    assert np.allclose(sample_log_weights(model, x, eps), expected, atol=2e-3)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_bound_is_that_of_the_chapter_on_evaluation(pretrained, x, k):
    eps = tf.stack([draw_eps(3, i, (k, 2)) for i in range(len(x))])
    expected = iwae_bound(log_weights(pretrained[0], x, k, seed=3), k).mean()
    assert np.isclose(np.mean(iwae(pretrained[0], x, eps)), expected, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**30), k=st.integers(2, 6))
def test_bound_is_above_the_mean_of_its_samples(pretrained, x, seed, k):
    """Jensen's inequality holds sample by sample, not only on average."""
    eps = draw_eps(seed, 0, (len(x), k, 2))
    log_w = sample_log_weights(pretrained[0], x, eps).numpy()
    loss = -float(np.mean(iwae(pretrained[0], x, eps)))
    assert -log_w.max(axis=1).mean() - 1e-3 <= loss <= -log_w.mean() + 1e-3
    shuffled = tf.reverse(eps, axis=[1])  # the order of the samples does not matter
    assert np.isclose(-loss, np.mean(iwae(pretrained[0], x, shuffled)), rtol=1e-5)


def test_gradient_is_the_weighted_sum_and_reaches_all_variables(pretrained, x):
    model, eps = pretrained[0], draw_eps(0, 0, (len(x), 6, 2))
    variables = model.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        loss, log_w = -tf.reduce_mean(iwae(model, x, eps)), sample_log_weights(model, x, eps)
        share = tf.stop_gradient(tf.nn.softmax(log_w, axis=1))
        by_hand = -tf.reduce_mean(tf.reduce_sum(share * log_w, axis=1))
    for a, b in zip(tape.gradient(loss, variables), tape.gradient(by_hand, variables), strict=True):
        assert np.isfinite(a).all() and tf.norm(a) > 0
        assert tf.norm(a - b) <= 1e-3 * tf.norm(a)  # float32 sums over 784 pixels in another order


def test_gradient_agrees_with_a_finite_difference(x):
    model, eps = FastCVAE(filters=(4, 8), seed=0), draw_eps(0, 0, (len(x), 4, 2))
    bias = model.decoder.layers[-1].bias  # smooth in this variable, and the largest gradient
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(iwae(model, x, eps))
    slope, values = tape.gradient(loss, bias).numpy()[0], []
    for h in (0.05, -0.05):
        bias.assign([h])
        values.append(-float(np.mean(iwae(model, x, eps))))
    # Error of the difference: h²/6 · third derivative (at most 784 · 0.1), and 1e-4 / 0.1 of rounding.
    assert abs((values[0] - values[1]) / 0.1 - slope) < 0.05**2 / 6 * 784 * 0.1 + 0.02


# The conditional VAE.

def test_given_adds_the_label_to_both_networks(conditional, x):
    y, z = np.array([0, 1] * 4), draw_eps(0, 0, (8, 2)).numpy()
    planes = np.zeros((8, 28, 28, 2), np.float32)
    planes[np.arange(8), :, :, y] = 1
    view = conditional.given(y)
    by_hand = tf.split(conditional.encoder(np.concatenate([x, planes], axis=-1)), 2, axis=1)
    assert np.allclose(view.encode(x), by_hand, atol=1e-6)
    by_hand = conditional.decoder(np.concatenate([z, np.eye(2, dtype=np.float32)[y]], axis=1))
    assert np.allclose(view.decode(z), by_hand, atol=1e-6)


def test_one_label_serves_many_images(conditional, x):
    for method in ("encode", "decode"):
        argument = x if method == "encode" else draw_eps(0, 0, (8, 2))
        one = getattr(conditional.given(1), method)(argument)
        many = getattr(conditional.given([1] * 8), method)(argument)
        assert np.allclose(one, many, atol=1e-6)
    assert np.shape(conditional.given(0).sample(np.zeros((3, 2)))) == (3, 28, 28, 1)


def test_gradients_reach_the_weights_of_the_labels_in_the_batch_only(x):
    model = ConditionalVAE(labels=3, filters=(4, 8), seed=0)
    with tf.GradientTape() as tape:
        loss = compute_loss(model.given([0, 2] * 4), x, draw_eps(0, 0, (8, 2)))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(g).all() and np.any(g) for g in gradients)
    dense, conv = (next(g.numpy() for g, v in zip(gradients, model.trainable_variables, strict=True) if v.shape == s)
                   for s in ((5, 1568), (3, 3, 4, 4)))
    assert np.any(dense, axis=1).tolist() == [True, True, True, False, True]
    assert np.any(conv, axis=(0, 1, 3)).tolist() == [True, True, False, True]


@pytest.mark.long
def test_log_px_by_label_agrees_with_importance_sampling(conditional, x):
    found = log_px_by_label(conditional, x[:3])
    assert found.shape == (3, 2)
    for label in (0, 1):
        log_w = log_weights(conditional.given(label), x[:3], 3000).astype(float)
        estimate = iwae_bound(log_w, 3000)
        error = np.exp(log_w - estimate[:, None]).std(axis=1) / np.sqrt(3000)
        # Six standard errors, as in test_evaluation, and the quadrature's tolerance.
        assert np.all(np.abs(found[:, label] - estimate) < 6 * error + 0.02)


@pytest.mark.long
def test_labels_help_where_they_say_everything():
    """Two images, one for each label: with the label known, nothing is left for the code."""
    x = np.zeros((64, 28, 28, 1), np.float32)
    x[::2, 4:24, 4:14], x[1::2, 4:24, 14:24] = 1, 1
    recipe = replace(LABELLED, epochs=60, max_steps=120, batch_size=32, estimator="closed_form", learning_rate=5e-3)
    images = Images(x, np.arange(64) % 2)
    model, history = fit(recipe, images, images, verbose=False)
    assert -20 < history[-1]["test_elbo"] and history[0]["test_elbo"] < -100
    assert log_px_by_label(model, x[:2], 0.5).argmax(axis=1).tolist() == [0, 1]


def test_saved_model_is_the_same(conditional, x, tmp_path):
    conditional.save(tmp_path / "conditional.keras")
    loaded = keras.saving.load_model(tmp_path / "conditional.keras")
    assert loaded.get_config() == conditional.get_config()
    assert np.array_equal(loaded.given(1).encode(x), conditional.given(1).encode(x))


def test_initial_weights_are_a_function_of_the_seed():
    first, again, other = (ConditionalVAE(2, 2, (4, 8), seed).get_weights() for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, other))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m, x: mutual_information(np.zeros((4, 2)), np.zeros((4, 1)), grid(4)), ValueError, "latent_dim"),
    (lambda m, x: mutual_information(np.zeros((4, 2)), np.zeros((4, 2)), grid(5)), ValueError, "factors"),
    (lambda m, x: mutual_information(np.zeros((4, 2)), np.zeros((4, 2)), grid(4), 0), ValueError, "bins must be"),
    (lambda m, x: information_gap(np.zeros((1, 2)), grid(2, 2)), ValueError, "latent_dim of at least 2"),
    (lambda m, x: iwae(m, x, np.zeros((8, 2))), ValueError, r"(?s)eps.*batch, k, latent_dim"),
    (lambda m, x: iwae(m, x, np.zeros((7, 5, 2))), ValueError, r"(?s)eps.*\[7, 5, 2\]"),
    (lambda m, x: iwae(m, x, np.zeros((8, 5, 3))), ValueError, r"(?s)eps.*\[40, 3\]"),
    (lambda m, x: iwae(m, x * 0.5, np.zeros((8, 5, 2))), ValueError, "each pixel must be 0 or 1"),
    (lambda m, x: ConditionalVAE(labels=0), ValueError, "labels must be at least 1, got 0"),
    (lambda m, x: ConditionalVAE(latent_dim=0), ValueError, "latent_dim must be at least 1"),
    (lambda m, x: label_numbers([0, 10], 10), ValueError, "from 0 to 9, got 0 to 10"),
    (lambda m, x: label_numbers(-1, 10), ValueError, "from 0 to 9, got -1 to -1"),
    (lambda m, x: label_numbers(3.0, 10), TypeError, "labels must be integers, got float32"),
    (lambda m, x: label_numbers([[1]], 10), ValueError, r"shape \(batch,\), got \(1, 1\)"),
    (lambda m, x: Images(x, [1.0] * 8), TypeError, "labels must be integers"),
    (lambda m, x: Images(x, [1] * 7), ValueError, r"labels must have shape \(8,\), one for each image, got \(7,\)"),
    (lambda m, x: Images(x * 0.5, [1] * 8), ValueError, "each pixel must be 0 or 1"),
    (lambda m, x: fit(replace(LABELLED, warmup=0), Images(x, [2] * 8), Images(x, [1] * 8)), ValueError, "from 0 to 1, got 2 to 2"),
    (lambda m, x: fit(replace(LABELLED, warmup=0), Images(x, [1] * 8), Images(x, [-1] * 8)), ValueError, "from 0 to 1, got -1 to -1"),
    (lambda m, x: fit(LABELLED, x, x), ValueError, "'conditional' needs a label for each image"),
    (lambda m, x: replace(LABELLED, likelihood="discretized_logistic"), ValueError,
     "likelihood has no meaning for the model 'conditional'"),
    (lambda m, x: fit(FEW, x * np.nan, x), ValueError, "got NaN"),
    (lambda m, x: ConditionalVAE(2, filters=(4, 8)).given([0, 1, 1]).encode(x), ValueError,
     r"\(8, 28, 28, 1\), got labels of shape \(3,\)"),
    (lambda m, x: ConditionalVAE(2, filters=(4, 8)).given([1]).encode(x), ValueError, r"got labels of shape \(1,\)"),
    (lambda m, x: ConditionalVAE(2, filters=(4, 8)).given([1]).decode(np.zeros((5, 2))), ValueError,
     r"\(5, 2\), got labels of shape \(1,\)"),
    (lambda m, x: information_gap(np.zeros((2, 2)), np.zeros((4, 2), int)), ValueError, "leave out factor 0"),
    (lambda m, x: information_gap(np.zeros((2, 2)), grid(2, 2, 2)), ValueError, r"got \(2, 2\) and \(8, 3\)"),
    (lambda m, x: log_px_by_label(ConditionalVAE(2, 3), x), ValueError, "latent_dim 1 or 2, got 3"),
])
def test_bad_input_is_refused(model, x, call, error, message):
    with pytest.raises(error, match=message):
        call(model, x)

"""The linear VAE against its closed forms, and the two pixels against the proof."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.beyond.linear import (
    Gaussian,
    LinearVAE,
    PairVAE,
    best_linear,
    linear_log_px,
    linear_terms,
    matrices,
    pair_log_px,
    pair_log_px_z,
    pair_terms,
    principal_axes,
    set_best,
    set_encoder,
)
from vae_course.elbo import elbo_terms
from vae_course.engine.loop import fit
from vae_course.engine.recipes import SHORT
from vae_course.engine.runs import load_model, save_model
from vae_course.reparameterization import draw_eps

PAIRS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
RECIPE = replace(SHORT, model="linear", likelihood="gaussian", latent_dim=3, epochs=80,
                 batch_size=100, learning_rate=5e-2)


@pytest.fixture(scope="module")
def grey():
    """1,000 images of 7 × 7 numbers, three strong axes, from 0 to 1."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 49)) * np.array([[0.12], [0.04], [0.025]])
    x = 0.5 + rng.normal(size=(1000, 3)) @ mixing + 0.08 * rng.normal(size=(1000, 49))
    return np.clip(x, 0, 1).astype(np.float32).reshape(-1, 7, 7, 1)


@pytest.fixture
def linear(grey):
    return LinearVAE(3, grey.shape[1:], seed=1)


def test_gaussian_density_is_scipys_and_its_samples_have_its_moments(rng):
    x, parameters = rng.random((5, 2, 3, 2)).astype(np.float32), rng.normal(size=(5, 2, 3, 4)).astype(np.float32)
    expected = scipy.stats.norm.logpdf(x, parameters[..., :2], np.exp(parameters[..., 2:] / 2)).sum(axis=(1, 2, 3))
    assert np.allclose(Gaussian().log_prob(x, parameters), expected, rtol=1e-5)  # float32
    many = np.tile(parameters[:1], (20_000, 1, 1, 1))
    drawn = Gaussian().sample(many, (1, 2)).numpy()
    sigma = np.exp(parameters[0, ..., 2:] / 2)
    assert np.all(np.abs(drawn.mean(axis=0) - Gaussian().mean(parameters)[0]) < 5 * sigma / 20_000**0.5)
    assert np.all(np.abs(drawn.std(axis=0) / sigma - 1) < 5 / 40_000**0.5)


def test_gaussian_start_is_mean_and_log_variance(grey):
    assert np.allclose(Gaussian().start(grey), [grey.mean(), np.log(grey.var())], rtol=1e-4)


def test_log_px_is_scipys(linear, grey):
    weights, offset, variance = matrices(linear)
    expected = scipy.stats.multivariate_normal(offset, weights @ weights.T + variance * np.eye(49)).logpdf(
        grey.reshape(-1, 49).astype(float))
    assert np.allclose(linear_log_px(linear, grey), expected)


def test_terms_are_the_means_over_samples(linear, grey):
    log_px_z, kl = linear_terms(linear, grey[:4])
    repeated = np.repeat(grey[:4], 5000, axis=0)
    terms = elbo_terms(linear, repeated, draw_eps(0, 0, (20_000, 3)))
    drawn = terms.log_px_z.numpy().reshape(4, 5000)
    assert np.all(np.abs(drawn.mean(axis=1) - log_px_z) < 5 * drawn.std(axis=1) / 5000**0.5)
    assert np.allclose(terms.kl.numpy()[::5000], kl, rtol=1e-5)


def test_the_best_encoder_has_the_highest_elbo_and_a_gap_without_images(linear, grey):
    set_encoder(linear)
    log_px_z, kl = linear_terms(linear, grey)
    gap = linear_log_px(linear, grey) - (log_px_z - kl)
    assert np.ptp(gap) < 1e-4 and gap.mean() > 0.01  # the same for all, float32 weights; columns are not orthogonal
    best, rng = (log_px_z - kl).mean(), np.random.default_rng(0)
    for variable in linear.encoder.trainable_variables:
        kept = variable.numpy()
        variable.assign(kept + 0.01 * rng.normal(size=kept.shape))
        a, b = linear_terms(linear, grey)
        assert (a - b).mean() < best
        variable.assign(kept)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 2.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_nothing_near_the_best_is_better(grey, noise, beta):
    linear = LinearVAE(3, grey.shape[1:], noise=noise)
    set_best(linear, principal_axes(grey), beta)

    def objective():
        log_px_z, kl = linear_terms(linear, grey)
        return (log_px_z - beta * kl).mean()

    best, rng = objective(), np.random.default_rng(1)
    start = [variable.numpy() for variable in linear.trainable_variables]
    for _ in range(20):
        for variable, kept in zip(linear.trainable_variables, start, strict=True):
            variable.assign(kept + 0.02 * rng.normal(size=kept.shape))
        assert objective() <= best + 1e-6  # float32 weights


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_at_the_best_the_elbo_is_log_px(grey, noise):
    linear = LinearVAE(3, grey.shape[1:], noise=noise)
    set_best(linear, principal_axes(grey))
    log_px_z, kl = linear_terms(linear, grey)
    assert np.allclose(log_px_z - kl, linear_log_px(linear, grey), atol=1e-3)  # float32 weights, values near 20


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-3, 10), min_size=4, max_size=12), st.integers(1, 3), st.floats(0.3, 20))
def test_best_linear_is_the_top_of_the_objective(spectrum, latent_dim, beta):
    """For each threshold s the best W is known; the best s is looked for on a grid."""
    variances, size = np.sort(spectrum)[::-1], len(spectrum)

    def objective(s):
        used = (np.arange(size) < latent_dim) & (variances > s)
        fitted = np.where(used, np.log(variances) + 1, np.log(s) + variances / s)
        return -0.5 * beta * fitted.sum() + 0.5 * (beta - 1) * size * np.log(s)

    active, variance = best_linear(variances, latent_dim, beta)
    threshold = beta * variance
    assert active == np.sum(variances[:latent_dim] > threshold * (1 - 1e-9)) or np.any(np.isclose(variances, threshold))
    grid = np.geomspace(threshold / 30, threshold * 30, 3001)
    assert objective(threshold) >= max(objective(s) for s in grid) - 1e-9 * size * beta


def test_too_many_latents_are_refused():
    with pytest.raises(ValueError, match="got 3 for latent_dim 3"):
        best_linear(np.array([3.0, 2.0, 1.0]), 3)


def test_colours_are_refused():
    with pytest.raises(ValueError, match="1 channel"):
        LinearVAE(2, (8, 8, 3))


def test_a_turn_changes_the_elbo_and_not_log_px(grey):
    linear = LinearVAE(3, grey.shape[1:])
    set_best(linear, principal_axes(grey))
    before = linear_log_px(linear, grey)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    kernel = linear.decoder.layers[0].kernel
    kernel.assign(turn @ kernel.numpy())
    set_encoder(linear)
    log_px_z, kl = linear_terms(linear, grey)
    assert np.allclose(linear_log_px(linear, grey), before, atol=1e-3)
    assert (log_px_z - kl).mean() < before.mean() - 0.01


def test_a_linear_vae_is_saved_whole(linear, grey, tmp_path):
    save_model(linear, tmp_path / "linear.keras")
    again = load_model(tmp_path / "linear.keras")
    assert np.array_equal(linear_log_px(again, grey), linear_log_px(linear, grey))
    assert matrices(LinearVAE(3, (7, 7, 1), noise=0.2))[2] == pytest.approx(0.04, rel=1e-6)


def test_training_ends_where_the_eigenvalues_say(grey):
    axes = principal_axes(grey)
    model, _ = fit(RECIPE, grey, grey[:250], verbose=False)
    log_px_z, kl = linear_terms(model, grey)
    best = LinearVAE(3, grey.shape[1:])
    set_best(best, axes)
    below = linear_log_px(best, grey).mean() - (log_px_z - kl).mean()
    assert -1e-3 < below < 0.5
    assert matrices(model)[2]**0.5 == pytest.approx(best_linear(axes.variances, 3)[1]**0.5, rel=0.05)


def test_a_given_noise_stays_and_kills_what_lies_below_it(grey):
    variances = principal_axes(grey).variances
    noise = float(np.sqrt((variances[0] * variances[1])**0.5))  # between the first and the second
    model, _ = fit(replace(RECIPE, sizes={"noise": noise}), grey, grey[:250], verbose=False)
    assert matrices(model)[2] == pytest.approx(noise**2, rel=1e-5)
    mean, logvar = model.encode(grey)
    kl = np.sort(0.5 * np.mean(mean**2 + np.exp(logvar) - 1 - logvar, axis=0))
    # The objective is flat near its top: a small turn or a little noise of Adam moves the KL by hundredths.
    assert kl[2] == pytest.approx(0.5 * np.log(variances[0] / noise**2), abs=0.1) and kl[1] < 0.05


def random_pairs(models, seed=0):
    rng = np.random.default_rng(seed)
    return PairVAE(*(tf.Variable(rng.normal(size=(models, n)).astype(np.float32)) for n in (2, 2, 1, 4, 4)))


def test_pairs_are_probabilities_and_the_quadrature_is_right():
    w = random_pairs(50)
    log_px = pair_log_px(w, PAIRS)
    assert np.allclose(np.exp(log_px).sum(axis=1), 1, atol=1e-5)
    fine = pair_log_px(w, PAIRS, nodes=44)
    assert np.allclose(log_px, fine, atol=1e-3)
    z = np.random.default_rng(0).normal(size=(50, 4, 20_000)).astype(np.float32)
    p = np.exp(pair_log_px_z(w, z, PAIRS))
    assert np.all(np.abs(p.mean(axis=2) - np.exp(log_px)) < 5.5 * p.std(axis=2) / 20_000**0.5 + 1e-5)


def test_no_pair_model_is_above_the_entropy_and_ignoring_the_code_reaches_it():
    share = np.array([0.45, 0.05, 0.05, 0.45], np.float32)
    entropy = -np.sum(share * np.log(share))
    w = random_pairs(200, seed=1)
    log_px_z, kl = pair_terms(w, PAIRS)
    elbo, log_px = ((t.numpy() @ share) for t in (log_px_z - kl, pair_log_px(w, PAIRS)))
    assert np.all(elbo < log_px + 1e-4) and np.all(log_px < -entropy + 1e-4)
    free = (log_px_z - tf.maximum(kl, 0.1)).numpy() @ share
    assert np.all(free <= elbo + 1e-6)
    zero, logits = np.zeros((1, 4), np.float32), np.log(9) * np.array([[-1.0, 1.0]])
    ignoring = PairVAE(*(tf.Variable(np.asarray(value, np.float32)) for value in (
        [[0.0, logits[0, 0]]], [[0, 0]], [[2 * logits[0, 1]]], zero, zero)))
    log_px_z, kl = pair_terms(ignoring, PAIRS)
    assert np.isclose((log_px_z - kl).numpy() @ share, -entropy, atol=1e-5)

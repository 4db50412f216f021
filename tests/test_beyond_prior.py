"""Priors with numbers of their own: densities, the two parts of the KL, the grid, and annealed importance sampling."""

from functools import partial

import models
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from vae_course.beyond.gap import DenseVAE
from vae_course.beyond.prior import (
    MixtureVAE,
    VampVAE,
    ais,
    draw_prior,
    log_aggregate,
    log_mixture,
    log_px_on_grid,
    prior_of,
    surgery,
)
from vae_course.elbo import elbo_terms, kl_standard_normal
from vae_course.engine.runs import load_model, save_model
from vae_course.reparameterization import draw_eps
from vae_course.truth.evaluation import log_marginal, log_weights

KINDS = MixtureVAE, VampVAE
SMALL = {"width": 8, "inner": 8, "seed": 0}
shaken = partial(models.shaken, scale=0.05)


@pytest.fixture(scope="module")
def x(x_test):
    return x_test[:8]


def test_mixture_is_tfps():
    rng = np.random.default_rng(0)
    z, mean, logvar = (rng.standard_normal((n, 3)).astype(np.float32) for n in (20, 4, 4))
    log_share = tf.nn.log_softmax(rng.standard_normal(4).astype(np.float32))
    tfd = tfp.distributions
    right = tfd.MixtureSameFamily(tfd.Categorical(logits=log_share),
                                  tfd.MultivariateNormalDiag(mean, np.exp(logvar / 2))).log_prob(z)
    assert np.allclose(log_mixture(z, log_share, mean, logvar), right, atol=1e-4)
    far = log_mixture(z + 1000, log_share, mean, logvar)
    assert np.all(np.isfinite(far))


def test_aggregate_in_parts_is_the_aggregate():
    rng = np.random.default_rng(1)
    mean, logvar = (rng.standard_normal((2000, 2)).astype(np.float32) for _ in range(2))
    z = rng.standard_normal((1200, 2)).astype(np.float32)
    share = np.full(2000, -np.log(2000), np.float32)
    assert np.allclose(log_aggregate(z, mean, logvar), log_mixture(z, share, mean, logvar), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_priors_sum_to_one(x, kind):
    _, mass = log_px_on_grid(shaken(kind, parts=3), x, limit=16, step=1 / 8)
    assert abs(mass - 1) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_learn(x, kind):
    model = shaken(kind, parts=3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(elbo_terms(model, x, draw_eps(0, 0, (8, 2))).elbo())
    assert all(g is not None and np.any(g) for g in tape.gradient(loss, model.trainable_variables))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_of_the_prior(kind):
    """The mean and the covariance of the draws against the mixture's own."""
    model = shaken(kind, latent_dim=3, parts=4)
    log_share, mean, logvar = (np.float64(t) for t in model.components())
    share, z = np.exp(log_share), draw_prior(model, 40_000).numpy()
    centre = share @ mean
    variance = share @ (np.exp(logvar) + (mean - centre)**2)
    assert np.allclose(z.mean(axis=0), centre, atol=0.02 * np.sqrt(variance.max()) + 0.01)
    assert np.allclose(z.var(axis=0), variance, rtol=0.05)


def test_grid_agrees_with_chapter_21_and_refuses_more_latents(x):
    model = shaken(DenseVAE)
    found, _ = log_px_on_grid(model, x)
    assert np.abs(found - log_marginal(model, x).log_px).max() < 0.01
    for kind in (DenseVAE, *KINDS):
        with pytest.raises(ValueError, match="latent_dim 1 or 2"):
            log_px_on_grid(shaken(kind, latent_dim=3), x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_assumes_the_standard_normal_refuses(x, kind):
    with pytest.raises(ValueError, match="log_likelihood of its own"):
        log_marginal(shaken(kind, parts=3), x)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_below_the_grid_and_reach_it(x, kind):
    model = shaken(kind, parts=3)
    truth, _ = log_px_on_grid(model, x, limit=16)
    log_w = log_weights(model, x, 2000).astype(float)
    assert np.all(log_w.mean(axis=1) < truth)
    estimate = np.logaddexp.reduce(log_w, axis=1) - np.log(2000)
    assert np.abs(estimate - truth).mean() < 0.2


def test_parts_of_the_kl_sum_to_it(x_test):
    model, some = shaken(DenseVAE), x_test[:500]
    information, mismatch = surgery(model, some)
    kl = kl_standard_normal(*model.encode(some)).numpy()
    whole = information + mismatch
    assert abs(whole.mean() - kl.mean()) < 4 * (whole - kl).std() / 500**0.5 + 1e-3
    assert 0 < information.mean() < np.log(500)


@pytest.mark.parametrize("kind", [DenseVAE, *KINDS])
def test_ais_finds_log_px(x, kind):
    model = shaken(kind, **({} if kind is DenseVAE else {"parts": 3}))
    log_w, accepted, sizes = ais(model, x, moves=40, chains=12)
    truth, _ = log_px_on_grid(model, x, limit=16)
    w = np.exp(log_w - truth[:, None])
    assert abs(w.mean() - 1) < 5 * w.std() / w.size**0.5 + 0.01
    assert 0.4 < accepted.mean() < 0.9 and sizes.shape == (40, 8)


def test_ais_is_repeated_by_its_seed(x):
    model = shaken(MixtureVAE, parts=3)
    sizes = np.full((5, 8), 0.3)
    first, second, other = (ais(model, x, 5, 3, seed, sizes)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, second) and not np.allclose(first, other)
    with pytest.raises(ValueError, match=r"sizes must have shape \(5, 8\)"):
        ais(model, x, 5, 3, 0, sizes[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(tmp_path, kind, x):
    model = shaken(kind, parts=3)
    save_model(model, tmp_path / "m.keras")
    z = draw_eps(0, 0, (5, 2))
    assert np.array_equal(load_model(tmp_path / "m.keras").log_prior(z), prior_of(model)(z))


def test_pseudo_inputs_start_at_images(x):
    model = VampVAE(**SMALL, parts=8).start(x)
    assert np.abs(tf.sigmoid(model.pseudo) - x).max() < 0.05

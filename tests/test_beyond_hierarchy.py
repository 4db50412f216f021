"""Two layers of latents: each term against TFP and quadrature, the three orders of inference, silence and what shows it."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hypothesis import given, settings
from hypothesis import strategies as st

from models import shaken
from vae_course.beyond.gap import DenseVAE
from vae_course.beyond.hierarchy import (
    Blind,
    BottomUp,
    LayerTerms,
    TwoLayers,
    dense_network,
    kl_normal,
    layer_terms,
    share_of_top,
    train_layers,
)
from vae_course.elbo import elbo_terms, kl_standard_normal
from vae_course.reparameterization import draw_eps
from vae_course.training import evaluate
from vae_course.truth.evaluation import log_marginal, log_weights, sample_log_weights

KINDS = [TwoLayers, BottomUp, Blind]
Normal = tfp.distributions.MultivariateNormalDiag


@pytest.fixture(scope="module")
def x(x_test):
    return x_test[:6]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 2))
def test_the_kl_is_tfps(seed, n, scale):
    mean, logvar, p_mean, p_logvar = np.float32(scale * np.random.default_rng(seed).normal(size=(4, 3, n)))
    right = tfp.distributions.kl_divergence(Normal(mean, np.exp(logvar / 2)), Normal(p_mean, np.exp(p_logvar / 2)))
    assert np.allclose(kl_normal(mean, logvar, p_mean, p_logvar), right, rtol=1e-3, atol=1e-4)  # float32
    zero = np.zeros_like(mean)
    assert np.allclose(kl_normal(mean, logvar, zero, zero), kl_standard_normal(mean, logvar), rtol=1e-4, atol=1e-5)
    assert np.allclose(kl_normal(mean, logvar, mean, logvar), 0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{}, {"latent_dim": 5, "top": 3}])
def test_every_term_is_tfps(x, kind, sizes):
    model = shaken(kind, **sizes)
    eps = draw_eps(0, 0, (6, model.latent_dim))
    z_2, z_1, q_2, q_1, p_1 = model.draw(x, eps)
    terms = layer_terms(model, x, eps)
    q_2, q_1, p_1 = (Normal(mean, tf.exp(logvar / 2)) for mean, logvar in (q_2, q_1, p_1))
    p_2 = Normal(tf.zeros(model.top))
    assert np.allclose(terms.log_pz, p_2.log_prob(z_2) + p_1.log_prob(z_1), atol=1e-3)
    assert np.allclose(terms.log_qz_x, q_2.log_prob(z_2) + q_1.log_prob(z_1), atol=1e-3)
    assert np.allclose(terms.kl_2, tfp.distributions.kl_divergence(q_2, p_2), atol=1e-3)
    lower = (tfp.distributions.kl_divergence(q_1, p_1) if model.top_down else q_1.log_prob(z_1) - p_1.log_prob(z_1))
    assert np.allclose(terms.kl_1, lower, atol=1e-3)
    pixels = tfp.distributions.Independent(tfp.distributions.Bernoulli(logits=model.decoder(z_1), dtype=tf.float32), 3)
    assert np.allclose(terms.log_px_z, pixels.log_prob(x), rtol=1e-5)
    # In the coordinates (z2, u) it is a VAE like any other.
    mean, logvar = model.prior(z_2)
    z = tf.concat([z_2, (z_1 - mean) * tf.exp(-logvar / 2)], axis=1)
    assert np.allclose(model.decode(z), model.decoder(z_1), atol=1e-3)
    assert np.allclose(model.log_likelihood(x, z), terms.log_px_z, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_course_works_for_two_layers(x, kind):
    model, eps = shaken(kind), draw_eps(0, -1, (6, 12))
    terms = layer_terms(model, x, eps)
    assert np.allclose(elbo_terms(model, x, eps).kl, terms.kl_1 + terms.kl_2, atol=1e-4)
    log_w = terms.log_px_z + terms.log_pz - terms.log_qz_x
    assert np.allclose(sample_log_weights(model, x, eps[:, None])[:, 0], log_w, atol=1e-3)
    assert np.isclose(evaluate(model, x, seed=0)["elbo"], np.mean(log_w), atol=1e-3)
    assert model.sample(eps).shape == (6, 28, 28, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_average_to_the_truth(x, kind):
    """One number in each layer: quadrature knows log p(x), and importance weights must find it, the ELBO stay below."""
    model = shaken(kind, 0.05, latent_dim=2, top=1)
    for network in (model.encoder, getattr(model, "second_network", None)):
        if network:  # wider than the posterior, so that no weight is huge
            bias = network.weights[-1]
            bias.assign_add(np.resize([0.0, 1.0], bias.shape))
    log_px = log_marginal(model, x, tolerance=0.01).log_px
    log_w = log_weights(model, x, samples=4000).astype(float)
    w = np.exp(log_w - log_px[:, None])
    assert np.all(np.abs(w.mean(axis=1) - 1) < 5 * w.std(axis=1) / np.sqrt(4000) + 0.02)
    assert np.all(log_w.mean(axis=1) < log_px + 0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_are_means_of_the_log_ratio(x, kind):
    model = shaken(kind)
    terms = layer_terms(model, np.repeat(x[:1], 4000, axis=0), draw_eps(0, 0, (4000, 12)))
    difference = np.asarray(terms.log_px_z + terms.log_pz - terms.log_qz_x - terms.bound(), float)
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(4000) + 1e-4


def test_without_the_top_it_is_the_flat_model(x):
    model, flat = shaken(TwoLayers), DenseVAE(10, width=8, depth=2, inner=8, seed=0)
    *rest, kernel, bias = model.encoder.weights
    kernel.assign(kernel * (np.arange(24) < 20)), bias.assign(bias * (np.arange(24) < 20))
    for network in (model.prior_network, model.second_network):
        for weight in network.layers[-1].weights:
            weight.assign(tf.zeros_like(weight))
    flat.encoder.set_weights([*rest, kernel[:, :20], bias[:20]])
    flat.decoder.set_weights(model.decoder.weights)
    eps = draw_eps(0, 0, (6, 12))
    two, one = layer_terms(model, x, eps), layer_terms(flat, x, eps[:, 2:])
    assert np.allclose(two.bound(), one.bound(), atol=1e-3) and np.allclose(two.kl_2, 0, atol=1e-6)
    assert np.allclose(two.kl_1, one.kl_1, atol=1e-4) and np.all(one.kl_2 == 0)
    assert share_of_top(model).max() == 0
    z = draw_eps(0, 1, (6, 12))
    assert np.array_equal(model.decode(z), model.decode(tf.concat([-z[:, :2], z[:, 2:]], axis=1)))  # nobody reads z2


def test_the_blind_price_does_not_know_the_upper_code(x):
    model, eps = shaken(Blind), draw_eps(0, 0, (6, 12))
    mean, logvar, _, _ = tf.split(model.encoder(x), [10, 10, 2, 2], axis=1)
    terms = layer_terms(model, x, eps)
    assert np.allclose(terms.kl_1, kl_standard_normal(mean, logvar), rtol=1e-4)
    z_2, z_1, _, _, (p_mean, p_logvar) = model.draw(x, eps)
    u = (z_1 - p_mean) * tf.exp(-p_logvar / 2)
    assert np.allclose(u, mean + tf.exp(logvar / 2) * eps[:, 2:], atol=1e-3)


def test_the_lower_kl_of_bottom_up_may_be_negative(x):
    kl_1 = layer_terms(BottomUp(seed=0), np.repeat(x, 50, axis=0), draw_eps(0, 0, (300, 12))).kl_1
    assert np.min(kl_1) < 0


@pytest.mark.parametrize("w, variance", [(2.0, 0.5), (0.1, 3.0), (0.0, 1.0)])
def test_share_is_that_of_a_linear_prior(w, variance):
    model = TwoLayers(width=4, inner=4, seed=0)
    model.prior = lambda z_2: (w * tf.repeat(z_2[:, :1], 10, axis=1), tf.fill((len(z_2), 10), np.float32(np.log(variance))))
    share, right = share_of_top(model, 20_000), w**2 / (w**2 + variance)
    assert np.allclose(share, right, atol=0.02)  # a variance of 20,000 draws is known to a percent
    assert share.shape == (10,)


# Training.

SMALL = {"width": 8, "inner": 8, "seed": 0}


@pytest.mark.parametrize("make", [lambda: DenseVAE(4, 8, 2, 8, seed=0), *(lambda kind=kind: kind(**SMALL) for kind in KINDS)],
                         ids=["flat", *(kind.__name__ for kind in KINDS)])
def test_training_raises_the_bound_and_is_the_same_again(x_test, make):
    records = []
    for _ in range(2):
        model = make()
        eps = draw_eps(0, -1, (100, model.latent_dim))
        before = np.mean(layer_terms(model, x_test[:100], eps).bound())
        records.append(train_layers(model, x_test[:500], x_test[:100], steps=20, looks=2))
        after = np.mean(layer_terms(model, x_test[:100], eps).bound())
    assert np.array_equal(*records) and records[0].shape == (2, 4) and list(records[0][:, 0]) == [10, 20]
    assert after > before + 50
    assert np.isclose(records[0][-1, 1] - records[0][-1, 2:].sum(), after, atol=0.01)


def test_warm_up_and_free_bits_change_the_bound():
    terms = LayerTerms(*(tf.constant(part) for part in ([-100.0, -90.0], [0.0, 0.0], [0.0, 0.0], [5.0, 7.0], [0.0, 1.0])))
    assert np.allclose(terms.bound(), [-105, -98])
    assert np.allclose(terms.bound(0.0), [-100, -90]) and np.allclose(terms.bound(0.5), [-102.5, -94])
    assert np.allclose(terms.bound(free=2.0), [-107, -99])  # all pay the two nats, and no gradient asks for less
    assert np.isclose(np.mean(terms.bound(free=0.2)), np.mean(terms.bound()))  # 0.5 nats on average are above
    kl_2 = tf.Variable([0.0, 1.0])
    with tf.GradientTape() as tape:
        bound = terms._replace(kl_2=kl_2 * 1.0).bound(free=2.0)
    assert np.all(tape.gradient(bound, kl_2) == 0)


def test_networks():
    network = dense_network((3, 5, 2), seed=1)
    a, b, c, d = network.get_weights()
    z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.allclose(network(z), np.maximum(z @ a + b, 0) @ c + d, atol=1e-5)
    assert all(abs(kind().count_params() / TwoLayers().count_params() - 1) < 0.01 for kind in KINDS)
    with pytest.raises(ValueError, match="widths must have an input and an output"):
        dense_network((3,))
    with pytest.raises(ValueError, match="top must be smaller than latent_dim, 4, got 4"):
        TwoLayers(latent_dim=4, top=4)

"""Loss values: densities and KL against scipy and TFP, and exact cases."""

import re

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_course.elbo import ElboTerms, bernoulli_log_prob, kl_standard_normal, log_normal_pdf
from vae_course.reparameterization import draw_eps, reparameterize

# float32 keeps 24 bits: a sum of a few hundred rounded terms is good to about 1e-5 of its size.
RTOL = 2e-5


def arrays(shape, low, high):
    return hnp.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@settings(max_examples=50, deadline=None)
@given(z=arrays((3, 2), -8, 8), mean=arrays((3, 2), -8, 8), logvar=arrays((3, 2), -4, 4))
def test_log_normal_pdf_against_scipy(z, mean, logvar):
    expected = scipy.stats.norm.logpdf(z.astype(float), mean, np.exp(logvar.astype(float) / 2))
    assert np.allclose(log_normal_pdf(z, mean, logvar), expected.sum(axis=1), rtol=RTOL, atol=1e-4)


def test_log_normal_pdf_against_tfp(rng):
    z, mean, logvar = rng.normal(size=(3, 500, 16)).astype(np.float32)
    reference = tfp.distributions.MultivariateNormalDiag(mean, np.exp(logvar / 2)).log_prob(z)
    assert np.allclose(log_normal_pdf(z, mean, logvar), reference, rtol=RTOL, atol=1e-4)


def test_log_normal_pdf_by_hand():
    # One component, z = 2, μ = 1, σ² = 4: -½ (1/4 + log 4 + log 2π).
    expected = -0.5 * (0.25 + np.log(4) + np.log(2 * np.pi))
    value = log_normal_pdf(tf.constant([[2.0]]), 1.0, float(np.log(4)))
    assert value.shape == (1,) and np.isclose(value[0], expected, rtol=1e-6)


def test_log_normal_pdf_sums_the_axis_it_is_told():
    z = tf.zeros((3, 4, 5))
    assert log_normal_pdf(z, 0.0, 0.0).shape == (3, 5)
    assert log_normal_pdf(z, 0.0, 0.0, raxis=-1).shape == (3, 4)
    assert log_normal_pdf(z, 0.0, 0.0, raxis=[1, 2]).shape == (3,)


def test_log_normal_pdf_keeps_double_precision():
    z = np.array([[0.1, 0.2]])
    assert np.isclose(log_normal_pdf(z, 0.0, 0.0)[0], scipy.stats.norm.logpdf(z).sum(), rtol=1e-14)


@settings(max_examples=50, deadline=None)
@given(logits=arrays((2, 4, 4, 1), -30, 30), pixels=arrays((2, 4, 4, 1), 0, 1))
def test_bernoulli_against_scipy(logits, pixels):
    x = np.round(pixels)
    # scipy takes probabilities; log p and log (1 - p) written so that they do not round to -inf.
    logits64 = logits.astype(float)
    expected = np.where(x == 1, -np.logaddexp(0, -logits64), -np.logaddexp(0, logits64))
    moderate = np.abs(logits64) < 10
    by_scipy = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits64)))
    assert np.allclose(expected[moderate], by_scipy[moderate], rtol=1e-6, atol=1e-9)
    assert np.allclose(bernoulli_log_prob(x, logits), expected.sum(axis=(1, 2, 3)), rtol=RTOL, atol=1e-5)


def test_bernoulli_against_tfp(x, rng):
    logits = rng.normal(scale=4, size=x.shape).astype(np.float32)
    reference = tfp.distributions.Independent(tfp.distributions.Bernoulli(logits=logits), 3)
    assert np.allclose(bernoulli_log_prob(x, logits), reference.log_prob(x), rtol=RTOL)


def test_bernoulli_by_hand():
    x = np.array([1, 0, 1], np.float32).reshape(1, 1, 3, 1)
    logits = np.log([3, 1, 1 / 3]).astype(np.float32).reshape(x.shape)  # p = ¾, ½, ¼
    assert np.isclose(bernoulli_log_prob(x, logits)[0], np.log(0.75 * 0.5 * 0.25), rtol=1e-6)


def test_bernoulli_probabilities_add_up_to_one():
    images = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, 16).T.reshape(16, 2, 2, 1)
    logits = np.broadcast_to(np.float32([[0.3], [-2], [1.5], [4]]).reshape(2, 2, 1), images.shape)
    assert np.isclose(np.exp(bernoulli_log_prob(images.astype(np.float32), logits)).sum(), 1, rtol=1e-5)


def test_extreme_logits_stay_finite():
    x = np.array([0, 1], np.float32).reshape(1, 1, 2, 1)
    assert bernoulli_log_prob(x, np.float32([1e4, -1e4]).reshape(x.shape))[0] == -2e4


@settings(max_examples=50, deadline=None)
@given(mean=arrays((3, 2), -8, 8), logvar=arrays((3, 2), -6, 6))
def test_kl_against_tfp_and_never_negative(mean, logvar):
    q = tfp.distributions.Normal(mean.astype(float), np.exp(logvar.astype(float) / 2))
    prior = tfp.distributions.Normal(np.float64(0), np.float64(1))
    expected = tf.reduce_sum(tfp.distributions.kl_divergence(q, prior), axis=1)
    value = kl_standard_normal(mean, logvar)
    assert np.allclose(value, expected, rtol=RTOL, atol=1e-6)
    assert np.all(value >= -1e-6)  # rounding of terms that cancel


def test_kl_against_numerical_integration():
    mean, logvar = 0.7, -1.2
    q = scipy.stats.norm(mean, np.exp(logvar / 2))
    grid = np.linspace(-8, 8, 20_001)
    log_ratio = q.logpdf(grid) - scipy.stats.norm.logpdf(grid)
    expected = np.sum(q.pdf(grid) * log_ratio) * (grid[1] - grid[0])
    value = kl_standard_normal(tf.constant([[mean]]), tf.constant([[logvar]]))[0]
    assert np.isclose(value, expected, rtol=1e-5)


def test_kl_by_hand():
    # μ = (1, 0), σ² = (1, e): ½ [1 + 0 + (e - 1 - 1)].
    value = kl_standard_normal(tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 1.0]]))[0]
    assert np.isclose(value, 0.5 * (1 + np.e - 2), rtol=1e-6)


def test_monte_carlo_kl_meets_the_closed_form():
    mean, logvar = tf.fill((200_000, 2), 0.8), tf.fill((200_000, 2), -1.5)
    z = reparameterize(mean, logvar, draw_eps(0, 0, mean.shape))
    samples = np.float64(log_normal_pdf(z, mean, logvar) - log_normal_pdf(z, 0.0, 0.0))
    error = samples.std() / np.sqrt(len(samples))
    # Five standard errors: a right estimator fails this once in two million seeds.
    assert abs(samples.mean() - kl_standard_normal(mean, logvar)[0]) < 5 * error


def table_of(terms):
    """{term: its cell} of the table that a notebook shows."""
    head, _, *rows = terms._repr_markdown_().split("\n")
    assert head == "| term | nats per image |"
    return dict(re.fullmatch(r"\| (.*?) \| ([^|]*?) \|", row).groups() for row in rows)


def test_terms_show_themselves_as_means_with_standard_errors(rng):
    arrays = rng.normal([[-150], [-3], [2], [5]], [[40], [1], [1], [2]], size=(4, 50)).astype(np.float32)
    terms = ElboTerms(*map(tf.constant, arrays))
    table = table_of(terms)
    assert list(table)[-1] == "ELBO" and len(table) == 5
    log_px_z, log_pz, log_qz_x, kl = arrays.astype(float)
    for shown, values in zip(table.values(), [log_px_z, log_pz, log_qz_x, kl, log_px_z + log_pz - log_qz_x], strict=True):
        mean, error = map(float, shown.split(" ± "))
        # Rounded to two digits.
        assert abs(mean - values.mean()) <= 0.00501
        assert abs(error - scipy.stats.sem(values)) <= 0.00501


def test_terms_of_one_image_have_no_standard_error():
    table = table_of(ElboTerms(*(tf.constant([number]) for number in (-150.0, -3.0, 2.0, 5.0))))
    assert list(table.values()) == ["-150.00", "-3.00", "2.00", "5.00", "-155.00"]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: log_normal_pdf(tf.zeros(3), 0.0, 0.0), "(?s)sample.*batch, latent_dim"),
    (lambda: log_normal_pdf(tf.zeros((3, 2)), tf.zeros((4, 3, 2)), 0.0), "mean"),
    (lambda: log_normal_pdf(tf.zeros((3, 2)), 0.0, tf.zeros((3, 5))), "logvar"),
    (lambda: bernoulli_log_prob(tf.zeros((2, 4, 4, 1)), tf.zeros((2, 4, 4, 2))), "x_logits"),
    (lambda: bernoulli_log_prob(tf.fill((2, 4, 4, 1), 0.5), tf.zeros((2, 4, 4, 1))), "0 or 1"),
    (lambda: kl_standard_normal(tf.zeros(2), tf.zeros(2)), "latent_dim"),
    (lambda: kl_standard_normal(tf.zeros((3, 2)), tf.zeros((3, 3))), "latent_dim"),
])
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

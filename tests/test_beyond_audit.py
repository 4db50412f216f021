"""The nine lessons: their weights by algebra and by gradient, the mend, and other frameworks' losses."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.beyond.audit import (LESSONS, Lesson, effective_beta, factors, fit_factor, implied_noise, lesson_loss, measured_beta,
                                     mended, resized, scaled, train_lesson)
from vae_course.beyond.gap import DenseVAE
from vae_course.reparameterization import draw_eps
from vae_course.training import compute_loss, evaluate

WAYS = st.sampled_from(["sum", "mean"])
ANY = st.builds(Lesson, error=st.sampled_from(["cross-entropy", "squares"]), over_pixels=WAYS, over_code=WAYS, over_batch=WAYS,
                error_weight=st.floats(0.01, 10), kl_weight=st.floats(1e-4, 10), numbers=st.integers(1, 60),
                latent_dim=st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(ANY, st.floats(0.05, 5))
def test_beta_by_algebra_is_beta_by_gradient(lesson, variance):
    assert measured_beta(lesson, variance) == pytest.approx(effective_beta(lesson, variance), rel=1e-8)  # float64


@pytest.mark.parametrize(("name", "beta"), {
    "keras.io": 1, "Keras guide": 784 / 32, "TFP": 2, "PyTorch": 1, "fast.ai": 784 / 200, "flax": 1, "Pyro": 1,
    "PyTorch-VAE": 0.00025 * 12288, "pythae": 2}.items())
def test_the_nine(name, beta):
    assert effective_beta(LESSONS[name]) == pytest.approx(beta)


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_noise_is_the_one_with_beta_1(lesson):
    if lesson.error == "squares":
        assert effective_beta(lesson, implied_noise(lesson)**2) == pytest.approx(1)
    else:
        with pytest.raises(ValueError, match="no noise to choose"):
            implied_noise(lesson)


@settings(max_examples=40, deadline=None)
@given(ANY, st.integers(1, 900), st.integers(1, 90))
def test_resized_keeps_beta(lesson, numbers, latent_dim):
    other = resized(lesson, numbers, latent_dim)
    assert (other.numbers, other.latent_dim) == (numbers, latent_dim)
    assert effective_beta(other) == pytest.approx(effective_beta(lesson))


@pytest.fixture(scope="module")
def numbers():
    """Images, logits, mean and logvar of five images of 30 pixels and four numbers of code."""
    rng = np.random.default_rng(0)
    return [v.astype(np.float32) for v in (rng.random((5, 30)), rng.normal(size=(5, 30)), *rng.normal(size=(2, 5, 4)))]


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_loss_is_that_of_its_factors(numbers, lesson):
    x, x_logits, mean, logvar = (v.astype(float) for v in numbers)
    lesson = replace(lesson, numbers=30, latent_dim=4)
    a, b = factors(lesson)
    p = 1 / (1 + np.exp(-x_logits))
    error = (x - p)**2 if lesson.error == "squares" else -x * np.log(p) - (1 - x) * np.log1p(-p)
    each = a * error.sum(axis=1) + b * (mean**2 + np.exp(logvar) - 1 - logvar).sum(axis=1) / 2
    expected = each.sum() if lesson.over_batch == "sum" else each.mean()
    assert lesson_loss(lesson, *numbers).numpy() == pytest.approx(expected, rel=1e-4)  # float32


@pytest.mark.parametrize("name", LESSONS)
def test_mended_has_the_gradient_of_compute_loss(x_test, name):
    """Through every weight of a network, up to the factor that the batch's reduction makes."""
    model, x, eps = DenseVAE(4, 8, 1, 8, seed=0), x_test[:16], draw_eps(0, 0, (16, 4))
    with tf.GradientTape(persistent=True) as tape:
        ours = compute_loss(model, x, eps, "closed_form")
        mean, logvar = model.encode(x)
        x_logits = tf.reshape(model.decode(model.reparameterize(mean, logvar, eps)), (16, 784))
        theirs = lesson_loss(mended(LESSONS[name]), x.reshape(16, 784), x_logits, mean, logvar)
    factor = 16 if LESSONS[name].over_batch == "sum" else 1
    assert float(theirs) == pytest.approx(factor * float(ours), rel=1e-5)
    for g, h in zip(*(tape.gradient(loss, model.trainable_variables) for loss in (ours, theirs)), strict=True):
        assert np.allclose(factor * g, h, rtol=1e-4, atol=1e-4 * factor * np.abs(g).max())  # float32 sums


@pytest.mark.parametrize(("field", "value"), [("error", "L1"), ("over_pixels", "max"), ("over_code", None), ("over_batch", "none"),
                                              ("images", "colour"), ("kl_weight", 0.0), ("error_weight", -1.0), ("numbers", 0),
                                              ("latent_dim", 2.5)])
def test_no_such_lesson(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        Lesson(**{field: value})


def test_factor_is_where_the_likelihood_is_highest(x_test):
    x = x_test[:50]
    model = scaled(train_lesson(LESSONS["Keras guide"], x_test[:500], 3, 8, 30, 16), 2.0)  # a bold decoder
    found = fit_factor(model, x)
    mean, logvar = model.encode(x)
    z = model.reparameterize(mean, logvar, draw_eps(0, 0, (50, 3)))
    price = [float(tf.reduce_sum(scaled(model, f).log_likelihood(x, z))) for f in (found * 0.9, found, found * 1.1)]
    assert price[1] > price[0] and price[1] > price[2]


def test_scaled_by_1_is_the_model(x_test):
    model = DenseVAE(3, 8, 1, 8, seed=1)
    assert evaluate(scaled(model, 1.0), x_test[:20]) == pytest.approx(evaluate(model, x_test[:20]), rel=1e-5)


def test_training_repeats_and_learns(x_test):
    first, again = (train_lesson(LESSONS["fast.ai"], x_test[:500], 3, 8, 20, 16, seed=2) for _ in range(2))
    assert all(np.array_equal(v, w) for v, w in zip(first.get_weights(), again.get_weights(), strict=True))
    assert evaluate(first, x_test[:100])["elbo"] > evaluate(DenseVAE(3, 8, 1, 8, seed=2), x_test[:100])["elbo"]


def test_pytorchs_own_losses(numbers):
    """The words of PyTorch's lessons, said to PyTorch itself."""
    torch = pytest.importorskip("torch")
    x, x_logits, mean, logvar = map(torch.tensor, numbers)
    F, kl = torch.nn.functional, (mean**2 + logvar.exp() - 1 - logvar) / 2
    p = torch.sigmoid(x_logits)
    small = {name: replace(lesson, numbers=30, latent_dim=4) for name, lesson in LESSONS.items()}
    for name, loss in {"PyTorch": F.binary_cross_entropy(p, x, reduction="sum") + kl.sum(),
                       "fast.ai": F.binary_cross_entropy_with_logits(x_logits, x) + kl.mean(),
                       "PyTorch-VAE": F.mse_loss(p, x) + 0.00025 * kl.sum(1).mean(),
                       "pythae": (F.mse_loss(p, x, reduction="none").sum(1) / 2 + kl.sum(1)).mean()}.items():
        assert lesson_loss(small[name], *numbers).numpy() == pytest.approx(loss.item(), rel=1e-5), name


def test_flax_s_own_loss(numbers):
    """The cross-entropy of optax and the KL, mapped over the batch and averaged, as flax's example does."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    x, x_logits, mean, logvar = map(jax.numpy.asarray, numbers)
    error = jax.vmap(lambda a, y: optax.sigmoid_binary_cross_entropy(a, y).sum())(x_logits, x).mean()
    kl = jax.vmap(lambda m, v: (m**2 + jax.numpy.exp(v) - 1 - v).sum() / 2)(mean, logvar).mean()
    assert lesson_loss(LESSONS["flax"], *numbers).numpy() == pytest.approx(float(error + kl), rel=1e-5)

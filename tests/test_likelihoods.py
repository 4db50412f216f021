"""The likelihoods: that they add up to 1, agree with scipy and TFP, and survive absurd parameters."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from vae_course.engine.families import Bernoulli, LIKELIHOODS
from vae_course.further.likelihoods import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    continuous_bernoulli_mean,
    log_normaliser,
)
from vae_course.engine.speed import each_with_each
from vae_course.truth.diagnosis import bits_per_dimension
from vae_course.engine.families import FastCVAE

LEVELS = np.arange(256) / 255
VALUES = {"bernoulli": [0, 1], "continuous_bernoulli": [0, 1 / 255, 0.5, 1], "discretized_logistic": LEVELS[[0, 1, 128, 254, 255]]}
EXTREME = [-1e30, -1e10, -1e3, -100, -88, -20, -0.5, -0.1, -1e-10, 0, 1e-10, 0.1, 0.5, 20, 88, 100, 1e3, 1e30]

# The Gaussian of chapter 39 is no density of pixels alone; tests/test_beyond_linear.py tries it.
by_name = pytest.mark.parametrize("name", [name for name in LIKELIHOODS.names() if name != "gaussian"])


def pixels(values):
    return np.reshape(np.float32(values), (-1, 1, 1, 1))


def many(parameters, n):
    return np.tile(np.float32(parameters), (n, 1, 1, 1))


def mass(location, log_scale):
    parameters = many([location, log_scale], 256)
    return np.exp(DiscretizedLogistic().log_prob(pixels(LEVELS), parameters).numpy().astype(float))


@settings(max_examples=60, deadline=None)
@given(a=st.floats(-60, 60, width=32))
@example(a=0.0)
@example(a=0.1)  # where the series ends
@example(a=-0.1)
def test_continuous_bernoulli_integrates_to_one(a):
    x, weights = np.polynomial.legendre.leggauss(80)
    x, weights = (x + 1) / 2, weights / 2
    p = np.exp(ContinuousBernoulli().log_prob(pixels(x), many([a], 80)).numpy().astype(float))
    # The quadrature is exact here; float32 rounds a log density of up to 60 at 4e-6 of itself.
    assert abs(weights @ p - 1) < 3e-5
    assert abs(weights @ (p * x) - continuous_bernoulli_mean(np.float32(a))) < 3e-5


@settings(max_examples=60, deadline=None)
@given(a=st.floats(-500, 500, width=32), x=st.floats(0, 1, width=32))
def test_continuous_bernoulli_agrees_with_tfp(a, x):
    theirs = tfp.distributions.ContinuousBernoulli(logits=np.float64(a)).log_prob(np.float64(x))
    ours = ContinuousBernoulli().log_prob(pixels([x]), pixels([a]))[0]
    # float32 rounds numbers of up to 500 at 6e-8 of them; TFP's own series near 0 is good to 1e-5.
    assert np.isclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_normaliser_and_mean_agree_with_float64():
    a = np.concatenate([np.linspace(-40, 40, 4001), np.geomspace(1e-12, 1e30, 500)]).astype(np.float32)
    b = np.abs(a[a != 0].astype(float))
    exact = np.where(b < 1e-4, np.log(2), np.log(b / np.tanh(b / 2)))
    assert np.allclose(log_normaliser(a[a != 0]), exact, rtol=1e-6, atol=1e-6)
    mean = np.where(b < 1e-3, 0.5 + b / 12, -1 / np.expm1(-b) - 1 / b)
    assert np.allclose(continuous_bernoulli_mean(np.float32(b)), mean, atol=1e-6)
    assert np.allclose(continuous_bernoulli_mean(np.float32(-b)), 1 - mean, atol=1e-6)


def test_mean_is_the_slope_of_the_normaliser():
    """Of an exponential family: d/da log ∫ exp(a x) dx = E[x]."""
    a = tf.constant(np.linspace(-30, 30, 601), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(a)
        log_integral = tf.nn.softplus(a) - log_normaliser(a)
    # float32: the slope of log C is a difference of two numbers of up to 10 near the series' end.
    assert np.allclose(tape.gradient(log_integral, a), continuous_bernoulli_mean(a), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(location=st.floats(-2, 3, width=32), log_scale=st.floats(-7, 7, width=32))
@example(location=1e30, log_scale=-1e30)
@example(location=-1e30, log_scale=1e30)
@example(location=0.0, log_scale=-7.0)
def test_256_levels_add_up_to_one(location, log_scale):
    p = mass(location, log_scale)
    # 256 numbers, each rounded at a few 1e-7 of its logarithm, which is below 20 where it matters.
    assert abs(p.sum() - 1) < 3e-5
    mean = DiscretizedLogistic().mean(many([location, log_scale], 1)).numpy().item()
    assert abs(p @ LEVELS - mean) < 0.5 / 255  # what rounding to levels can move


@settings(max_examples=40, deadline=None)
@given(location=st.floats(-0.5, 1.5, width=32), log_scale=st.floats(-6, 2, width=32))
def test_masses_agree_with_scipy_and_tfp(location, log_scale):
    logistic, edges = stats.logistic(location, np.exp(log_scale)), (np.arange(255) + 0.5) / 255
    cdf, upper = logistic.cdf(edges), logistic.sf(edges)
    # The differences of float64 are exact where they are taken on the side of the smaller tail.
    inner = np.where(cdf[1:] < 0.5, np.diff(cdf), -np.diff(upper))
    exact = np.concatenate([[cdf[0]], inner, [upper[-1]]])
    ours = mass(location, log_scale)
    # x - μ is rounded at 1e-7 and divided by s; s is e⁻⁶ at least: 4e-5 of each mass.
    assert np.allclose(ours, exact, rtol=2e-4, atol=1e-12)
    theirs = tfp.distributions.QuantizedDistribution(
        tfp.distributions.Logistic(np.float64(255 * location - 0.5), np.float64(255 * np.exp(log_scale))),
        low=0.0, high=255.0)
    assert np.allclose(ours, np.exp(theirs.log_prob(np.arange(256.0))), rtol=2e-4, atol=1e-9)


def test_tails_are_finite_where_a_difference_is_zero():
    log_p = DiscretizedLogistic().log_prob(pixels([0.5 + 0.5 / 255]), many([1000.0, -7.0], 1))
    assert np.isfinite(log_p[0]) and log_p[0] < -1e5


@by_name
@pytest.mark.parametrize("second", [-1e30, -20, -7, 0, 7, 1e30])
def test_extreme_parameters_give_finite_values_and_gradients(name, second):
    likelihood = LIKELIHOODS[name]
    for value in VALUES[name]:
        first = np.float32(EXTREME).reshape(-1, 1, 1, 1)
        parts = [first, np.full_like(first, second)][:likelihood.numbers]
        parameters = tf.Variable(np.concatenate(parts, axis=-1))
        with tf.GradientTape(persistent=True) as tape:
            log_prob = likelihood.log_prob(many([value], len(first)), parameters)
            mean = likelihood.mean(parameters)
        draws = likelihood.sample(parameters, (0, 1))
        tensors = log_prob, mean, draws, tape.gradient(log_prob, parameters), tape.gradient(mean, parameters)
        assert all(np.isfinite(tensor).all() for tensor in tensors), value
        assert 0 <= np.min(mean) and np.max(mean) <= 1 and 0 <= np.min(draws) and np.max(draws) <= 1


@by_name
def test_gradients_are_the_finite_differences(name, rng):
    likelihood = LIKELIHOODS[name]
    x = rng.choice(VALUES[name], (3, 2, 2, 1)).astype(np.float32)
    parameters = tf.Variable(rng.normal(0, 1, (3, 2, 2, likelihood.numbers)).astype(np.float32))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(likelihood.log_prob(x, parameters))
    gradient, step = tape.gradient(total, parameters).numpy(), 1e-2
    start = parameters.numpy()
    for index in np.ndindex(*start.shape):
        shift = np.zeros_like(start)
        shift[index] = step
        high, low = (float(tf.reduce_sum(likelihood.log_prob(x, start + s * shift))) for s in (1, -1))
        # Sums of some 50 nats rounded at 4e-6, over 2e-2; and the third derivative times 1e-4 / 6.
        assert abs((high - low) / (2 * step) - gradient[index]) < 3e-3


@by_name
def test_samples_have_the_mean_and_are_accepted(name, rng):
    likelihood, n = LIKELIHOODS[name], 4000
    parameters = rng.normal(0, 1, (1, 4, 4, 3 * likelihood.numbers)).astype(np.float32)
    parameters = np.repeat(parameters, n, axis=0)
    draws = likelihood.sample(parameters, (3, 4)).numpy()
    assert draws.shape == (n, 4, 4, 3) and np.isfinite(likelihood.log_prob(draws, parameters)).all()
    error = draws.std(axis=0) / np.sqrt(n)
    # 48 pixels and channels at five standard errors, and half a level for the discretised mean.
    assert np.all(np.abs(draws.mean(axis=0) - likelihood.mean(parameters)[0]) < 5 * error + 0.5 / 255)
    assert np.array_equal(draws, likelihood.sample(parameters, (3, 4)))  # the seed says it all
    assert not np.array_equal(draws, likelihood.sample(parameters, (3, 5)))


@pytest.mark.parametrize("a", [-300.0, -3.0, -1e-4, 0.0, 1e-4, 0.3, 8.0])
def test_continuous_samples_follow_the_distribution_function(a):
    draws = ContinuousBernoulli().sample(many([a], 5000), (0, 0)).numpy().ravel().astype(float)

    def cdf(x):
        return x if a == 0 else np.expm1(a * x) / np.expm1(a)

    assert stats.kstest(draws, cdf).pvalue > 1e-4


def test_discretised_samples_have_the_masses():
    for location, log_scale in ((0.5, -6.0), (0.99, -3.0), (0.1, 0.0)):
        draws = DiscretizedLogistic().sample(many([location, log_scale], 20_000), (0, 0)).numpy()
        counts, p = np.bincount(np.round(255 * draws).astype(int).ravel(), minlength=256), mass(location, log_scale)
        assert np.all(np.abs(counts - 20_000 * p) < 5 * np.sqrt(20_000 * p) + 3)


@by_name
@pytest.mark.parametrize("spread", [1.0, 5.0])
@pytest.mark.parametrize("piece", [2**21, 200])
def test_every_image_with_every_code_is_log_prob(name, spread, piece, rng, monkeypatch):
    for module in ("vae_course.engine.speed", "vae_course.further.likelihoods"):
        monkeypatch.setattr(f"{module}.PIECE", piece)  # the small one cuts the images into parts
    model = FastCVAE(filters=(2, 3), seed=0, image_shape=(7, 9, 2), likelihood=name)
    x = rng.choice(VALUES[name], (6, 7, 9, 2)).astype(np.float32)
    parameters = rng.normal(0, spread, (4, 7, 9, 2 * model.likelihood.numbers)).astype(np.float32)
    singly = [[model.likelihood.log_prob(image[None], code[None])[0] for code in parameters] for image in x]
    pairs = each_with_each(model, x.reshape(6, -1), parameters.reshape(4, -1))
    # 126 numbers of float32; x - μ over a scale of e⁻⁷ is rounded at 1e-4, in each of them alike or not.
    assert pairs.shape == (6, 4) and np.allclose(pairs, singly, rtol=2e-6, atol=1e-3)
    plain = each_with_each(Plain(model), x.reshape(6, -1), parameters.reshape(4, -1))
    assert np.allclose(plain, singly, rtol=2e-6, atol=1e-3)


class Plain:
    """A model whose likelihood knows no quick way: it has `log_prob`, and no `pairs`."""

    def __init__(self, model):
        self.image_shape, (self.log_prob, self.numbers) = model.image_shape, (model.likelihood.log_prob, model.likelihood.numbers)

    likelihood = property(lambda self: self)


@pytest.mark.parametrize("first", EXTREME)
@pytest.mark.parametrize("second", [-1e30, -7, 0, 7, 1e30])
def test_pairs_survive_what_log_prob_survives(first, second):
    for name in ("continuous_bernoulli", "discretized_logistic"):
        likelihood, x = LIKELIHOODS[name], pixels(VALUES[name])
        parameters = np.float32([first, second][:likelihood.numbers]).reshape(1, 1, 1, -1)
        expected = likelihood.log_prob(x, many(parameters.ravel(), len(x)))
        # A matrix product rounds at 1e-7 of the logit, and so does chapter 21's of binary pixels.
        assert np.allclose(likelihood.pairs(x, parameters)[:, 0], expected, rtol=1e-5, atol=max(3e-4, 1e-6 * abs(first)))


@by_name
def test_pixels_and_channels_add_up(name, rng):
    likelihood = LIKELIHOODS[name]
    x = rng.choice(VALUES[name], (2, 3, 4, 3)).astype(np.float32)
    parameters = rng.normal(size=(2, 3, 4, 3 * likelihood.numbers)).astype(np.float32)
    total = np.zeros(2)
    for channel in range(3):  # the numbers of a channel lie 3 apart
        total += likelihood.log_prob(x[..., channel:channel + 1], parameters[..., channel::3]).numpy()
    assert np.allclose(likelihood.log_prob(x, parameters), total, rtol=1e-5)


def test_bernoulli_is_the_chapters(x, rng):
    x_logits = rng.normal(0, 5, x.shape).astype(np.float32)
    theirs = tfp.distributions.Bernoulli(logits=x_logits).log_prob(x)
    assert np.allclose(Bernoulli().log_prob(x, x_logits), tf.reduce_sum(theirs, axis=[1, 2, 3]), rtol=1e-5)


@by_name
def test_start_fits_the_images_on_average(name, rng):
    likelihood = LIKELIHOODS[name]
    images = rng.beta([2, 5, 3], [5, 2, 3], (50, 6, 6, 3))
    images = np.round(images * 255) / 255 if name != "bernoulli" else images.round()
    bias = np.float32(likelihood.start(images.astype(np.float32)))
    assert bias.shape == (3 * likelihood.numbers,)
    mean = likelihood.mean(bias.reshape(1, 1, 1, -1)).numpy().ravel()
    # Location and scale of the logistic are the data's; what the ends push back moves the mean.
    assert np.allclose(mean, images.mean(axis=(0, 1, 2)), atol=0.03 if likelihood.numbers == 2 else 1e-3)


@by_name
def test_start_of_constant_images_is_finite(name):
    for value in (0, 1):
        assert np.isfinite(LIKELIHOODS[name].start(np.full((4, 5, 5, 1), value, np.float32))).all()


def test_bits_of_known_codes():
    shape = (32, 32, 3)
    assert np.isclose(bits_per_dimension(-3072 * np.log(256), shape, 256), 8)
    assert np.isclose(bits_per_dimension(-3072 * np.log(2), shape, 2), 1)
    assert np.isclose(bits_per_dimension(0.0, shape, None), 8)
    assert bits_per_dimension(0.0, shape, 256) == 0


def test_density_with_noise_bounds_the_mass():
    """E over the noise of log density, times the width, is at most the log mass of the level."""
    a, level = 3.0, 200
    edges = np.array([level, level + 1]) / 256
    exact = np.log(np.diff(special.expm1(a * edges) / special.expm1(a)))[0]
    mean_log_density, _ = integrate.quad(
        lambda x: 256 * float(ContinuousBernoulli().log_prob(pixels([x]), pixels([a]))[0]), *edges)
    bits = bits_per_dimension(mean_log_density, (1, 1, 1), None)
    assert -1e-5 < bits + exact / np.log(2) < 1e-3


def test_an_exact_zero_with_noise_costs_log2_e_minus_1_bits():
    """Chapter 27: the continuous Bernoulli pays for the noise, whatever the logit; levels do not."""
    x = (np.arange(2000) + 0.5) / 2000 / 256  # byte 0 with noise
    bits = [bits_per_dimension(np.mean(ContinuousBernoulli().log_prob(pixels(x), pixels(np.full(2000, a)))), (1, 1, 1), None)
            for a in range(-1024, 0, 8)]
    assert np.isclose(min(bits), np.log2(np.e) - 1, atol=1e-4)
    certain = DiscretizedLogistic().log_prob(pixels([0]), np.float32([[[[-1.0, -5.0]]]]))
    assert -float(certain[0]) / np.log(2) < 1e-6


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Bernoulli().log_prob(pixels([0.5]), pixels([0])), "each pixel must be 0 or 1"),
    (lambda: ContinuousBernoulli().log_prob(pixels([1.5]), pixels([0])), "from 0 to 1, got values from 1.5"),
    (lambda: ContinuousBernoulli().log_prob(pixels([np.nan]), pixels([0])), "got NaN"),
    (lambda: ContinuousBernoulli().log_prob(pixels([0.5]), pixels([0, 0])), r"must have shape \(1, 1, 1, 1\)"),
    (lambda: DiscretizedLogistic().log_prob(pixels([0.3]), many([0, 0], 1)), "a multiple of 1/255"),
    (lambda: DiscretizedLogistic().log_prob(pixels([1]), pixels([0])), r"\(1, 1, 1, 2\), 2 for each channel"),
    (lambda: bits_per_dimension(-100.0, (28, 28, 1), 255), "levels must be 2, 256, or None for a density, got 255"),
    (lambda: bits_per_dimension(-100.0, (28, 28, 1), 0), "got 0"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@by_name
def test_models_put_out_what_the_likelihood_needs(name, rng):
    model = FastCVAE(latent_dim=3, image_shape=(12, 9, 3), likelihood=name, seed=0)
    x = rng.choice(VALUES[name], (5, 12, 9, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        mean, logvar = model.encode(x)
        loss = -tf.reduce_mean(model.log_likelihood(x, model.reparameterize(mean, logvar, tf.ones_like(mean))))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)
    assert model.sample(tf.zeros((2, 3))).shape == (2, 12, 9, 3)

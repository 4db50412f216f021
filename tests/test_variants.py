"""Three foreign VAEs: their sizes and losses against formulas by hand, and the adaptors that judge them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vae_course.truth.evaluation import iwae_bound, log_marginal, log_weights
from vae_course.engine.loop import make_train_step
from vae_course.training import compute_loss, evaluate
from vae_course.engine.keras_fit import Judged
from vae_course.further.variants import (
    FunctionalVAE,
    GuideEncoder,
    GuideVAE,
    Sampling,
    distribution_log_weights,
    make_functional_decoder,
    make_functional_encoder,
    make_probabilistic_decoder,
    make_probabilistic_encoder,
    make_probabilistic_vae,
)

tfd = tfp.distributions


@pytest.fixture(scope="module")
def functional():
    keras.utils.set_random_seed(0)
    return FunctionalVAE(make_functional_encoder(seed=0), make_functional_decoder())


@pytest.fixture(scope="module")
def small_pair():
    """TFP's networks with few filters; tests must not train them."""
    keras.utils.set_random_seed(0)
    return make_probabilistic_encoder(4, depth=2), make_probabilistic_decoder(4, depth=2)


def zeroed(network):
    network.set_weights([np.zeros_like(w) for w in network.get_weights()])
    return network


def kl_by_hand(mean, logvar):
    return 0.5 * np.sum(np.square(mean) + np.exp(logvar) - 1 - logvar)


def dense(inputs, outputs):
    return (inputs + 1) * outputs


def convolution(size, inputs, outputs):
    return (size**2 * inputs + 1) * outputs


def test_sizes_of_the_keras_io_example():
    encoder, decoder = make_functional_encoder(), make_functional_decoder()
    assert encoder.count_params() == 69_076 == (
        convolution(3, 1, 32) + convolution(3, 32, 64) + dense(49 * 64, 16) + 2 * dense(16, 2))
    assert decoder.count_params() == 65_089 == (
        dense(2, 49 * 64) + convolution(3, 64, 64) + convolution(3, 64, 32) + convolution(3, 32, 1))


def test_sizes_of_the_guide(x):
    model = GuideVAE()
    model(x.reshape(-1, 784))
    assert model.count_params() == 107_472 == (
        dense(784, 64) + 2 * dense(64, 32) + dense(32, 64) + dense(64, 784))


def test_sizes_of_the_tfp_example():
    encoder, decoder = make_probabilistic_encoder(), make_probabilistic_decoder()
    assert encoder.count_params() == (
        convolution(5, 1, 32) + convolution(5, 32, 32) + convolution(5, 32, 64)
        + convolution(5, 64, 64) + convolution(7, 64, 64) + dense(64, 16 + 136))
    assert decoder.count_params() == (
        convolution(7, 16, 64) + 2 * convolution(5, 64, 64) + convolution(5, 64, 32)
        + 2 * convolution(5, 32, 32) + convolution(5, 32, 1))


@pytest.mark.parametrize("latent_dim", [1, 5])
def test_shapes(x, latent_dim):
    outputs = make_functional_encoder(latent_dim)(x)
    assert [tuple(t.shape) for t in outputs] == [(8, latent_dim)] * 3
    assert make_functional_decoder(latent_dim)(outputs[2]).shape == (8, 28, 28, 1)
    guide = GuideVAE(intermediate_dim=7, latent_dim=latent_dim)
    assert guide(x.reshape(-1, 784)).shape == (8, 784)
    encoder = make_probabilistic_encoder(latent_dim, depth=2)
    assert tuple(encoder(x).event_shape) == (latent_dim,)
    decoder = make_probabilistic_decoder(latent_dim, depth=2)
    assert tuple(decoder(np.zeros((3, latent_dim))).event_shape) == (28, 28, 1)


@settings(max_examples=10, deadline=None)
@given(mean=st.floats(-3, 3), logvar=st.floats(-3, 1))
def test_sampling_has_the_moments_it_says(mean, logvar):
    n, sd = 20_000, np.exp(logvar / 2)
    z = Sampling(seed=0)([tf.fill((n, 1), mean), tf.fill((n, 1), logvar)]).numpy()
    # Six standard errors: of the mean, σ / √n; of the standard deviation, σ / √(2n).
    assert abs(z.mean() - mean) < 6 * sd / np.sqrt(n) + 1e-6
    assert abs(z.std() - sd) < 6 * sd / np.sqrt(2 * n) + 1e-6


def test_sampling_is_fresh_and_repeatable():
    inputs = [tf.zeros((3, 2)), tf.zeros((3, 2))]
    one, other = Sampling(seed=3), Sampling(seed=3)
    first = one(inputs)
    assert np.array_equal(first, other(inputs)) and not np.array_equal(first, one(inputs))


@pytest.fixture(scope="module")
def zero_functional():
    return FunctionalVAE(zeroed(make_functional_encoder()), zeroed(make_functional_decoder()))


@settings(max_examples=8, deadline=None)
@given(mean=st.floats(-2, 2), logvar=st.floats(-2, 1))
def test_keras_io_objective_at_known_weights(zero_functional, x, mean, logvar):
    model = zero_functional
    model.encoder.get_layer("mean").bias.assign([mean, 0])
    model.encoder.get_layer("logvar").bias.assign([0, logvar])
    reconstruction, kl = model.objective(x)
    # float32: a sum of 784 terms of 0.69 is known to 1e-6 of itself or so.
    assert np.isclose(reconstruction, 784 * np.log(2), atol=2e-3)
    assert np.isclose(kl, kl_by_hand([mean, 0], [0, logvar]), atol=1e-4)


@pytest.fixture(scope="module")
def zero_guide(x):
    model = GuideVAE(latent_dim=4)
    model(x.reshape(-1, 784))
    zeroed(model)
    return model


@settings(max_examples=8, deadline=None)
@given(mean=st.floats(-2, 2), logvar=st.floats(-2, 1), weight=st.floats(0, 3))
def test_guide_loss_at_known_weights(zero_guide, x, mean, logvar, weight):
    model, flat = zero_guide, x.reshape(-1, 784)
    model.kl_weight = weight
    model.encoder.mean.bias.assign([mean] * 4)
    model.encoder.logvar.bias.assign([logvar, 0, 0, 0])
    output = model(flat)
    # Every output is 1/2, so the squared error on binary pixels is 1/4; the KL is a mean over 4.
    assert np.isclose(keras.losses.MeanSquaredError()(flat, output), 0.25, atol=1e-6)
    expected = weight * kl_by_hand([mean] * 4, [logvar, 0, 0, 0]) / 4
    assert np.isclose(sum(model.losses), expected, atol=1e-4)


def nearly_without_noise(logvar_layer):
    """σ = e⁻⁹ whatever the image, so that two draws of z agree to 1e-3."""
    logvar_layer.kernel.assign(tf.zeros_like(logvar_layer.kernel))
    logvar_layer.bias.assign(tf.fill(logvar_layer.bias.shape, -18.0))


def test_keras_io_objective_is_compute_loss(x):
    model = FunctionalVAE(make_functional_encoder(), make_functional_decoder())
    nearly_without_noise(model.encoder.get_layer("logvar"))
    ours = compute_loss(model.judged(), x, estimator="closed_form")
    # σ = 1e-4 moves the logits by less than 1e-4 or so, and 784 of them the loss by less than 0.02.
    assert np.isclose(sum(model.objective(x)), ours, atol=0.02)


def test_mended_guide_is_compute_loss_up_to_784(x):
    model, flat = GuideVAE(kl_weight=32 / 784), x.reshape(-1, 784)
    model(flat)
    nearly_without_noise(model.encoder.logvar)
    loss = keras.losses.BinaryCrossentropy()(flat, model(flat)) + sum(model.losses)
    ours = compute_loss(model.judged(), x, estimator="closed_form")
    assert np.isclose(784 * loss, ours, atol=0.02)


def test_published_guide_is_compute_loss_with_beta(x):
    model, flat = GuideVAE(), x.reshape(-1, 784)
    model(flat)
    nearly_without_noise(model.encoder.logvar)
    loss = keras.losses.BinaryCrossentropy()(flat, model(flat)) + sum(model.losses)
    ours = compute_loss(model.judged(), x, estimator="closed_form", beta=784 / 32)
    assert np.isclose(784 * loss, ours, rtol=1e-4)


def test_gradients_reach_every_weight(functional, small_pair, x):
    guide = GuideVAE(seed=0)
    flat = x.reshape(-1, 784)
    guide(flat)
    encoder, decoder = small_pair
    published = make_probabilistic_vae(encoder, decoder)

    def guide_loss():
        return tf.reduce_mean((flat - guide(flat))**2) + sum(guide.losses)

    def published_loss():
        return -tf.reduce_mean(published(x).log_prob(x)) + sum(published.losses)

    for model, loss in ((functional, lambda: sum(functional.objective(x))), (guide, guide_loss),
                        (published, published_loss)):
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, model.trainable_variables)
        assert gradients and all(g is not None for g in gradients)
        assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradients)


@pytest.mark.long
def test_fit_lowers_each_loss(x_test):
    keras.utils.set_random_seed(0)
    x, flat = x_test[:64], x_test[:64].reshape(-1, 784)
    functional = FunctionalVAE(make_functional_encoder(), make_functional_decoder())
    functional.compile(keras.optimizers.Adam(1e-2))
    guide = GuideVAE()
    guide.compile(keras.optimizers.Adam(1e-2), loss="mean_squared_error")
    pair = make_probabilistic_encoder(2, 2), make_probabilistic_decoder(2, 2)
    published = make_probabilistic_vae(*pair, tf_keras.optimizers.Adam(1e-2))
    for model, data in ((functional, (x,)), (guide, (flat, flat)), (published, (x, x))):
        losses = model.fit(*data, epochs=4, batch_size=32, verbose=0).history["loss"]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(("kl_term", "times"), [("regularizer", 2), ("layer", 1)])
def test_how_often_tfp_counts_the_kl(x_test, kl_term, times):
    encoder = zeroed(make_probabilistic_encoder(2, depth=2, kl_term=kl_term))
    decoder = zeroed(make_probabilistic_decoder(2, depth=2))
    # The dense layer before the distribution has a bias only: two means, three entries of L.
    q = encoder.layers[-2 if kl_term == "layer" else -1]
    bias = next(layer for layer in reversed(encoder.layers) if isinstance(layer, tf_keras.layers.Dense))
    bias.set_weights([np.zeros_like(bias.get_weights()[0]), np.array([2, -1, 0.5, 1, 0.3], np.float32)])
    assert q.name.startswith("multivariate")
    model, x = make_probabilistic_vae(encoder, decoder), x_test[:2000]
    exact = encoder(x[:1]).kl_divergence(tfd.MultivariateNormalDiag(tf.zeros(2)))
    counted = model.test_on_batch(x, x) - 784 * np.log(2)
    # log q - log p has a standard deviation of about 2 nats here; 2,000 draws, six standard errors.
    assert abs(counted / times - float(exact[0])) < 6 * 2 / np.sqrt(2000)


def test_full_covariance_is_the_one_that_scipy_computes(small_pair, x):
    q = small_pair[0](x)
    z = q.sample(seed=1).numpy()
    for i in range(len(x)):
        expected = stats.multivariate_normal(q.mean()[i], q.covariance()[i]).logpdf(z[i])
        assert np.isclose(q.log_prob(z)[i], expected, atol=1e-3)


def test_judged_shares_the_weights(functional, x):
    judged = functional.judged()
    mean, logvar = judged.encode(x)
    theirs = functional.encoder(x)
    assert np.allclose(mean, theirs[0], atol=1e-6) and np.allclose(logvar, theirs[1], atol=1e-6)
    assert np.allclose(judged.decode(mean, apply_sigmoid=True), functional.decoder(mean), atol=1e-6)
    before = functional.encoder.get_layer("mean").bias.numpy()
    functional.encoder.get_layer("mean").bias.assign(before + 1)
    assert np.allclose(judged.encode(x)[0], mean + 1, atol=1e-5)
    functional.encoder.get_layer("mean").bias.assign(before)


def test_judged_guide_is_the_guide(x):
    model, flat = GuideVAE(seed=0), x.reshape(-1, 784)
    judged = model.judged()
    mean, logvar, _ = model.encoder(flat)
    assert np.allclose(judged.encode(x)[0], mean, atol=1e-6)
    expected = tf.sigmoid(model.decoder(mean))
    assert np.allclose(tf.reshape(judged.decode(mean, apply_sigmoid=True), (8, 784)), expected, atol=1e-6)


def test_judges_of_the_course_take_it(functional, x_test):
    judged, x = functional.judged(), x_test[:20]
    found, log_w = evaluate(judged, x), log_weights(judged, x, 50)
    assert np.isclose(found["elbo"], found["reconstruction"] - found["kl"])
    # The same ELBO by one sample an image and by 50; six standard errors of the former.
    error = log_w.std(axis=1).mean() / np.sqrt(20)
    assert abs(found["elbo"] - log_w.mean()) < 6 * error
    step = make_train_step(judged, keras.optimizers.Adam(1e-3))
    assert step(x, tf.zeros((20, 2))) > 0


def constant_likelihood(z):
    """Fair pixels whatever the code: 784 log ½."""
    return tfd.Independent(tfd.Bernoulli(tf.zeros((len(z), 28, 28, 1))), 3)


def test_weights_are_exact_where_the_posterior_is_the_prior(x):
    log_w = distribution_log_weights(
        lambda x: tfd.MultivariateNormalDiag(tf.zeros((len(x), 3))), constant_likelihood, x, 7)
    assert log_w.shape == (8, 7) and np.allclose(log_w, -784 * np.log(2), atol=2e-3)


def test_weights_average_to_the_evidence_under_full_covariance(x):
    scale = tf.constant([[1.2, 0.0], [0.5, 1.1]])

    def posterior(x):
        return tfd.MultivariateNormalTriL(tf.fill((len(x), 2), 0.3), scale)

    log_w = distribution_log_weights(posterior, constant_likelihood, x, 4000).astype(float)
    w = np.exp(log_w + 784 * np.log(2))
    # q is wider than the prior in every direction, so the weights have a finite variance.
    assert np.all(np.abs(w.mean(axis=1) - 1) < 6 * w.std(axis=1) / np.sqrt(4000) + 2e-3)


@pytest.mark.long
def test_weights_agree_with_quadrature(pretrained, x_test):
    model, _ = pretrained
    x = x_test[:6]

    def posterior(x):
        mean, logvar = model.encode(x)
        # Three times as wide as the encoder says: a q that is too narrow has weights without variance.
        return tfd.MultivariateNormalTriL(mean, 3 * tf.linalg.diag(tf.exp(logvar / 2)))

    log_w = distribution_log_weights(
        posterior, lambda z: tfd.Independent(tfd.Bernoulli(model.decode(z)), 3), x, 3000).astype(float)
    estimate = iwae_bound(log_w, 3000)
    error = np.exp(log_w - estimate[:, None]).std(axis=1) / np.sqrt(3000)
    assert np.all(np.abs(estimate - log_marginal(model, x).log_px) < 6 * error + 5e-3)


def test_weights_are_a_function_of_the_seed(small_pair, x):
    one, same, other = (distribution_log_weights(*small_pair, x, 3, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("make", [make_functional_encoder, make_functional_decoder,
                                  make_probabilistic_encoder, make_probabilistic_decoder])
def test_bad_sizes(make):
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        make(0)
    with pytest.raises(TypeError, match="latent_dim must be an integer"):
        make(2.0)


@pytest.mark.parametrize("weight", [-1.0, np.inf, np.nan])
def test_bad_kl_weight(weight):
    with pytest.raises(ValueError, match="kl_weight must be in"):
        GuideVAE(kl_weight=weight)


def test_bad_kl_term():
    with pytest.raises(ValueError, match="'regularizer' or 'layer', got 'loss'"):
        make_probabilistic_encoder(kl_term="loss")


def test_judged_says_what_does_not_fit(functional):
    logits = keras.Sequential([keras.Input((2,)), keras.layers.Dense(784)])
    with pytest.raises(ValueError, match=r"mean must have shape \(batch, 3\), got \(None, 2\)"):
        Judged(functional.encoder, logits, 3)
    with pytest.raises(ValueError, match="784 numbers for each image"):
        Judged(functional.encoder, lambda z: z, 2)
    with pytest.raises(TypeError, match="latent_dim"):
        Judged(functional.encoder, logits, 2.5)
    encoder = GuideEncoder(5)
    with pytest.raises(ValueError, match="mean must have shape"):
        Judged(lambda x: encoder(keras.layers.Flatten()(x)), logits, 2)


def test_bad_images_and_samples(small_pair, x):
    with pytest.raises(ValueError, match="binarise them first"):
        distribution_log_weights(*small_pair, 0.5 * x, 2)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        distribution_log_weights(*small_pair, x, 0)

"""Shapes, parameters, gradient flow, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_course.elbo import log_normal_pdf
from vae_course.training import trace
from vae_course.engine.families import FastCVAE
from vae_course.engine.keras_fit import KerasCVAE
from vae_course.model import LOGVAR_BOUND, CVAE, make_decoder, make_encoder
from vae_course.reparameterization import draw_eps
from vae_course.engine.runs import load_model, save_model


def test_parameters_are_the_tutorials(model):
    counts = model.encoder.count_params(), model.decoder.count_params(), model.count_params()
    assert counts == (28_036, 41_953, 69_989)


@pytest.mark.parametrize("latent_dim", [1, 2, 16])
@pytest.mark.parametrize("batch", [1, 5, 32])
def test_shapes(x_test, latent_dim, batch):
    model = CVAE(latent_dim)
    mean, logvar = model.encode(x_test[:batch])
    z = model.reparameterize(mean, logvar)
    assert mean.shape == logvar.shape == z.shape == (batch, latent_dim)
    assert model.decode(z).shape == model(x_test[:batch]).shape == (batch, 28, 28, 1)
    assert model.sample().shape == (100, 28, 28, 1)


def test_probabilities_are_the_sigmoid_of_the_logits(model):
    z = draw_eps(0, 0, (4, 2))
    probabilities = model.decode(z, apply_sigmoid=True)
    assert np.allclose(probabilities, 1 / (1 + np.exp(-model.decode(z).numpy())), atol=1e-6)
    assert (model.sample(z).numpy() == probabilities.numpy()).all()


def test_reparameterize_draws_fresh_noise_unless_given(model):
    zero = tf.zeros((4, 2))
    assert (model.reparameterize(zero, zero).numpy() != model.reparameterize(zero, zero).numpy()).all()
    assert (model.reparameterize(zero, zero, zero).numpy() == 0).all()


def test_a_seed_fixes_the_weights():
    one, two, other = CVAE(seed=5).get_weights(), CVAE(seed=5).get_weights(), CVAE(seed=6).get_weights()
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    kernels = [i for i, w in enumerate(one) if w.ndim > 1]
    assert all((one[i] != other[i]).any() for i in kernels)
    assert (CVAE().get_weights()[0] != CVAE().get_weights()[0]).any()


def loss_of(model, x, draw):
    mean, logvar = model.encode(x)
    return tf.reduce_sum(model.decode(draw(mean, logvar)) ** 2)


@pytest.mark.parametrize("latent_dim", [1, 2, 16])
def test_every_variable_gets_a_gradient(x, latent_dim):
    model = CVAE(latent_dim, seed=0)
    eps = draw_eps(0, 0, (len(x), latent_dim))
    with tf.GradientTape() as tape:
        loss = loss_of(model, x, lambda mean, logvar: model.reparameterize(mean, logvar, eps))
    for variable, gradient in zip(model.trainable_variables,
                                  tape.gradient(loss, model.trainable_variables), strict=True):
        assert gradient is not None, variable.path
        assert tf.reduce_all(tf.math.is_finite(gradient)) and tf.reduce_any(gradient != 0), variable.path


def test_without_reparameterization_the_encoder_gets_none(model, x, rng):
    with tf.GradientTape() as tape:
        loss = loss_of(model, x, lambda mean, logvar: np.float32(rng.normal(mean, np.exp(logvar / 2))))
    gradients = tape.gradient(loss, model.encoder.trainable_variables)
    assert gradients == [None] * len(model.encoder.trainable_variables)


def test_without_reparameterization_the_loss_hides_the_fault(pretrained, x):
    """log q(z|x) depends on the encoder in any case: no gradient is None, but its mean is 0."""
    model, copies, eps = pretrained[0], np.repeat(x[1:2], 2000, axis=0), draw_eps(0, 0, (2000, 2))
    losses, told = [], []
    for pass_on in (tf.identity, tf.stop_gradient):
        with tf.GradientTape(persistent=True) as tape:
            mean, logvar = model.encode(copies)
            z = pass_on(model.reparameterize(mean, logvar, eps))
            loss = (log_normal_pdf(z, mean, logvar) - log_normal_pdf(z, 0.0, 0.0) - model.log_likelihood(copies, z))
        assert None not in tape.gradient(loss, model.trainable_variables)
        gradient = tape.gradient(loss, mean).numpy()
        losses.append(loss)
        told.append(np.abs(gradient.mean(axis=0)) / (gradient.std(axis=0) / np.sqrt(len(gradient))))  # standard errors
    assert np.allclose(*losses)
    assert (told[0] > 10).all() and (told[1] < 4).all()


def test_float32_draws_a_gaussian_as_narrow_as_the_bound_allows():
    noise = draw_eps(0, 0, (10_000,))
    widths = [np.std(3 + np.float32(sigma) * noise.numpy(), dtype=np.float64) / sigma
              for sigma in (np.exp(-LOGVAR_BOUND / 2), 1e-8)]
    assert np.allclose(widths, [1, 0], atol=0.03)  # 10,000 draws give a width to 0.7 %


def test_a_trace_serves_any_batch(model, x_test):
    graph = trace(lambda x, eps: model(x, eps), model)
    for size in (1, 3, 32):
        x, eps = tf.constant(x_test[:size]), draw_eps(0, 0, (size, 2))
        assert np.allclose(graph(x, eps), model(x, eps), atol=1e-5)  # float32


@pytest.mark.parametrize("kind", [CVAE, FastCVAE, KerasCVAE])
@pytest.mark.parametrize("sizes", [{"latent_dim": 2}, {"latent_dim": 16, "filters": (8, 12), "seed": 3}])
def test_saved_and_loaded_model_is_equal(tmp_path, x, sizes, kind):
    model = kind(**sizes)
    save_model(model, tmp_path / "cvae.keras")
    loaded = load_model(tmp_path / "cvae.keras")
    assert loaded.get_config() == model.get_config() and type(loaded) is kind
    assert (loaded(x).numpy() == model(x).numpy()).all()
    assert [path.name for path in tmp_path.iterdir()] == ["cvae.keras"]


def test_keras_itself_can_load_the_file(tmp_path, model, x):
    model.save(tmp_path / "cvae.keras")
    loaded = keras.saving.load_model(tmp_path / "cvae.keras")
    assert (loaded.predict(x, verbose=0) == model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_truncated_file_is_refused(tmp_path, model, cut):
    path = tmp_path / "cvae.keras"
    save_model(model, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)


def test_foreign_model_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="holds a Sequential, expected a VAE"):
        load_model(tmp_path / "other.keras")


def test_failed_save_keeps_the_old_file(tmp_path, model, monkeypatch):
    path = tmp_path / "cvae.keras"
    save_model(model, path)
    before = path.read_bytes()

    def full_disk(self, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CVAE, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["cvae.keras"]


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
    ({"latent_dim": -3}, ValueError, "latent_dim"),
    ({"latent_dim": 2.0}, TypeError, "latent_dim must be an integer, got 2.0"),
    ({"latent_dim": True}, TypeError, "latent_dim"),
    ({"filters": (32, 0)}, ValueError, "filters must be at least 1"),
    ({"filters": (32, 64, 128)}, ValueError, "two numbers"),
    ({"filters": 32}, TypeError, "filters must be of type tuple"),
    ({"image_shape": (28, 28)}, ValueError, "height, width, channels"),
    ({"image_shape": (28, 6, 1)}, ValueError, "width must be at least 7, got 6"),
    ({"image_shape": (28, 28, 1.0)}, TypeError, "channels must be an integer"),
])
@pytest.mark.parametrize("make", [CVAE, FastCVAE, make_encoder, make_decoder])
def test_sizes_that_make_no_network_are_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)

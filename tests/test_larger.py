"""Residual networks: shapes, identity, gradients, saving, and the rest of the course on top of them."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.elbo import elbo_terms
from vae_course.truth.evaluation import log_marginal
from vae_course.engine.loop import fit
from vae_course.engine.recipes import Recipe
from vae_course.further.larger import ResidualVAE, make_residual_decoder, make_wide_encoder, residual_block
from vae_course.reparameterization import draw_eps
from vae_course.engine.runs import load_model, save_model
from vae_course.training import compute_loss

SMALL = {"latent_dim": 2, "width": 16, "blocks": 2}


@pytest.fixture(scope="module")
def small():
    return ResidualVAE(**SMALL, seed=0)


@settings(max_examples=10, deadline=None)
@given(latent_dim=st.integers(1, 5), width=st.integers(1, 40), blocks=st.integers(0, 4))
def test_parameters_are_those_counted_by_hand(latent_dim, width, blocks):
    model, wide = ResidualVAE(latent_dim, width, blocks, seed=0), max(1, width // 2)
    decoder = (latent_dim + 1) * width + 2 * blocks * (width + 1) * width + (width + 1) * 784
    encoder = 10 * 32 + (9 * 32 + 1) * 64 + (6 * 6 * 64 + 1) * wide + (wide + 1) * 2 * latent_dim
    assert (model.encoder.count_params(), model.decoder.count_params()) == (encoder, decoder)


@pytest.mark.parametrize("latent_dim", [1, 2, 7])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_shapes(x, latent_dim, blocks):
    model = ResidualVAE(latent_dim, 16, blocks)
    mean, logvar = model.encode(x)
    assert mean.shape == logvar.shape == (len(x), latent_dim)
    assert model.decode(mean).shape == (len(x), 28, 28, 1)
    assert model.sample().shape == (100, 28, 28, 1)


def test_decoder_and_model_have_the_same_default_sizes():
    assert make_residual_decoder().count_params() == ResidualVAE().decoder.count_params()


def test_a_block_is_the_formula(rng):
    inputs = keras.Input((6,))
    block = keras.Model(inputs, residual_block(inputs, ["glorot_uniform", "glorot_uniform"]))
    weights = [rng.normal(size=weight.shape) for weight in block.get_weights()]
    block.set_weights(weights)
    (w1, b1, w2, b2), h = weights, rng.normal(size=(5, 6))
    expected = h + np.maximum(h @ w1 + b1, 0) @ w2 + b2
    assert np.allclose(block(h), expected, atol=1e-4)  # float32 sums of six terms


def test_a_block_without_a_correction_passes_negative_numbers_on(rng):
    """As in He et al., 2016: no ReLU stands behind the sum."""
    inputs = keras.Input((6,))
    block, h = keras.Model(inputs, residual_block(inputs, ["glorot_uniform", "zeros"])), tf.Variable(rng.normal(size=(5, 6)))
    with tf.GradientTape() as tape:
        out = block(h)
    assert (out.numpy() == h.numpy().astype(np.float32)).all() and (h.numpy() < 0).any()
    assert np.array_equal(tape.gradient(out, h), np.ones((5, 6)))


def test_every_variable_gets_a_gradient(small, x):
    with tf.GradientTape() as tape:
        loss = compute_loss(small, x, draw_eps(0, 0, (len(x), 2)))
    for gradient in tape.gradient(loss, small.trainable_variables):
        assert gradient is not None and np.isfinite(gradient).all() and np.any(gradient != 0)


def test_a_seed_fixes_the_weights_and_layers_differ():
    one, two, other = (ResidualVAE(**SMALL, seed=seed).get_weights() for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    kernels = [i for i, w in enumerate(one) if w.ndim > 1]
    assert all((one[i] != other[i]).any() for i in kernels)
    squares = [one[i] for i in kernels if one[i].shape == (16, 16)]  # the blocks' weights
    assert len(squares) == 4 and len({w.tobytes() for w in squares}) == 4


def test_saved_and_loaded_it_is_the_same(small, x, tmp_path):
    save_model(small, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ResidualVAE) and loaded.get_config() == small.get_config()
    assert (loaded(x).numpy() == small(x).numpy()).all()


def test_dropout_works_in_training_only(x):
    model = ResidualVAE(**SMALL, dropout=0.5, seed=0)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)  # a step that changes nothing
    seen = []
    encode = model.encode
    model.encode = lambda x: seen.append(encode(x)[0].numpy()) or encode(x)
    model.train_on_batch(x)
    model.test_on_batch(x)
    plain = encode(x)[0].numpy()
    assert np.abs(seen[0] - plain).max() > 1e-3 and (seen[1] == plain).all()


@pytest.mark.long
def test_the_engine_trains_it_with_dropout_and_resumes_bit_for_bit(x_test, tmp_path):
    """The dropped features come from a generator whose state is in the checkpoints."""
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=1e-3, model="residual",
                    sizes={"width": 16, "blocks": 1, "dropout": 0.5})

    def stop(epoch, model, history):
        if epoch == 1:
            raise KeyboardInterrupt

    whole = fit(recipe, x_test[:320], x_test[:50], verbose=False)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, x_test[:320], x_test[:50], [stop], verbose=False, checkpoint_dir=tmp_path)
    resumed = fit(recipe, x_test[:320], x_test[:50], verbose=False, checkpoint_dir=tmp_path)
    assert resumed[1] == whole[1] and isinstance(resumed[0], ResidualVAE)
    assert all((a == b).all() for a, b in zip(whole[0].get_weights(), resumed[0].get_weights(), strict=True))
    plain = fit(replace(recipe, sizes={"width": 16, "blocks": 1}), x_test[:320], x_test[:50], verbose=False)
    assert plain[1] != whole[1]  # dropout does something


def test_keras_fit_lowers_the_loss(x_test):
    model = ResidualVAE(**SMALL, seed=0)
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(5e-3), estimator="closed_form")
    losses = model.fit(x_test[:640], batch_size=32, epochs=4, verbose=0).history["loss"]
    # An untrained model needs 543 nats, the mean image of these digits about 210.
    assert losses[-1] < 260 < losses[0]


def test_its_log_px_is_above_the_elbo(x_test):
    model = ResidualVAE(**SMALL, seed=0)
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(5e-3))
    model.fit(x_test[:640], batch_size=32, epochs=2, verbose=0)
    eps = np.stack([draw_eps(1, i, (50, 2)) for i in range(20)])
    x = np.repeat(x_test[:20], 50, axis=0)
    elbo = elbo_terms(model, x, eps.reshape(-1, 2)).elbo("closed_form").numpy().reshape(20, 50)
    error = elbo.std(axis=1) / np.sqrt(50)
    assert np.all(elbo.mean(axis=1) < log_marginal(model, x_test[:20], 0.01).log_px + 5 * error + 0.01)


@pytest.mark.parametrize(("arguments", "kind", "words"), [
    ({"width": 0}, ValueError, "width"), ({"width": 2.5}, TypeError, "width"),
    ({"blocks": -1}, ValueError, "blocks"), ({"blocks": True}, TypeError, "blocks"),
    ({"latent_dim": 0}, ValueError, "latent_dim"), ({"latent_dim": "2"}, TypeError, "latent_dim"),
    ({"dropout": 1.0}, ValueError, "dropout"), ({"dropout": -0.1}, ValueError, "dropout"),
])
def test_bad_sizes(arguments, kind, words):
    with pytest.raises(kind, match=words):
        ResidualVAE(**arguments)
    for make, other in ((make_residual_decoder, "dropout"), (make_wide_encoder, "blocks")):
        if other not in arguments:
            with pytest.raises(kind, match=words):
                make(**arguments)

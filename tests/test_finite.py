"""No number that float32 can hold makes the loss infinite, and a run that diverges says so."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae_course.engine.checkpoints import Keeper, Run, check_finite, read_checkpoint
from vae_course.data import preprocess_images
from vae_course.elbo import LOGIT_BOUND, bounded
from vae_course.model import LOGVAR_BOUND, CVAE
from vae_course.reparameterization import draw_eps
from vae_course.elbo import elbo_terms
from vae_course.engine.loop import fit
from vae_course.engine.recipes import Recipe
from vae_course.training import train_step

LARGEST = float(np.finfo(np.float32).max)  # 3.4e38
# Uniform in the logarithm, so that every magnitude is as likely as the next; both signs.
sizes = st.builds(lambda sign, exponent: float(np.float32(sign * 10**exponent)),
                  st.sampled_from([-1, 1]), st.floats(-10, 38.5))
logvars = st.one_of(sizes, st.sampled_from([0.0, -LARGEST, LARGEST, LOGVAR_BOUND, -LOGVAR_BOUND]))
logits = st.one_of(sizes, st.sampled_from([0.0, -LARGEST, LARGEST, LOGIT_BOUND, -LOGIT_BOUND]))


@pytest.fixture(scope="module")
def forced(x_test):
    """loss_and_gradients(logvar, logit) of a model that puts out these numbers for every image."""
    model = CVAE(2, (2, 2), seed=0)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    x, eps = tf.constant(x_test[:4]), draw_eps(0, 0, (4, 2))

    @tf.function
    def traced():
        losses, gradients = [], []
        for estimator in ("monte_carlo", "closed_form"):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(elbo_terms(model, x, eps).elbo(estimator))
            losses.append(loss)
            gradients.append(tape.gradient(loss, model.trainable_variables))
        return losses, gradients

    def loss_and_gradients(logvar, logit):
        model.encoder.layers[-1].bias.assign([0, 0, logvar, logvar])
        model.decoder.layers[-1].bias.assign([logit])
        assert np.allclose(model.encoder(x)[:, 2:], logvar) and np.allclose(model.decoder(eps), logit)
        return traced()

    return loss_and_gradients


@settings(max_examples=100, deadline=None)
@given(logvar=logvars, logit=logits)
@example(LARGEST, LARGEST)
@example(-LARGEST, -LARGEST)
@example(0.0, LARGEST)
@example(LARGEST, 0.0)
def test_loss_and_gradients_are_finite_for_every_finite_output(forced, logvar, logit):
    losses, gradients = forced(logvar, logit)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients[0] + gradients[1])


@pytest.mark.parametrize("logvar", [30.0, -30.0, 1e10, -1e10, LARGEST, -LARGEST])
def test_the_gradient_still_leads_back_inside(forced, logvar):
    # Beyond the bound the KL pulls as it does at the bound: ½ (e^logvar − 1).
    bias = forced(logvar, 0.0)[1][1][5]  # closed form, the last of the encoder's six variables
    expected = 0.5 * np.expm1(np.sign(logvar) * LOGVAR_BOUND)
    assert np.allclose(bias, [0, 0, expected, expected], rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(value=sizes, bound=st.sampled_from([LOGVAR_BOUND, LOGIT_BOUND, 1.0]))
def test_bounded_clips_the_value_and_passes_the_gradient(value, bound):
    tensor = tf.constant([value, 0.5])
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        out = bounded(tensor, bound)
        total = tf.reduce_sum(out * [3.0, -2.0])
    assert np.array_equal(out, np.clip(tensor, np.float32(-bound), np.float32(bound)))
    assert np.array_equal(tape.gradient(total, tensor), [3, -2])


def test_within_the_bounds_nothing_changes(rng):
    values = rng.uniform(-LOGVAR_BOUND, LOGVAR_BOUND, 1000).astype(np.float32)
    assert np.array_equal(bounded(values, LOGVAR_BOUND), values)


# --- Runs ----------------------------------------------------------------------------------------

WILD = Recipe(epochs=3, batch_size=8, optimizer="sgd", learning_rate=1e30, filters=(2, 2))


@pytest.fixture(scope="module")
def images(mnist):
    return preprocess_images(mnist[0][0][:480]), preprocess_images(mnist[1][0][:50])


def test_a_run_that_diverges_names_the_step_and_the_last_good_checkpoint(images, tmp_path):
    with pytest.raises(FloatingPointError, match="in epoch 1, step ") as caught:
        fit(WILD, *images, verbose=False, checkpoint_dir=tmp_path, checkpoint_seconds=0)
    text, path = str(caught.value), tmp_path / "step-000000000.npz"
    assert f"The last good checkpoint: {path}." in text and "lower learning rate" in text
    assert int(text.split("step ")[1].split(" ")[0]) < 50
    arrays, facts = read_checkpoint(path)
    assert facts["history"] == [] and all(np.isfinite(array).all() for array in arrays.values())
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_without_a_folder_there_is_no_checkpoint_to_name(images):
    with pytest.raises(FloatingPointError, match="The last good checkpoint: none."):
        fit(WILD, *images, verbose=False)


def break_after_epoch_1(position):
    """A callback that makes one of the model's arrays NaN."""
    def callback(epoch, model, history):
        if epoch == 1:
            weights = model.get_weights()
            weights[position].fill(np.nan)
            model.set_weights(weights)

    return callback


TAME = replace(WILD, optimizer="adam", learning_rate=1e-3)  # 60 steps an epoch, 50 and 10


def test_the_named_step_is_the_first_bad_one(images):
    # The decoder's last bias: every logit is NaN from step 60 on, the first of epoch 2.
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 2, step 60 of the run"):
        fit(TAME, *images, verbose=False, callbacks=[break_after_epoch_1(-1)])


def test_a_weight_that_is_nan_is_never_kept(images, tmp_path):
    with pytest.raises(FloatingPointError, match="a weight is no longer finite in epoch 1, step 59 of the run. "
                       f"The last good checkpoint: {tmp_path}/step-000000000.npz"):
        fit(TAME, *images, verbose=False, checkpoint_dir=tmp_path, callbacks=[break_after_epoch_1(-1)])
    arrays = read_checkpoint(tmp_path / "step-000000000.npz")[0]
    assert len(list(tmp_path.iterdir())) == 1 and np.isfinite(arrays["model/13"]).all()


def test_a_weight_that_overflows_in_the_last_step_is_noticed(images):
    """One step of an absurd size: its loss is that of the initial weights, which is finite."""
    x_train, x_test = images
    with pytest.raises(FloatingPointError, match="a weight is no longer finite in epoch 1, step 0"):
        fit(replace(WILD, batch_size=480, epochs=1, learning_rate=LARGEST), x_train, x_test, verbose=False)


def test_a_test_elbo_that_overflows_is_no_result(images, tmp_path):
    """The loss before the only step is finite, the weights after it are too, the networks' sums are not."""
    recipe, history = replace(WILD, batch_size=480, epochs=1), []
    with pytest.raises(FloatingPointError, match="the test ELBO became .* in epoch 1, step 0 of the run. "
                       f"The last good checkpoint: {tmp_path}/step-000000000.npz"):
        fit(recipe, *images, verbose=False, checkpoint_dir=tmp_path,
            callbacks=[lambda epoch, model, entries: history.append(len(entries))])
    assert history == [0]  # no callback saw it, and no entry holds it
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000.npz"]


def test_an_average_of_the_optimizer_that_overflows_is_noticed(images):
    """Adam squares a gradient beyond 2⁶⁴ to infinity, and its step is then 0: all weights stay finite."""
    class Steep(CVAE):
        def log_likelihood(self, x, z):
            return 1e25 * super().log_likelihood(x, z)

    run = Run(Steep(2, (2, 2), seed=0), keras.optimizers.Adam())
    train_step(run.model, images[0][:8], run.optimizer)
    assert all(np.isfinite(weight).all() for weight in run.model.get_weights())
    with pytest.raises(FloatingPointError, match="a number of the optimizer is no longer finite in epoch 1, step 0"):
        check_finite(run, np.float32([1e27]), 1, Keeper(None, {}))

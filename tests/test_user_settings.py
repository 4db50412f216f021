"""Settings of the user's own: precision, order of the axes, eager functions, XLA, the environment, Python's flags."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from vae_course.data import preprocess_images
from vae_course.elbo import elbo_terms
from vae_course.engine.families import LIKELIHOODS, FastCVAE
from vae_course.engine.keras_fit import KerasCVAE
from vae_course.engine.loop import fit
from vae_course.engine.recipes import SHORT
from vae_course.engine.runs import load_pretrained
from vae_course.further.larger import ResidualVAE
from vae_course.further.objectives import ConditionalVAE
from vae_course.further.variants import (
    FunctionalNetworks,
    FunctionalVAE,
    GuideVAE,
    make_functional_decoder,
    make_functional_encoder,
    make_probabilistic_decoder,
    make_probabilistic_encoder,
    make_probabilistic_vae,
)
from vae_course.reparameterization import draw_eps
from vae_course.training import evaluate
from vae_course.truth.evaluation import log_marginal, log_weights

TINY = replace(SHORT, filters=(4, 4), epochs=2, batch_size=4, learning_rate=1e-2)
SMALL = {"filters": (4, 4), "seed": 0}


@pytest.fixture(scope="module")
def few(mnist):
    return preprocess_images(mnist[0][0][:64])


@pytest.fixture(scope="module")
def usual(few, pretrained, x_test):
    """What the default settings give: three ELBOs."""
    return found_here(few, pretrained[0], x_test)


def found_here(few, trained, x_test):
    """The test ELBO of the trained model, and of tiny ones that the two loops train."""
    _, history = fit(TINY, few, few, verbose=False)
    model = KerasCVAE(**SMALL)
    model.compile(keras.optimizers.Adam(1e-2), estimator="closed_form")
    model.fit(few, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return [evaluate(trained, x_test[:200])["elbo"], history[-1]["test_elbo"], evaluate(model, few)["elbo"]]


@pytest.fixture(params=["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long),
                        pytest.param("float64", marks=pytest.mark.long)])
def policy(request):
    """One of Keras's policies, for the length of a test."""
    if request.param == "float64":
        keras.config.set_floatx("float64")
    keras.config.set_dtype_policy(request.param)
    yield keras.config.dtype_policy()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def test_networks_follow_the_policy_and_densities_stay_in_float32(policy, x, few, x_test, usual):
    trained, _ = load_pretrained()
    for model in (trained, FastCVAE(**SMALL), ResidualVAE(2, 8, 1), FunctionalNetworks(),
                  FastCVAE(**SMALL, likelihood="discretized_logistic"),
                  FastCVAE(**SMALL, likelihood="continuous_bernoulli"), ConditionalVAE(**SMALL).given(7)):
        assert {term.dtype for term in elbo_terms(model, x, draw_eps(0, 0, (8, 2)))} == {tf.float32}
        assert model(x).dtype == model.sample(np.zeros((1, 2))).dtype == tf.float32
        assert np.isfinite(log_weights(model, x[:2], 3)).all()
    assert FastCVAE().encoder.layers[0].compute_dtype == policy.compute_dtype
    assert LIKELIHOODS["discretized_logistic"].levels == 256  # whose pixels 16 bits would round
    grey = FastCVAE(**SMALL, likelihood="discretized_logistic")
    assert np.isfinite(grey(np.full((1, 28, 28, 1), 17 / 255, np.float32))).all()


@pytest.mark.long
def test_training_and_evaluation_come_out_alike(policy, few, x_test, usual):
    found = found_here(few, load_pretrained()[0], x_test)
    # One sampled code for each of 200 images, through networks that keep 8 bits at worst: tenths of a nat.
    assert abs(found[0] - usual[0]) < 0.5
    # Other roundings are another path, float64 has other random weights, and with float16 Keras leaves out steps
    # until its loss is scaled right. An untrained model is at -544 nats: all must get more than half as far.
    for mine, theirs in zip(found[1:], usual[1:], strict=True):
        assert theirs > -450 and mine > (theirs - 544) / 2


@pytest.mark.long
@pytest.mark.parametrize("loop", ["functional", "guide"])
def test_the_variants_train_under_each_policy(policy, few, loop):
    if loop == "functional":
        model, arguments = FunctionalVAE(make_functional_encoder(seed=0), make_functional_decoder()), (few,)
        assert {part.dtype for part in model.objective(few)} == {tf.float32}
        model.compile("adam")
    else:
        flat = few.reshape(-1, 784)
        model, arguments = GuideVAE(), (flat, flat)
        model.compile("adam", loss="binary_crossentropy")
    losses = model.fit(*arguments, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and np.isfinite(evaluate(model.judged(), few)["elbo"])


@pytest.mark.parametrize("kl_term", ["regularizer", "layer"])
def test_tfp_s_example_stays_in_float32(x, kl_term):
    tf_keras.backend.set_floatx("float64")
    try:
        encoder, decoder = make_probabilistic_encoder(4, 4, kl_term), make_probabilistic_decoder(4, 4)
        loss = make_probabilistic_vae(encoder, decoder).fit(x, x, verbose=0).history["loss"]
    finally:
        tf_keras.backend.set_floatx("float32")
    assert encoder(x).dtype == decoder(np.zeros((1, 4), np.float32)).dtype == tf.float32 and np.isfinite(loss).all()


@pytest.fixture
def channels_first():
    """Both Keras told that the channels stand before height and width."""
    backends = keras.config, tf_keras.backend
    for backend in backends:
        backend.set_image_data_format("channels_first")
    yield
    for backend in backends:
        backend.set_image_data_format("channels_last")


@pytest.mark.long
def test_channels_first_changes_no_number(x, pretrained, channels_first):
    eps = draw_eps(0, 0, (8, 2))
    loaded, _ = load_pretrained()
    for one, other in zip(elbo_terms(loaded, x, eps), elbo_terms(pretrained[0], x, eps), strict=True):
        assert np.array_equal(one, other)
    odd = np.zeros((2, 13, 17, 3), np.float32)
    for make in (lambda: FastCVAE(seed=0), lambda: FastCVAE(seed=0, image_shape=(13, 17, 3)),
                 lambda: ResidualVAE(2, 8, 1, seed=0), lambda: FunctionalNetworks(seed=0)):
        images, found = None, []
        for setting in ("channels_first", "channels_last"):
            keras.config.set_image_data_format(setting)
            model = make()
            images = odd if model.image_shape[2] == 3 else x
            found.append(np.array(elbo_terms(model, images, eps[:len(images)])))
        assert np.array_equal(*found)
    posterior = make_probabilistic_encoder()(x)
    assert posterior.mean().shape == (8, 16)
    assert make_probabilistic_decoder()(posterior.sample(seed=0)).log_prob(x).shape == 8


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Even though the `tf.config")  # of tf.data, which stays a graph
def test_functions_that_run_eagerly_find_the_same(few, pretrained, x_test, usual):
    tf.config.run_functions_eagerly(True)
    try:
        found = found_here(few[:32], pretrained[0], x_test)
        marginal = log_marginal(pretrained[0], x_test[:2], 0.1)
    finally:
        tf.config.run_functions_eagerly(False)
    assert abs(found[0] - usual[0]) < 1e-3  # float32 in another order
    assert np.allclose(marginal.log_px, log_marginal(pretrained[0], x_test[:2], 0.1).log_px, atol=1e-3)


@pytest.mark.long
def test_xla_finds_the_same(few, pretrained, x):
    eps = draw_eps(0, 0, (8, 2))
    by_xla = tf.function(lambda x, eps: elbo_terms(pretrained[0], x, eps), jit_compile=True)
    for one, other in zip(by_xla(x, eps), elbo_terms(pretrained[0], x, eps), strict=True):
        assert np.allclose(one, other, rtol=1e-5)  # float32 in another order
    histories = []
    for jit_compile in (False, True):
        model = KerasCVAE(**SMALL)
        model.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
        histories.append(model.fit(few, batch_size=32, epochs=2, shuffle=False, verbose=0,
                                   validation_data=few).history)
    assert histories[0].keys() == histories[1].keys()
    assert all(np.allclose(histories[0][name], histories[1][name], rtol=1e-4, atol=1e-3) for name in histories[0])


def run(*arguments, **environment):
    """A fresh Python with these arguments and settings."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                          env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment)


@pytest.mark.parametrize("flags, environment, words", [
    ((), {"KERAS_BACKEND": "torch"}, "run on 'torch'.*KERAS_BACKEND=tensorflow"),
    ((), {"KERAS_BACKEND": "jax"}, "run on 'jax'.*KERAS_BACKEND=tensorflow"),
    ((), {"MPLBACKEND": "nonsense"}, "no backend 'nonsense'.*MPLBACKEND"),
    (("-OO",), {}, "-OO.*use -O"),
])
def test_what_cannot_work_ends_in_one_line(tmp_path, flags, environment, words):
    done = run(*flags, "-c", "import vae_course.model", **environment)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    with pytest.raises(ImportError, match=f"vae_course: .*{words}"):
        raise ImportError(last.removeprefix("ImportError: "))
    command = tmp_path / "vae-course"
    command.write_text("from vae_course.engine.cli import main\nmain()\n")
    done = run(*flags, command, "--help", **environment)
    assert done.returncode == 1 and [done.stderr.strip()] == done.stderr.splitlines() == [last.removeprefix("ImportError: ")]


PROGRAM = """
import json
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
import vae_course  # before Keras, whose keras.json names another backend
import keras
from vae_course.data import load_mnist, preprocess_images
from vae_course.engine.runs import load_pretrained
from test_user_settings import found_here
from vae_course.engine import cli
import vae_course.further.variants, vae_course.live.explorer
images = [preprocess_images(part[0]) for part in load_mnist()]
found = [found_here(images[0][:64], load_pretrained()[0], images[1]) for _ in range(2)]
print(json.dumps([keras.config.backend(), keras.config.image_data_format(), *found]))
"""


@pytest.mark.long
def test_all_that_can_work_works_at_once(tmp_path, usual):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax", "image_data_format": "channels_first"}))
    done = run("-O", "-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-c", PROGRAM,
               KERAS_HOME=str(tmp_path), TF_USE_LEGACY_KERAS="1", MPLBACKEND="module://nowhere", KERAS_BACKEND="",
               PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 0, done.stderr[-2000:]
    backend, order, one, two = json.loads(done.stdout.splitlines()[-1])
    assert (backend, order) == ("tensorflow", "channels_first") and one == two  # bit for bit
    assert abs(one[0] - usual[0]) < 1e-3 and abs(one[1] - usual[1]) < 1 and abs(one[2] - usual[2]) < 1

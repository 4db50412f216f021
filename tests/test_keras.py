"""`compile` and `fit` as everywhere in Keras: the same numbers as the course's own loop."""

import contextlib
import csv

import children
import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_course.data import preprocess_images
from vae_course.engine.devices import make_strategy
from vae_course.engine.keras_fit import KerasCVAE as CVAE
from vae_course.engine.keras_fit import KerasFit, with_noise
from vae_course.further.larger import ResidualVAE
from vae_course.further.variants import FunctionalNetworks
from vae_course.training import TEST_STEP
from vae_course.reparameterization import draw_eps
from vae_course.engine.runs import load_model, save_model
from vae_course.training import evaluate, train_step

SEED, SIZE = 3, 32
OPTIONS = {"batch_size": SIZE, "shuffle": False, "verbose": 0}


@pytest.fixture(scope="module")
def x_train(mnist):
    return preprocess_images(mnist[0][0][:5 * SIZE])


@pytest.fixture(scope="module")
def few(x_test):
    return x_test[:130]  # not a multiple of the batch size


@pytest.fixture
def compiled():
    model = CVAE(2, (4, 4), seed=0)
    model.compile(keras.optimizers.Adam(1e-3), seed=SEED)
    return model


def by_hand(x_train, eps, estimator="monte_carlo", epochs=1):
    """Weights and the mean loss of the last epoch, with the course's own step."""
    model, optimizer = CVAE(2, (4, 4), seed=0), keras.optimizers.Adam(1e-3)
    for epoch in range(epochs):
        losses = [train_step(model, x_train[i:i + SIZE], optimizer, eps(epoch, i), estimator)
                  for i in range(0, len(x_train), SIZE)]
    return model.get_weights(), np.mean(losses)


def equal(one, two):
    return all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("estimator", ["monte_carlo", "closed_form"])
def test_same_noise_gives_the_same_steps(x_train, estimator):
    model, eps = CVAE(2, (4, 4), seed=0), draw_eps(9, 0, (len(x_train), 2)).numpy()
    model.compile(keras.optimizers.Adam(1e-3), estimator)
    loss = model.fit(with_noise(x_train, eps), **OPTIONS).history["loss"][-1]
    weights, expected = by_hand(x_train, lambda _, i: eps[i:i + SIZE], estimator)
    assert equal(model.get_weights(), weights)
    assert np.isclose(loss, expected, rtol=1e-6)  # float32 means in another order


@pytest.mark.parametrize("eagerly", [False, True])
def test_noise_is_a_function_of_seed_and_step(x_train, eagerly):
    model = CVAE(2, (4, 4), seed=0)
    model.compile(keras.optimizers.Adam(1e-3), seed=SEED, run_eagerly=eagerly)
    loss = model.fit(x_train, epochs=2, **OPTIONS).history["loss"][-1]
    weights, expected = by_hand(
        x_train, lambda epoch, i: draw_eps(SEED, epoch * 5 + i // SIZE, (SIZE, 2)), epochs=2)
    assert np.isclose(loss, expected, rtol=1e-6 if not eagerly else 1e-5)  # eager steps round otherwise
    assert eagerly or equal(model.get_weights(), weights)


def test_validation_is_the_courses_evaluation(compiled, x_train, few):
    noise = draw_eps(SEED, TEST_STEP, (len(few), 2))
    history = compiled.fit(x_train, validation_data=with_noise(few, noise), **OPTIONS).history
    expected = evaluate(compiled, few, SEED)
    # The KL is a difference of numbers around 500, each rounded to 500 · 2⁻²⁴ = 3e-5 nats.
    for name, value in {"loss": -expected["elbo"], "reconstruction": expected["reconstruction"],
                        "kl": expected["kl"]}.items():
        assert np.isclose(history[f"val_{name}"][0], value, rtol=1e-6, atol=1e-4), name
    for prefix in ("", "val_"):
        loss, reconstruction, kl = (history[prefix + name][0] for name in ("loss", "reconstruction", "kl"))
        assert np.isclose(loss, kl - reconstruction, rtol=1e-6)
    assert set(history) == {prefix + name for prefix in ("", "val_")
                            for name in ("loss", "reconstruction", "kl")}


def test_evaluation_draws_the_same_noise_each_time(compiled, few):
    one, two = (compiled.evaluate(few, batch_size=len(few), verbose=0, return_dict=True) for _ in range(2))
    assert one == two
    assert np.isclose(one["loss"], -evaluate(compiled, few, SEED)["elbo"], rtol=1e-6)
    assert one["loss"] != compiled.evaluate(with_noise(few, draw_eps(7, 7, (len(few), 2))), verbose=0)[0]


def test_predict_is_the_reconstruction(compiled, few):
    assert np.allclose(compiled.predict(few, verbose=0), compiled(few), atol=1e-5)  # float32


def test_callbacks_work(compiled, x_train, few, tmp_path):
    best, table = tmp_path / "best.keras", tmp_path / "log.csv"
    history = compiled.fit(x_train, validation_data=(few, None), epochs=6, **OPTIONS, callbacks=[
        keras.callbacks.ModelCheckpoint(best, monitor="val_loss", save_best_only=True),
        # No epoch gains a thousand nats, so the second is the last.
        keras.callbacks.EarlyStopping("val_loss", min_delta=1000, patience=1),
        keras.callbacks.CSVLogger(table),
    ]).history
    assert len(history["loss"]) == 2
    with table.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "kl", "val_loss", "val_reconstruction"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name], rel=1e-6)
    score = keras.saving.load_model(best).evaluate(few, verbose=0, return_dict=True)["loss"]
    assert score == pytest.approx(min(history["val_loss"]), rel=1e-6)


def test_tensorboard_gets_the_curves(compiled, x_train, few, tmp_path):
    pytest.importorskip("tensorboard")
    compiled.fit(x_train, validation_data=(few, None), **OPTIONS,
                 callbacks=[keras.callbacks.TensorBoard(tmp_path, write_graph=False)])
    (events,) = tmp_path.glob("validation/events*")
    content = events.read_bytes()
    assert b"epoch_kl" in content and b"epoch_reconstruction" in content


@pytest.mark.parametrize("trained", [True, False])
def test_a_saved_and_loaded_model_goes_on_alike(compiled, x_train, tmp_path, trained):
    if trained:
        compiled.fit(x_train, **OPTIONS)
    compiled.save(tmp_path / "cvae.keras")
    loaded = keras.saving.load_model(tmp_path / "cvae.keras")
    assert loaded.optimizer.iterations == compiled.optimizer.iterations == 5 * trained
    losses = [model.fit(x_train, **OPTIONS).history for model in (compiled, loaded)]
    assert losses[0] == losses[1] and equal(compiled.get_weights(), loaded.get_weights())
    assert equal([v.numpy() for v in compiled.optimizer.variables],
                 [v.numpy() for v in loaded.optimizer.variables])


def test_compile_is_remembered_whole(tmp_path):
    model = CVAE(2, (4, 4), seed=0)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 100)
    model.compile(keras.optimizers.Adam(rate, beta_1=0.8), "closed_form", seed=11)
    model.save(tmp_path / "cvae.keras")
    loaded = keras.saving.load_model(tmp_path / "cvae.keras")
    assert (loaded.estimator, loaded.noise_seed) == ("closed_form", 11)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()


def test_the_courses_own_loader_and_keras_read_each_others_files(compiled, x_train, few, tmp_path):
    compiled.fit(x_train, **OPTIONS)
    save_model(compiled, tmp_path / "compiled.keras")
    plain = load_model(tmp_path / "compiled.keras")
    assert not plain.compiled and equal(plain.get_weights(), compiled.get_weights())
    save_model(plain, tmp_path / "plain.keras")  # a model that was never compiled
    again = keras.saving.load_model(tmp_path / "plain.keras")
    assert not again.compiled and equal(again.get_weights(), compiled.get_weights())


def test_sample_weights_are_refused(compiled, x_train):
    # Keras itself drops weights that come without a y, before any model's step sees them.
    ones, pairs = np.ones(len(x_train)), with_noise(x_train, np.zeros((len(x_train), 2), np.float32))
    for x in (x_train, pairs):
        for call in (lambda x=x: compiled.fit(x, sample_weight=ones, **OPTIONS),
                     lambda x=x: compiled.fit(x, class_weight={0: 1.0}, **OPTIONS),
                     lambda x=x: compiled.fit(x_train, validation_data=(x, None, ones), **OPTIONS),
                     lambda x=x: compiled.evaluate(x, sample_weight=ones, verbose=0),
                     lambda x=x: compiled.evaluate(x, None, SIZE, 0, ones)):  # by position
            with pytest.raises(ValueError, match="sample weights are not supported"):
                call()


def unchanged(model, calls, match):
    """Whether each call is a ValueError with these words, and none of them trains."""
    before = model.get_weights()
    for call in calls:
        with pytest.raises(ValueError, match=match):
            call()
    return equal(model.get_weights(), before)


def pairs(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(SIZE)


@pytest.mark.parametrize("latent_dim, label", [(2, np.float32([0, 1])), (1, np.float32([1])), (2, np.int64(7))])
def test_labels_are_refused_whatever_their_shape(x_train, latent_dim, label):
    # With a label of shape (batch, latent_dim) fit once trained on labels for noise, without a word.
    model, y = CVAE(latent_dim, (4, 4), seed=0), np.broadcast_to(label, (len(x_train), *label.shape))
    model.compile()
    few, dataset = x_train[:SIZE], pairs(x_train, y)
    assert unchanged(model, [
        lambda: model.fit(dataset, verbose=0), lambda: model.fit(x_train, y, verbose=0),
        lambda: model.fit((few, y[:SIZE]), verbose=0), lambda: model.fit(x_train, x_train, verbose=0),
        lambda: model.fit(few, validation_data=dataset, verbose=0),
        lambda: model.fit(few, validation_data=(x_train, y), verbose=0),
        lambda: model.fit((pair for pair in dataset), shuffle=False, verbose=0),
        lambda: model.train_on_batch(few, y[:SIZE]), lambda: model.evaluate(dataset, verbose=0),
        lambda: model.evaluate(x_train, y, verbose=0), lambda: model.predict(dataset, verbose=0),
    ], "labels or targets.*images alone")


def test_what_comes_by_name_is_images_and_noise(compiled, x_train):
    y = np.zeros(len(x_train))
    assert unchanged(compiled, [
        lambda: compiled.fit({"image": x_train, "label": y}, verbose=0), lambda: compiled.fit({"eps": y}, verbose=0),
        lambda: compiled.fit({"images": x_train, "labels": y}, verbose=0)], "'images' and.*'eps'.*here are")
    assert unchanged(compiled, [lambda: compiled.fit(with_noise(x_train, x_train), verbose=0)], "eps")


def grey(x, kind):
    """Images with pixels from 0 to 255, as Keras takes them."""
    x = 255 * x[:2 * SIZE]
    return {"array": x, "noisy": with_noise(x, np.zeros((len(x), 2), np.float32)),
            "dataset": tf.data.Dataset.from_tensor_slices(x).batch(SIZE),
            "generator": ((x[i:i + SIZE],) for i in range(0, len(x), SIZE))}[kind]


@pytest.mark.parametrize("options", [
    {}, pytest.param({"run_eagerly": True}, marks=pytest.mark.long), pytest.param({"jit_compile": True}, marks=pytest.mark.long)])
def test_pixels_are_read_in_each_batch(x_train, options):
    # XLA would drop an assertion inside of what it compiles.
    model = CVAE(2, (4, 4), seed=0)
    model.compile("adam", **options)
    words = "each pixel must be 0 or 1.*from 0.* to 255"
    calls = [lambda kind=kind: model.fit(grey(x_train, kind), shuffle=False, verbose=0)
             for kind in ("array", "noisy", "dataset", "generator")]
    calls += [lambda: model.evaluate(grey(x_train, "dataset"), verbose=0)]
    assert unchanged(model, calls, words)
    with pytest.raises(ValueError, match=words):
        model.predict(grey(x_train, "array"), verbose=0)
    late = np.concatenate([x_train[:SIZE], np.full((1, 28, 28, 1), np.nan, np.float32)])
    with pytest.raises(ValueError, match="each pixel must be 0 or 1"):
        model.fit(late, **OPTIONS)
    with pytest.raises(ValueError, match=words):
        model.fit(x_train[:SIZE], validation_data=grey(x_train, "dataset"), verbose=0)
    assert np.isfinite(np.concatenate([np.ravel(w) for w in model.get_weights()])).all()


@keras.saving.register_keras_serializable(package="tests")
class KerasFunctional(KerasFit, FunctionalNetworks):
    """Keras's example with Keras's loop."""


@pytest.mark.parametrize("make, good, bad", [
    (lambda: CVAE(2, (4, 4), seed=0, likelihood="discretized_logistic"), 17 / 255, 0.5),
    (lambda: CVAE(2, (4, 4), seed=0, likelihood="continuous_bernoulli"), 0.5, 1.5),
    (lambda: KerasFunctional(seed=0), 1, 0.5), (lambda: ResidualVAE(2, 8, 1), 1, 17 / 255)])
def test_other_families_and_levels_read_their_pixels(make, good, bad):
    model = make()
    model.compile()
    x = np.zeros((16, 28, 28, 1), np.float32)
    x[3] = good
    assert np.isfinite(model.fit(x, verbose=0).history["loss"][0])
    x[5, 20, 20] = bad
    assert unchanged(model, [lambda: model.fit(x, verbose=0), lambda: model.evaluate(x, verbose=0)], "each pixel must be")


def test_unknown_estimator_is_refused(x_train):
    model = CVAE(2, (4, 4), seed=0)
    with pytest.raises(ValueError, match="estimator must be one of .*got 'exact'"):
        model.compile("adam", "exact")
        model.fit(x_train, **OPTIONS)


@pytest.mark.parametrize("change", [lambda x: x[..., 0], lambda x: x.astype(np.int32)])
def test_bad_images_are_refused(compiled, x_train, change):
    with pytest.raises((TypeError, ValueError)):
        compiled.fit(change(x_train), **OPTIONS)


def child_fit(connection, devices, x, eps, size):
    """Runs in a child: two epochs of Keras's fit; sends losses and weights, or the error's name and text."""
    strategy = make_strategy(devices)
    with strategy.scope() if devices > 1 else contextlib.nullcontext():
        model = CVAE(2, (4, 4), seed=0)
        if devices > 1:  # inside of what XLA compiles, they cannot add up their gradients
            with pytest.raises(ValueError, match="one device"):
                model.compile(jit_compile=True)
        model.compile(keras.optimizers.Adam(1e-3))
    try:
        history = model.fit(with_noise(x, eps), batch_size=size, epochs=2, shuffle=False, verbose=0).history
        connection.send((history, model.get_weights(), model.evaluate(with_noise(x, eps), batch_size=size, verbose=0)))
    except tf.errors.InvalidArgumentError as error:
        connection.send(str(error))


@pytest.mark.long
def test_two_devices_follow_one_if_the_first_batch_divides_evenly(x_train):
    x, eps = x_train[:95], draw_eps(0, 0, (95, 2)).numpy()
    jobs = [(1, 20), (2, 20), (2, 15)]  # four batches of 20 and one of 15; then batches of 15, 8 and 7 each
    one, two, uneven = map(children.finish, [children.start(child_fit, devices, x, eps, size)
                                             for devices, size in jobs])
    # Sums in another order, each off by a few 2⁻²⁴ ≈ 6e-8 of its size. The KL here is 0.001 nats, a
    # difference of numbers around 540.
    assert one[0].keys() == two[0].keys() == {"loss", "reconstruction", "kl"}
    for name in one[0]:
        assert np.allclose(two[0][name], one[0][name], rtol=1e-5, atol=1e-4), name
    assert np.allclose(two[2], one[2], rtol=1e-5, atol=1e-4)
    # Ten steps of Adam: a weight whose gradient is next to 0 may move by other parts of its 1e-3.
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(one[1], two[1], strict=True))
    assert "AddN must have the same size and shape" in uneven

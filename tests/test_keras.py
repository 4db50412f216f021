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
    loss = model.fit(x_train, eps, **OPTIONS).history["loss"][-1]
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
    history = compiled.fit(x_train, validation_data=(few, noise), **OPTIONS).history
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
    assert one["loss"] != compiled.evaluate(few, draw_eps(7, 7, (len(few), 2)), verbose=0)[0]


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
    noise, ones = np.zeros((len(x_train), 2), np.float32), np.ones(len(x_train))
    dataset = tf.data.Dataset.from_tensor_slices((x_train, noise, ones)).batch(SIZE)
    for eps in (noise, None):
        for call in (lambda eps=eps: compiled.fit(x_train, eps, sample_weight=ones, **OPTIONS),
                     lambda eps=eps: compiled.fit(x_train, eps, validation_data=(x_train, eps, ones), **OPTIONS),
                     lambda eps=eps: compiled.evaluate(x_train, eps, sample_weight=ones, verbose=0),
                     lambda eps=eps: compiled.evaluate(x_train, eps, SIZE, 0, ones),  # by position
                     lambda: compiled.fit(dataset, shuffle=False, verbose=0), lambda: compiled.evaluate(dataset, verbose=0)):
            with pytest.raises(ValueError, match="sample weights are not supported"):
                call()


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
        model.compile(keras.optimizers.Adam(1e-3))
    try:
        history = model.fit(x, eps, batch_size=size, epochs=2, shuffle=False, verbose=0).history
        connection.send((history, model.get_weights(), model.evaluate(x, eps, batch_size=size, verbose=0)))
    except tf.errors.InvalidArgumentError as error:
        connection.send(str(error))


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

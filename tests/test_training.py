"""The objective, the step, recipes and the loop."""

import json
import pickle
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_course.data import preprocess_images
from vae_course.elbo import elbo_terms
from vae_course.engine.families import MODELS, Family
from vae_course.manifold import encode_images
from vae_course.model import CVAE
from vae_course.engine.recipes import BEST, FAST, RECIPES, SHORT, TUTORIAL, Recipe, make_optimizer
from vae_course.reparameterization import draw_eps
from vae_course.engine.runs import load_run, recipe_from_card, save_run
from vae_course.engine.loop import fit, make_train_step
from vae_course.training import Evaluation, History, apply_step, compute_loss, evaluate, train, train_step


@pytest.fixture(scope="module")
def x_train(mnist):
    return preprocess_images(mnist[0][0][:1000])


def test_untrained_loss_is_784_fair_coins(model, x_test):
    # Fresh weights give logits near 0: 784 log 2 nats, and next to no KL.
    assert abs(compute_loss(model, x_test[:500], draw_eps(0, 0, (500, 2))) - 784 * np.log(2)) < 3


def test_loss_is_its_parts(model, x):
    eps = draw_eps(0, 0, (len(x), 2))
    terms = elbo_terms(model, x, eps)
    assert all(term.shape == (len(x),) for term in terms)
    monte_carlo = -np.mean(terms.log_px_z + terms.log_pz - terms.log_qz_x)
    closed_form = -np.mean(terms.log_px_z - terms.kl)
    assert np.isclose(compute_loss(model, x, eps), monte_carlo, rtol=1e-6)
    assert np.isclose(compute_loss(model, x, eps, "closed_form"), closed_form, rtol=1e-6)


def test_exact_loss_of_a_model_known_by_hand(x):
    # Encoder and decoder of zeros: q = N(0, I) is the prior, every pixel is a fair coin.
    model = CVAE(seed=0)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    for estimator in ("monte_carlo", "closed_form"):
        loss = compute_loss(model, x, draw_eps(0, 0, (len(x), 2)), estimator)
        assert np.isclose(loss, 784 * np.log(2), rtol=1e-6)


def test_monte_carlo_elbo_meets_the_closed_form(pretrained, x):
    model = pretrained[0]
    difference = []
    for step in range(400):
        terms = elbo_terms(model, x, draw_eps(0, step, (len(x), 2)))
        difference.append(np.mean(terms.log_qz_x - terms.log_pz - terms.kl))
    # Five standard errors of the mean.
    assert abs(np.mean(difference)) < 5 * np.std(difference) / np.sqrt(len(difference))


def test_loss_draws_noise_when_none_is_given(model, x):
    assert compute_loss(model, x) != compute_loss(model, x)


@pytest.mark.parametrize("estimator", ["monte_carlo", "closed_form"])
def test_gradients_reach_every_variable(model, x, estimator):
    with tf.GradientTape() as tape:
        loss = compute_loss(model, x, draw_eps(0, 0, (len(x), 2)), estimator)
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert tf.reduce_all(tf.math.is_finite(gradient)) and tf.reduce_any(gradient != 0)


def test_tutorial_call_works_for_two_models(x):
    for seed in (0, 1):  # a second model and optimizer in one process
        model, optimizer = CVAE(2, seed=seed), keras.optimizers.Adam(1e-4)
        before = model.get_weights()
        loss = train_step(model, x, optimizer)
        assert loss.shape == () and 500 < loss < 600
        assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_step_takes_ragged_batches_and_equals_plain_gradient_descent(x):
    model, rate = CVAE(seed=0), 1e-5
    step = make_train_step(model, keras.optimizers.SGD(rate))
    for size in (8, 3, 1):
        eps = draw_eps(0, size, (size, 2))
        with tf.GradientTape() as tape:
            loss = compute_loss(model, x[:size], eps)
        gradients = tape.gradient(loss, model.trainable_variables)
        expected = [v - rate * g for v, g in zip(model.get_weights(), gradients, strict=True)]
        assert np.isclose(step(tf.constant(x[:size]), eps), loss, rtol=1e-5)  # float32
        for weight, value in zip(model.get_weights(), expected, strict=True):
            assert np.allclose(weight, value, atol=1e-6)


def test_the_graph_computes_what_python_computes(x_test):
    plain, traced = CVAE(2, (4, 8), seed=0), CVAE(2, (4, 8), seed=0)
    adams = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)
    for t, size in enumerate((32, 32, 7)):  # the last batch is ragged
        x, eps = x_test[:size], draw_eps(0, t, (size, 2))
        losses = apply_step(plain, x, adams[0], eps, "monte_carlo"), train_step(traced, x, adams[1], eps)
        assert np.isclose(*losses, rtol=1e-5)  # float32, sums in another order


def test_training_lowers_the_loss_on_real_data(x_train, x_test):
    history = fit(replace(SHORT, epochs=3), x_train, x_test[:500], verbose=False)[1]
    elbos = [entry["test_elbo"] for entry in history]
    assert elbos == sorted(elbos) and elbos[-1] > -260  # it starts at -543


def test_history_adds_up(x_train, x_test):
    (entry,) = fit(replace(SHORT, epochs=1), x_train, x_test[:100], verbose=False)[1]
    assert set(entry) == {"epoch", "train_loss", "test_elbo", "test_reconstruction", "test_kl"}
    assert entry["epoch"] == 1
    assert np.isclose(entry["test_elbo"], entry["test_reconstruction"] - entry["test_kl"], rtol=1e-12)


def test_a_run_is_a_function_of_its_recipe(x_train, x_test):
    def run(**changes):
        return fit(replace(SHORT, epochs=1, **changes), x_train, x_test[:100], verbose=False)[0].get_weights()

    first, again, other = run(), run(), run(seed=1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_callbacks_see_every_epoch(x_train, x_test):
    seen = []
    fit(replace(SHORT, epochs=2), x_train[:100], x_test[:10], verbose=False,
        callbacks=[lambda epoch, model, history: seen.append((epoch, len(history)))])
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_callbacks_from_a_generator_are_called_after_every_epoch_too(x_train, x_test):
    seen = []
    fit(replace(SHORT, epochs=2, filters=(2, 2)), x_train[:64], x_test[:64], verbose=False,
        callbacks=(lambda epoch, *_, name=name: seen.append((name, epoch)) for name in "ab"))
    assert seen == [(name, epoch) for epoch in range(3) for name in "ab"]


def test_output_is_the_tutorials_line(x_train, x_test, capsys):
    fit(replace(SHORT, epochs=1), x_train[:100], x_test[:10])
    assert "Epoch: 1, Test set ELBO: -" in capsys.readouterr().out


def test_evaluation_does_not_depend_on_the_batch_size(model, x_test):
    results = [evaluate(model, x_test[:130], batch_size=size)["elbo"] for size in (1000, 64, 7)]
    assert np.allclose(results, results[0], rtol=1e-6)  # float32 sums in another order


def test_an_evaluation_is_a_dict_that_knows_its_error(model, x_test):
    found, eps = evaluate(model, x_test[:50]), draw_eps(0, -1, (50, 2))
    each = elbo_terms(model, x_test[:50], eps).elbo().numpy()
    assert isinstance(found, dict) and list(found) == ["elbo", "reconstruction", "kl"]
    assert np.allclose(found.each, each, rtol=1e-6)
    assert np.isclose(found.error, each.std(ddof=1) / np.sqrt(50), rtol=1e-3)  # float32 differences
    assert found == json.loads(json.dumps(found)) == pickle.loads(pickle.dumps(found)) == dict(found)
    assert type({"images": 50} | found) is dict


def test_a_notebook_shows_an_evaluation_with_its_error():
    found = Evaluation(elbo=-156.816, reconstruction=-150.5, kl=6.316)
    assert found._repr_markdown_() == "ELBO −156.82 nats per image: reconstruction −150.50, KL 6.32"
    found.each = np.float32([-150, -160])  # the mean of two: half their distance
    assert found._repr_markdown_().startswith("ELBO −156.82 ± 5.00 nats per image")
    found.each = found.each[:1]  # one image has no spread
    assert "±" not in found._repr_markdown_()


def test_a_notebook_shows_a_history_as_a_table():
    entry = {"epoch": 1, "train_loss": 170.126, "test_elbo": -165.0, "test_reconstruction": -160.5, "test_kl": 4.5}
    history = History([entry, entry | {"epoch": 2, "seconds": 3.25}])
    assert history == [history[0], history[1]] == json.loads(json.dumps(history)) == pickle.loads(pickle.dumps(history))
    head, line, one, two = history._repr_markdown_().split("\n")
    assert head == "| epoch | − train loss | test ELBO | reconstruction | KL |" and line == "| --: | --: | --: | --: | --: |"
    assert one == "| 1 | −170.13 | −165.00 | −160.50 | 4.50 |"
    assert two == "| 2 | −170.13 | −165.00 | −160.50 | 4.50 |"
    history[0]["seconds"] = 3.75  # the first entry says which columns there are
    assert history._repr_markdown_().split("\n")[::3] == [head + " seconds |", two + " 3.25 |"]
    assert "no epoch yet" in History()._repr_markdown_()


def test_both_loops_return_a_history(x_train, x_test, tmp_path):
    history = train(CVAE(2, (2, 2), seed=0), x_train[:64], x_test[:10], epochs=1)
    recipe = replace(SHORT, epochs=1, filters=(2, 2))
    runs = [fit(recipe, x_train[:64], x_test[:10], verbose=False, checkpoint_dir=tmp_path)[1] for _ in range(2)]
    assert {type(found) for found in (history, *runs)} == {History}  # the last one from a checkpoint
    assert runs[0] == runs[1]


def test_card_of_the_pretrained_model_is_true(pretrained, x_test):
    model, card = pretrained
    assert recipe_from_card(card) == TUTORIAL
    # The same noise on another processor may round otherwise; a hundredth of a nat is far above that.
    assert abs(evaluate(model, x_test, seed=card["recipe"]["seed"])["elbo"] - card["test_elbo"]) < 0.01
    assert abs(card["test_elbo"] + 156.2) < 1
    assert set(card) == {"recipe", "test_elbo", "sha256", "versions"}


def test_run_survives_a_round_trip(tmp_path, model):
    recipe = replace(TUTORIAL, filters=(32, 64), seed=7)
    save_run(tmp_path, "run", model, recipe, [{"test_elbo": -1.5}])
    loaded, card = load_run(tmp_path, "run")
    assert recipe_from_card(card) == recipe and card["test_elbo"] == -1.5
    assert all((a == b).all() for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))


def test_run_with_a_missing_or_changed_file_is_refused(tmp_path, model):
    save_run(tmp_path, "run", model, TUTORIAL, [])
    content = (tmp_path / "run.keras").read_bytes()
    (tmp_path / "run.keras").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not the file that run.json describes"):
        load_run(tmp_path, "run")
    for text in ("{", "{}", "[]", "3", '"sha256"'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match="run.json is damaged or no card of a run; restore it together with run.keras"):
            load_run(tmp_path, "run")
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="run.json"):
        load_run(tmp_path, "run")


@pytest.mark.parametrize(("change", "error"), [
    ({"epochs": -1}, ValueError), ({"epochs": 1.5}, TypeError), ({"batch_size": 0}, ValueError),
    ({"learning_rate": 0}, ValueError), ({"learning_rate": float("nan")}, ValueError),
    ({"learning_rate": float("inf")}, ValueError), ({"schedule": "linear"}, ValueError),
    ({"estimator": "iwae"}, ValueError), ({"optimizer": "adamm"}, ValueError), ({"seed": -1}, ValueError),
    ({"seed": 2**31}, ValueError), ({"latent_dim": 0}, ValueError), ({"filters": (0, 1)}, ValueError),
    ({"beta_1": 1.0}, ValueError), ({"beta_2": -0.1}, ValueError), ({"output_bias": "ones"}, ValueError),
    ({"beta_1": 0.8, "optimizer": "sgd"}, ValueError), ({"warmup": 10}, ValueError),
    ({"warmup": -1, "schedule": "cosine"}, ValueError),
])
def test_a_recipe_that_makes_no_run_is_refused(change, error):
    with pytest.raises(error, match=next(iter(change))):
        replace(TUTORIAL, **change)


def test_recipes_have_their_names():
    assert RECIPES == {"tutorial": TUTORIAL, "short": SHORT, "fast": FAST, "best": BEST}


@pytest.mark.parametrize(("change", "message"), [
    ({"model": "transformer"}, "model must be one of .*'conditional'.*got 'transformer'"),
    ({"objective": "elbow"}, "objective must be one of .*'iwae'.*got 'elbow'"),
    ({"samples": 5}, "samples has no meaning for the objective 'elbo'"),
    ({"samples": 0}, "samples must be at least 1"),
    ({"objective": "iwae", "beta": 2.0}, "beta has no meaning for the objective 'iwae'"),
    ({"model": "residual", "filters": (8, 8)}, "filters has no meaning for the model 'residual'"),
    ({"model": "residual", "likelihood": "continuous_bernoulli"}, "likelihood has no meaning"),
    ({"sizes": {"width": 3}}, "the model 'convolutional' has no size 'width'"),
    ({"model": "residual", "sizes": {"depth": 3}}, "the model 'residual' has no size 'depth'.*'width'"),
])
def test_names_that_make_no_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TUTORIAL, **change)


def test_the_plain_loop_and_the_engine_give_the_same_run(x_train, x_test):
    """With the same layers: chapter 05's loop in Python, and the loop in the graph."""
    MODELS.setdefault("plain", Family(lambda recipe, images: CVAE(2, recipe.filters, recipe.seed), ("filters",), (), False))
    model, test = CVAE(2, (4, 8), seed=3), x_test[:100]
    history = train(model, x_train[:500], test, epochs=2, batch_size=64, learning_rate=1e-3, seed=3)
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=1e-3, seed=3, filters=(4, 8), model="plain")
    by_engine, engine_history = fit(recipe, x_train[:500], test, verbose=False)
    # Two graphs of the same operations. The losses of an epoch are averaged in another precision.
    for ours, theirs in zip(model.get_weights(), by_engine.get_weights(), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(history, engine_history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_engine_with_its_faster_layer_follows_the_plain_loop(x_train, x_test):
    """Its last layer adds in another order, which 16 steps amplify little."""
    model = CVAE(2, (4, 8), seed=3)
    history = train(model, x_train[:500], x_test[:100], epochs=2, batch_size=64, learning_rate=1e-3, seed=3)
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=1e-3, seed=3, filters=(4, 8))
    engine_history = fit(recipe, x_train[:500], x_test[:100], verbose=False)[1]
    assert [e["test_elbo"] for e in history] == pytest.approx([e["test_elbo"] for e in engine_history], rel=1e-4)


def test_rate_rises_and_falls_as_the_recipe_says():
    optimizer = make_optimizer(replace(FAST, learning_rate=0.5, warmup=10), steps=110)
    rate = optimizer._learning_rate
    # Linear to the top, then a half cosine over the other hundred steps.
    for step, expected in [(0, 0), (5, 0.25), (10, 0.5), (60, 0.25), (110, 0)]:
        assert abs(rate(step) - expected) < 1e-6
    assert (optimizer.beta_1, optimizer.beta_2) == (FAST.beta_1, FAST.beta_2)


def test_output_bias_starts_at_the_mean_pixel(x_train, x_test):
    model = fit(replace(FAST, epochs=0), x_train, x_test[:10], verbose=False)[0]
    bias = model.decoder.layers[-1].bias.numpy()
    assert np.allclose(1 / (1 + np.exp(-bias)), x_train.mean(), rtol=1e-4)  # float32
    plain = fit(replace(FAST, epochs=0, output_bias="zero"), x_train, x_test[:10], verbose=False)[0]
    assert plain.decoder.layers[-1].bias.numpy() == 0


def test_recipe_is_frozen():
    with pytest.raises(AttributeError):
        TUTORIAL.epochs = 3
    assert Recipe() == TUTORIAL


@pytest.mark.parametrize(("change", "error"), [
    (lambda x: x.astype(np.int32), TypeError), (lambda x: x[..., 0], ValueError),
    (lambda x: x[:0], ValueError), (lambda x: x * 0.7, ValueError), (lambda x: x * np.nan, ValueError),
])
@pytest.mark.parametrize("call", [
    lambda model, x: compute_loss(model, x), lambda model, x: evaluate(model, x),
    lambda model, x: train_step(model, x, keras.optimizers.Adam()),
    lambda model, x: fit(SHORT, x, x, verbose=False),
])
def test_bad_images_are_refused_everywhere(model, x, call, change, error):
    with pytest.raises(error, match="images must|each pixel must"):
        call(model, change(x))


@pytest.mark.parametrize(("batch_size", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError)])
@pytest.mark.parametrize("call", [evaluate, encode_images])
def test_bad_batch_size_is_refused(model, x, call, batch_size, error):
    with pytest.raises(error, match="batch_size must be"):
        call(model, x, batch_size=batch_size)


def test_unknown_estimator_is_refused(model, x):
    with pytest.raises(ValueError, match="monte_carlo.*got 'exact'"):
        compute_loss(model, x, estimator="exact")

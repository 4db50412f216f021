"""Two bounds of a model with few labels, against sums by hand, exact integrals, and its own parts."""

import numpy as np
import pytest
import tensorflow as tf

from vae_course.beyond.few_labels import (
    LabelVAE,
    analogies,
    choose_labelled,
    every_label,
    few_labels_objective,
    labelled_bound,
    make_classifier,
    probe,
    right_share,
    train_classifier,
    train_few,
    unlabelled_bound,
)
from vae_course.reparameterization import draw_eps
from vae_course.truth.evaluation import log_marginal


@pytest.fixture(scope="module")
def x(x_test):
    return x_test[:6]


@pytest.fixture
def model():
    return LabelVAE(latent_dim=2, width=8, seed=3)


def test_every_label_is_the_labelled_bound_with_each(model, x):
    eps = draw_eps(0, 0, (6, 2))
    bounds = every_label(model, x, eps)
    assert bounds.shape == (6, 10)
    for label in range(10):
        assert np.allclose(bounds[:, label], labelled_bound(model, x, label, eps), atol=1e-3)  # float32, 550 nats


def test_unlabelled_bound_misses_the_divergence_of_the_guess():
    rng = np.random.default_rng(0)
    bounds, logits = rng.normal(-100, 3, (50, 10)), rng.normal(0, 3, (50, 10))
    log_sum = lambda a: np.logaddexp.reduce(a, axis=1, keepdims=True)
    log_r, log_q = bounds - log_sum(bounds), logits - log_sum(logits)
    kl = np.sum(np.exp(log_q) * (log_q - log_r), axis=1)
    assert np.allclose(unlabelled_bound(bounds, logits), log_sum(bounds)[:, 0] - kl, atol=1e-3)  # may be float32
    assert np.allclose(unlabelled_bound(bounds, bounds), log_sum(bounds)[:, 0], atol=1e-3)
    certain = 1000 * np.eye(10)[np.arange(50) % 10]
    assert np.allclose(unlabelled_bound(bounds, certain), bounds[np.arange(50), np.arange(50) % 10], atol=1e-3)


def test_bounds_lie_below_the_exact_log_likelihood(model, x):
    x = x[:2]
    log_pxy = np.stack([log_marginal(model.given(y), x, 0.01).log_px for y in range(10)], 1) - np.log(10)
    draws = np.array([every_label(model, x, eps) for eps in tf.unstack(draw_eps(0, 0, (200, 2, 2)))])
    slack = 0.01 + 5 * draws.std(axis=0, ddof=1) / 200**0.5
    assert (draws.mean(axis=0) <= log_pxy + slack).all()


def test_objective_is_its_three_parts(model, x):
    y, step = tf.constant([1, 2, 3]), tf.constant(7)
    found = few_labels_objective(model, (x[:3], x[3:], y, step), 5.0, 0.1, 0)
    u = unlabelled_bound(every_label(model, x[:3], draw_eps(0, 14, (3, 2))), model.classifier(x[:3]))
    known = labelled_bound(model, x[3:], y, draw_eps(0, 15, (3, 2)))
    log_q = tf.gather(tf.nn.log_softmax(model.classifier(x[3:])), y, batch_dims=1)
    expected = np.mean(u) + 0.1 * np.mean(known) + 5 * np.mean(log_q)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_one_label_is_a_plain_vae(x):
    model, eps = LabelVAE(latent_dim=2, width=8, labels=1, seed=0), draw_eps(0, 0, (6, 2))
    known = labelled_bound(model, x, 0, eps)
    assert np.allclose(unlabelled_bound(every_label(model, x, eps), model.classifier(x)), known, atol=1e-3)


def test_training_raises_the_objective_and_can_be_repeated(x):
    y, found = np.arange(6), []
    for _ in range(2):
        model = LabelVAE(latent_dim=2, width=32, seed=0)
        found.append([train_few(model, x, x, y, steps, seed=1) for steps in (1, 20)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][1] < found[0][0] - 50
    assert right_share(model.classifier(x), y) > 0.5


def test_labelled_rows_are_as_many_of_each_class():
    y = np.random.default_rng(0).integers(10, size=1000)
    rows = choose_labelled(y, 7, 1)
    assert len(set(rows)) == 70 and (np.bincount(y[rows]) == 7).all()
    assert (rows == choose_labelled(y, 7, 1)).all() and (rows != choose_labelled(y, 7, 2)).any()
    with pytest.raises(ValueError, match="the smallest class"):
        choose_labelled(y, 500)


def test_classifier_probe_and_analogies(model, x):
    network, y = make_classifier(8, 0), np.arange(6)
    assert train_classifier(network, x, y, 300) < 0.5
    assert right_share(network(x), y) == 1
    assert probe(x, x, y, x, latent_dim=2, steps=2).shape == (6, 10)
    sheet = analogies(model, x, y)
    assert sheet.shape == (6, 11, 28, 28, 1) and (sheet[:, 0] == x).all()
    z, _ = model.given(y).encode(x)
    assert np.allclose(sheet[:, 5], model.given(4).decode(z, apply_sigmoid=True))

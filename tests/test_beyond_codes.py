"""Discrete codes: the choice, its borrowed slope, the quantisers, the codebook's care, and training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.beyond.codes import (Codebook, CodeModel, FiniteScalar, ascent, check_codes, letter_counts, nearest,
                                     perplexity, random_batches, redraw, straight_through, train_codes)
from vae_course.data import preprocess_images


@pytest.fixture
def digits(x_test):
    return x_test[:12]


def small(quantiser=None, seed=0):
    return CodeModel(quantiser or Codebook(8, 4, seed=0), (4, 6), seed=seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(2, 20), width=st.integers(1, 5))
def test_nearest_is_nearest(seed, size, width):
    rng = np.random.default_rng(seed)
    h, vectors = rng.normal(size=(3, 2, width)).astype(np.float32), rng.normal(size=(size, width)).astype(np.float32)
    distance = np.linalg.norm(h[..., None, :].astype(float) - vectors, axis=-1)
    found = np.take_along_axis(distance, nearest(h, vectors).numpy()[..., None], axis=-1)[..., 0]
    # float32: |e|² - 2 h·e of numbers below 10 has an error below 1e-5, and so have two distances that tie.
    assert np.all(found**2 <= distance.min(axis=-1)**2 + 1e-4)


def test_straight_through_has_the_value_of_one_and_the_slope_of_the_other(rng):
    h, chosen = (tf.constant(rng.normal(size=(4, 3)), tf.float32) for _ in range(2))
    with tf.GradientTape() as tape:
        tape.watch([h, chosen])
        value = straight_through(h, chosen)
        loss = tf.reduce_sum(value**3)
    by_h, by_chosen = tape.gradient(loss, (h, chosen))
    assert np.allclose(value, chosen, atol=1e-6)  # h + (chosen - h) in float32
    assert np.allclose(by_h, 3 * chosen**2, atol=1e-4) and by_chosen is None


def test_codebook_penalty_is_the_formula_and_moves_both_sides(rng):
    book, h = Codebook(5, 3, seed=0), tf.constant(rng.normal(size=(2, 7, 7, 3)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(h)
        penalty = book.quantise(h)[1]
    e = tf.gather(book.vectors, book.number(h))
    squares = tf.reduce_sum((h - e)**2, axis=(1, 2, 3))
    assert np.allclose(penalty, 1.25 * squares, rtol=1e-5)
    assert np.allclose(tape.gradient(penalty, h), (h - e) / 2, atol=1e-5)
    expected = np.zeros((5, 3))
    np.add.at(expected, np.ravel(book.number(h)), 2 * np.reshape(e - h, (-1, 3)))
    assert np.allclose(tf.convert_to_tensor(tape.gradient(penalty, book.vectors)), expected, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_finite_scalars_number_all_combinations(levels):
    quantiser = FiniteScalar(tuple(levels))
    codes = np.arange(quantiser.size)
    e = quantiser.vector(codes).numpy()
    assert quantiser.size == np.prod(levels) and e.shape == (quantiser.size, len(levels))
    assert len(np.unique(e.round(4), axis=0)) == quantiser.size and np.abs(e).max() <= 1
    assert np.array_equal(quantiser.number(np.arctanh(0.999 * e)), codes)


@pytest.mark.parametrize("levels", [(), (1,), (4, 0), (2.5, 4), (True, 4)])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises((TypeError, ValueError), match="levels"):
        FiniteScalar(levels)


def test_finite_scalars_pass_the_slope_of_the_squeezed_number(rng):
    h = tf.constant(rng.normal(size=(1, 7, 7, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(h)
        z, penalty = FiniteScalar().quantise(h)
        total = tf.reduce_sum(z)
    assert np.allclose(tape.gradient(total, h), 1 - np.tanh(h)**2, atol=1e-5) and penalty == 0


@pytest.mark.parametrize("quantiser", [Codebook(8, 4, seed=0), FiniteScalar((3, 3))])
def test_a_model_writes_letters_and_paints_them(digits, quantiser):
    model = small(quantiser)
    codes = model.encode(digits)
    assert codes.shape == (12, 7, 7) and codes.dtype == tf.int64
    assert 0 <= np.min(codes) and np.max(codes) < quantiser.size
    assert np.array_equal(codes, model.encode(digits))
    logits = model.decode(codes)
    by_hand = -np.sum(np.logaddexp(0, np.where(digits == 1, -logits, logits)), axis=(1, 2, 3))
    assert np.allclose(model.log_likelihood(digits, codes), by_hand, rtol=1e-4)
    penalty = quantiser.quantise(model.encoder(digits))[1]
    assert np.allclose(model.objective(digits) + penalty, by_hand, rtol=1e-4)  # straight-through in float32


@pytest.mark.parametrize(("codes", "error"), [(np.zeros((1, 7, 7)), TypeError), (np.full((1, 7, 7), 8), ValueError),
                                              (np.full((1, 7, 7), -1), ValueError), (np.zeros((0, 7, 7), int), ValueError),
                                              (np.zeros((1, 7, 6), int), ValueError)])
def test_what_is_no_letter_is_refused(codes, error):
    with pytest.raises(error, match="codes"):
        small().decode(codes)
    with pytest.raises(error, match="codes"):
        check_codes(codes, 8)


def test_perplexity_counts_letters():
    for n in (1, 3, 64):
        assert perplexity(np.r_[np.full(n, 7), np.zeros(64 - n)]) == pytest.approx(n)
    p = np.random.default_rng(0).dirichlet(np.ones(9))
    assert perplexity(1000 * p) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    for wrong in (np.zeros(3), np.array([-1, 2]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="counts"):
            perplexity(wrong)


def test_counts_are_of_all_letters(digits):
    counts = letter_counts(small(), digits)
    assert counts.sum() == 12 * 49 and counts.shape == (8,)


def test_redrawn_letters_are_vectors_of_the_encoder_and_the_others_stay(digits):
    model, which = small(), np.arange(8) % 3 == 0
    before = model.quantiser.vectors.numpy()
    redraw(model, digits, which, seed=1)
    after, rows = model.quantiser.vectors.numpy(), np.reshape(model.encoder(digits), (-1, 4))
    assert np.array_equal(after[~which], before[~which])
    assert all((np.abs(rows - e).max(axis=1) < 1e-6).any() for e in after[which])
    with pytest.raises(ValueError, match="which"):
        redraw(model, digits, which[:3])


def test_a_step_of_ascent_is_a_step_of_adam_on_minus_the_mean():
    mine, theirs = tf.Variable([1.0, -2.0]), tf.Variable([1.0, -2.0])
    step = ascent(lambda batch: -batch * tf.reduce_sum(mine**2), [mine], 0.1, 10)
    loss = step(tf.constant([1.0, 3.0]))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.apply_gradients([(4 * theirs, theirs)])
    assert float(loss) == pytest.approx(10) and np.allclose(mine, theirs, atol=1e-6)


def test_batches_are_a_function_of_the_seed():
    first, again, other = ([*random_batches(np.arange(50), 3, 4, seed)] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and np.shape(first) == (3, 4)


def test_training_is_a_function_of_its_seed_and_raises_the_objective(digits):
    runs = [small() for _ in range(2)]
    before = float(np.mean(runs[0].objective(digits)))
    found = [train_codes(model, digits, 6, 1, seed=3) for model in runs]
    assert found[0] == found[1] and len(found[0]) == 2
    # Sums of float32 in another order; Adam's steps of up to 3e-3 magnify what they leave by far less than a thousand.
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*(model.get_weights() for model in runs), strict=True))
    assert np.mean(runs[0].objective(digits)) > before


def test_redrawing_keeps_more_letters_in_use(mnist):
    """The chapter's claim, small: after 120 steps."""
    found = {until: train_codes(CodeModel(Codebook(seed=0), (8, 16), seed=0), preprocess_images(mnist[0][0][:4000]), 120, until)[-1]
             for until in (0, 100)}
    assert found[100] > found[0] + 5

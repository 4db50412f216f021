"""Grey digits made binary by a draw: its mean, its seeds, a new one in each pass, and bad input."""

import numpy as np
import pytest
import tensorflow as tf

from vae_course.truth.protocols import draw_binary, dynamic_dataset


@pytest.fixture(scope="module")
def grey(mnist):
    return mnist[1][0][:3]


def passes_over(dataset, n):
    """(n passes, images, 28, 28, 1)"""
    return np.stack([np.stack(list(dataset.as_numpy_iterator())) for _ in range(n)])


def by_draws(grey):
    return np.stack([draw_binary(grey, seed) for seed in range(1000)])


def by_passes(grey):
    return passes_over(dynamic_dataset(grey), 1000)


@pytest.mark.parametrize("draw", [by_draws, pytest.param(by_passes, marks=pytest.mark.long)])
def test_many_draws_average_to_the_grey_image(grey, draw):
    drawn, g = draw(grey[:1]), grey[:1, ..., None] / 255
    assert drawn.dtype == np.float32 and set(np.unique(drawn)) == {0, 1}
    # A mean of 1,000 draws has the standard deviation sqrt(g (1 - g) / 1000) <= 0.016; six of them for 784 pixels.
    assert np.all(np.abs(drawn.mean(axis=0) - g) <= 6 * np.sqrt(g * (1 - g) / 1000))
    assert len(np.unique(drawn.reshape(1000, -1), axis=0)) == 1000  # all are different


def test_a_seed_gives_the_same_draw_again(grey):
    assert np.array_equal(draw_binary(grey, 4), draw_binary(grey, 4))
    assert not np.array_equal(draw_binary(grey, 4), draw_binary(grey, 5))
    again = [passes_over(dynamic_dataset(grey, 4), 2) for _ in range(2)]
    assert np.array_equal(*again) and not np.array_equal(again[0], passes_over(dynamic_dataset(grey, 5), 2))


def test_each_pass_has_each_image_once(grey):
    ends = (grey > 127).astype(np.uint8) * 255  # nothing is left to chance but the order
    expected = {image.tobytes() for image in draw_binary(ends)}
    dataset = dynamic_dataset(ends[..., None])
    assert dataset.cardinality() == 3 and isinstance(dataset, tf.data.Dataset)
    for one_pass in passes_over(dataset, 4):
        assert {image.tobytes() for image in one_pass} == expected


@pytest.mark.parametrize("call", [draw_binary, dynamic_dataset])
@pytest.mark.parametrize(("change", "seed", "error", "message"), [
    (lambda g: (g > 127).astype(np.float32), 0, TypeError, "images must be uint8 values from 0 to 255, got float32"),
    (lambda g: g.astype(int), 0, TypeError, "got int64"),
    (lambda g: g[:, :14], 0, ValueError, r"images must have shape \(n, 28, 28\) or .*, got \(3, 14, 28\)"),
    (lambda g: g[0], 0, ValueError, r"got \(28, 28\)"),
    (lambda g: g[:0], 0, ValueError, r"no axis of length 0, got \(0, 28, 28\)"),
    (lambda g: g, -1, ValueError, "seed must be at least 0, got -1"),
    (lambda g: g, 1.5, TypeError, "seed must be an integer, got 1.5"),
])
def test_bad_input_is_refused(grey, call, change, seed, error, message):
    with pytest.raises(error, match=message):
        call(change(grey), seed)

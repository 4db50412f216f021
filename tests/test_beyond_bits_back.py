"""A coder of whole numbers: what goes in comes out, at the price that the probabilities say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.beyond.bits_back import (
    BINS,
    CENTRES,
    PRECISION,
    code_slots,
    compress,
    decompress,
    one_by_one,
    pixel_slots,
    pop,
    push,
    slots,
)
from vae_course.engine.families import FastCVAE

BEGIN = int.from_bytes(np.random.default_rng(0).bytes(32), "big") | 1 << 256


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_pushed_is_popped_and_the_number_is_as_it_was(data):
    state = data.draw(st.integers(0, 2**200))
    seed, n, symbols = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 20)), data.draw(st.integers(2, 9))
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(symbols, 0.3), n)  # some of them close to 0
    bounds = slots(np.clip(np.concatenate([np.zeros((n, 1)), np.cumsum(p, axis=1)], axis=1), 0, 1))
    chosen = rng.integers(0, symbols, n).tolist()
    assert pop(push(state, chosen, bounds), bounds) == (chosen, state)
    taken, rest = pop(state, bounds)  # and the other way round: any number is a message
    assert push(rest, taken, bounds) == state


def test_slots_are_all_there_and_none_is_empty(rng):
    cdf = np.concatenate([np.zeros((50, 1)), np.sort(rng.random((50, 99)), axis=1), np.ones((50, 1))], axis=1)
    cdf[0, 1:-1] = 0.0
    for edges in slots(cdf):
        assert edges[0] == 0 and edges[-1] == 2**PRECISION and np.diff(edges).min() >= 1
    flat = np.diff(slots(np.arange(BINS + 1)[None] / BINS)[0])
    assert np.all(flat == 2**PRECISION // BINS)


def test_the_price_is_the_probability(rng):
    p = np.array([0.001, 0.009, 0.19, 0.8])
    chosen = rng.choice(4, 5000, p=p).tolist()
    bounds = slots(np.tile(np.r_[0, np.cumsum(p[:-1]), 1], (5000, 1)))
    grown = push(BEGIN, chosen, bounds).bit_length() - BEGIN.bit_length()
    # Each symbol has its share of 2**28 slots, to half a slot; the length is counted in whole bits.
    assert abs(grown + np.log2(p[chosen]).sum()) < 2


def test_bins_of_a_gaussian_are_scipys():
    from scipy.stats import norm

    mean, logvar = np.array([0.3, -2.5]), np.array([-5.0, -1.0])
    for edges, m, lv in zip(code_slots(mean, logvar), mean, logvar, strict=True):
        expected = np.diff(norm.cdf(norm.ppf(np.arange(BINS + 1) / BINS), m, np.exp(lv / 2)))
        assert np.allclose(np.diff(edges) / 2**PRECISION, expected, atol=3 / 2**PRECISION + BINS / 2**PRECISION * expected.max())
    assert np.allclose(norm.cdf(CENTRES), (np.arange(BINS) + 0.5) / BINS)


def test_extreme_logits_leave_both_values_possible():
    bounds = pixel_slots(np.array([-1e30, -50.0, 0.0, 50.0, 1e30]))
    assert all(np.diff(edges).min() >= 1 for edges in bounds)
    assert bounds[2][1] == 2**(PRECISION - 1)
    assert pop(push(BEGIN, [1, 1, 1, 0, 0], bounds), bounds) == ([1, 1, 1, 0, 0], BEGIN)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_images_come_back_bit_for_bit(x, latent_dim):
    model = FastCVAE(latent_dim, (4, 8), seed=0)
    state = compress(model, x, BEGIN)
    images, rest = decompress(model, state, len(x))
    assert np.array_equal(images, x) and rest == BEGIN


def test_even_without_bits_to_begin_with(pretrained, x):
    images, rest = decompress(pretrained[0], compress(pretrained[0], x, 0), len(x))
    assert np.array_equal(images, x) and rest == 0


def test_the_length_is_the_sum_of_the_three_parts(pretrained, x):
    """Of each image: what was popped, what its pixels and its code cost, from the same z."""
    model, state = pretrained[0], BEGIN
    of_image, of_bins, _ = one_by_one(model)
    expected = 0.0
    for image in x:
        edges = of_image(image)
        bins, state = pop(state, edges)
        expected += sum(np.log2(edge[k + 1] - edge[k]) - PRECISION for k, edge in zip(bins, edges, strict=True))
        z = CENTRES[bins][None].astype(np.float32)
        expected -= float(model.log_likelihood(image[None], z)[0]) / np.log(2) - 2 * np.log2(BINS)
        state = push(state, image.ravel().astype(int).tolist(), of_bins(bins))
        state = push(state, bins, slots(np.tile(np.arange(BINS + 1) / BINS, (2, 1))))
    assert state == compress(model, x, BEGIN)
    assert abs(state.bit_length() - BEGIN.bit_length() - expected) < 2


def test_grey_pixels_are_refused():
    with pytest.raises(ValueError, match="pixels that are 0 or 1"):
        one_by_one(FastCVAE(2, (4, 8), seed=0, likelihood="continuous_bernoulli"))

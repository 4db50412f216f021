"""The price of codes: the prior looks back only and adds up to 1, the bound is one, draws are fair."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from vae_course.beyond.code_prior import CodePrice, code_price, draw_codes, log_prior, make_prior, train_prior
from vae_course.beyond.codes import Codebook, CodeModel, train_codes
from vae_course.data import preprocess_images
from vae_course.elbo import bernoulli_log_prob


def shaken(prior, rng):
    """With biases other than 0, too."""
    prior.set_weights([rng.normal(size=weight.shape) / 4 for weight in prior.get_weights()])
    return prior


@pytest.mark.parametrize(("places", "dilations"), [(49, (1, 2, 3)), (10, (1,)), (5, (1, 1)), (1, (1,))])
def test_no_letter_has_a_say_in_its_own_price_or_an_earlier_one(rng, places, dilations):
    prior = shaken(make_prior(4, places, 8, dilations), rng)
    copies = tf.repeat(tf.one_hot(rng.integers(4, size=(1, places)), 4), places, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        total = tf.reduce_sum(tf.eye(places)[..., None] * prior(copies)**2)
    sees = np.abs(tape.gradient(total, copies)).sum(axis=-1) > 0
    reach = 1 + 8 * sum(dilations)
    assert np.array_equal(sees, np.tri(places, k=-1, dtype=bool) & ~np.tri(places, k=-reach - 1, dtype=bool))


def test_changing_a_letter_changes_no_earlier_price(rng):
    """The same without gradients."""
    prior, codes = shaken(make_prior(4, 49, 8), rng), rng.integers(4, size=(1, 49))
    logits = prior(tf.one_hot(codes, 4))[0]
    for place in (0, 7, 30, 48):
        other = codes.copy()
        other[0, place] = (other[0, place] + 1) % 4
        new = prior(tf.one_hot(other, 4))[0]
        assert np.array_equal(new[:place + 1], logits[:place + 1])
        assert place == 48 or not np.allclose(new[place + 1:], logits[place + 1:])


@pytest.mark.parametrize(("size", "places"), [(3, 4), (2, 9), (5, 1)])
def test_all_codes_together_have_the_probability_1(rng, size, places):
    codes = np.array(list(itertools.product(range(size), repeat=places)))
    for dilations in ((1,), (1, 2)):
        prior = shaken(make_prior(size, places, 8, dilations), rng)
        assert np.exp(log_prior(prior, codes)).sum() == pytest.approx(1, abs=1e-4)  # up to 512 float32 numbers


def test_price_of_a_code_is_a_sum_over_its_letters(rng):
    prior, codes = shaken(make_prior(4, 6, 8, (1,)), rng), rng.integers(4, size=(3, 6))
    log_p = tf.nn.log_softmax(prior(tf.one_hot(codes, 4))).numpy()
    by_hand = [sum(log_p[n, i, codes[n, i]] for i in range(6)) for n in range(3)]
    assert np.allclose(log_prior(prior, codes), by_hand, atol=1e-5)


def test_draws_are_fair(rng):
    prior = shaken(make_prior(3, 3, 8, (1,)), rng)
    codes = np.array(list(itertools.product(range(3), repeat=3)))
    p, n = np.exp(log_prior(prior, codes)), 20_000
    shares = np.bincount(draw_codes(prior, n, 1) @ [9, 3, 1], minlength=27) / n
    assert np.abs(shares - p).max() < 5 * np.sqrt(np.max(p * (1 - p)) / n)
    assert np.array_equal(draw_codes(prior, 5, 1), draw_codes(prior, 5, 1))


def test_training_learns_what_follows_what():
    """Codes that repeat one letter cost log 3; the prior starts near 5 log 3."""
    codes, prior = np.arange(90)[:, None] % 3 * np.ones((1, 5), int), make_prior(3, 5, 16, (1,), seed=0)
    before = -np.mean(log_prior(prior, codes))
    train_prior(prior, codes, 150)
    after = -np.mean(log_prior(prior, codes))
    assert before > 4 and np.log(3) - 1e-3 < after < np.log(3) + 0.2  # no list can charge less than the entropy


@pytest.fixture
def tiny(rng):
    """A model with two letters whose decoder looks at the first two places alone, and its prior over all codes."""
    model = CodeModel(Codebook(2, 1, seed=0), (2, 2), seed=0)
    return model, shaken(make_prior(2, 49, 4, (1, 2, 3)), rng)


def test_price_is_paid_by_the_models_own_code(tiny, x):
    model, prior = tiny
    price, codes = code_price(model, prior, x), model.encode(x)
    assert np.allclose(price.letters, -log_prior(prior, codes))
    assert np.allclose(price.pixels, -bernoulli_log_prob(x, model.decode(codes)))
    assert np.allclose(price.bound(), -(price.letters + price.pixels))
    with pytest.raises(ValueError, match="3"):
        code_price(model, make_prior(3, 49, 4), x)


def test_bound_is_below_a_larger_part_of_the_sum(tiny, x):
    """log p(x) is a sum over all codes; its part over 300 of them, the model's own among them, is above the bound."""
    model, prior = tiny
    one = np.asarray(x)[:1]
    own = np.ravel(model.encode(one))
    others = np.random.default_rng(0).integers(2, size=(300, 49))
    codes = np.unique(np.concatenate([own[None], others]), axis=0)
    terms = log_prior(prior, codes) + model.log_likelihood(np.repeat(one, len(codes), axis=0), codes.reshape(-1, 7, 7))
    assert code_price(model, prior, one).bound()[0] <= tf.reduce_logsumexp(terms) + 1e-3  # float32 sums near -500


def test_a_price_adds_up():
    assert np.array_equal(CodePrice(tf.constant([1.0, 2.0]), tf.constant([10.0, 20.0])).bound(), [-11, -22])


def test_a_prior_that_reads_is_cheaper_than_equally_likely_letters(mnist):
    model = CodeModel(Codebook(16, 4, seed=0), (8, 16), seed=0)
    train_codes(model, preprocess_images(mnist[0][0][:4000]), 150, 100)
    prior = make_prior(16, width=24, seed=0)
    train_prior(prior, model.encode(preprocess_images(mnist[0][0][:4000])), 100)
    assert np.mean(code_price(model, prior, preprocess_images(mnist[1][0][:500])).letters) < 0.75 * 49 * np.log(16)

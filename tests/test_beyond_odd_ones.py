"""Scores for odd images: the AUC and its interval against scipy and simulation, the scores against other formulas."""

from statistics import NormalDist

import numpy as np
import pytest
import tensorflow_probability as tfp
from scipy import stats

from vae_course.beyond.odd_ones import auc, auc_interval, flip_pixels, halve, odd_kinds, pixel_background, placements, scores
from vae_course.truth.evaluation import log_marginal, log_weights


@pytest.fixture(scope="module")
def groups():
    """Scores with and without ties."""
    rng = np.random.default_rng(0)
    return [(rng.normal(d, 1, m).round(digits), rng.normal(0, 2, n).round(digits))
            for d, m, n, digits in ((1, 30, 50, 0), (0, 7, 5, 1), (3, 40, 41, 6), (-1, 2, 2, 0))]


def test_auc_is_mann_whitneys_statistic(groups):
    for own, odd in groups:
        expected = stats.mannwhitneyu(own, odd).statistic / (len(own) * len(odd))
        assert np.isclose(auc(own, odd), expected, rtol=1e-12)
        v, w = placements(own, odd)
        assert np.isclose(v.mean(), expected) and np.isclose(w.mean(), expected)


def test_auc_knows_order_alone(groups):
    for own, odd in groups:
        assert np.isclose(auc(own, odd), 1 - auc(odd, own)) and np.isclose(auc(own, odd), 1 - auc(-own, -odd))
        assert np.isclose(auc(np.exp(own), np.exp(odd)), auc(own, odd))
        assert np.allclose(auc_interval(own**3, odd**3), auc_interval(own, odd))
        low, high = auc_interval(own, odd)
        assert np.allclose(auc_interval(odd, own), (1 - high, 1 - low)) and 0 <= low <= auc(own, odd) <= high <= 1


def test_variance_is_delongs(groups):
    """The width on the log-odds scale, from the matrix of all pairs."""
    for own, odd in groups[:3]:
        pairs = (own[:, None] > odd) + 0.5 * (own[:, None] == odd)
        area = pairs.mean()
        variance = pairs.mean(axis=1).var(ddof=1) / len(own) + pairs.mean(axis=0).var(ddof=1) / len(odd)
        low, high = (np.log(a / (1 - a)) for a in auc_interval(own, odd, 0.9))
        assert np.isclose((high - low) / 2, 1.6448536 * np.sqrt(variance) / (area * (1 - area)))


def truth_of(kind, d):
    """Two samplers of scores and their true AUC."""
    if kind == "normal":
        return lambda rng, n: rng.normal(d, 1, n), lambda rng, n: rng.normal(0, 1, n), NormalDist().cdf(d / 2**0.5)
    return lambda rng, n: d * rng.exponential(size=n), lambda rng, n: rng.exponential(size=n), d / (1 + d)


@pytest.mark.parametrize(("kind", "d"), [("normal", 0.0), ("normal", 1.0), ("normal", 2.5), ("skewed", 1.0), ("skewed", 9.0)])
def test_interval_covers(kind, d):
    own, odd, area = truth_of(kind, d)
    rng, times = np.random.default_rng(1), 1500
    intervals = [auc_interval(own(rng, 80), odd(rng, 60)) for _ in range(times)]
    share = np.mean([low <= area <= high for low, high in intervals])
    # The standard error of a share of 0.95 is 0.0056; 0.012 more for a normal approximation with 60 scores.
    assert abs(share - 0.95) < 3 * 0.0056 + 0.012, share


def test_interval_of_a_perfect_sorting_covers():
    """An AUC of 0.999: most samples are in order from end to end, and DeLong's variance of them is 0."""
    d, rng, times = 2**0.5 * NormalDist().inv_cdf(0.999), np.random.default_rng(2), 1000
    intervals = [auc_interval(rng.normal(d, 1, 40), rng.normal(0, 1, 40)) for _ in range(times)]
    perfect = [high == 1 for _, high in intervals]
    assert np.mean(perfect) > 0.2
    assert np.mean([low <= 0.999 <= high for low, high in intervals]) > 0.95 - 3 * 0.007
    assert np.allclose(auc_interval(np.ones(40), np.zeros(40)), (0.025**(1 / 40), 1))
    assert np.allclose(auc_interval(np.zeros(40), np.ones(40)), (0, 1 - 0.025**(1 / 40)))


def test_one_score_has_no_interval():
    with pytest.raises(ValueError, match="two scores"):
        auc_interval(np.zeros(1), np.ones(5))


def test_odd_kinds_are_what_they_are_called(x_test):
    x, others = x_test[:40], x_test[40:50]
    kinds = odd_kinds(x, others)
    assert set(kinds) == {"others", "inverted", "rotated", "noisy", "halved"}
    assert np.array_equal(kinds["others"], others) and np.array_equal(kinds["inverted"] + x, np.ones_like(x))
    assert np.array_equal(np.rot90(kinds["rotated"], -1, axes=(1, 2)), x)
    assert not kinds["halved"][:, 14:].any() and np.array_equal(kinds["halved"][:, :14], x[:, :14])
    changed = np.abs(kinds["noisy"] - x).mean()
    assert abs(changed - 0.05) < 5 * np.sqrt(0.05 * 0.95 / x.size)
    assert all(images.dtype == np.float32 and np.isin(images, (0, 1)).all() for images in kinds.values())
    assert x[:, 14:].any()  # halving made a copy


def test_flipping_twice_changes_nothing(x):
    assert np.array_equal(flip_pixels(flip_pixels(x, 0.3, 5), 0.3, 5), x)
    assert np.array_equal(flip_pixels(x, 0.0), x) and np.array_equal(flip_pixels(x, 1.0), 1 - x)
    assert not np.array_equal(flip_pixels(x, 0.3, 5), flip_pixels(x, 0.3, 6))


def test_background_is_a_bernoulli_with_one_more_of_each(x_test):
    known, x = x_test[:100], x_test[100:110]
    p = np.concatenate([known, np.ones_like(known[:1]), np.zeros_like(known[:1])]).mean(axis=0)
    expected = tfp.distributions.Independent(tfp.distributions.Bernoulli(probs=p), 3).log_prob(x)
    assert np.allclose(pixel_background(known, x), expected, rtol=1e-5)
    assert np.isfinite(pixel_background(known, 1 - x)).all()  # ink where there never was any


def test_scores_keep_their_definitions(pretrained, x_test):
    model, x = pretrained[0], x_test[:12]
    found = scores(model, x, np.arange(12.0), -140.0)
    exact = log_marginal(model, x, tolerance=0.1)
    assert np.allclose(found["log p(x)"], exact.log_px) and np.allclose(found["ratio"], exact.log_px - np.arange(12))
    assert np.allclose(found["typicality"], -np.abs(exact.log_px + 140))
    assert np.allclose(found["gap"], found["ELBO"] - found["log p(x)"])
    assert np.all(found["gap"] < 3 * exact.error + 0.3)  # a bound, up to what the two quadratures leave
    assert np.allclose(found["reconstruction"], model.log_likelihood(x, model.encode(x)[0]), rtol=1e-5)
    log_w = log_weights(model, x, samples=2000)
    error = log_w.std(axis=1) / 2000**0.5
    assert np.all(np.abs(found["ELBO"] - log_w.mean(axis=1)) < 5 * error + 0.3)  # five nodes leave tenths of a nat


def test_background_must_fit_the_images(pretrained, x):
    with pytest.raises(ValueError, match="background"):
        scores(pretrained[0], x, np.zeros(3), -140.0)


@pytest.mark.long
def test_a_blank_sheet_beats_most_digits_and_the_bound_sorts_halves_better_than_the_truth(pretrained, x_test):
    model, digits = pretrained[0], x_test[:200]
    halves = halve(digits)
    own, odd = (scores(model, x, np.zeros(200), 0.0) for x in (digits, halves))
    blank = log_marginal(model, np.zeros_like(x_test[:1]), tolerance=0.3).log_px
    assert np.mean(own["log p(x)"] > blank) < 0.2
    area = {name: auc(own[name], odd[name]) for name in own}
    assert 0.4 < area["log p(x)"] < 0.6 and area["ELBO"] > area["log p(x)"] + 0.1
    assert area["gap"] > 0.85

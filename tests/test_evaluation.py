"""log p(x) by quadrature, the bounds below it, and what `vae-course evaluate` makes of them."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from vae_course.truth.diagnosis import latent_statistics, report
from vae_course.elbo import LOGIT_BOUND, elbo_terms
from vae_course.truth.evaluation import (
    error_bars,
    flat_decoder,
    iwae_bound,
    lattice,
    log_joint,
    log_marginal,
    log_sum,
    log_weights,
    remaining_error,
    sample_log_weights,
)
from vae_course.manifold import encode_images
from vae_course.engine.families import FastCVAE
from vae_course.model import CVAE
from vae_course.truth.posterior import climb, gauss_hermite, highest_code, posterior_on_plane, smooth_elbo
from vae_course.reparameterization import draw_eps


@pytest.fixture(scope="module")
def some(x_test):
    return x_test[::400]  # 25 images


@pytest.fixture(scope="module")
def marginal(pretrained, some):
    return log_marginal(pretrained[0], some)


@pytest.fixture(scope="module")
def log_w(pretrained, some):
    return log_weights(pretrained[0], some, samples=2000)


@pytest.fixture(scope="module")
def other_log_w(pretrained, some):
    """Drawn by another seed."""
    return log_weights(pretrained[0], some, samples=2000, seed=1)


class Slope:
    """A model whose integral scipy can do: every logit is a · z₁ + b, the other dimensions are idle."""

    levels = 2

    def __init__(self, slope, offset, latent_dim):
        self.slope, self.offset, self.latent_dim = slope, offset, latent_dim

    def encode(self, x):
        return (tf.zeros((len(x), self.latent_dim)),) * 2

    def decode(self, z, apply_sigmoid=False):
        z = tf.convert_to_tensor(z, tf.float32)
        return tf.tile((self.slope * z[:, :1] + self.offset)[..., None, None], (1, 28, 28, 1))


def by_scipy(slope, offset, ink):
    """log ∫ N(z) σ(a)^ink (1 - σ(a))^(784 - ink) dz along one axis."""
    def log_f(z):
        a = slope * z + offset
        return ink * a - 784 * np.logaddexp(0, a) - z**2 / 2 - np.log(2 * np.pi) / 2

    z = np.linspace(-20, 20, 200_001)
    peak = z[np.argmax(log_f(z))]
    value, _ = integrate.quad(lambda t: np.exp(log_f(t) - log_f(peak)), peak - 12, peak + 12,
                              points=[peak], limit=500, epsabs=1e-12)
    return log_f(peak) + np.log(value)


@settings(max_examples=8, deadline=None)
@given(slope=st.floats(0.3, 1.5), offset=st.floats(-3, 3), ink=st.integers(1, 783), dim=st.sampled_from([1, 2]))
def test_agrees_with_scipy_where_the_integral_is_simple(slope, offset, ink, dim):
    x = np.zeros((1, 784), np.float32)
    x[0, :ink] = 1
    found = log_marginal(Slope(slope, offset, dim), x.reshape(1, 28, 28, 1))
    # 784 float32 logits of a few units: sums of some 1,000 nats, rounded at 1e-7 of that.
    assert abs(found.log_px[0] - by_scipy(slope, offset, ink)) < 2e-3
    assert found.error_of_mean <= 1e-3


def test_other_images_in_the_call_change_little(pretrained, some, marginal):
    """They change which tiles are looked at, and how fine the grid becomes, within the stated error."""
    alone = log_marginal(pretrained[0], some[:3])
    assert alone.step <= marginal.step  # fewer images, a finer grid
    assert np.abs(alone.log_px - marginal.log_px[:3]).max() < 3 * marginal.error[:3].max() + 2e-3


@pytest.mark.long
def test_a_plain_grid_agrees(pretrained, some, marginal):
    axis = np.arange(-8, 8, 1 / 20, dtype=np.float32)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    plain = log_sum(flat_decoder(pretrained[0]), some[:4].reshape(4, -1), z[None])[:, 0] - 2 * np.log(20)
    # Kinks of ReLUs: a step of 1/20 leaves hundredths of a nat for single images.
    assert np.abs(plain - marginal.log_px[:4]).max() < 0.05


def test_remaining_error_is_a_geometric_series():
    rng = np.random.default_rng(0)
    changes = [np.full(50, 0.4), np.full(50, 0.1)]  # the same for all images, a quarter of the last
    by_hand = 0.1 / 3 + max(2 * 0.1, 2 * 0.4 / 8) / np.sqrt(50) / 7
    assert np.isclose(remaining_error(changes), by_hand) and remaining_error(changes[:1]) == np.inf
    lucky = [rng.normal(0, 1, 4), np.zeros(4)]  # a change of 0 is luck and no convergence
    assert remaining_error(lucky) > 1e-3


def test_error_bars_hold_no_luck():
    rng = np.random.default_rng(0)
    changes = [rng.normal(0, 1, 1000), np.append(np.zeros(500), rng.normal(0, 0.1, 500))]
    bars, typical = error_bars(changes), np.sqrt(np.mean(changes[1]**2))
    floor = np.sqrt(np.mean(changes[0]**2)) / 8  # larger than `typical` here
    assert np.allclose(bars, np.hypot(changes[1], max(typical, floor)) / 3)
    assert bars.min() > 0.04  # the 500 images that happen not to change have a bar, too
    assert np.all(error_bars([np.zeros(3), np.zeros(3)]) > 3e-4)  # what float32 can blur


@pytest.fixture(scope="module")
def on_a_finer_grid(pretrained, x_test):
    """75 other images, and their log p(x) by a grid that is finer than theirs alone will be."""
    x = x_test[50::100][:75]
    return x, log_marginal(pretrained[0], x, tolerance=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("together", [25, 3])
def test_error_bars_cover_nineteen_of_twenty(pretrained, on_a_finer_grid, together):
    """Many images or few in a call: the finer grid's own error is far below the bars."""
    x, fine = on_a_finer_grid
    inside = []
    for i in range(0, 75, together):
        coarse = log_marginal(pretrained[0], x[i:i + together], tolerance=1.0)  # two refinements, no more
        assert coarse.step > fine.step
        inside += list(np.abs(coarse.log_px - fine.log_px[i:i + together]) <= coarse.error)
    # Of 75 images that are inside with probability 0.95, 66 or fewer are with one in 200.
    assert len(inside) == 75 and np.sum(inside) > 66


def test_joint_is_what_the_terms_of_the_elbo_say(pretrained, some):
    model, eps = pretrained[0], draw_eps(0, 0, (len(some), 2))
    terms = elbo_terms(model, some, eps)
    z = model.reparameterize(*model.encode(some), eps)
    joint = log_joint(some.reshape(len(some), -1), tf.reshape(model.decode(z), (len(some), -1)), terms.log_pz)
    assert np.allclose(np.diag(joint), terms.log_px_z + terms.log_pz, atol=1e-3)


def test_importance_sampling_never_beats_quadrature(marginal, log_w):
    log_w = log_w.astype(float)
    estimate = iwae_bound(log_w, 2000)
    w = np.exp(log_w - estimate[:, None])
    error = w.std(axis=1) / np.sqrt(2000)
    off = (estimate - marginal.log_px) / np.hypot(error, marginal.error + 2e-3)
    # Too low where the encoder looks away from the posterior; too high only by chance.
    assert off.max() < 5
    # And where the weights are even, because the encoder looks at the right place, they agree.
    even = w.max(axis=1) < 20
    assert even.sum() >= 3 and np.all(np.abs(off[even]) < 5)


def test_draws_from_the_prior_agree(pretrained, some, marginal):
    """No grid and no encoder: the mean of p(x|z) over 40,000 codes."""
    flat, decode, n = some.reshape(len(some), -1), flat_decoder(pretrained[0]), 40_000
    total, squares = np.full(len(some), -np.inf), np.full(len(some), -np.inf)
    for part in np.split(draw_eps(3, 0, (n, 2)), 40):
        log_px_z = log_joint(flat, decode(part), tf.zeros(len(part)))
        total = np.logaddexp(total, tf.reduce_logsumexp(log_px_z, axis=1))
        squares = np.logaddexp(squares, tf.reduce_logsumexp(2 * log_px_z, axis=1))
    error = np.exp(squares / 2 - total)
    known = error < 0.3  # with fewer hits than ten, the error itself is not known
    assert known.sum() > len(some) / 2
    assert np.all(np.abs(total - np.log(n) - marginal.log_px)[known] < 5 * error[known])


def of_groups(log_w, k):
    """The IWAE bound of each group of k samples, (n, groups)."""
    groups = log_w.shape[1] // k
    grouped = log_w[:, :groups * k].reshape(len(log_w), groups, k).astype(float)
    return np.logaddexp.reduce(grouped, axis=2) - np.log(k)


@pytest.mark.parametrize("k", [1, 2, 5, 20, 100])
def test_bounds_stand_in_order(some, marginal, log_w, other_log_w, k):
    values = of_groups(log_w, k)
    error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    # Each image: the bound is below log p(x), up to five standard errors of its own estimate.
    assert np.all(values.mean(axis=1) <= marginal.log_px + 5 * error + marginal.error + 2e-3)
    # Twice the samples, drawn by another seed, a higher bound: up to five standard errors of the difference.
    twice = of_groups(other_log_w, 2 * k)
    both = np.hypot(error, twice.std(axis=1, ddof=1) / np.sqrt(twice.shape[1]))
    assert np.all(twice.mean(axis=1) >= values.mean(axis=1) - 5 * both)
    of_mean = np.sqrt(np.sum(both**2)) / len(some)
    assert twice.mean() >= values.mean() - 5 * of_mean
    assert k > 1 or twice.mean() > values.mean() + 5 * of_mean  # there the step is far above the noise


@pytest.mark.long
def test_five_thousand_samples_stay_in_order(pretrained, some, marginal):
    values = of_groups(log_weights(pretrained[0], some[:4], samples=40_000, seed=9), 5000)
    error = values.std(axis=1, ddof=1) / np.sqrt(8)
    # Eight groups know their own error to a quarter only: seven of them instead of five.
    assert np.all(values.mean(axis=1) <= marginal.log_px[:4] + 7 * error + marginal.error[:4] + 2e-3)
    fewer = of_groups(log_weights(pretrained[0], some[:4], samples=2000, seed=10), 100)
    both = np.hypot(error, fewer.std(axis=1, ddof=1) / np.sqrt(20))
    assert np.all(values.mean(axis=1) >= fewer.mean(axis=1) - 7 * both)


def test_one_sample_is_the_elbo(pretrained, some):
    log_w = log_weights(pretrained[0], some, samples=1, seed=5)
    eps = tf.concat([draw_eps(5, i, (1, 2)) for i in range(len(some))], axis=0)
    assert np.allclose(log_w[:, 0], elbo_terms(pretrained[0], some, eps).elbo(), atol=1e-3)
    assert np.allclose(iwae_bound(log_w, 1), log_w[:, 0])


def test_weights_do_not_depend_on_the_company(pretrained, some):
    alone = log_weights(pretrained[0], some[:2], samples=30)
    assert np.allclose(alone, log_weights(pretrained[0], some, samples=30)[:2], atol=1e-3)


def test_many_samples_are_decoded_in_parts_with_the_same_weights(pretrained, some):
    model, sizes = pretrained[0], []

    class Counting:
        """The model, with a note of how many codes each call decodes."""

        def __getattr__(self, name):
            return getattr(model, name)

        def log_likelihood(self, x, z):
            sizes.append(len(z))
            return model.log_likelihood(x, z)

    in_parts = log_weights(Counting(), some[:2], samples=2300, seed=3)
    eps = tf.stack([draw_eps(3, i, (2300, 2)) for i in range(2)])
    # float32 sums of 784 pixels, in another order for another batch size.
    assert np.allclose(in_parts, sample_log_weights(model, some[:2], eps), atol=1e-3)
    assert max(sizes) <= 1000 and sum(sizes) == 2 * 2300


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gauss_hermite_is_exact_for_polynomials(dim):
    eps, weights = gauss_hermite(5, dim)
    assert eps.shape == (5**dim, dim) and np.isclose(weights.sum(), 1, atol=1e-6)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)):
        assert np.isclose(weights @ eps[:, 0]**power, moment, rtol=1e-4, atol=1e-4)


def test_smooth_elbo_is_the_mean_of_many_samples(pretrained, some, log_w):
    smooth = smooth_elbo(pretrained[0], some, *pretrained[0].encode(some))
    error = log_w.std(axis=1) / np.sqrt(log_w.shape[1])
    # The kinks of ReLUs cost the quadrature some hundredths of a nat.
    assert np.all(np.abs(smooth - log_w.mean(axis=1)) < 5 * error + 0.1)


def test_the_gap_is_a_divergence_from_a_posterior_that_a_grid_normalises(pretrained, some, marginal):
    """KL(q ‖ p(z|x)) without any log p(x) from elsewhere: an error of `log_marginal` would show."""
    model, x = pretrained[0], some[:6]
    z1, z2, joint = posterior_on_plane(model, x, (-4.5, -4.5), (4.5, 4.5), points=217)
    log_area = 2 * np.log(9 / 216)
    log_posterior = joint - special.logsumexp(joint, axis=(1, 2), keepdims=True) - log_area
    mean, logvar = (t.numpy()[:, None, None] for t in model.encode(x))
    log_q = np.sum(-0.5 * ((np.stack(np.meshgrid(z1, z2), -1) - mean)**2 / np.exp(logvar) + logvar
                           + np.log(2 * np.pi)), axis=-1)
    assert np.allclose(np.exp(log_q + log_area).sum(axis=(1, 2)), 1, atol=1e-3)  # fine enough for q
    divergence = np.sum(np.exp(log_q + log_area) * (log_q - log_posterior), axis=(1, 2))
    gap = marginal.log_px[:6] - smooth_elbo(model, x, *model.encode(x)).numpy()
    # The kinks of the ReLUs, on a grid of step 1/24 and under 64 nodes: hundredths of a nat, tenths where the
    # gap itself is tens of nats. A shift of `log_px` by one nat would be found.
    assert np.all(np.abs(divergence - gap) < 0.1 + 0.01 * gap)


def test_both_gaps_are_gaps(pretrained, some, marginal):
    model, (mean, logvar) = pretrained[0], pretrained[0].encode(some)
    best = climb(model, some, mean, logvar, steps=40)
    before, after = smooth_elbo(model, some, mean, logvar), smooth_elbo(model, some, *best)
    assert np.all(after >= before - 0.05) and np.mean(after - before) > 0.05
    assert np.all(after <= marginal.log_px + 0.05)


def test_highest_code_is_higher_than_the_encoders(pretrained, some):
    model, z = pretrained[0], highest_code(pretrained[0], some)
    mean, _ = encode_images(model, some)

    def height(z):
        return model.log_likelihood(some, z) - 0.5 * np.sum(z**2, axis=1)

    # The grid's step is 1/8, about a standard deviation of a posterior: its best point may be a few
    # nats below a code between its points.
    assert np.mean(height(z) >= height(mean) - 3) > 0.9 and np.mean(height(z) - height(mean)) > 0


def test_posterior_on_plane_is_log_joint_at_its_points(pretrained, some):
    z1, z2, log_p = posterior_on_plane(pretrained[0], some[:3], (-2, -1), (1, 2), points=7)
    z = np.float32([[z1[5], z2[2]]] * 3)
    expected = pretrained[0].log_likelihood(some[:3], z) - 0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi)
    assert log_p.shape == (3, 7, 7) and np.allclose(log_p[:, 2, 5], expected, atol=1e-3)


def test_lattices_tile_the_plane_without_overlap():
    points = np.concatenate([lattice((i, j), 1 / 4, s) for i in (0, 1) for j in (0, 1)
                             for s in ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5))])
    assert len(np.unique(points, axis=0)) == len(points) == (2 * 8)**2
    assert np.array_equal(np.unique(points[:, 0]), np.arange(16) / 8)


@pytest.mark.long
def test_a_peak_between_the_points_of_the_first_grid_is_found():
    """A peak of width 0.006, and a plateau: from a step of 1/4 only the plateau's tiles hold anything."""
    rng, code = np.random.default_rng(0), np.array([0.37, -0.64])
    slope, offset = rng.normal(0, 14, (2, 784)), rng.normal(0, 1.5, 784)
    x = (rng.random(784) < special.expit(offset)).astype(float)

    class Sharp:
        latent_dim, levels = 2, 2

        def encode(self, x):
            return (tf.constant(code[None] + 0.01, tf.float32),) * 2

        def decode(self, z, apply_sigmoid=False):
            z = np.asarray(z)
            peak = (z - code) @ slope + offset
            plateau = np.outer(z[:, 0] > 1, offset / 2)
            x_logits = np.where(np.abs(z - code).max(axis=1)[:, None] < 0.2, peak, plateau)
            return tf.constant(x_logits.reshape(-1, 28, 28, 1), tf.float32)

    axis = np.linspace(-0.08, 0.08, 321)
    z = code + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    log_px_z = np.concatenate([a @ x - np.logaddexp(0, a).sum(axis=1)
                               for part in np.array_split(z, 50) for a in [(part - code) @ slope + offset]])
    log_pxz = log_px_z - (z**2).sum(axis=1) / 2 - np.log(2 * np.pi) + 2 * np.log(axis[1] - axis[0])
    tf.config.run_functions_eagerly(True)  # the decoder is numpy
    try:
        found = log_marginal(Sharp(), x.reshape(1, 28, 28, 1).astype(np.float32))
    finally:
        tf.config.run_functions_eagerly(False)
    assert abs(found.log_px[0] - np.logaddexp.reduce(log_pxz)) < 5e-3  # float32 sums of 1,000 nats


def test_absurd_logits_are_refused(x):
    class Absurd(Slope):
        def decode(self, z, apply_sigmoid=False):
            return tf.fill((len(z), 28, 28, 1), -2 * LOGIT_BOUND)

    # The prior is lost beside such numbers in float32: the integrand is flat, and that is said.
    with pytest.raises(ArithmeticError, match="does not fall off within ±40"):
        log_marginal(Absurd(0.0, 0.0, 1), x)


def test_a_needle_is_refused_and_not_missed_in_silence(x):
    """A decoder with jumps everywhere: no grid of this course resolves it."""
    class Needles(Slope):
        def decode(self, z, apply_sigmoid=False):
            z = tf.convert_to_tensor(z, tf.float32)
            return tf.tile(tf.sin(1e5 * z[:, :1])[..., None, None] * 3, (1, 28, 28, 1))

    with pytest.raises(ArithmeticError, match="too narrow for a step of"):
        log_marginal(Needles(0.0, 0.0, 1), x[:1])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m, x: log_marginal(CVAE(latent_dim=3), x), ValueError, "latent_dim 1 or 2, got 3"),
    (lambda m, x: log_marginal(m, x, tolerance=1e-6), ValueError, r"tolerance must be in \[1e-4, inf\), got 1e-06"),
    (lambda m, x: log_marginal(m, x, tolerance=float("nan")), ValueError, r"tolerance must be in \[1e-4, inf\), got nan"),
    (lambda m, x: log_marginal(m, x, tolerance=float("inf")), ValueError, r"tolerance must be in \[1e-4, inf\), got inf"),
    (lambda m, x: log_marginal(m, x[:, :14]), ValueError, r"images must be \(28, 28, 1\), as the model's, got \(14, 28, 1\)"),
    (lambda m, x: highest_code(m, x[:, :14]), ValueError, r"images must be \(28, 28, 1\)"),
    (lambda m, x: highest_code(CVAE(latent_dim=3), x), ValueError, "latent_dim 1 or 2, got 3"),
    (lambda m, x: highest_code(m, x, step=0), ValueError, "step must be 1 divided by an integer, such as 1/8, got 0"),
    (lambda m, x: highest_code(m, x, step=0.3), ValueError, "step must be 1 divided by an integer"),
    (lambda m, x: highest_code(m, x, limit=0), ValueError, "limit must be at least 1"),
    (lambda m, x: posterior_on_plane(m, x[:, :14], (0, 0), (1, 1)), ValueError, r"images must be \(28, 28, 1\)"),
    (lambda m, x: posterior_on_plane(m, x, (0, 0), (1, 1), points=0), ValueError, "points must be at least 1"),
    (lambda m, x: posterior_on_plane(FastCVAE(latent_dim=2, likelihood="discretized_logistic"), x, (0, 0), (1, 1)),
     ValueError, "needs binary pixels, got a model with levels 256"),
    (lambda m, x: smooth_elbo(CVAE(latent_dim=10), x, tf.zeros((8, 10)), tf.zeros((8, 10))), ValueError,
     r"latent_dim must be in \[1, 3\], got 10"),
    (lambda m, x: climb(m, x * 0.5, *m.encode(x)), ValueError, "each pixel must be 0 or 1"),
    (lambda m, x: latent_statistics(m, x[:1]), ValueError, "at least 2 images, got 1"),
    (lambda m, x: report(m, x, iwae_images=0), ValueError, "iwae_images must be at least 1, got 0"),
    (lambda m, x: report(m, x * 0.5), ValueError, "each pixel must be 0 or 1"),
    (lambda m, x: report(m, x[:1]), ValueError, "at least 2 images, got 1"),
    (lambda m, x: log_marginal(m, x * 0.5), ValueError, "each pixel must be 0 or 1"),
    (lambda m, x: log_marginal(m, x[:0]), ValueError, "no axis of length 0"),
    (lambda m, x: log_weights(m, x, 0), ValueError, "samples must be at least 1, got 0"),
    (lambda m, x: log_weights(m, x, 1.5), TypeError, "samples must be an integer, got 1.5"),
    (lambda m, x: iwae_bound(np.zeros((3, 4)), 5), ValueError, r"samples >= 5\), got \(3, 4\)"),
    (lambda m, x: iwae_bound(np.zeros(4), 1), ValueError, "log_w must have shape"),
    (lambda m, x: posterior_on_plane(CVAE(latent_dim=1), x, (0, 0), (1, 1)), ValueError, "latent_dim 2, got 1"),
    (lambda m, x: climb(m, x, *m.encode(x), steps=0), ValueError, "steps must be at least 1"),
])
def test_bad_input_is_refused(pretrained, x, call, error, message):
    with pytest.raises(error, match=message):
        call(pretrained[0], x)


def test_iwae_of_equal_weights_is_that_weight():
    log_w = np.full((2, 12), -700.0)  # the weights themselves are 0 in float32
    assert np.allclose(iwae_bound(log_w, 5), -700)
    two = np.array([[-1000.0, -1001.0]])
    assert np.isclose(iwae_bound(two, 2)[0], special.logsumexp(two) - np.log(2))

"""log p(x) by quadrature, the bounds below it, and what `vae-course evaluate` makes of them."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from vae_course.truth.diagnosis import cost_of_log_px, latent_statistics, report, report_table
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
    pairing,
    remaining_error,
    sample_log_weights,
)
from vae_course.manifold import encode_images
from vae_course.engine.families import LIKELIHOODS, Bernoulli, FastCVAE
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


class Tiny:
    """Pixels whose parameters are waves of z, and an encoder that points at 0."""

    encode = Slope.encode

    def __init__(self, likelihood, image_shape=(2, 1, 1), latent_dim=1, seed=0):
        rng, numbers = np.random.default_rng(seed), likelihood.numbers
        self.likelihood, self.levels = likelihood, likelihood.levels
        self.latent_dim, self.image_shape = latent_dim, image_shape
        self.shape = (*image_shape[:2], image_shape[2] * numbers)
        size = int(np.prod(self.shape))
        self.slope, self.phase = rng.normal(0, 1, (latent_dim, size)), rng.uniform(0, 6, size)
        place = {2: ([0.5, -2.0], [0.4, 0.5]), 1: ([0.0], [2.0])}[numbers]  # of location and log-scale, or of a logit
        self.middle, self.height = (np.repeat(v, image_shape[2]).tolist() * (size // self.shape[2]) for v in place)

    def decode(self, z, apply_sigmoid=False):
        wave = tf.sin(tf.matmul(tf.cast(z, tf.float32), np.float32(self.slope)) + np.float32(self.phase))
        parameters = tf.reshape(np.float32(self.middle) + np.float32(self.height) * wave, (-1, *self.shape))
        return self.likelihood.mean(parameters) if apply_sigmoid else parameters

    def parameters(self, z):
        """In float64, for one code of one dimension: (pixels, numbers), of images with one channel."""
        wave = np.sin(z * self.slope[0] + self.phase)
        return (np.array(self.middle) + np.array(self.height) * wave).reshape(-1, self.likelihood.numbers)


def log_p_by_scipy(name, x, p):
    """log p(x|z) of a flat image in float64, by other formulas than the library's."""
    if name == "discretized_logistic":
        part = stats.logistic(p[:, 0], np.exp(p[:, 1]))
        upper = np.where(x > 1 - 1 / 510, 1, part.cdf(x + 1 / 510))
        return np.log(upper - np.where(x < 1 / 510, 0, part.cdf(x - 1 / 510))).sum()
    a = p[:, 0]
    if name == "bernoulli":
        return stats.bernoulli(special.expit(a)).logpmf(x).sum()
    return (a * x - np.log(special.expm1(a) / a)).sum()  # its density is e^(ax), divided by its integral


# The Gaussian of chapter 39 is no density of pixels alone; tests/test_beyond_linear.py tries it.
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS.names() if name != "gaussian"])
def test_every_likelihood_agrees_with_scipy_on_a_line(name):
    model, rng = Tiny(LIKELIHOODS[name], (3, 2, 1)), np.random.default_rng(1)
    x = rng.integers(0, 256, (4, 3, 2, 1)) / 255
    x[0, 0] = 0
    x[1, :, 0] = 1
    x = (x.round() if name == "bernoulli" else x).astype(np.float32)
    expected = [np.log(integrate.quad(lambda z, image=image: stats.norm.pdf(z) * np.exp(
        log_p_by_scipy(name, image.ravel().astype(float), model.parameters(z))), -10, 10, limit=500,
        points=np.linspace(-4, 4, 9), epsabs=0, epsrel=1e-9)[0]) for image in x]
    found = log_marginal(model, x)
    # float32: six pixels, x - μ rounded at 1e-7 and divided by a scale of e⁻² or so.
    assert np.allclose(found.log_px, expected, atol=1e-4) and np.all(found.error < 0.01)


def test_all_images_of_two_pixels_add_up_to_one():
    levels = np.arange(256, dtype=np.float32) / 255
    x = np.stack(np.meshgrid(levels, levels), axis=-1).reshape(-1, 2, 1, 1)
    found = log_marginal(Tiny(LIKELIHOODS["discretized_logistic"]), x)
    # 65,536 masses; what float32 does to each of them is much less than 1e-4 of it, and mostly cancels.
    assert abs(np.exp(found.log_px).sum() - 1) < 1e-5


@pytest.mark.parametrize("colours", [1, 3])
def test_one_pixel_on_a_plane_adds_up_to_one(colours):
    levels = np.arange(256, dtype=np.float32) / 255
    model = Tiny(LIKELIHOODS["discretized_logistic"], (1, 1, colours), latent_dim=2)
    x = np.zeros((256, 1, 1, colours), np.float32)
    x[..., 0] = levels[:, None, None]
    total = log_marginal(model, x).log_px
    if colours == 1:
        assert abs(np.exp(total).sum() - 1) < 1e-5
    else:  # all the levels of one channel leave the probability of the others, which is less than 1
        assert np.exp(total).sum() < 0.5


class Thirds:
    """A likelihood of one's own, without `pairs`: 0, ½ or 1, with log-odds a, 0 and -a."""

    numbers, levels = 1, None

    def log_prob(self, x, a):
        log_odds = tf.where(x == 0, a, tf.where(x == 1, -a, tf.zeros_like(a)))
        return tf.reduce_sum(log_odds - tf.reduce_logsumexp(tf.stack([a, 0 * a, -a]), axis=0), axis=[1, 2, 3])

    def mean(self, a):
        return tf.sigmoid(-a)


class Flipped(Bernoulli):
    """Two levels, and not the library's Bernoulli: the logit is that of a 0."""

    def log_prob(self, x, a):
        return super().log_prob(x, -a)

    def mean(self, a):
        return tf.sigmoid(-a)


@pytest.mark.parametrize(("likelihood", "values"), [(Thirds(), [0, 0.5, 1]), (Flipped(), [0, 1])])
def test_a_likelihood_of_ones_own_adds_up_to_one_on_a_plane(likelihood, values):
    model = Tiny(likelihood, (2, 2, 1), latent_dim=2)
    x = np.float32(list(itertools.product(values, repeat=4))).reshape(-1, 2, 2, 1)
    found = log_marginal(model, x)
    assert abs(np.exp(found.log_px).sum() - 1) < 1e-5  # 81 images, or 16
    z = draw_eps(0, 0, (20_000, 2))
    for image, log_px in zip(x[[1, 5]], found.log_px[[1, 5]], strict=True):
        p = np.exp(likelihood.log_prob(np.repeat(image[None], len(z), axis=0), model.decode(z)))
        assert abs(p.mean() - np.exp(log_px)) < 5 * p.std() / np.sqrt(len(z))


@pytest.fixture(scope="module", params=["continuous_bernoulli", "discretized_logistic"])
def in_colour(request):
    """An untrained model of small colour images, and eight images."""
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 9, 3)).astype(np.float32) / 255
    return FastCVAE(filters=(2, 3), seed=0, image_shape=(8, 9, 3), likelihood=request.param), x


@pytest.mark.long
def test_importance_sampling_agrees_in_colour_on_a_plane(in_colour):
    model, x = in_colour
    log_w = log_weights(model, x, samples=4000).astype(float)
    w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    error = w.std(axis=1) / w.mean(axis=1) / np.sqrt(4000)
    assert np.all(error < 0.1)  # the encoder looks at the right place
    found = log_marginal(model, x)
    assert np.all(np.abs(iwae_bound(log_w, 4000) - found.log_px) < 5 * error + found.error + 1e-3)


def test_posterior_and_highest_code_know_other_pixels(in_colour):
    model, x = in_colour
    z1, z2, log_p = posterior_on_plane(model, x, (-5, -5), (5, 5), points=51)
    spread = special.logsumexp(log_p, axis=(1, 2)) + 2 * np.log(z1[1] - z1[0])
    assert np.allclose(spread, log_marginal(model, x).log_px, atol=0.1)  # a coarse grid
    best = np.array([[z1[k % 51], z2[k // 51]] for k in log_p.reshape(8, -1).argmax(axis=1)])
    assert np.abs(highest_code(model, x, step=1 / 5) - best).max() < 0.21  # one step, where two are nearly alike


def test_binary_pixels_take_the_matrix_product(pretrained):
    assert pairing(pretrained[0]) is log_joint and pairing(CVAE(seed=0)) is log_joint
    assert pairing(FastCVAE(seed=0, likelihood="continuous_bernoulli")) is not log_joint


class Corrected(FastCVAE):
    def log_likelihood(self, x, z):
        return super().log_likelihood(x, z) - 1


def test_a_report_has_log_px_for_other_pixels_and_tells_its_cost(in_colour):
    x, heard = in_colour[1], []
    model = FastCVAE(1, (2, 3), 0, (8, 9, 3), "discretized_logistic")
    found = report(model, x, k=2, iwae_images=6, told=heard.append)
    assert np.isclose(found["log_px"], log_marginal(model, x[:6]).log_px.mean()) and found["log_px_images"] == 6
    assert heard[-1].startswith("log p(x) of 6 images, ") and heard[-1].endswith(" s")
    (line,) = [line for line in report_table(found).splitlines() if line.startswith("log p(x)")]
    assert line.split()[2:] == [f"{found['log_px']:.3f}", "nats", "6"]
    cost = cost_of_log_px(model, x)
    assert 8 * 48 < cost["values"] / 216 < 8 * 200 and cost["seconds"] > 0  # from -6 to 6, or somewhat more


def test_a_report_says_why_there_is_no_log_px(x):
    for model, reason in ((CVAE(latent_dim=3, seed=0), "latent_dim > 2"),
                          (Corrected(seed=0), "quadrature takes p(x|z) from the decoder alone")):
        found = report(model, x, k=2, iwae_images=2)
        assert "log_px" not in found and found["log_px_missing"].startswith(reason)
        assert f"log p(x): not computed, {reason}" in report_table(found)


@pytest.mark.long
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


# The Gaussian of chapter 39 is no density of pixels alone; tests/test_beyond_linear.py tries it.
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS.names() if name != "gaussian"])
def test_error_bars_cover_for_every_likelihood(name, monkeypatch):
    """A random decoder with the kinks of ReLUs, images that it drew itself, and a grid eight times as fine."""
    model, rng = FastCVAE(1, (4, 8), 3, (14, 14, 1), name), np.random.default_rng(1)
    factor = 2.2 if name == "discretized_logistic" else 6
    for weight in model.decoder.trainable_weights:  # steep, and with kinks off z = 0
        weight.assign(factor * weight if len(weight.shape) > 1 else rng.normal(0, 1, weight.shape))
    model.output_bias.assign([0.0, -2.0][:model.likelihood.numbers])
    x = model.likelihood.sample(model.decode(draw_eps(0, 0, (150, 1))), (1, 2)).numpy()
    coarse, changes = log_marginal(model, x, tolerance=1.0), []

    def five_refinements(found):
        changes.append(found)
        return remaining_error(found) if len(found) == 5 else np.inf

    monkeypatch.setattr("vae_course.truth.evaluation.remaining_error", five_refinements)
    fine = log_marginal(model, x, tolerance=1.0)
    off = np.abs(coarse.log_px - fine.log_px)
    assert (coarse.step, fine.step) == (1 / 16, 1 / 128) and len(changes) == 5
    # Of 150 images that are inside with probability 0.95, 15 or more are outside with one in 200.
    assert np.sum(off > coarse.error) < 15 and np.all(off < 5 * coarse.error)
    assert off.max() > 1e-4  # there is something to cover


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


def test_a_peak_of_other_pixels_between_the_points_is_found():
    """Two peaks of width 0.008. The lower one lies on the first grid, the higher one midway between its points."""
    sigma, low, high = 0.008, (-1.0, -30.0), (0.375, 0.0)

    class TwoPeaks:
        numbers, levels = 1, None

        def log_prob(self, x, z):
            z = tf.reshape(z, (-1,))
            return tf.reduce_logsumexp([height - (z - place)**2 / (2 * sigma**2) for place, height in (low, high)], axis=0)

        def mean(self, z):
            return tf.sigmoid(z)

    class Model(Tiny):
        def encode(self, x):
            return (tf.fill((len(x), 1), -5.0),) * 2  # of no help

        def decode(self, z, apply_sigmoid=False):
            return tf.reshape(tf.cast(z, tf.float32), (-1, 1, 1, 1))

    found = log_marginal(Model(TwoPeaks(), (1, 1, 1)), np.zeros((1, 1, 1, 1), np.float32))
    # The product of two Gaussians; on the first grid the higher peak is exp(-122), the lower one exp(-30).
    expected = np.log(sigma * np.sqrt(2 * np.pi)) + stats.norm.logpdf(high[0], 0, np.hypot(1, sigma))
    assert abs(found.log_px[0] - expected) < 1e-3


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
    (lambda m, x: log_marginal(m, x, tolerance=float("nan")), ValueError, "tolerance must be finite, got nan"),
    (lambda m, x: log_marginal(m, x, tolerance=float("inf")), ValueError, "tolerance must be finite, got inf"),
    (lambda m, x: log_marginal(m, x[:, :14]), ValueError, r"images must be \(28, 28, 1\), as the model's, got \(14, 28, 1\)"),
    (lambda m, x: highest_code(m, x[:, :14]), ValueError, r"images must be \(28, 28, 1\)"),
    (lambda m, x: highest_code(CVAE(latent_dim=3), x), ValueError, "latent_dim 1 or 2, got 3"),
    (lambda m, x: highest_code(m, x, step=0), ValueError, "step must be 1 divided by an integer, such as 1/8, got 0"),
    (lambda m, x: highest_code(m, x, step=0.3), ValueError, "step must be 1 divided by an integer"),
    (lambda m, x: highest_code(m, x, limit=0), ValueError, "limit must be at least 1"),
    (lambda m, x: posterior_on_plane(m, x[:, :14], (0, 0), (1, 1)), ValueError, r"images must be \(28, 28, 1\)"),
    (lambda m, x: posterior_on_plane(m, x, (0, 0), (1, 1), points=0), ValueError, "points must be at least 1"),
    (lambda m, x: log_marginal(Corrected(seed=0), x), ValueError, "this model has a log_likelihood of its own"),
    (lambda m, x: log_marginal(FastCVAE(seed=0, likelihood="discretized_logistic"), x * 0.3), ValueError, "a multiple of 1/255"),
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

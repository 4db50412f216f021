"""A q(z|x) of any shape: densities, the hook in the ELBO, refinement, and gradients without the score."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from models import shaken
from vae_course.beyond.gap import Coupling, DenseVAE, FlowVAE, FullVAE, draw, dreg, log_q, q_of, refine_q, semi_amortised, stl
from vae_course.elbo import elbo_terms, log_normal_pdf
from vae_course.engine.checkpoints import start_run
from vae_course.engine.families import MODELS, OBJECTIVES, FastCVAE
from vae_course.engine.images import Images
from vae_course.engine.loop import fit
from vae_course.engine.recipes import FAST
from vae_course.engine.runs import load_model, save_model
from vae_course.further.objectives import ConditionalVAE, iwae
from vae_course.reparameterization import draw_eps
from vae_course.training import evaluate
from vae_course.truth.evaluation import log_marginal, log_weights, sample_log_weights
from vae_course.truth.posterior import smooth_elbo

KINDS = {"diagonal": DenseVAE, "full_covariance": FullVAE, "flow": FlowVAE}
FEW = replace(FAST, max_steps=4, warmup=1, batch_size=32, estimator="monte_carlo", model="flow",
              sizes={"width": 8, "inner": 8})


@pytest.fixture(scope="module")
def x(x_test):
    return x_test[:6]


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("latent_dim", [2, 3, 5])
def test_draw_and_density_belong_together(x, kind, latent_dim):
    """The way back to the noise, and the Jacobian that TensorFlow finds."""
    model, eps = shaken(kind, latent_dim=latent_dim), draw_eps(0, 0, (6, latent_dim))
    q = q_of(model, x)
    with tf.GradientTape() as tape:
        tape.watch(eps)
        z, found = draw(model, q, eps)
    expected = log_normal_pdf(eps, 0.0, 0.0) - np.linalg.slogdet(tape.batch_jacobian(z, eps))[1]
    assert np.allclose(found, expected, atol=1e-4)  # float32, terms of some units
    assert np.allclose(log_q(model, q, z), found, atol=1e-3)


@pytest.mark.parametrize("kind", [FullVAE, FlowVAE])
def test_density_sums_to_one(x, kind):
    model = shaken(kind)
    _, _, more = (t[:1] for t in q_of(model, x))
    axis = np.linspace(-40, 40, 801, dtype=np.float32)  # scales up to e⁴ are possible, these are smaller
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    zero = np.zeros(z.shape, np.float32)
    density = np.exp(log_q(model, (zero, zero, np.repeat(more, len(z), axis=0)), z), dtype=float)
    assert abs(density.sum() * 0.01 - 1) < 0.01


def test_full_covariance_is_tfps(x):
    model = shaken(FullVAE, latent_dim=4)
    mean, logvar, more = q_of(model, x)
    root = tf.exp(logvar / 2)[:, :, None] * model.triangle(more)
    other = tfp.distributions.MultivariateNormalTriL(mean, root)
    eps = draw_eps(0, 1, (6, 4))
    z, found = draw(model, (mean, logvar, more), eps)
    assert np.allclose(found, other.log_prob(z), atol=1e-4)
    prior = tfp.distributions.MultivariateNormalDiag(tf.zeros(4))
    assert np.allclose(elbo_terms(model, x, eps).kl, tfp.distributions.kl_divergence(other, prior), atol=1e-4)


def test_a_fresh_flow_is_upright(x):
    model, eps = FlowVAE(seed=0), draw_eps(0, 0, (6, 2))
    mean, logvar, _ = q_of(model, x)
    z, log_qz_x = draw(model, q_of(model, x), eps)
    assert np.allclose(z, mean + tf.exp(logvar / 2) * eps, atol=1e-6)
    assert np.allclose(log_qz_x, log_normal_pdf(z, mean, logvar), atol=1e-4)


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_a_coupling_is_the_formula(latent_dim):
    rng = np.random.default_rng(0)
    coupling = Coupling(latent_dim, 2, "glorot_uniform")
    for weight in coupling.variables:
        weight.assign(rng.normal(size=weight.shape))
    u, c = rng.normal(size=(5, latent_dim)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    (w1, b1, w2, b2), kept = coupling.get_weights(), latent_dim - latent_dim // 2
    h = np.tanh(np.concatenate([u[:, :kept], c], axis=1) @ w1 + b1) @ w2 + b2
    s, t = np.split(h, 2, axis=1)
    moved = u[:, kept:] * np.exp(np.tanh(s)) + t
    out, log_det = coupling(u, c)
    assert np.allclose(out, np.concatenate([moved, u[:, :kept]], axis=1), atol=1e-4)
    assert np.allclose(log_det, np.tanh(s).sum(axis=1), atol=1e-4)


@pytest.mark.parametrize("model", [FastCVAE(filters=(4, 8), seed=0), ConditionalVAE(filters=(4, 8), seed=0).given(3),
                                   DenseVAE(width=8, inner=8, seed=0)], ids=lambda model: type(model).__name__)
def test_models_without_a_bend_are_as_in_chapter_03(x, model):
    eps = draw_eps(0, 2, (6, 2))
    z, log_qz_x = draw(model, q_of(model, x), eps)
    assert np.allclose(log_qz_x, elbo_terms(model, x, eps).log_qz_x, atol=1e-4)
    assert np.allclose(stl(model, x, eps), elbo_terms(model, x, eps).elbo(), atol=1e-3)
    assert np.allclose(dreg(model, x, eps[:, None]), elbo_terms(model, x, eps).elbo(), atol=1e-3)


@pytest.mark.parametrize("kind", [FullVAE, FlowVAE])
def test_the_course_uses_the_bent_q(x, kind):
    """ELBO, evaluation, importance weights: all by the same density, and their bound is below log p(x)."""
    model = shaken(kind)
    eps = draw_eps(0, -1, (6, 2))
    z, log_qz_x = draw(model, q_of(model, x), eps)
    by_hand = model.log_likelihood(x, z) + log_normal_pdf(z, 0.0, 0.0) - log_qz_x
    assert np.allclose(elbo_terms(model, x, eps).elbo(), by_hand, atol=1e-3)
    assert np.isclose(evaluate(model, x, seed=0)["elbo"], np.mean(by_hand), atol=1e-3)
    assert np.allclose(sample_log_weights(model, x, eps[:, None])[:, 0], by_hand, atol=1e-3)
    log_w = log_weights(model, x, samples=2000).astype(float)
    log_px = log_marginal(model, x, tolerance=0.01).log_px
    w = np.exp(log_w - log_px[:, None])  # their mean is 1 for any q with heavy enough tails
    assert np.all(np.abs(w.mean(axis=1) - 1) < 5 * w.std(axis=1) / np.sqrt(2000) + 0.02)


@pytest.mark.parametrize("name", KINDS)
def test_families_train_and_come_back(x_test, tmp_path, name):
    recipe = replace(FEW, model=name)
    model, history = fit(recipe, x_test[:64], x_test[:5], verbose=False)
    assert type(model) is KINDS[name] and np.isfinite(history[-1]["test_elbo"])
    save_model(model, tmp_path / "model.keras")
    eps = draw_eps(0, 0, (6, 2))
    loaded = load_model(tmp_path / "model.keras")
    assert np.array_equal(elbo_terms(loaded, x_test[:6], eps).elbo(), elbo_terms(model, x_test[:6], eps).elbo())


def test_all_start_with_the_same_decoder(x_test):
    weights = [start_run(replace(FEW, model=name), Images(x_test[:64])).model.decoder.get_weights() for name in KINDS]
    assert all(np.array_equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))


def test_names_are_found():
    assert set(KINDS) <= set(MODELS.names()) and {"stl", "dreg", "semi_amortised"} <= set(OBJECTIVES.names())


# Gradients.

def by_weights(bound, model, networks):
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(bound())
    variables = [v for network in networks for v in network.trainable_variables]
    return [g.numpy() for g in tape.gradient(value, variables)]


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_landing_differs_by_the_score_alone(x, kind):
    model, eps = shaken(kind), draw_eps(0, 3, (6, 2))

    def score():
        q = q_of(model, x)
        return log_q(model, q, tf.stop_gradient(draw(model, q, eps)[0]))

    whole, path, by_score = (by_weights(bound, model, [model.encoder]) for bound in (
        lambda: elbo_terms(model, x, eps).elbo(), lambda: stl(model, x, eps), score))
    for a, b, c in zip(whole, path, by_score, strict=True):
        assert np.allclose(b - a, c, atol=1e-3 * max(1, np.abs(a).max()))
    decoder = [by_weights(bound, model, [model.decoder]) for bound in (
        lambda: elbo_terms(model, x, eps).elbo(), lambda: stl(model, x, eps))]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*decoder, strict=True))


@pytest.mark.parametrize("kind", [DenseVAE, FlowVAE])
def test_dreg_is_its_formula(x, kind):
    """By the encoder, the sum with squared weights, sample by sample; by the decoder, IWAE's own gradient."""
    model, eps = shaken(kind), draw_eps(0, 4, (6, 4, 2))
    assert np.allclose(dreg(model, x, eps), iwae(model, x, eps), atol=1e-3)
    share = tf.nn.softmax(sample_log_weights(model, x, eps), axis=1)

    def by_formula():
        terms = [tf.stop_gradient(share[:, s]**2) * stl(model, x, eps[:, s]) for s in range(4)]
        return tf.add_n(terms)

    found, right = (by_weights(bound, model, [model.encoder]) for bound in (lambda: dreg(model, x, eps), by_formula))
    for a, b in zip(found, right, strict=True):
        assert np.allclose(a, b, atol=1e-3 * max(1, np.abs(b).max()))
    found, right = (by_weights(lambda bound=bound: bound(model, x, eps), model, [model.decoder]) for bound in (dreg, iwae))
    for a, b in zip(found, right, strict=True):
        assert np.allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.long
def test_dropping_the_score_bends_the_mean_of_iwae_and_dreg_does_not(x):
    """Two posteriors away from q: with 4,000 draws the difference is many standard errors, or within some."""
    model, n = shaken(DenseVAE, 0.05), 4000
    copies = tf.repeat(x[:1], n, axis=0)
    eps, (mean, logvar) = draw_eps(0, 5, (n, 5, 2)), model.encode(x[:1])
    own = model.encode

    def gradients(bound):
        numbers = [tf.repeat(t, n, axis=0) for t in (mean, logvar)]
        with tf.GradientTape() as tape:
            tape.watch(numbers)
            model.encode = lambda x: numbers
            value = bound(model, copies, eps)
        model.encode = own
        return np.concatenate(tape.gradient(value, numbers), axis=1).astype(float)

    plain = gradients(iwae)
    for bound, biased in ((lambda *given: dreg(*given, power=0), True), (dreg, False)):
        difference = gradients(bound) - plain
        t = difference.mean(axis=0) / (difference.std(axis=0) / np.sqrt(n))
        assert (np.abs(t).max() > 10) == biased and (biased or np.abs(t).max() < 5), t


def test_refinement_raises_the_elbo_and_gradients_pass(x):
    model = shaken(DenseVAE, 0.02)
    q = model.encode(x)
    before, after = (smooth_elbo(model, x, *refine_q(model, x, *q, steps)).numpy() for steps in (0, 6))
    assert np.all(after > before)
    gradients = by_weights(lambda: semi_amortised(model, x, draw_eps(0, 0, (6, 2))), model, [model.encoder, model.decoder])
    assert all(np.isfinite(g).all() for g in gradients) and any(np.abs(g).max() > 0 for g in gradients)
    with pytest.raises(ValueError, match="choose model 'diagonal'"):
        semi_amortised(shaken(FlowVAE), x, draw_eps(0, 0, (6, 2)))

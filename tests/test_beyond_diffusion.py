"""Diffusion: each formula against Bayes and TFP, the bound against log p(x) where that is known, training, the way back."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from vae_course.beyond.diffusion import (
    Denoiser,
    alpha_sigma,
    best_denoiser,
    diffuse,
    diffusion_terms,
    evidence,
    log_snr,
    nats_per_log_snr,
    spread_times,
    step_back,
    step_kl,
    train_denoiser,
    walk_back,
)
from vae_course.data import preprocess_images
from vae_course.elbo import bernoulli_log_prob
from vae_course.reparameterization import draw_eps

Normal = tfp.distributions.Normal


def two_times(rng, n):
    """Pairs s < t in float64."""
    times = np.sort(rng.random((2, n)), axis=0)
    return times[0], times[1]


def images(rng, n, size=4):
    return (rng.random((n, size, size, 1)) < 0.4).astype(np.float32)


def test_signal_and_noise_preserve_the_variance_and_have_the_ratio(rng):
    t = rng.random(20)
    alpha, sigma = (np.ravel(part) for part in alpha_sigma(t))
    assert np.allclose(alpha**2 + sigma**2, 1)
    assert np.allclose(2 * np.log(alpha / sigma), log_snr(t))
    assert np.all(np.diff(log_snr(np.sort(t))) < 0)


def test_smudge_is_the_mean_and_the_noise(rng):
    x, t = images(rng, 3), np.array([0.0, 0.5, 1.0], np.float32)
    alpha, sigma = alpha_sigma(t)
    assert np.allclose(diffuse(x, t, np.zeros_like(x)), alpha * np.where(x, 1, -1))
    eps = rng.normal(size=x.shape).astype(np.float32)
    assert np.allclose(diffuse(x, t, eps) - diffuse(x, t, 0 * eps), sigma * eps, atol=1e-6)


def test_step_back_conditions_the_joint_gaussian(rng):
    """z_s and z_t given x are jointly Gaussian, with covariance (α_t / α_s) σ_s²."""
    s, t = two_times(rng, 50)
    (a_s, s_s), (a_t, s_t) = ([np.ravel(part) for part in alpha_sigma(u)] for u in (s, t))
    v, z = rng.choice([-1.0, 1.0], 50), rng.normal(size=50)
    covariance = a_t / a_s * s_s**2
    mean = a_s * v + covariance / s_t**2 * (z - a_t * v)
    variance = s_s**2 - covariance**2 / s_t**2
    found_mean, found_logvar = step_back(z.reshape(-1, 1, 1, 1), v.reshape(-1, 1, 1, 1), s, t)
    assert np.allclose(np.ravel(found_mean), mean, atol=1e-9)
    assert np.allclose(np.exp(np.ravel(found_logvar)), variance, rtol=1e-8)


def test_kl_of_a_step_is_that_of_its_two_gaussians(rng):
    s, t = two_times(rng, 10)
    x, z = images(rng, 10).astype(np.float64), rng.normal(size=(10, 4, 4, 1))
    x_logits = rng.normal(size=x.shape)
    mean, logvar = step_back(z, 2 * x - 1, s, t)
    guessed, _ = step_back(z, 2 / (1 + np.exp(-x_logits)) - 1, s, t)
    scale = tf.exp(logvar / 2)
    by_tfp = tf.reduce_sum(tfp.distributions.kl_divergence(Normal(mean, scale), Normal(guessed, scale)), (1, 2, 3))
    found = step_kl(x.astype(np.float32), x_logits.astype(np.float32), s.astype(np.float32), t.astype(np.float32))
    assert np.allclose(found, by_tfp, rtol=1e-3)  # float32, a difference of two ratios


def test_evidence_is_the_log_ratio_of_the_likelihoods(rng):
    t, z = rng.random(10), rng.normal(size=(10, 3, 3, 1))
    alpha, sigma = alpha_sigma(t)
    assert np.allclose(evidence(z, t), Normal(alpha, sigma).log_prob(z) - Normal(-alpha, sigma).log_prob(z))


@pytest.mark.parametrize(("n", "draws"), [(1, 1), (5, 3), (50, 4)])
def test_times_are_spread_over_the_parts_of_the_interval(n, draws):
    times = spread_times(n, draws, 0.37).numpy()
    assert times.shape == (draws, n) and times.min() >= 0 and times.max() < 1
    assert np.array_equal(np.floor(times * draws), np.repeat(np.arange(draws)[:, None], n, axis=1))
    gaps = np.diff(np.sort(times.ravel()))
    assert np.allclose(gaps, 1 / (n * draws), atol=1e-6)


def test_all_steps_together_are_the_sum(rng):
    """With as many draws as steps, each step is visited once."""
    x, seen = images(rng, 3), []
    terms = diffusion_terms(lambda z, t: seen.append(t[0].numpy()) or evidence(z, t), x, 5, 5, 3)
    assert np.allclose(np.sort(seen), np.arange(6) / 5)
    eps, total = draw_eps(3, 0, (6, *x.shape)), 0
    for k in range(1, 6):
        t = tf.fill((3,), k / 5)
        total += step_kl(x, evidence(diffuse(x, t, eps[k]), t), t - 0.2, t)
    assert np.allclose(terms.diffusion, total, rtol=1e-3)
    first = diffuse(x, tf.zeros(3), eps[0])
    assert np.allclose(terms.reconstruction, bernoulli_log_prob(x, evidence(first, tf.zeros(3))), atol=1e-5)
    assert np.allclose(terms.bound(), terms.reconstruction - terms.diffusion - terms.prior)


def test_few_draws_estimate_the_sum_without_bias(rng):
    x = images(rng, 1)
    few = [np.mean(diffusion_terms(evidence, np.repeat(x, 50, axis=0), 12, 1, seed).diffusion) for seed in range(40)]
    full = [np.mean(diffusion_terms(evidence, np.repeat(x, 50, axis=0), 12, 12, seed).diffusion) for seed in range(40)]
    error = np.sqrt((np.var(few) + np.var(full)) / 40)
    assert abs(np.mean(few) - np.mean(full)) < 5 * error


def test_prior_has_its_closed_form(rng):
    terms = diffusion_terms(evidence, images(rng, 2), 2)
    assert np.allclose(terms.prior, 16 / 2 * np.log1p(np.exp(log_snr(1.0))), rtol=1e-2)  # float32: a sum near 0


def test_best_denoiser_is_bayes(rng):
    world, t = images(rng, 6), np.array([0.2, 0.6], np.float32)
    z = rng.normal(size=(2, 4, 4, 1)).astype(np.float32)
    alpha, sigma = alpha_sigma(t)
    log_w = np.stack([np.sum(Normal(alpha * (2 * x - 1), sigma).log_prob(z), axis=(1, 2, 3)) for x in world], axis=1)
    w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    p = np.tensordot(w / w.sum(axis=1, keepdims=True), world, 1)
    found = tf.sigmoid(best_denoiser(world)(z, t))
    assert np.allclose(found, p, atol=1e-5)


def test_bound_rises_to_the_exact_log_probability(rng):
    world = np.unique(images(rng, 20, 3), axis=0)
    copies, truth = np.repeat(world, 200, axis=0), -np.log(len(world))
    found = {T: diffusion_terms(best_denoiser(world), copies, T, 32).bound().numpy() for T in (2, 16, 512)}
    means = {T: each.mean() for T, each in found.items()}
    error = {T: each.std() / len(copies)**0.5 for T, each in found.items()}
    assert means[2] < means[16] < means[512]
    assert all(means[T] < truth + 5 * error[T] for T in found)
    assert means[512] > truth - 0.1 - 5 * error[512]  # steps of 12 / 512 in the log-SNR


def test_a_worse_guess_has_a_lower_bound(rng):
    world = np.unique(images(rng, 10, 3), axis=0)
    copies = np.repeat(world, 100, axis=0)
    best, alone = (diffusion_terms(denoise, copies, 64, 8).bound().numpy().mean() for denoise in (best_denoiser(world), evidence))
    assert best > alone + 1


def test_square_of_the_noise_is_the_integrand(rng):
    """DDPM's simple loss: |ε - ε̂|² is twice what the integral over the log-SNR adds up."""
    x, t = images(rng, 4), np.array([0.1, 0.3, 0.6, 0.9], np.float32)
    eps = rng.normal(size=x.shape).astype(np.float32)
    alpha, sigma = alpha_sigma(t)
    z = diffuse(x, t, eps)
    guessed = (z - alpha * tf.tanh(evidence(z, t) / 2)) / sigma
    simple = tf.reduce_sum((eps - guessed)**2, axis=(1, 2, 3))
    assert np.allclose(nats_per_log_snr(evidence, x, t, eps), simple / 2, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def digits(mnist):
    return preprocess_images(mnist[0][0][:2000])


def test_training_starts_at_independent_pixels_and_beats_them(digits):
    """A step with a weight of 0 changes nothing but the log-odds."""
    denoiser = Denoiser(width=4, seed=0)
    train_denoiser(denoiser, digits, 1, weight=tf.zeros_like)
    p = (digits.sum(axis=0) + 0.5) / 2001
    z, t = draw_eps(0, 0, (3, 28, 28, 1)), tf.constant([0.1, 0.5, 0.9])
    assert np.allclose(denoiser(z, t), np.log(p / (1 - p)) + evidence(z, t), atol=1e-3)
    before = np.mean(diffusion_terms(denoiser, digits[:300], 200).bound())
    loss = train_denoiser(denoiser, digits, 40)
    after = np.mean(diffusion_terms(denoiser, digits[:300], 200).bound())
    assert np.isfinite(loss) and after > before + 15


def test_training_is_a_function_of_its_seeds(digits):
    results = []
    for seed in (0, 0, 1):
        denoiser = Denoiser(width=2, seed=0)
        train_denoiser(denoiser, digits[:200], 2, seed=seed)
        results.append(np.concatenate([np.ravel(weight) for weight in denoiser.get_weights()]))
    assert np.array_equal(results[0], results[1]) and not np.allclose(results[0], results[2])


def test_the_way_back_ends_at_images_of_the_world(rng):
    world = np.unique(images(rng, 8), axis=0)
    path = list(walk_back(best_denoiser(world), 400, 64, 4, seed=1))
    assert len(path) == 65 and path[0][0].shape == (400, 4, 4, 1)
    drawn = np.round(path[-1][1])
    same = (drawn[:, None] == world).all(axis=(2, 3, 4))
    assert same.any(axis=1).mean() > 0.99
    expected = 400 / len(world)
    assert np.abs(same.sum(axis=0) - expected).max() < 5 * np.sqrt(expected)
    again = list(walk_back(best_denoiser(world), 400, 64, 4, seed=1))
    assert np.array_equal(path[-1][0], again[-1][0])


def test_the_first_code_is_standard_normal(rng):
    (z, _), *_ = walk_back(evidence, 500, 1, 4)
    assert abs(np.mean(z)) < 5 / np.sqrt(z.shape.num_elements()) and abs(np.std(z) - 1) < 0.05

"""The sample, its gradients, and the noise."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.reparameterization import draw_eps, reparameterize


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(-5, 5), logvar=st.floats(-6, 6), eps=st.floats(-4, 4))
def test_values_and_gradients_by_formula(mean, logvar, eps):
    m, v = tf.Variable([[mean]], dtype=tf.float64), tf.Variable([[logvar]], dtype=tf.float64)
    with tf.GradientTape() as tape:
        z = reparameterize(m, v, np.array([[eps]]))
    to_mean, to_logvar = tape.gradient(z, [m, v])
    sigma = np.exp(logvar / 2)
    assert np.isclose(z, mean + sigma * eps)
    assert to_mean == 1 and np.isclose(to_logvar, 0.5 * sigma * eps)


def test_samples_follow_the_gaussian():
    eps = draw_eps(3, 0, (20_000, 1))
    z = reparameterize(tf.fill(eps.shape, -1.0), tf.fill(eps.shape, float(2 * np.log(0.3))), eps)
    # Kolmogorov-Smirnov; the seed is fixed, so this passes or fails for good.
    assert scipy.stats.kstest(np.ravel(z), scipy.stats.norm(-1, 0.3).cdf).pvalue > 0.01


def test_noise_is_a_function_of_seed_and_step():
    noise = {key: draw_eps(*key, (4, 2)).numpy().tobytes() for key in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(set(noise.values())) == 4
    tf.random.set_seed(99)  # no hidden state
    assert draw_eps(0, 1, (4, 2)).numpy().tobytes() == noise[0, 1]


@pytest.mark.parametrize("shape", [(1, 1), (7, 2), (33, 16)])
def test_any_shape(shape):
    assert reparameterize(tf.zeros(shape), tf.zeros(shape), draw_eps(0, 0, shape)).shape == shape


@pytest.mark.parametrize("wrong", ["logvar", "eps"])
def test_shapes_that_would_broadcast_are_refused(wrong):
    shapes = {"mean": (3, 2), "logvar": (3, 2), "eps": (3, 2)} | {wrong: (2,)}
    with pytest.raises(ValueError, match=wrong):
        reparameterize(**{name: tf.zeros(shape) for name, shape in shapes.items()})


def test_shapes_are_refused_while_a_graph_is_recorded():
    with pytest.raises(ValueError, match="eps"):
        tf.function(reparameterize)(tf.zeros((3, 2)), tf.zeros((3, 2)), tf.zeros(2))

"""Fixtures that several test files share."""

import pytest

from vae_course.support import quiet_tensorflow

quiet_tensorflow()

import numpy as np  # noqa: E402

from vae_course.data import load_mnist, preprocess_images  # noqa: E402
from vae_course.model import CVAE  # noqa: E402
from vae_course.engine.runs import load_pretrained  # noqa: E402


@pytest.fixture(scope="session")
def mnist():
    """The grey arrays, as `load_mnist` returns them."""
    return load_mnist()


@pytest.fixture(scope="session")
def x_test(mnist):
    """All binarised test images."""
    return preprocess_images(mnist[1][0])


@pytest.fixture(scope="session")
def x(x_test):
    """A small batch of binarised images."""
    return x_test[:8]


@pytest.fixture(scope="session")
def model():
    """An untrained model; tests must not train it."""
    return CVAE(latent_dim=2, seed=0)


@pytest.fixture(scope="session")
def pretrained():
    """The model and the card that come with the package."""
    return load_pretrained()


@pytest.fixture
def rng():
    return np.random.default_rng(0)

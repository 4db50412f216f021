"""Fixtures that several test files share, and the choice of tests.

Tests marked `long` run only with `--long` (`make test-all`, `.ci/run`), if `-m` chooses by marks, or if
they are named on the command line.
"""

import pytest

from vae_course.support import quiet_tensorflow

quiet_tensorflow()

import numpy as np  # noqa: E402

from vae_course.data import load_mnist, preprocess_images  # noqa: E402
from vae_course.model import CVAE  # noqa: E402
from vae_course.engine.runs import load_pretrained  # noqa: E402

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the tests that are marked long, too")


def pytest_collection_modifyitems(config, items):
    """Leave the long tests out, unless somebody asks for them."""
    named = any("::" in argument for argument in config.args)
    if config.getoption("--long") or config.getoption("-m") or named:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    config.stash[LEFT_OUT] = len(long)


def pytest_sessionfinish(session):
    """A process of `pytest -n 2` tells the one that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"long tests left out: {count}; pytest --long runs them too")


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

"""Variational autoencoders, built step by step in tested notebooks."""

from . import support  # noqa: F401  it checks the environment, before anything imports Keras

__version__ = "0.1.0"

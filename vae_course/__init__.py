"""Variational autoencoders, built step by step in tested notebooks."""

__version__ = "0.1.0"

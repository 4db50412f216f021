"""Small models for the tests of the part `beyond`."""

import numpy as np


def shaken(kind, scale=0.1, **sizes):
    """A small model with noise on all its weights, so that nothing in it is still as it began."""
    model, rng = kind(width=8, inner=8, seed=0, **sizes), np.random.default_rng(0)
    for weight in model.variables:
        weight.assign_add(scale * rng.standard_normal(weight.shape))
    return model

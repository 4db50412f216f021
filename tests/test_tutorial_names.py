"""Somebody who comes from the tutorial finds its names, with its signatures and its meaning."""

import inspect

import numpy as np
import pytest

from vae_course import animation, data, elbo, generation, manifold, model, training
from vae_course.engine import checkpoints, recipes, runs

SIGNATURES = [
    (data.preprocess_images, ["images"]),
    (elbo.log_normal_pdf, ["sample", "mean", "logvar", "raxis"]),
    (model.CVAE, ["latent_dim"]),
    (model.CVAE.sample, ["self", "eps"]),
    (model.CVAE.encode, ["self", "x"]),
    (model.CVAE.reparameterize, ["self", "mean", "logvar"]),
    (model.CVAE.decode, ["self", "z", "apply_sigmoid"]),
    (training.compute_loss, ["model", "x"]),
    (training.train_step, ["model", "x", "optimizer"]),
    (generation.generate_and_save_images, ["model", "epoch", "test_sample"]),
    (generation.display_image, ["epoch_no"]),
    (manifold.plot_latent_images, ["model", "n", "digit_size"]),
]


@pytest.mark.parametrize(("function", "names"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_positional_arguments_are_the_tutorials(function, names):
    parameters = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in parameters[:len(names)]] == names
    rest = parameters[len(names):]
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in rest)


def test_defaults_are_the_tutorials():
    assert inspect.signature(elbo.log_normal_pdf).parameters["raxis"].default == 1
    assert inspect.signature(model.CVAE.decode).parameters["apply_sigmoid"].default is False
    assert inspect.signature(model.CVAE.sample).parameters["eps"].default is None


@pytest.mark.parametrize("module", [animation, checkpoints, data, elbo, generation, manifold, model,
                                    recipes, runs, training])
def test_every_exported_name_has_a_docstring(module):
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value):
            assert inspect.getdoc(value), f"{module.__name__}.{name}"


def test_the_tutorials_manifold_loop_works(pretrained):
    # One float64 code at a time, as the tutorial's plot_latent_images calls it.
    assert pretrained[0].sample(np.array([[0.1, -0.3]])).shape == (1, 28, 28, 1)

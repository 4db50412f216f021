"""What test_every_function.py knows: how each public function is called, and what is left out and why.

A new function needs an entry here only if the names of its arguments are new, or mean something else in it.
"""

import hashlib
import io
import tarfile
from functools import cached_property
from inspect import Parameter, signature
from pathlib import Path

import click
import keras
import numpy as np
import PIL.Image
import tensorflow as tf
from matplotlib.figure import Figure

from vae_course.animation import GREYS, FrameRecorder, write_gif
from vae_course.beyond.code_prior import make_prior
from vae_course.beyond.codes import Codebook, CodeModel
from vae_course.beyond.few_labels import LabelVAE
from vae_course.beyond.prior import VampVAE
from vae_course.beyond import audit, diffusion, hierarchy, linear, tables
from vae_course.elbo import elbo_terms
from vae_course.engine import checkpoints, families, run_folder, runs
from vae_course.engine.images import Images
from vae_course.engine.keras_fit import KerasCVAE
from vae_course.engine.recipes import Recipe
from vae_course.further import likelihoods, objectives, own_images, using, variants
from vae_course.further.larger import ResidualVAE
from vae_course.generation import generate_and_save_images
from vae_course.model import CVAE, make_decoder, make_encoder
from vae_course.sources import Reading
from vae_course.truth import evaluation

RECORD = "a record: it holds what it is given, and those who read it look"
BY_KERAS = "Keras calls it, with what `fit` has checked; tests/test_keras.py"
BY_CLICK = "click has checked what it gets; tests/test_cli.py"
BY_ENGINE = "the engine calls it with what `start_run` has checked; `start_run` is tried"
LOOKS = "it looks at arguments itself, and its own are written by programmers; the chapter Contracts tests it"
# What is not tried: {a name, or the beginning of names: why}.
OUT_OF_SCOPE = {
    "contracts.": LOOKS, "data.grey_values": LOOKS, "data.pixels": LOOKS, "manifold.on_plane": LOOKS, "data.check_owner": LOOKS, "reparameterization.check_draw": LOOKS, "reparameterization.latents": LOOKS,
    "support.check_integer": LOOKS, "elbo.by_model": LOOKS, "support.quiet_tensorflow": "no argument",
    "elbo.ElboTerms._make": RECORD, "elbo.ElboTerms": RECORD, "engine.checkpoints.Run": RECORD,
    "engine.families.Family": RECORD, "engine.families.Objective": RECORD, "truth.evaluation.Marginal": RECORD,
    "training.Evaluation": RECORD, "training.History": RECORD,
    "engine.keras_fit.KerasFit": BY_KERAS, "engine.keras_fit.Steps": BY_KERAS, "engine.layers.OneFilterConv2DTranspose": BY_KERAS,
    "further.variants.FunctionalVAE.train_step": BY_KERAS, "further.variants.Sampling": BY_KERAS,
    "further.variants.GuideEncoder": BY_KERAS, "beyond.tables.OwnScale": BY_KERAS, "further.variants.FunctionalVAE.objective": BY_KERAS,
    "further.variants.GuideVAE.call": BY_KERAS,
    "engine.cli.": BY_CLICK, "live.commands.": "click has checked what it gets; tests/test_using.py",
    "engine.families.Family.make": BY_ENGINE, "engine.families.convolutional": BY_ENGINE, "engine.families.elbo": BY_ENGINE,
    "beyond.audit.Lesson": "a record, whose __post_init__ looks at each field; tests/test_beyond_audit.py",
    "beyond.linear.linear_family": BY_ENGINE, "beyond.linear.Appended": BY_KERAS, "beyond.linear.Axes": RECORD, "beyond.linear.PairVAE": RECORD,
    **dict.fromkeys((f"beyond.linear.pair_{name}" for name in ("log_px_z", "terms", "log_px")), "of the chapter's two pixels; tests/test_beyond_linear.py"),
    **dict.fromkeys((f"beyond.bits_back.{name}" for name in ("push", "pop", "slots", "code_slots", "pixel_slots", "one_by_one", "decompress")),
                    "the inside of `compress`, which is tried, or its inverse; tests/test_beyond_bits_back.py"),
    "further.larger.residual_family": BY_ENGINE, "further.objectives.conditional_family": BY_ENGINE,
    "further.variants.functional_family": BY_ENGINE,
    **dict.fromkeys((f"beyond.gap.{name}" for name in ("q_of", "draw", "log_q", "BentVAE", "Coupling")),
                    "the inside of `stl`, `dreg` and the models, which are tried"),
    **dict.fromkeys((f"beyond.prior.{name}" for name in ("log_density", "hmc_move", "own_log_weights", "check_grid")),
                    "the inside of `ais`, `sample_log_weights` and `log_px_on_grid`, which are tried"),
    **dict.fromkeys((f"beyond.prior.{name}" for name in ("PriorVAE", "MixtureVAE.components", "VampVAE.components", "MixtureVAE.add_parts", "VampVAE.add_parts")), "`elbo_terms` and `log_weights` call it, which check"),
    **dict.fromkeys((f"beyond.gap.{name}." for name in ("FullVAE", "FlowVAE")), "`elbo_terms` and `sample_log_weights` call it, which check"),
    "beyond.hierarchy.LayerTerms": RECORD, "beyond.hierarchy.Layers": RECORD,
    **dict.fromkeys((f"beyond.hierarchy.{name}" for name in ("LayeredVAE", "TwoLayers.", "BottomUp.", "Blind.")),
                    "the inside of the models and of `layer_terms`, which are tried"),
    "training.apply_step": "the inside of `train_step`", "engine.loop.run_epoch": "the inside of `fit`, which checks", "engine.loop.apply_step": "the inside of `fit`",
    **dict.fromkeys((f"truth.evaluation.{name}" for name in ("log_joint", "lattice", "log_sum", "cover", "refine", "near_mean",
                                                             "remaining_error", "error_bars")),
                    "the inside of `log_marginal`, which is tried"),
    "live.serving.PageHandler": "Python's server calls it; tests/test_serving.py",
    "live.serving.PageServer": "as Python's own; `serve` is tried",
    "live.serving.explore_run": "serves until Ctrl-C; `open_run`, `build_explorer` and `serve` are tried",
    "live.serving.dots_of": "a folder that is no run is its answer, not its error; tests/test_serving.py",
    "support.atomic_folder": "its folder is made when its block ends; tests/test_explorer.py and test_export.py",
    **dict.fromkeys((f"live.explorer.{name}" for name in ("codes_of", "label_names", "check_explorable", "check_names")),
                    "the inside of `page_content`, which is tried"),
    "further.export.": "compares what it writes with the model, at some seconds a call; tests/test_export.py",
    "further.using.Trained": RECORD, "further.using.Pictures": RECORD,
    "further.using.draw_part": "the inside of `sample_images`, which checks",
    "further.using.in_parts": "the inside of `sample_images` and `over_pictures`, which check",
    "further.using.labels_for": "the inside of `sample_images` and `open_pictures`; tests/test_using.py",
    "further.using.own_noise": "the inside of `score_images`, which checks",
    "engine.keras_fit.images_and_noise": BY_KERAS,
    "engine.run_folder.at_work": "what goes wrong inside is the caller's; tests/test_cli.py",
    "engine.run_folder.check_one_size": "the inside of `RunWriter`, which is tried",
    **dict.fromkeys((f"{likelihood}.{method}" for likelihood in (
        "engine.families.Bernoulli", "further.likelihoods.ContinuousBernoulli", "further.likelihoods.DiscretizedLogistic",
        "beyond.linear.Gaussian", "beyond.tables.Cells")
        for method in ("split", "mean", "sample", "start", "pairs")),
                    "a model calls it with what its decoder put out; `log_prob`, `decode`, `sample_images` are tried"),
    "engine.speed.each_with_each": "the inside of `log_marginal`; tests/test_likelihoods.py",
    "further.likelihoods.logistic_pairs": "the inside of `log_marginal`; tests/test_likelihoods.py",
    "truth.diagnosis.exact": "the inside of `report`, which is tried",
    "support.stop": "to raise its error is its purpose; tests/test_user_settings.py",
    "support.safe_point": "no argument", "support.interrupts_wait": "no argument",
    "support.interrupt_again": "Python calls it; tests/test_cli.py",
    "data.check_kind": "the inside of `check_images`, which is tried", "data.what_mends": "the inside of `check_images`, which is tried",
    "engine.images.bytes_to_pixels": "the inside of `array_pixels`, which is tried",
    "engine.images.take_images": "the inside of `Images.first` and `Images.batches`, which are tried",
    "engine.images.batches_in_order": "the inside of `Images.batches`, which is tried",
    "engine.images.checked_batches": "the inside of `Images.batches`, which is tried",
    "pictures.to_channels": "the inside of `read_picture`, which is tried", "pictures.to_size": "the inside of `read_picture`, which is tried",
    **dict.fromkeys(("pictures.first_picture", "pictures.sub_folders"), "the inside of `read_folder`, which is tried"),
    "pictures.read_each": "the inside of `read_numbers` and `check_pictures`, which are tried",
    "pictures.picture_numbers": "the inside of `read_numbers`, `take_numbers` and `folder_dataset`, which are tried",
    "sources.named_arrays": "the inside of `read_arrays`, which is tried",
    "sources.split_arrays": "the inside of `read_parts`, with what `read_arrays` has checked; both are tried",
    "pictures.Misfit": "an error", "further.own_images.ImageFolder": "a record; its methods are `read_numbers`, `take_numbers`, `folder_dataset`, tried",
    "beyond.codes.Codebook.": "a model calls it, with what its encoder put out; `CodeModel` is tried",
    "beyond.codes.FiniteScalar.": "a model calls it, with what its encoder put out; `CodeModel` is tried",
    "beyond.codes.CodeModel.objective": "the inside of `train_codes`, which checks",
    "beyond.codes.check_codes": "the inside of `CodeModel.decode`, `log_prior` and `train_prior`, which are tried",
    **dict.fromkeys(("beyond.codes.ascent", "beyond.codes.random_batches"), "the inside of `train_codes` and `train_prior`, which check"),
    "beyond.code_prior.CodePrice": RECORD, "beyond.diffusion.DiffusionTerms": RECORD, "beyond.diffusion.Denoiser.call": BY_KERAS,
    **dict.fromkeys((f"beyond.diffusion.{name}" for name in ("log_snr", "alpha_sigma", "diffuse", "step_back", "evidence", "step_kl",
                                                             "spread_times", "nats_per_log_snr")),
                    "the inside of `diffusion_terms`, `train_denoiser` and `walk_back`, which are tried"),
    **dict.fromkeys(("beyond.few_labels.dense", "beyond.few_labels.few_labels_objective"),
                    "the inside of `LabelVAE` and `train_few`, which check"),
    "sources.Rows": "`open_source` makes it of bytes that it has checked; tests/test_own_images.py",
    "sources.is_batch": "the inside of `single_images`, which is tried", "sources.check_label": "the inside of `single_images`, which is tried",
}
KEEP = {"elbo.ElboTerms.elbo", "further.own_images.ImageFolder.split"}  # tried nevertheless

# Arguments that take anything: {name or (function, name): why}.
ANSWER = "whatever a learner answers; the sentence that says why it is wrong is the purpose"
MESSAGE = "printed as it comes"
ANYTHING = {
    **{(f"appendix.checks.{name}", argument): ANSWER for name in ("same", "pattern", "hint_for", "check", "usual_mistakes")
       for argument in ("found", "expected", "what")},
    ("appendix.checks.hint_for", "mistakes"): ANSWER, ("appendix.checks.check", "mistakes"): ANSWER,
    ("data.check_grey_values", "name"): MESSAGE, ("engine.checkpoints.check_finite", "name"): MESSAGE,
    ("engine.families.VAE.given", "y"): "a VAE without labels ignores them",
    ("engine.families.Registry.add", "value"): "whatever is to have a name",
    **{(name, "recipe"): "for the registry; not read" for name in (
        "further.objectives.iwae", "beyond.gap.stl", "beyond.gap.dreg", "beyond.gap.semi_amortised")},
    ("engine.checkpoints.write_checkpoint", "facts"): "whatever JSON can hold",
    ("further.other_data.load_fashion_mnist", "download"): "True fetches the files", ("further.other_data.load_cifar10", "download"): "as above",
    **{(f"live.sliders.{name}", argument): "widgets of ipywidgets, which nobody needs who imports this"
       for name in ("on_change", "plane_widget", "walk_widgets") for argument in ("widgets", "sliders")},
    ("truth.diagnosis.report_table", "found"): "`report` makes it", ("engine.runs.recipe_from_card", "card"): "`load_run` has read it",
    ("data.check_grey_values", "size"): "written by programmers, in `grey_values`",
    ("engine.images.check_label_range", "model"): "without `labels` any label is fine",
    ("animation.FrameRecorder.__call__", "history"): "callbacks get it; not read",
    ("further.using.over_pictures", "function"): "the caller's own, with errors of its own",
    ("engine.runs.run_facts", "card"): "`load_run` has checked it",
    ("beyond.bits_back.compress", "state"): "any whole number, as long as it likes",
    ("support.one_line", "error"): "it must say something of anything",
    ("truth.diagnosis.table_by_label", "found"): "`report_run` makes it",
}
# Errors besides ValueError, TypeError and those of files that a function's docstring names.
DOCUMENTED = {"appendix.checks.check": (AssertionError,), "engine.checkpoints.check_finite": (FloatingPointError,),
              "engine.run_folder.read_settings": (click.UsageError,),
              "engine.devices.run_workers": (RuntimeError,), "further.using.open_run": (FileNotFoundError,),
              "engine.run_folder.refuse_used": (click.UsageError,), "engine.run_folder.claim": (click.UsageError,)}
# Functions that take long: only what they must refuse is tried, and what leads into the far past or future.
HEAVY = {"truth.posterior.climb", "beyond.odd_ones.scores", "beyond.tables.cell_log_p", "beyond.codes.train_codes", "beyond.code_prior.train_prior",
         "beyond.hierarchy.train_layers", "beyond.diffusion.train_denoiser", "beyond.audit.train_lesson",
         *(f"beyond.few_labels.{name}" for name in ("probe", "train_few", "train_classifier")),
         "engine.loop.fit", "truth.evaluation.log_marginal", "truth.diagnosis.report", "further.other_data.fit_images", "further.objectives.log_px_by_label",
         "truth.diagnosis.report_run"}
# What `pytest` tries by itself: the tutorial and the ground below it, but for what takes longer than most; `--long` tries all.
PARTS = "engine.", "truth.", "further.", "live.", "beyond.", "appendix."
LONG = {"training.evaluate", "training.train", "training.train_step", "animation.take_snapshots"}


def is_long(where):
    return where.startswith(PARTS) or where in LONG


# Functions whose files nobody has here: the valid call ends in a FileNotFoundError.
FAR_FILES = {"further.other_data.load_fashion_mnist", "further.other_data.load_cifar10"}
# What is another thing at each call.
RANDOM = {"engine.devices.free_ports", "engine.speed.best_seconds", "engine.speed.matmul_seconds",
          "engine.speed.product_seconds", "engine.speed.side_by_side",
          "truth.diagnosis.cost_of_log_px",
          "generation.tones"}  # the same numbers as bytes are other tones
# Other words for an argument in a message.
PIXELS = ("image", "pixel")
MEANS = {"watched": PIXELS, "x": (*PIXELS, "layer"), "known": PIXELS, "others": PIXELS, "epoch_no": ("epoch",), "x_train": PIXELS, "x_test": PIXELS, "test_sample": PIXELS, "images": (*PIXELS, "height"), "source": PIXELS,
         "frames": ("frame",), "frame": ("frame",), "durations": ("duration",), "last_duration": ("duration",), "y": ("label",),
         "n": ("labels",), "raxis": ("axes", "dimension"), "z": ("x_logits", "eps"), "codes": ("mean",), "labels": ("label",), "test": PIXELS, "labelled": PIXELS, "photograph": PIXELS, "test_images": PIXELS,
         "content": ("SHA-256", "IDX"), "sha256": ("SHA-256",), "gif": ("GIF",), "objects": ("arrays",), "latent_dim": ("plane", "mean"), "path": ("PathLike", "file or directory"), "history": ("values to unpack",), "parts": ("at least one array",), "places": ("values to unpack",), "init": ("initializer", "values to unpack"), "name": ("optimizer",), "folder": ("run",), "levels": ("pixel",), "x_logits": ("logit", "parameters"),
         "test_share": ("test",), "validation_share": ("validation",), "split_seed": ("seed",), "names": ("file",)}


class World:
    """Small things of each kind, made once."""

    def __init__(self, folder: Path):
        self.folder, rng = folder, np.random.default_rng(0)
        self.x = (rng.random((3, 28, 28, 1)) < 0.2).astype(np.float32)
        self.grey = rng.integers(0, 256, (3, 28, 28), np.uint8)
        self.labels = np.array([0, 1, 1])
        self.mean, self.logvar, self.eps = (rng.normal(size=(3, 2)).astype(np.float32) for _ in range(3))
        self.logits = rng.normal(size=(3, 28, 28, 1)).astype(np.float32)
        self.model, self.fast = CVAE(2, (2, 2), seed=0), KerasCVAE(2, (2, 2), seed=0)
        self.weights = self.model.get_weights(), self.fast.get_weights()
        self.conditional = objectives.ConditionalVAE(2, 2, (2, 2), seed=0)
        self.residual = ResidualVAE(2, 4, 1, seed=0)
        self.few_labels = LabelVAE(2, 4, 2, seed=0)
        self.code_model, self.prior = CodeModel(Codebook(4, 2, seed=0), (2, 2), seed=0), make_prior(4, 49, 4, seed=0)
        self.denoiser = diffusion.Denoiser(2, seed=0)
        self.functional = variants.FunctionalVAE(variants.make_functional_encoder(), variants.make_functional_decoder())
        self.guide = variants.GuideVAE(784, 4, 2, seed=0)
        self.layered = hierarchy.TwoLayers(3, 1, 4, 4, seed=0)
        self.linear = linear.LinearVAE(2, (7, 7, 1), seed=0)
        self.recipe = Recipe(epochs=1, batch_size=2, filters=(2, 2))
        self.frames = [np.full((4, 4), level, np.uint8) for level in (0, 255)]
        self.history = [{"epoch": 1, "train_loss": 2.0, "test_elbo": -2.0, "test_reconstruction": -1.0, "test_kl": 1.0}]
        self.optimizer = keras.optimizers.Adam()
        self.optimizer.build(self.model.trainable_variables)
        self.made = 0
        self.prepare_files()

    def prepare_files(self):
        """Files that functions read."""
        folder = self.folder
        write_gif(self.frames, folder / "film.gif")
        runs.save_run(folder / "run", "cvae", self.model, self.recipe, self.history)
        run_folder.write_settings(folder / "run", self.recipe, "mnist", None)
        checkpoints.write_checkpoint(folder / "kept", 1, {"a": np.ones(2)}, {})
        generate_and_save_images(self.model, 1, self.x, folder / "pictures")
        self.prepare_pictures()
        (folder / "page").mkdir()
        (folder / "page" / "index.html").write_text("")
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for part in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
                    member = tarfile.TarInfo(part)
                    member.size = 3073
                    archive.addfile(member, io.BytesIO(bytes(3073)))
            self.archive = file.getvalue()

    def prepare_pictures(self):
        """Three pictures in two folders, the same as arrays, and a run on them."""
        for i, pixels in enumerate(self.grey):
            place = self.folder / "album" / f"kind-{i // 2}" / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(place)
        np.savez(self.folder / "own.npz", images=self.grey, labels=self.labels)
        data, recipe = self.folder / "album", Recipe(epochs=1)
        (self.folder / "own-run").mkdir()
        run_folder.write_settings(self.folder / "own-run", recipe, str(data), None, own_images.look_at(recipe, data))

    @cached_property
    def album(self):
        return own_images.read_folder(self.folder / "album")

    def new(self, suffix=""):
        """A path that nothing has yet."""
        self.made += 1
        return self.folder / f"new-{self.made}{suffix}"

    def renew(self):
        """Undo what the last call changed."""
        for model, weights in zip((self.model, self.fast), self.weights, strict=True):
            for variable, weight in zip(model.variables, weights, strict=False):
                if not np.array_equal(variable, weight):
                    variable.assign(weight)

    def images(self):
        return Images(self.x, self.labels)

    def stream(self):
        return tf.data.Dataset.from_tensor_slices(self.x)

    def keeper(self):
        return checkpoints.Keeper(self.folder / "keeper", {})

    def run(self):
        return checkpoints.Run(self.model, self.optimizer)

    @cached_property
    def probabilistic(self):
        return variants.make_probabilistic_encoder(2, 1), variants.make_probabilistic_decoder(2, 1)

    @cached_property
    def table(self):
        return tables.TableVAE(3, width=2, seed=0)

    @cached_property
    def networks(self):
        return make_encoder(2, (2, 2)), make_decoder(2, (2, 2))

    @cached_property
    def decode(self):
        return evaluation.flat_decoder(self.model)

    @cached_property
    def judged(self):
        z, x = keras.Input((2,)), keras.Input((28, 28, 1))
        flat = keras.layers.Flatten()(x)
        encode = keras.Model(x, [keras.layers.Dense(2)(flat), keras.layers.Dense(2)(flat)])
        return encode, keras.Model(z, keras.layers.Dense(784)(z))

    def sliders(self):
        import ipywidgets

        return [ipywidgets.FloatSlider(), ipywidgets.FloatSlider()]

    def found(self):
        return {"images": 3, "elbo": -2.0, "reconstruction": -1.0, "kl": 1.0, "kl_per_dimension": [0.5, 0.5],
                "active_units": 2, "bits_per_dimension": 0.1, "log_px_missing": "latent_dim > 2",
                "iwae": {"images": 3, "k": 2, "bound": -1.9, "elbo_of_the_same": -2.0}}

    def instance(self, owner):
        return {
            "ElboTerms": lambda: elbo_terms(self.model, self.x, self.eps), "CVAE": lambda: self.model,
            "VampVAE": lambda: VampVAE(2, 4, 1, 4, 3, seed=0),
            "FrameRecorder": lambda: FrameRecorder(self.x), "Keeper": self.keeper,
            "Registry": lambda: families.Registry("thing"), "Bernoulli": families.Bernoulli, "VAE": lambda: self.fast,
            "Family": lambda: families.MODELS["convolutional"], "Images": self.images,
            "RunWriter": lambda: run_folder.RunWriter(self.new(), self.recipe, self.images()),
            "ResidualVAE": lambda: self.residual, "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
            "DiscretizedLogistic": likelihoods.DiscretizedLogistic, "ConditionalVAE": lambda: self.conditional,
            "LabelVAE": lambda: self.few_labels, "GivenLabel": lambda: self.few_labels.given(1),
            "Given": lambda: self.conditional.given(1), "FunctionalVAE": lambda: self.functional,
            "GuideVAE": lambda: self.guide, "CodeModel": lambda: self.code_model, "Gaussian": linear.Gaussian,
            "ImageFolder": lambda: self.album, "Reading": Reading, "Cells": tables.Cells,
        }[owner.__name__]()


# A valid argument by its name.
BY_NAME = {
    "model": lambda w: w.model, "x": lambda w: w.x, "x_train": lambda w: w.x, "x_test": lambda w: w.x,
    "test_sample": lambda w: w.x, "images": lambda w: w.x, "source": lambda w: w.x, "labels": lambda w: w.labels,
    "mean": lambda w: w.mean, "logvar": lambda w: w.logvar, "eps": lambda w: w.eps, "z": lambda w: w.eps,
    "codes": lambda w: w.mean, "x_logits": lambda w: w.logits, "recipe": lambda w: w.recipe, "epoch": lambda w: 1,
    "n": lambda w: 2, "seed": lambda w: 0, "name": lambda w: "cvae", "fig": lambda w: Figure((1, 1)),
    "folder": lambda w: w.new(), "path": lambda w: w.new(".npz"), "checkpoint_dir": lambda w: w.new(),
    "history": lambda w: w.history, "found": lambda w: 1.0, "expected": lambda w: 1.0, "what": lambda w: "it",
    "sample": lambda w: w.eps, "terms": lambda w: elbo_terms(w.model, w.x, w.eps), "step": lambda w: 1,
    "arrays": lambda w: {"a": np.ones(2)}, "facts": lambda w: {}, "strategy": lambda w: tf.distribute.get_strategy(),
    "keeper": lambda w: w.keeper(), "run": lambda w: w.run(), "latent_dim": lambda w: 2, "filters": lambda w: (2, 2),
    "shape": lambda w: (3, 2), "optimizer": lambda w: w.optimizer, "values": lambda w: w.eps[:, 0],
    "card": lambda w: {"recipe": {"epochs": 1, "filters": [2, 2]}, "test_elbo": -2.0}, "steps": lambda w: 3,
    "function": lambda w: lambda: None, "likelihood": lambda w: "bernoulli", "nodes": lambda w: 3,
    "log_w": lambda w: w.eps, "k": lambda w: 2, "samples": lambda w: 2, "image_shape": lambda w: (28, 28, 1),
    "digit_size": lambda w: 28, "encoder": lambda w: w.networks[0], "decoder": lambda w: w.networks[1],
    "width": lambda w: 4, "blocks": lambda w: 1, "factors": lambda w: np.array([[0], [1], [0]]), "a": lambda w: w.eps,
    "picture": lambda w: PIL.Image.new("RGB", (8, 8)), "parameters": lambda w: np.tile(w.logits, (1, 1, 1, 2)),
    "frames": lambda w: w.frames, "gif": lambda w: (w.folder / "film.gif").read_bytes(), "decode": lambda w: w.decode,
    "tiles": lambda w: [(0, 0), (-1, 0)], "masses": lambda w: np.zeros((3, 2)), "near": lambda w: np.zeros((3, 2), bool),
    "changes": lambda w: [np.full(3, 0.1), np.full(3, 0.01)], "iwae_images": lambda w: 2, "depth": lambda w: 1,
    "extent": lambda w: 3.0, "out": lambda w: w.new(),
}
# Where a name means something else: {function: {name: a valid argument}}; LEAVE: the default.
LEAVE = object()
ROWS = np.array([[0.1, -1.0, 2.0], [0.5, 0.3, -0.2], [1.5, -0.4, 0.7], [-1.0, 0.6, 0.9]])
USING = {"run": lambda w: using.open_run(w.folder / "run"),
         "pictures": lambda w: using.Pictures(["a", "b", "c"], w.images(), None)}
CODES = {"model": lambda w: w.code_model, "prior": lambda w: w.prior, "codes": np.zeros((3, 7, 7), int), "n": 2}
FEW_LABELS = {"model": lambda w: w.few_labels, "y": lambda w: w.labels, "labelled": lambda w: w.x, "test": lambda w: w.x}
IN = {
    **{f"beyond.{name}": CODES for name in ("codes.letter_counts", "codes.train_codes", "code_prior.log_prior", "codes.CodeModel.decode",
                                            "codes.CodeModel.log_likelihood", "code_prior.train_prior", "code_prior.code_price", "code_prior.draw_codes")},
    **{f"beyond.few_labels.{name}": FEW_LABELS for name in ("labelled_bound", "every_label", "train_few", "analogies", "probe", "GivenLabel")},
    "beyond.few_labels.choose_labelled": {"y": lambda w: w.labels, "each": 1},
    "beyond.few_labels.make_classifier": {"width": 4, "labels": 2}, "beyond.few_labels.LabelVAE": {"width": 4, "labels": 2},
    "beyond.few_labels.LabelVAE.given": {"y": 1},
    "beyond.few_labels.train_classifier": {"network": lambda w: w.few_labels.classifier, "inputs": lambda w: w.x, "y": lambda w: w.labels},
    "beyond.few_labels.right_share": {"logits": lambda w: w.mean, "y": lambda w: w.labels},
    "beyond.few_labels.unlabelled_bound": {"bounds": lambda w: w.mean, "logits": lambda w: w.logvar},
    "beyond.codes.redraw": {"model": lambda w: w.code_model, "which": np.array([True, False, True, False])},
    "beyond.codes.nearest": {"h": lambda w: w.mean, "vectors": lambda w: w.eps},
    "beyond.codes.straight_through": {"h": lambda w: w.mean, "chosen": lambda w: w.eps},
    "beyond.codes.perplexity": {"counts": np.array([1.0, 3.0])},
    "beyond.codes.Codebook": {"size": 4}, "beyond.codes.FiniteScalar": {"levels": (3, 2)},
    "beyond.codes.CodeModel": {"quantiser": lambda w: w.code_model.quantiser},
    **{f"beyond.diffusion.{name}": {"denoise": lambda w: w.denoiser, "denoiser": lambda w: w.denoiser, "steps": 2, "draws": 2, "size": 28}
       for name in ("diffusion_terms", "walk_back", "train_denoiser")},
    "beyond.code_prior.make_prior": {"size": 3, "places": 4, "dilations": (1,)},
    "animation.log_steps": {"last": 100},
    "animation.take_snapshots": {"steps": [0, 1]},
    "animation.to_palette": {"frame": np.full((2, 2, 3), 7, np.uint8), "palette": GREYS},
    "animation.film": {"snapshots": lambda w: {0: w.weights[0]}, "palette": GREYS,
                       "picture": lambda w: lambda model, step: Figure((0.2, 0.2))},
    "animation.check_frames": {"path": "film.gif", "durations": (400,)},
    "animation.write_gif": {"path": lambda w: w.new(".gif")},
    "animation.FrameRecorder.__call__": {"epoch": 0},
    "appendix.checks.pattern": {"found": np.array([1.0, 2.0]), "expected": np.array([2.0, 4.0])},
    "appendix.checks.hint_for": {"found": 2.0, "mistakes": {}},
    "beyond.odd_ones.flip_pixels": {"share": 0.1}, "beyond.odd_ones.odd_kinds": {"others": lambda w: w.x},
    **{f"beyond.odd_ones.{name}": {"own": np.array([1.0, 2.0, 3.0]), "odd": np.array([0.0, 2.0, 1.5])}
       for name in ("placements", "auc", "auc_interval")},
    "beyond.odd_ones.pixel_background": {"known": lambda w: w.x},
    **{f"beyond.tables.{name}": {"rows": ROWS, "t": ROWS, "seen": np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]]) == 1,
                                 "mean": np.zeros(3), "covariance": np.eye(3), "count": 1, "rounds": 2}
       for name in ("column_scale", "as_images", "normal_fill", "fit_normal", "swap_cells", "normal_log_density")},
    **{f"beyond.tables.{name}": {"model": lambda w: w.table, "x": lambda w: tables.as_images(ROWS, np.ones(ROWS.shape)),
                                 "points": 3, "parameters": np.zeros((4, 1, 3, 2), np.float32)}
       for name in ("fill_in", "cell_log_p", "Cells.log_prob")},
    "beyond.tables.TableVAE": {"columns": 3},
    "beyond.odd_ones.scores": {"background": np.zeros(3), "typical": -100.0},
    **{f"beyond.linear.{name}": {"model": lambda w: w.linear, "x": lambda w: w.x[:, 8:15, 8:15], "levels": LEAVE,
                                 "axes": lambda w: linear.principal_axes(w.x[:, 8:15, 8:15])}
       for name in ("matrices", "linear_log_px", "linear_terms", "set_encoder", "set_best", "principal_axes")},
    "beyond.bits_back.compress": {"state": 2**99},
    **{f"beyond.audit.{name}": {"lesson": lambda w: audit.LESSONS["fast.ai"], "numbers": 784}
       for name in ("factors", "effective_beta", "measured_beta", "mended", "resized", "train_lesson")},
    "beyond.audit.implied_noise": {"lesson": lambda w: audit.LESSONS["pythae"]}, "beyond.audit.scaled": {"factor": 1.5},
    "beyond.audit.lesson_loss": {"lesson": lambda w: audit.LESSONS["fast.ai"], "x": lambda w: w.x.reshape(3, 784),
                                 "x_logits": lambda w: w.logits.reshape(3, 784)},
    "beyond.linear.best_linear": {"variances": np.array([3.0, 2.0, 0.5])}, "beyond.linear.Gaussian.sample": {"seed": (1, 2)},
    "beyond.linear.Gaussian.start": {"images": lambda w: w.x},
    "data.check_grey_values": {"name": "images", "images": lambda w: w.grey}, "data.valid_pixels": {"levels": 2},
    "data.check_images": {"values": LEAVE}, "data.check_pixel_levels": {"levels": 2}, "data.preprocess_images": {"images": lambda w: w.grey},
    "data.check_content": {"content": b"a", "sha256": hashlib.sha256(b"a").hexdigest(), "path": Path("a")},
    "data.load_mnist": {"path": LEAVE},
    "elbo.log_normal_pdf": {"mean": lambda w: w.mean},
    "engine.checkpoints.read_checkpoint": {"path": lambda w: w.folder / "kept" / "step-000000001.npz"},
    "engine.checkpoints.get_state": {"objects": lambda w: {"model": w.model}},
    "engine.checkpoints.set_state": {"objects": lambda w: {"model": w.model},
                                     "arrays": lambda w: checkpoints.get_state({"model": w.model})},
    "engine.checkpoints.Keeper.due": {"at_once": True},
    "engine.checkpoints.Keeper": {"identity": lambda w: {"a": 1}},
    "engine.checkpoints.check_parts": {"size": 2},
    "engine.devices.make_strategy": {"devices": 1},
    "engine.devices.start_workers": {"command": ["true"]}, "engine.devices.run_workers": {"command": ["true"]},
    "engine.families.Registry": {"what": "thing"},
    "engine.families.Registry.add": {"value": 1, "maker": "me"},
    "engine.families.Bernoulli.sample": {"seed": (1, 2)},
    "engine.families.register_likelihood": {"likelihood": lambda w: families.Bernoulli(), "name": "bernoulli"},
    "engine.families.Family.make": {"images": lambda w: w.images()},
    "engine.families.convolutional": {"images": lambda w: w.images()},
    "engine.families.in_training": {"whether": True},
    "engine.families.VAE.given": {"y": 1},
    "engine.families.register_model": {"name": "mine", "labels": LEAVE, "image_shape": LEAVE},
    "engine.families.register_objective": {"name": "mine"},
    "engine.images.Images.batches": {"batch_size": 2},
    "engine.images.check_labels": {"n": 3},
    "engine.images.check_label_range": {"images": lambda w: w.images()},
    "engine.images.check_levels": {"images": lambda w: w.images(), "levels": 2},
    "engine.images.without_labels": {"images": lambda w: w.images()},
    "engine.images.fingerprint": {"images": lambda w: w.images()},
    "engine.keras_fit.Judged": {"encode": lambda w: w.judged[0], "logits": lambda w: w.judged[1]},
    "engine.keras_fit.check_codes": {"mean": lambda w: keras.Input((2,)), "logvar": lambda w: keras.Input((2,))},
    "engine.keras_fit.check_logits": {"x_logits": lambda w: keras.Input((784,))},
    "engine.layers.one_filter_transpose": {"h": np.ones((1, 4, 4, 2), np.float32),
                                           "kernel": np.ones((3, 3, 1, 2), np.float32)},
    "elbo.bounded": {"tensor": lambda w: w.eps, "bound": 1.0},
    "engine.loop.make_run_steps": {},
    "engine.loop.fit": {"verbose": False},
    "engine.recipes.Recipe": dict.fromkeys(("optimizer", "likelihood", "model", "samples", "filters", "latent_dim", "seed"), LEAVE),
    "engine.recipes.sorted_pairs": {"sizes": {"width": 3}}, "engine.devices.check_command": {"command": ["true"]},
    "engine.recipes.count_steps": {"images": 10}, "engine.recipes.optimizer_class": {"name": "adam"},
    "engine.run_folder.write_settings": {"data": "mnist", "train_images": 3},
    "engine.run_folder.read_settings": {"folder": lambda w: w.folder / "run", "changes": {}},
    "engine.run_folder.RunWriter": {"test": lambda w: w.images()},
    "engine.run_folder.given_labels": {"images": lambda w: w.images()},
    "engine.run_folder.write_pictures": {"test": lambda w: w.images()},
    "engine.runs.save_model": {"path": lambda w: w.new(".keras")},
    "engine.runs.load_model": {"path": lambda w: w.folder / "run" / "cvae.keras"},
    "engine.runs.load_run": {"folder": lambda w: w.folder / "run"},
    "engine.runs.load_pretrained": {"name": "tutorial"},
    "engine.speed.matmul_seconds": {"m": 2, "k": 2}, "engine.speed.product_seconds": {"batch_size": 2},
    "engine.speed.side_by_side": {"functions": lambda w: {"a": lambda: None}},
    "further.larger.residual_block": {"h": lambda w: keras.Input((4,)),
                                      "init": lambda w: [keras.initializers.GlorotUniform(0)] * 2},
    "further.larger.residual_family": {"recipe": lambda w: Recipe(model="residual"), "images": lambda w: w.images()},
    "further.likelihoods.check_parameters": {"numbers": 2},
    "further.likelihoods.ContinuousBernoulli.sample": {"seed": (1, 2)},
    "further.likelihoods.DiscretizedLogistic.sample": {"seed": (1, 2)},
    "further.likelihoods.clipped_logistic_mean": {"location": lambda w: w.mean, "log_scale": lambda w: w.logvar},
    "further.objectives.information_of": {"mass": np.full((3, 2, 4), 0.25), "factor": np.array([0, 1, 0])},
    "further.objectives.information_gap": {"information": np.array([[0.1], [0.3]])},
    "further.objectives.iwae": {"eps": lambda w: w.eps[:, None]},
    **{f"beyond.hierarchy.{name}": {"model": lambda w: w.layered, "eps": lambda w: np.resize(w.eps, (3, 3)), "draws": 2,
                                    "watched": lambda w: w.x, "steps": 2, "looks": 1}
       for name in ("layer_terms", "draw_top_down", "share_of_top", "train_layers")},
    **dict.fromkeys((f"beyond.hierarchy.{name}" for name in ("TwoLayers", "BottomUp", "Blind")),
                    {"latent_dim": 3, "top": 1, "inner": 4}),
    "beyond.hierarchy.dense_network": {"widths": (2, 3)},
    "beyond.hierarchy.kl_normal": {"prior_mean": lambda w: w.eps, "prior_logvar": lambda w: w.logvar / 2},
    "beyond.gap.dreg": {"eps": lambda w: w.eps[:, None], "power": 1},
    "beyond.prior.log_mixture": {"z": lambda w: w.eps, "log_share": np.log([0.4, 0.6]), "mean": np.zeros((2, 2)), "logvar": np.zeros((2, 2))},
    "beyond.prior.log_aggregate": {"z": lambda w: w.eps, "mean": np.zeros((2, 2)), "logvar": np.zeros((2, 2))},
    "beyond.prior.log_px_on_grid": {"step": 0.5, "limit": 2.0}, "beyond.prior.draw_prior": {"n": 3},
    "beyond.prior.ais": {"moves": 1, "chains": 3},
    "beyond.prior.MixtureVAE": {"inner": 4, "parts": 2}, "beyond.prior.VampVAE": {"inner": 4, "parts": 2},
    "beyond.gap.DenseVAE": {"inner": 4}, "beyond.gap.FullVAE": {"inner": 4}, "beyond.gap.FlowVAE": {"inner": 4, "couplings": 1},
    "further.objectives.ConditionalVAE": {"labels": 2}, "further.objectives.ConditionalVAE.given": {"y": 1},
    "further.objectives.Given": {"model": lambda w: w.conditional, "y": 1},
    "further.objectives.Given.one_hot": {"rows": lambda w: w.eps},
    "further.objectives.label_numbers": {"y": lambda w: w.labels, "labels": 2},
    "further.objectives.conditional_family": {"recipe": lambda w: Recipe(model="conditional", filters=(2, 2)),
                                              "images": lambda w: w.images()},
    "further.objectives.log_px_by_label": {"model": lambda w: w.conditional, "tolerance": 10.0},
    "further.other_data.find_file": {"name": "film.gif", "places": lambda w: [w.folder], "origin": ""},
    "further.other_data.read_idx": {"content": b"\0\0\x08\x01\0\0\0\x02ab"},
    "further.other_data.load_fashion_mnist": {"download": False}, "further.other_data.load_cifar10": {"download": False},
    "further.other_data.read_cifar10": {"file": lambda w: io.BytesIO(w.archive)},
    "further.other_data.cut_patches": {"photograph": np.ones((8, 8, 3), np.uint8), "size": 4, "step": 4},
    "further.other_data.load_photographs": {"size": 100, "step": 100},
    "further.other_data.load_dataset": {"name": "mnist"},
    "further.other_data.prepare": {"images": lambda w: w.grey},
    "further.other_data.fit_images": {"images": lambda w: w.grey, "test_images": lambda w: w.grey},
    "engine.runs.run_progress": {"folder": lambda w: w.folder / "run"},
    "engine.runs.run_facts": {"folder": lambda w: w.folder / "run"},
    "further.using.open_run": {"run": lambda w: w.folder / "run"},
    "further.using.sample_images": USING,
    "further.using.class_numbers": USING | {"images": lambda w: w.images()},
    "further.using.open_pictures": USING | {"source": lambda w: w.folder / "pictures"},
    "further.using.over_pictures": USING | {"function": lambda w: lambda model, x: (x,)},
    "further.using.encode_pictures": USING, "further.using.reconstruct_pictures": USING,
    "further.using.score_pictures": USING,
    "further.using.interpolate": USING | {"start": lambda w: w.eps[0], "end": lambda w: w.eps[1]},
    "further.variants.FunctionalVAE": {"encoder": lambda w: w.functional.encoder, "decoder": lambda w: w.functional.decoder},
    "further.variants.functional_family": {"recipe": lambda w: Recipe(model="functional"), "images": lambda w: w.images()},
    "further.variants.GuideVAE": {"intermediate_dim": 4},
    "further.variants.GuideVAE.call": {"x": lambda w: w.x.reshape(3, 784)},
    "further.variants.make_probabilistic_vae": {"encoder": lambda w: w.probabilistic[0], "optimizer": LEAVE,
                                                "decoder": lambda w: w.probabilistic[1]},
    "further.variants.distribution_log_weights": {"posterior": lambda w: w.probabilistic[0],
                                                  "likelihood": lambda w: w.probabilistic[1]},
    "generation.save_figure": {"path": lambda w: w.new(".png")},
    "generation.display_image": {"epoch_no": 1, "folder": lambda w: w.folder / "pictures"},
    "live.explorer.layer_entry": {"layer": lambda w: w.model.decoder.layers[0]},
    "live.explorer.describe_run": {"images": 3}, "live.serving.serve": {"folder": lambda w: w.folder / "page"},
    "live.explorer.describe_classes": {"names": LEAVE}, "live.explorer.page_content": {"names": LEAVE},
    "live.explorer.build_explorer": {"names": LEAVE}, "live.serving.own_name": {"host": "localhost"},
    "live.sliders.to_png": {"image": lambda w: PIL.Image.new("RGB", (2, 2))},
    "live.sliders.ring_png": {"z": (0.0, 1.0)},
    "live.sliders.on_change": {"action": lambda w: lambda: None, "widgets": []},
    "live.sliders.plane_widget": {"sliders": lambda w: w.sliders()},
    "live.sliders.walk_widgets": {"sliders": lambda w: w.sliders()},
    "animation.colour_of": {"label": 3},
    "manifold.check_shares": {"low": 0.1, "high": 0.9}, "manifold.plot_encoded": {"ax": LEAVE},
    "manifold.walk": {"start": lambda w: w.eps[0], "end": lambda w: w.eps[1]},
    "training.trace": {"function": lambda w: lambda x, eps: x},
    "training.mean_terms": {"parts": lambda w: [elbo_terms(w.model, w.x, w.eps)]},
    "training.train": {"epochs": 1},
    "truth.diagnosis.check_levels": {"levels": 2},
    "truth.diagnosis.bits_per_dimension": {"log_px": -100.0, "levels": 2},
    "truth.diagnosis.report_table": {"found": lambda w: w.found()},
    "truth.evaluation.log_joint": {"x": lambda w: w.x.reshape(3, 784), "x_logits": lambda w: w.logits.reshape(3, 784),
                                   "log_pz": lambda w: w.eps[:, 0]},
    "truth.evaluation.lattice": {"corner": (0, 0), "step": 0.25, "shift": (0, 0)},
    "truth.evaluation.log_sum": {"x": lambda w: w.x.reshape(3, 784), "z": lambda w: w.eps[None]},
    "truth.evaluation.cover": {"x": lambda w: w.x.reshape(3, 784), "dim": 2},
    "truth.evaluation.refine": {"x": lambda w: w.x.reshape(3, 784), "step": 0.25},
    "truth.evaluation.sample_log_weights": {"eps": lambda w: w.eps[:, None]},
    "truth.posterior.posterior_on_plane": {"low": (-1, -1), "high": (1, 1), "points": 3},
    "truth.posterior.check_step": {"step": 0.25}, "truth.posterior.highest_code": {"step": 0.5, "limit": 1},
    "truth.protocols.draw_binary": {"images": lambda w: w.grey}, "truth.protocols.dynamic_dataset": {"images": lambda w: w.grey},
    "appendix.checks.refusal": {"call": lambda w: lambda: w.not_there},
    "engine.keras_fit.at_the_door": {"method": lambda w: keras.Model.fit},
    "engine.keras_fit.checked_images": {"levels": 2},
    "engine.runs.read_json": {"path": lambda w: w.folder / "run" / "cvae.json"},
    "further.other_data.check_sizes": {"train": lambda w: w.images(), "test": lambda w: w.images()},
    "support.one_line": {"error": lambda w: ValueError("it")},
    "truth.diagnosis.report_run": {"test": lambda w: w.images()},
    "truth.diagnosis.table_by_label": {"found": lambda w: {0: {"images": 2, "elbo": -1.0, "kl": 1.0}}},
    "engine.images.array_pixels": {"levels": 2}, "engine.images.check_colours": {"channels": 1, "levels": 2},
    "engine.images.open_source": {"levels": 2},
    "engine.images.open_stream": {"source": lambda w: w.stream(), "levels": 2},
    **{f"further.own_images.{name}": {"folder": lambda w: w.album, "numbers": np.array([0, 2])}
       for name in ("read_numbers", "take_numbers", "folder_dataset", "check_pictures")},
    "further.own_images.read_folder": {"folder": lambda w: w.folder / "album"},
    **{f"further.own_images.{name}": {"data": lambda w: w.folder / "album"} for name in ("read_parts", "read_data", "look_at")},
    "further.own_images.stamp_of_data": {"data": lambda w: w.folder / "own.npz"},
    "further.own_images.run_data": {"run_folder": lambda w: w.folder / "own-run"},
    "pictures.channels_of": {"image": lambda w: PIL.Image.new("RGB", (2, 2))},
    "pictures.reason_of": {"error": ValueError("a reason")},
    **{f"pictures.{name}": {"path": lambda w: w.folder / "album" / "kind-0" / "0.png", "frame": 0}
       for name in ("read_picture", "count_frames")},
    "pictures.list_pictures": {"folder": lambda w: w.folder / "album"}, "pictures.stamp_of": {"sizes": {"a.png": 9}},
    "pictures.check_reading": {"size": (8, 6), "channels": 3, "fit": "crop"},
    "pictures.split_names": {"names": ("a", "b", "c")}, "sources.Reading.split": {"names": ("a", "b", "c")},
    **{f"sources.{name}": {"source": lambda w: w.stream()} for name in ("as_pairs", "single_images", "count_images")},
    "sources.dataset_of": {"make": lambda w: lambda: iter(w.x)},
    "sources.read_arrays": {"path": lambda w: w.folder / "own.npz"},
    "sources.Reading": {"size": (8, 8), "channels": 1, "fit": "crop"},
}


def out_of_scope(where):
    """Why a function is not tried, or None."""
    if where in KEEP:
        return None
    return next((why for begin, why in OUT_OF_SCOPE.items() if where == begin or where.startswith(
        begin if begin.endswith(".") else begin + ".")), None)


def valid(where, function, world):
    """Arguments that a function must take."""
    found = {}
    for name, parameter in signature(function).parameters.items():
        if name == "self" or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        value = IN.get(where, {}).get(name, BY_NAME.get(name, LEAVE))
        if value is not LEAVE:
            made = callable(value) and getattr(value, "__name__", "") == "<lambda>"
            found[name] = value(world) if made else value
        elif parameter.default is Parameter.empty:
            raise LookupError(f"{where} is new: say in tests/every_function.py what a valid {name!r} is, in BY_NAME or "
                              f"IN[{where!r}], or why it is OUT_OF_SCOPE.")
    return found

"""The explorer's folder, and the sliders; the page itself is tested in tests/browser."""

import hashlib
import io
import json
import re
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course import support
from vae_course.live import explorer, sliders
from vae_course.live.explorer import (
    build_explorer,
    decoder_entries,
    describe_classes,
    layer_entry,
    page_content,
    walk_ends,
)
from vae_course.manifold import encode_images
from vae_course.engine.families import Bernoulli, FastCVAE
from vae_course.further.objectives import ConditionalVAE
from vae_course.model import CVAE
from vae_course.reparameterization import draw_eps

ASSETS = Path(explorer.__file__).parent / "explorer_assets"


@pytest.fixture(scope="module")
def some(mnist, x_test):
    """Fifty images with their labels."""
    return x_test[:50], mnist[1][1][:50]


@pytest.fixture(scope="module")
def folder(pretrained, some, tmp_path_factory):
    return build_explorer(*pretrained, *some, tmp_path_factory.mktemp("explorer") / "page")


def likelihood_mean(name, numbers):
    """The expected pixels, by the definition of the likelihood alone: integrals on a grid, in float64."""
    a = np.asarray(numbers, np.float64)
    u = (np.arange(20_000) + 0.5) / 20_000  # the middle of each interval
    if name == "bernoulli":
        return 1 / (1 + np.exp(-a))
    if name == "continuous_bernoulli":  # density proportional to exp(a x) on [0, 1]
        weight = np.exp(a[..., None] * (u - (a[..., None] > 0)))
        return (weight * u).sum(-1) / weight.sum(-1)
    location, scale = a[..., :a.shape[-1] // 2, None], np.exp(a[..., a.shape[-1] // 2:, None])
    return np.mean(1 / (1 + np.exp(np.clip((u - location) / scale, -700, 700))), axis=-1)  # E = ∫ P(X > u) du


def read(folder):
    """explorer.json, and the arrays of explorer.bin, by the words of the format alone."""
    page = json.loads((folder / "explorer.json").read_text(encoding="utf-8"))
    flat, arrays = np.frombuffer((folder / "explorer.bin").read_bytes(), "<f4"), {}
    for entry in page["arrays"]:
        size = int(np.prod(entry["shape"]))
        arrays[entry["name"]], flat = flat[:size].reshape(entry["shape"]), flat[size:]
    assert len(flat) == 0
    return page, arrays


def run(z, layers, arrays, likelihood="bernoulli"):
    """The expected pixels by TensorFlow's own operations, from the entries."""
    h = tf.constant(z, tf.float32)
    for layer in layers:
        weights = [arrays[name] for name in layer["arrays"]]
        match layer["operation"]:
            case "dense":
                h = h @ weights[0] + weights[1]
            case "reshape":
                h = tf.reshape(h, (-1, *layer["shape"]))
            case "crop":
                (top, bottom), (left, right) = layer["excess"]
                h = h[:, top:h.shape[1] - bottom, left:h.shape[2] - right]
            case "conv_transpose":
                s = layer["stride"]
                shape = (len(h), s * h.shape[1], s * h.shape[2], weights[0].shape[2])
                h = tf.nn.conv2d_transpose(h, weights[0], shape, s) + weights[1]
        h = tf.nn.relu(h) if layer["activation"] == "relu" else h
    return likelihood_mean(likelihood, h.numpy())


# Sums of a few hundred products in float32, in two orders: some 1e-6 in a logit, a quarter in p.
ATOL = 1e-5


def test_the_files_hold_the_decoder(pretrained, folder):
    page, arrays = read(folder)
    z = np.random.default_rng(0).normal(0, 2, (100, 2)).astype(np.float32)
    np.testing.assert_allclose(run(z, page["layers"], arrays), pretrained[0].sample(z), atol=ATOL)
    assert page["image_shape"] == [28, 28, 1]


def test_the_files_hold_codes_labels_samples_and_probes(pretrained, some, folder):
    page, arrays = read(folder)
    (x, labels), model = some, pretrained[0]
    np.testing.assert_allclose(arrays["codes"], encode_images(model, x)[0], atol=ATOL)
    names = np.array([int(entry["name"]) for entry in page["classes"]])
    assert (names[arrays["labels"].astype(int)] == labels).all()
    assert (np.abs(arrays["codes"]) <= page["extent"]).all()
    for seed in (0, 7, 99):  # the same numbers as in Python, to the last bit
        assert (arrays["samples"][seed] == draw_eps(seed, 0, (8, 2)).numpy()).all()
    np.testing.assert_allclose(arrays["probe_pixels"], model.sample(arrays["probe_codes"]), atol=ATOL)


@settings(max_examples=8, deadline=None)
@given(filters=st.tuples(st.integers(1, 5), st.integers(1, 5)), height=st.integers(8, 31),
       width=st.integers(8, 31), channels=st.sampled_from([1, 3]))
def test_decoders_of_other_sizes(filters, height, width, channels):
    model = CVAE(filters=filters, seed=0, image_shape=(height, width, channels))
    z = draw_eps(1, 0, (3, 2)).numpy()
    np.testing.assert_allclose(run(z, *decoder_entries(model)), model.sample(z), atol=ATOL)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40), kinds=st.integers(1, 12))
def test_anchors_are_codes_of_their_class(seed, n, kinds):
    rng = np.random.default_rng(seed)
    codes, labels = rng.normal(size=(n, 2)).astype(np.float32), rng.integers(0, kinds, n)
    classes = describe_classes(codes, labels)
    assert [int(entry["name"]) for entry in classes] == sorted(set(labels.tolist()))
    for entry in classes:
        cloud = codes[labels == int(entry["name"])].tolist()
        assert entry["anchor"] in cloud
        distances = np.linalg.norm(np.array(cloud) - entry["centre"], axis=1)
        assert np.linalg.norm(np.subtract(entry["anchor"], entry["centre"])) <= distances.min() + 1e-6


def test_the_same_model_gives_the_same_bytes(pretrained, some, folder, tmp_path):
    again = build_explorer(*pretrained, *some, tmp_path / "again")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_the_page_is_small_and_asks_for_nothing_outside(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3e6
    for path in [*ASSETS.glob("*.html"), *ASSETS.glob("*.css"), *ASSETS.glob("*.js")]:
        outside = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+", path.read_text(encoding="utf-8")))
        assert outside <= {"http://www.w3.org"}, path.name  # the name of SVG, never fetched


def test_the_runtime_is_what_its_readme_says():
    rows = re.findall(r"\| `([\w.-]+)` \|.*\| ([\d,]+) \| `(\w{64})` \|",
                      (ASSETS / "runtime" / "README.md").read_text(encoding="utf-8"))
    found = {path.name for path in (ASSETS / "runtime").iterdir()}
    assert found == {name for name, _, _ in rows} | {"LICENSE", "README.md"}
    for name, size, digest in rows:
        content = (ASSETS / "runtime" / name).read_bytes()
        assert len(content) == int(size.replace(",", ""))
        assert hashlib.sha256(content).hexdigest() == digest, name


# --- other pixels, other images


@pytest.mark.parametrize("likelihood", list(explorer.MEANS.values()))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_of_each_likelihood_and_of_colours(likelihood, channels):
    model = FastCVAE(filters=(3, 5), seed=0, image_shape=(11, 8, channels), likelihood=likelihood)
    for weight in model.decoder.weights:  # so that pixels go to both ends
        weight.assign(2 * weight)
    page, arrays = page_content(model, {}, None)
    assert page["likelihood"] == likelihood and tuple(page["image_shape"]) == (11, 8, channels)
    pixels = run(arrays["probe_codes"], page["layers"], arrays, likelihood)
    assert pixels.shape == (8, 11, 8, channels)
    np.testing.assert_allclose(arrays["probe_pixels"], pixels, atol=3e-5)  # the grid's intervals are 5e-5
    assert np.ptp(pixels) > 0.1


def test_grey_and_coloured_images_become_dots_without_labels(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (7, 9, 12, 3)).astype(np.float32) / 255
    model = FastCVAE(filters=(3, 5), seed=0, image_shape=(9, 12, 3), likelihood="discretized_logistic")
    page, arrays = read(build_explorer(model, {}, x, None, tmp_path / "page"))
    np.testing.assert_allclose(arrays["codes"], encode_images(model, x)[0], atol=ATOL)
    assert page["classes"] == [] and len(arrays["labels"]) == 0 and "7 dots" in page["about"]
    codes = arrays["codes"].tolist()
    assert [end["name"] for end in page["ends"]] == ["right", "top", "left", "bottom"]
    assert all(np.float32(end["anchor"]).tolist() in codes for end in page["ends"])


def test_without_images_the_plane_has_no_dots(model, tmp_path):
    page, arrays = read(build_explorer(model, {"test_elbo": -9.0}, None, None, tmp_path / "page"))
    assert arrays["codes"].shape == (0, 2) and page["extent"] == 3
    assert page["about"] == ("Test ELBO: −9.00 nats per image. The test images of this run are not here, "
                             "so the plane has no dots.")
    assert [end["anchor"] for end in page["ends"]] == [[1.5, 0], [0, 1.5], [-1.5, 0], [0, -1.5]]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40))
def test_walks_without_labels_go_between_the_images_nearest_to_four_places(seed, n):
    codes = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    for end in walk_ends(codes):
        distances = np.linalg.norm(codes - explorer.PLACES[end["name"]], axis=1)
        assert end["anchor"] == codes[distances.argmin()].tolist()


def test_classes_bear_their_names(model, some, tmp_path):
    names = ("zéro", "one", "<b>two</b>", *"3456789")
    page, arrays = read(build_explorer(model, {}, *some, tmp_path / "page", names))
    assert [entry["name"] for entry in page["classes"]] == [names[label] for label in np.unique(some[1])]
    assert page["ends"] == page["classes"] and page["labels"] == []
    for wrong in (names[:9], ("a",)):
        with pytest.raises(ValueError, match=f"{len(wrong)} names are for labels from 0 to {len(wrong) - 1}"):
            page_content(model, {}, *some, wrong)


def test_a_conditional_model_is_decoded_for_a_label(some):
    model = ConditionalVAE(filters=(3, 5), seed=0)
    page, arrays = page_content(model, {}, *some, tuple("abcdefghij"))
    assert page["labels"] == list("abcdefghij")
    for image, label, code in zip(*some, arrays["codes"], strict=True):
        np.testing.assert_allclose(model.given(int(label)).encode(image[None])[0][0], code, atol=ATOL)
    with_nine = np.hstack([arrays["probe_codes"], np.tile(np.eye(10)[9], (8, 1))])
    np.testing.assert_allclose(run(with_nine, page["layers"], arrays), arrays["probe_pixels"], atol=ATOL)
    np.testing.assert_allclose(model.given(9).sample(arrays["probe_codes"]), arrays["probe_pixels"], atol=ATOL)
    with pytest.raises(ValueError, match="wants a label for each image"):
        page_content(model, {}, some[0], None)
    assert page_content(model, {}, None)[0]["labels"] == list("0123456789")


def test_images_of_another_size_are_refused(model, some):
    with pytest.raises(ValueError, match=r"images \(28, 28, 1\), got \(27, 28, 1\)"):
        page_content(model, {}, some[0][:, 1:], some[1])


def test_an_unknown_likelihood_is_refused():
    class Own(Bernoulli):
        """Whose mean the page cannot know."""

    model = FastCVAE(filters=(2, 3), seed=0)
    model.likelihood = Own()
    with pytest.raises(ValueError, match="draws pixels of bernoulli, .* got a model with Own"):
        page_content(model, {}, None)


# --- what does not fit on the page


@pytest.mark.parametrize(("changes", "message"), [
    ({"latent_dim": 3}, "latent_dim 2, got 3"),
    ({"image_shape": (28, 28, 2)}, "1, 3 or 4 channels, got 2"),
])
def test_models_that_do_not_fit_are_refused(changes, message, some, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_explorer(FastCVAE(**changes), {}, *some, tmp_path / "page")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [
    keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(3, use_bias=False),
    keras.layers.Conv2D(3, 3), keras.layers.Conv2DTranspose(3, 3, padding="valid"),
    keras.layers.Conv2DTranspose(3, 5, padding="same"), keras.layers.BatchNormalization(),
    keras.layers.Conv2DTranspose(3, 3, strides=3, padding="same"),
    keras.layers.Conv2DTranspose(3, 3, strides=(1, 2), padding="same"),
])
def test_unknown_layers_are_refused(layer):
    with pytest.raises(TypeError, match=layer.name):
        layer_entry(layer)


@pytest.mark.parametrize("labels", [np.zeros(49, int), np.zeros((50, 1), int), np.zeros(50)])
def test_labels_must_be_one_integer_an_image(labels, model, some):
    with pytest.raises(ValueError, match="one integer label"):
        page_content(model, {}, some[0], labels)


def test_weights_that_are_not_finite_are_refused(some, tmp_path):
    model = CVAE(seed=0)
    model.decoder.layers[0].bias.assign(np.full(1568, np.nan))
    with pytest.raises(ValueError, match="layer_0_bias .* not finite"):
        build_explorer(model, {}, *some, tmp_path / "page")
    assert not list(tmp_path.iterdir())


# --- the folder


def test_an_empty_folder_is_filled_and_a_full_one_kept(model, some, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (build_explorer(model, {}, *some, tmp_path / "empty") / "index.html").is_file()
    before = sorted((tmp_path / "empty").iterdir())
    with pytest.raises(FileExistsError, match="holds something already"):
        build_explorer(model, {}, *some, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        build_explorer(model, {}, *some, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted((tmp_path / "empty").iterdir()) == before


def test_an_error_half_way_leaves_nothing(model, some, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(support.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build_explorer(model, {}, *some, tmp_path / "page")
    assert not list(tmp_path.iterdir())


# --- the sliders


def test_digit_png_holds_the_pixels(pretrained):
    z = np.array([[0.4, -1.2]], np.float32)
    with PIL.Image.open(io.BytesIO(sliders.digit_png(pretrained[0], z[0], enlarge=3))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (84, 84)
    expected = np.kron(pretrained[0].sample(z)[0, ..., 0], np.ones((3, 3)))
    assert np.abs(pixels / 255 - expected).max() <= 0.5 / 255 + 1e-6  # half a grey level


def test_sliders_where_someone_watches(pretrained, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(sliders, "someone_watches", lambda: True)
    widget = sliders.explore(pretrained[0], extent=2.0)
    first, second, image, seed, row = widget.children  # no codes: no plane and no walk
    before = image.value
    first.value, second.value = 1.0, 5.0  # more than the slider has
    assert (second.value, first.min) == (2.0, -2.0)
    assert image.value != before
    assert image.value == sliders.digit_png(pretrained[0], (1.0, 2.0))


def test_sliders_plane_walk_and_samples_follow_each_other(pretrained, mnist, x_test, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(sliders, "someone_watches", lambda: True)
    model, labels = pretrained[0], mnist[1][1][:300]
    codes = encode_images(model, x_test[:300])[0]
    widgets = sliders.explore(model, codes, labels).children
    first, second, pictures, start, end, way, play, seed, row = widgets
    digit, plane = pictures.children
    picture = sliders.plane_picture(codes, labels)
    assert [label for label, _ in start.options] == [str(n) for n in range(10)]
    start.label, end.label = "1", "0"
    way.value = 50
    z = 0.5 * (np.array(start.value) + end.value)
    np.testing.assert_allclose((first.value, second.value), z)
    assert digit.value == sliders.digit_png(model, (first.value, second.value))
    assert plane.value == sliders.ring_png(picture, (first.value, second.value))
    seed.value = 3
    assert row.value == sliders.digit_png(model, draw_eps(3, 0, (8, 2)), enlarge=3)
    first.value = -1.0  # whoever takes the slider leaves the walk
    assert plane.value == sliders.ring_png(picture, (-1.0, second.value))


def test_the_ring_is_where_z_is():
    codes = np.array([[0, 0], [1, 1]], np.float32)
    picture = sliders.plane_picture(codes, np.array([0, 1]), extent=2.0)
    for z, (column, row) in (((0, 0), (180, 180)), ((1, 1), (270, 90)), ((-1.5, -1), (45, 270))):
        with PIL.Image.open(io.BytesIO(sliders.ring_png(picture, z, extent=2.0))) as image:
            changed = (np.asarray(image) != np.asarray(picture)).any(axis=2)
        rows, columns = np.nonzero(changed)
        # Pixels that were black before do not count, so the middle of the rest is off by a few.
        assert abs(rows.mean() - row) < 4 and abs(columns.mean() - column) < 4


def test_a_figure_where_nobody_watches(pretrained, monkeypatch):
    assert not sliders.someone_watches()
    assert sliders.explore(pretrained[0]).axes[0].get_title(loc="left")
    monkeypatch.setattr(sliders, "someone_watches", lambda: True)
    monkeypatch.setattr(sliders.importlib.util, "find_spec", lambda name: None)  # not installed
    assert sliders.explore(pretrained[0]).axes[0].get_title(loc="left")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_front_end_says_whether_someone_watches(allowed, monkeypatch):
    class Kernel:
        def get_parent(self):
            return {"content": {"allow_stdin": allowed}}

    class IPython:
        @staticmethod
        def get_ipython():
            return type("Shell", (), {"kernel": Kernel()})

    monkeypatch.setitem(sliders.sys.modules, "IPython", IPython)
    assert sliders.someone_watches() == allowed


def test_sliders_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="latent_dim 2, got 3"):
        sliders.explore(CVAE(latent_dim=3))
    with pytest.raises(ValueError, match="extent"):
        sliders.explore(CVAE(), extent=-1.0)
    with pytest.raises(ValueError, match="codes and labels, or neither"):
        sliders.explore(CVAE(), codes=np.zeros((3, 2)))

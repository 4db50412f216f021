"""The explorer's folder and its server, and the sliders; the page itself is tested in tests/browser."""

import hashlib
import http.client
import io
import json
import re
import socket
import threading
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.live import explorer, sliders
from vae_course.live.explorer import (
    build_explorer,
    decoder_entries,
    describe_classes,
    explore_run,
    layer_entry,
    page_content,
    serve,
)
from vae_course.manifold import encode_images
from vae_course.engine.families import FastCVAE
from vae_course.model import CVAE
from vae_course.engine.recipes import SHORT
from vae_course.reparameterization import draw_eps
from vae_course.engine.runs import save_run

ASSETS = Path(explorer.__file__).parent / "explorer_assets"


@pytest.fixture(scope="module")
def some(mnist, x_test):
    """Fifty images with their labels."""
    return x_test[:50], mnist[1][1][:50]


@pytest.fixture(scope="module")
def folder(pretrained, some, tmp_path_factory):
    return build_explorer(*pretrained, *some, tmp_path_factory.mktemp("explorer") / "page")


def read(folder):
    """explorer.json, and the arrays of explorer.bin, by the words of the format alone."""
    page = json.loads((folder / "explorer.json").read_text(encoding="utf-8"))
    flat, arrays = np.frombuffer((folder / "explorer.bin").read_bytes(), "<f4"), {}
    for entry in page["arrays"]:
        size = int(np.prod(entry["shape"]))
        arrays[entry["name"]], flat = flat[:size].reshape(entry["shape"]), flat[size:]
    assert len(flat) == 0
    return page, arrays


def run(z, layers, arrays):
    """The decoder by TensorFlow's own operations, from the entries."""
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
    return tf.sigmoid(h).numpy()


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


# --- what does not fit on the page


@pytest.mark.parametrize(("changes", "message"), [
    ({"latent_dim": 3}, "latent_dim 2, got 3"),
    ({"likelihood": "continuous_bernoulli"}, "binary pixels, got a model of levels None"),
    ({"image_shape": (28, 28, 2)}, "1 or 3 channels, got 2"),
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

    monkeypatch.setattr(explorer.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build_explorer(model, {}, *some, tmp_path / "page")
    assert not list(tmp_path.iterdir())


# --- the server


@pytest.fixture
def server(folder):
    with serve(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize(("name", "kind"), [
    ("", "text/html; charset=utf-8"), ("explorer.js", "text/javascript"),
    ("explorer.css", "text/css"), ("explorer.json", "application/json"),
    ("runtime/tfjs-backend-wasm-simd.wasm", "application/wasm"),
])
def test_files_come_with_their_types(server, folder, name, kind):
    status, headers, body = ask(server, "/" + name)
    assert (status, headers["Content-Type"]) == (200, kind)
    assert body == (folder / (name or "index.html")).read_bytes()


def test_nothing_above_the_folder_is_served(server, folder):
    (folder.parent / "secret.txt").write_text("secret")
    for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/runtime/../../secret.txt"):
        assert ask(server, path)[0] == 404
    assert ask(server, "/", "POST")[0] == 501


def test_only_the_loopback_address_listens(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_a_taken_port_and_a_missing_page(server, folder, tmp_path):
    with pytest.raises(OSError, match=rf"port {server.server_port}.*Choose another port"):
        serve(folder, server.server_port)
    with pytest.raises(FileNotFoundError, match="build_explorer"):
        serve(tmp_path)
    for port, error in ((-1, ValueError), (65536, ValueError), ("80", TypeError)):
        with pytest.raises(error, match="port"):
            serve(folder, port)


def test_a_port_can_be_chosen(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(folder, port) as server:
        assert server.server_port == port


def test_explore_run_serves_a_saved_run_and_cleans_up(model, tmp_path, monkeypatch, capsys):
    save_run(tmp_path, "cvae", model, SHORT, [{"test_elbo": -200.0}])
    seen = {}

    def wait(server):  # what Ctrl-C does after the page was built
        seen["folder"] = Path(server.RequestHandlerClass.keywords["directory"])
        seen["page"] = json.loads((seen["folder"] / "explorer.json").read_text(encoding="utf-8"))
        raise KeyboardInterrupt

    monkeypatch.setattr(explorer.PageServer, "serve_forever", wait)
    monkeypatch.setattr(explorer.webbrowser, "open", lambda url: seen.update(url=url))
    explore_run(tmp_path)
    assert seen["url"] in capsys.readouterr().out
    assert "−200.00 nats" in seen["page"]["about"] and "10,000 dots" in seen["page"]["about"]
    assert not seen["folder"].exists()
    del seen["url"]
    explore_run(tmp_path, browser=False)
    assert "url" not in seen


def test_explore_run_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no .*cvae.keras"):
        explore_run(tmp_path)


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

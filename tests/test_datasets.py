"""Chapter 27: files that are verified, never unpickled, and images of all kinds in one call."""

import ast
import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_course.further import other_data
from vae_course.generation import image_grid, plot_images, plot_reconstructions
from vae_course.engine.families import LIKELIHOODS
from vae_course.further.other_data import (
    DATASETS,
    FASHION_MNIST,
    cut_patches,
    find_file,
    fit_images,
    keras_cache,
    load_cifar10,
    load_dataset,
    load_fashion_mnist,
    prepare,
    read_cifar10,
    read_idx,
)
from vae_course.engine.recipes import FAST

CIFAR_PARTS = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
TINY = replace(FAST, max_steps=4, warmup=1, filters=(4, 8), batch_size=8)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def cifar_archive(parts):
    """A tar.gz from {name: (labels, images)}, images (n, 32, 32, 3), in CIFAR-10's binary format."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, (labels, images) in parts.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = np.concatenate([labels[:, None], planes], axis=1).astype(np.uint8).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def cifar(rng):
    """Labels and images of six small parts."""
    return {name: (rng.integers(0, 10, n), rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
            for n, name in enumerate(CIFAR_PARTS, start=1)}


@pytest.fixture
def fashion(tmp_path, monkeypatch, rng):
    """A folder with small files in Fashion-MNIST's format, whose checksums the loader knows."""
    arrays = {name: rng.integers(0, 256, (n, 28, 28) if "images" in name else n, dtype=np.uint8)
              for name, n in zip(FASHION_MNIST, (6, 6, 3, 3), strict=True)}
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    known = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(other_data, "FASHION_MNIST", known)
    return tmp_path, list(arrays.values())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(other_data.keras.utils, "get_file", refuse)


def test_nothing_is_unpickled():
    tree = ast.parse(Path(other_data.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {"pickle", "cifar10"} & imported and not {"load_data", "load", "extractall"} & called


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)))
def test_idx_comes_back(array):
    assert np.array_equal(read_idx(idx(array)), array)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_idx_refuses_everything_else_with_one_error(content):
    try:
        array = read_idx(content)
    except ValueError:
        return
    assert idx(array) == content


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:7], lambda c: b"",
                                    lambda c: b"\0\0\x0d" + c[3:]])
def test_idx_of_a_wrong_length_or_type_is_refused(change):
    with pytest.raises(ValueError, match="no IDX file of bytes"):
        read_idx(change(idx(np.zeros((2, 3), np.uint8))))


def test_fashion_mnist_is_read_from_a_folder(fashion, no_network):
    folder, arrays = fashion
    (x_train, y_train), (x_test, y_test) = load_fashion_mnist(folder)
    for found, written in zip((x_train, y_train, x_test, y_test), arrays, strict=True):
        assert found.dtype == np.uint8 and np.array_equal(found, written)


def test_fashion_mnist_lies_where_keras_keeps_it(fashion, no_network, monkeypatch):
    folder, arrays = fashion
    monkeypatch.setenv("KERAS_HOME", str(folder / "home"))
    place = keras_cache() / "fashion-mnist"
    place.mkdir(parents=True)
    for path in folder.glob("*.gz"):
        path.rename(place / path.name)
    assert np.array_equal(load_dataset("fashion_mnist")[1][0], arrays[2])


def test_a_changed_file_is_named_and_left_alone(fashion, no_network):
    path = fashion[0] / "t10k-images-idx3-ubyte.gz"
    content = gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"\0")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz is damaged or is another file"):
        load_fashion_mnist(fashion[0])
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"a" * 999, mtime=0)[:-10],
                                     gzip.compress(b"a" * 999, mtime=0)[:12] + b"\xff" * 20])
def test_a_broken_file_is_a_value_error(fashion, content):
    (fashion[0] / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz is damaged"):
        load_fashion_mnist(fashion[0])


def test_missing_files_say_where_they_belong(tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz.*Put the file into .*apt install"):
        load_fashion_mnist(tmp_path, download=False)
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    with pytest.raises(FileNotFoundError, match=f"there is no cifar-10-binary.tar.gz in .*URL fetch failure.*{address}"):
        load_cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"Put the file into {tmp_path}; it is at {address}"):
        load_cifar10(tmp_path, download=False)


def test_a_file_is_fetched_only_if_it_is_missing(tmp_path, monkeypatch):
    asked = []

    def fetch(name, origin, cache_subdir):
        asked.append(origin)
        Path(cache_subdir, name).write_bytes(b"new")
        return str(Path(cache_subdir, name))

    monkeypatch.setattr(other_data.keras.utils, "get_file", fetch)
    for _ in range(2):
        assert find_file("a.gz", [tmp_path, "/nowhere"], "https://example.org/a.gz").read_bytes() == b"new"
    assert asked == ["https://example.org/a.gz"]


def test_debians_and_keras_files_are_fashion_mnist():
    """The real files, where this machine has them."""
    try:
        (x_train, y_train), (x_test, y_test) = load_fashion_mnist(download=False)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    assert x_train.shape == (60000, 28, 28) and x_test.shape == (10000, 28, 28)
    assert np.array_equal(np.bincount(y_train), [6000] * 10) and np.array_equal(np.bincount(y_test), [1000] * 10)


def test_cifar_comes_back_in_order(cifar):
    (x_train, y_train), (x_test, y_test) = read_cifar10(io.BytesIO(cifar_archive(dict(reversed(cifar.items())))))
    parts = list(cifar.values())
    assert np.array_equal(x_train, np.concatenate([images for _, images in parts[:-1]]))
    assert np.array_equal(y_train, np.concatenate([labels for labels, _ in parts[:-1]]))
    assert np.array_equal(x_test, parts[-1][1]) and np.array_equal(y_test, parts[-1][0])
    assert x_train.dtype == y_train.dtype == np.uint8


def test_cifar_is_verified_before_it_is_opened(tmp_path, cifar, monkeypatch, no_network):
    path, content = tmp_path / "cifar-10-binary.tar.gz", cifar_archive(cifar)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its SHA-256 is .*, expected c4a38c50"):
        load_cifar10(tmp_path)
    monkeypatch.setattr(other_data, "CIFAR10_SHA256", hashlib.sha256(content).hexdigest())
    assert load_cifar10(tmp_path)[0][0].shape == (15, 32, 32, 3)


def test_cifar_with_a_missing_or_cut_part_is_refused(cifar):
    without = {name: part for name, part in cifar.items() if name != "data_batch_4.bin"}
    with pytest.raises(ValueError, match="data_batch_4.bin .* records of 3073 bytes, got 0 bytes"):
        read_cifar10(io.BytesIO(cifar_archive(without)))
    labels, images = cifar["test_batch.bin"]
    cut = cifar | {"test_batch.bin": (labels, images[:, :31])}
    with pytest.raises(ValueError, match="test_batch.bin"):
        read_cifar10(io.BytesIO(cifar_archive(cut)))


def test_patches_are_where_they_should_be(rng):
    photograph = rng.integers(0, 256, (20, 33, 3), dtype=np.uint8)
    patches = cut_patches(photograph, 8, 5)
    corners = [(i, j) for i in range(0, 13, 5) for j in range(0, 26, 5)]
    assert len(patches) == len(corners)
    for patch, (i, j) in zip(patches, corners, strict=True):
        assert np.array_equal(patch, photograph[i:i + 8, j:j + 8])


def test_photographs_are_split_before_they_are_cut():
    (train, no_labels), (test, _) = load_dataset("photographs")
    assert no_labels is None and train.shape == (5400, 32, 32, 3) and test.shape == (130, 32, 32, 3)
    # No row of eight pixels in a test patch with any contrast occurs in a training patch.
    def rows(patches):
        found = patches[:, :, :8].reshape(-1, 24)
        return {row.tobytes() for row in found if np.ptp(row) > 120}

    assert not rows(test) & rows(train) and len(rows(test)) > 50


# The Gaussian of chapter 39 is no density of pixels alone; tests/test_beyond_linear.py tries it.
@pytest.mark.parametrize("name", [name for name in LIKELIHOODS.names() if name != "gaussian"])
@settings(max_examples=30, deadline=None)
@given(images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=5, max_side=9)))
def test_prepared_images_are_accepted_by_their_likelihood(name, images):
    from vae_course.data import check_images

    x = prepare(images, name)
    assert x.shape == (*images.shape, 1) and x.dtype == np.float32
    check_images(x, LIKELIHOODS[name].levels)
    if name != "bernoulli":
        assert np.array_equal(np.round(x[..., 0] * 255), images)
    else:
        assert np.array_equal(x[..., 0], images >= 128)


@pytest.mark.parametrize(("name", "shape"), [("bernoulli", (20, 28, 28)), ("continuous_bernoulli", (20, 13, 10, 1)),
                                             ("discretized_logistic", (20, 16, 16, 3)), ("discretized_logistic", (20, 9, 8, 2))])
def test_one_call_trains_on_any_images(rng, name, shape):
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    model, history = fit_images(images, images[:6], replace(TINY, likelihood=name), verbose=False)
    assert np.isfinite(history[-1]["test_elbo"]) and model.likelihood is LIKELIHOODS[name]
    if shape[1:] != (9, 8, 2):
        plot_reconstructions(model, prepare(images[:6], name))


def test_colour_images_stand_in_the_grid(rng):
    images = rng.random((5, 3, 4, 3))
    sheet = image_grid(images, columns=2)
    assert sheet.shape == (9, 8, 3) and np.array_equal(sheet[3:6, 4:], images[3]) and not sheet[6:, 4:].any()
    shown = plot_images(images, columns=2).axes[0].images[0].get_array()
    assert np.allclose(shown, sheet) or np.array_equal(shown, np.round(255 * sheet).astype(np.uint8))
    with pytest.raises(ValueError, match="pixels must be uint8, or numbers from 0 to 1, got values from"):
        plot_images(images * 3 - 1, columns=2)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: load_dataset("imagenet"), ValueError, "one of mnist, fashion_mnist, cifar10, photographs"),
    (lambda: prepare(np.zeros((2, 8, 8, 3), np.uint8), "bernoulli"), ValueError, "binary pixels have no colours"),
    (lambda: prepare(np.zeros((2, 8, 8)), "bernoulli"), TypeError, "must be uint8"),
    (lambda: prepare(np.zeros((8, 8), np.uint8), "bernoulli"), ValueError, r"got \(8, 8\)"),
    (lambda: prepare(np.zeros((0, 8, 8), np.uint8), "bernoulli"), ValueError, "no axis of length 0"),
    (lambda: prepare(np.zeros((2, 8, 8), np.uint8), "poisson"), ValueError, "likelihood must be one of"),
    (lambda: cut_patches(np.zeros((8, 8), np.uint8), 4, 4), ValueError, "room for"),
    (lambda: cut_patches(np.zeros((8, 8, 3), np.uint8), 9, 4), ValueError, "9 × 9 pixels"),
    (lambda: cut_patches(np.zeros((8, 8, 3), np.uint8), 4, 0), ValueError, "step must be at least 1"),
    (lambda: fit_images(np.zeros((9, 8, 8), np.uint8), np.zeros((9, 8, 9), np.uint8), TINY), ValueError, "one size"),
])
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_loader_is_in_the_table():
    assert set(DATASETS) == {"mnist", "fashion_mnist", "cifar10", "photographs"}
    assert load_dataset("mnist")[1][0].shape == (10000, 28, 28)

"""Embedded MNIST, binarisation, batches."""

import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_course.data import (
    MNIST_SHA256,
    check_images,
    epoch_order,
    load_mnist,
    make_dataset,
    preprocess_images,
)


def test_arrays_have_the_layout_of_keras(mnist):
    (x_train, y_train), (x_test, y_test) = mnist
    assert (x_train.shape, x_test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert (y_train.shape, y_test.shape) == ((60_000,), (10_000,))
    assert {array.dtype for array in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    assert round(x_train.mean(), 4) == 33.3184 and round(x_test.mean(), 4) == 33.7912
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_keras_returns_the_same_arrays(mnist):
    """Compares with Keras's own file where it has been downloaded before; no test downloads."""
    if not (Path.home() / ".keras" / "datasets" / "mnist.npz").exists():
        pytest.skip("Keras has no copy of MNIST in its cache on this machine")
    for ours, theirs in zip(mnist, tf.keras.datasets.mnist.load_data(), strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_the_original_files_have_the_published_checksums(mnist):
    """The four IDX files of MNIST's authors, rebuilt from our arrays."""
    md5 = ["6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
           "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"]
    for array, expected in zip([*mnist[0], *mnist[1]], md5, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        assert hashlib.md5(header + array.tobytes()).hexdigest() == expected


def test_recorded_checksum_stands_beside_the_data():
    from importlib.resources import files

    readme = (files("vae_course") / "datasets" / "README.md").read_text(encoding="utf-8")
    assert MNIST_SHA256 in readme and "CC BY-SA 3.0" in readme and "LeCun" in readme


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x80\x04."])
def test_damaged_file_is_refused_before_it_is_parsed(tmp_path, content):
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged.*SHA-256.*Install vae_course again"):
        load_mnist(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_mnist(tmp_path / "nowhere.npz")


def test_nothing_is_unpickled():
    assert "allow_pickle=False" in inspect.getsource(load_mnist)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
def test_every_grey_value_falls_on_the_right_side(threshold):
    images = np.zeros((1, 28, 28), np.uint8)
    images.ravel()[:256] = np.arange(256)
    binary = preprocess_images(images, threshold).ravel()[:256]
    assert binary.tolist() == [float(grey / 255 > threshold) for grey in range(256)]


def test_binarising_agrees_with_the_tutorials_formula(mnist):
    images = mnist[1][0][:100]
    scaled = images.reshape((100, 28, 28, 1)) / 255.0
    assert (preprocess_images(images) == np.where(scaled > 0.5, 1.0, 0.0).astype("float32")).all()


@pytest.mark.parametrize(("images", "error", "message"), [
    (np.zeros((2, 28, 28)), TypeError, "uint8.*got float64"),
    (np.zeros((28, 28), np.uint8), ValueError, r"\(n, 28, 28\)"),
    (np.zeros((0, 28, 28), np.uint8), ValueError, "no axis of length 0"),
    (np.zeros((2, 32, 32), np.uint8), ValueError, r"got \(2, 32, 32\)"),
])
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        preprocess_images(images)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_wrong_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        preprocess_images(np.zeros((1, 28, 28), np.uint8), threshold)


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda x: x.astype(np.uint8), TypeError, "got uint8"),
    (lambda x: x.astype(bool), TypeError, "got bool"),
    (lambda x: x[0], ValueError, "shape"),
    (lambda x: x[:0], ValueError, "length 0"),
    (lambda x: x * 255, ValueError, "from 0 to 255"),
    (lambda x: x - 1, ValueError, "from -1 to 0"),
    (lambda x: np.where(x == 1, np.nan, x), ValueError, "NaN"),
])
def test_check_images_says_what_is_wrong(x, change, error, message):
    with pytest.raises(error, match=message):
        check_images(change(x))


def test_check_images_works_while_tracing(x):
    traced = tf.function(check_images, input_signature=[tf.TensorSpec((None, 28, 28, 1))])
    assert (traced(x).numpy() == x).all()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**31 - 1),
       epoch=st.integers(1, 1000))
def test_an_epoch_visits_every_image_once(n, batch_size, seed, epoch):
    images = np.unpackbits(np.arange(n, dtype=np.uint8)[:, None], axis=1)
    images = images.reshape(n, 2, 4, 1).astype(np.float32)
    batches = [batch.numpy() for batch in make_dataset(images, batch_size, seed, epoch)]
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1) and sum(sizes) == n
    assert (np.concatenate(batches) == images[epoch_order(n, seed, epoch)]).all()
    assert sorted(epoch_order(n, seed, epoch)) == list(range(n))


def test_without_a_seed_the_order_is_kept(x):
    assert (np.concatenate(list(make_dataset(x, 3))) == x).all()


def test_batch_size_is_checked(x):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_dataset(x, 0)

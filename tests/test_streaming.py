"""Images that come one after another and are never all in memory."""

import resource
from dataclasses import replace

import children
import numpy as np
import pytest
import tensorflow as tf

from vae_course.engine.checkpoints import list_checkpoints
from vae_course.data import preprocess_images
from vae_course.engine.loop import fit, noisy_batches
from vae_course.engine.recipes import Recipe

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, filters=(4, 4))
N = 602  # 76 steps an epoch, 50 and 26; the last batch has two images
IMAGE = tf.TensorSpec((28, 28, 1), tf.float32)


@pytest.fixture(scope="module")
def images(mnist):
    return preprocess_images(mnist[0][0][:N])


@pytest.fixture(scope="module")
def few(x_test):
    return x_test[:50]


def from_generator(images):
    dataset = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=IMAGE)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(images)))


def from_shards(images, folder):
    """Four TFRecord files, read in turns."""
    for i in range(4):
        with tf.io.TFRecordWriter(str(folder / f"{i}.tfrecord")) as file:
            for image in images[i::4]:
                file.write(np.packbits(image.astype(bool)).tobytes())

    def decode(record):
        octets = tf.cast(tf.reshape(tf.io.decode_raw(record, tf.uint8), (98, 1)), tf.int32)
        bits = octets // [128, 64, 32, 16, 8, 4, 2, 1] % 2
        return tf.reshape(tf.cast(bits, tf.float32), (28, 28, 1))

    files = tf.data.Dataset.list_files(str(folder / "*.tfrecord"), shuffle=False)
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4)
    return records.map(decode).apply(tf.data.experimental.assert_cardinality(len(images)))


@pytest.fixture(scope="module", params=["generator", "shards"])
def stream(request, images, tmp_path_factory):
    if request.param == "generator":
        return from_generator(images)
    return from_shards(images, tmp_path_factory.mktemp("shards"))


def run(x_train, few, folder=None):
    model, history = fit(RECIPE, x_train, few, verbose=False, checkpoint_dir=folder, checkpoint_seconds=0)
    return model.get_weights(), history


def test_a_stream_has_its_own_order_and_the_noise_of_its_steps(stream, images):
    batches = list(noisy_batches(RECIPE, stream, epoch=2))
    assert np.array_equal(np.concatenate([x for x, _ in batches]), images)
    assert [len(eps) for _, eps in batches] == 75 * [8] + [2]
    shuffled = list(noisy_batches(RECIPE, images, epoch=2))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(batches, shuffled, strict=True))


@pytest.mark.parametrize("done", [1, 50, 75])
def test_a_resumed_epoch_skips_what_was_seen(stream, done):
    rest, whole = (list(noisy_batches(RECIPE, stream, 1, skipped)) for skipped in (done, 0))
    for one, two in zip(rest, whole[done:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_stream_trains_and_goes_on_like_one_that_was_not_stopped(stream, few, tmp_path):
    result = run(stream, few, tmp_path)
    for path in list_checkpoints(tmp_path)[2:]:  # back to step 126, in the middle of epoch 2
        path.unlink()
    assert [path.name[-7:-4] for path in list_checkpoints(tmp_path)] == ["076", "126"]
    assert children.same(result, run(stream, few, tmp_path))
    assert children.same(result, run(stream, few))


def test_a_stream_equals_the_array_it_comes_from_in_the_streams_order(images, few, monkeypatch):
    from vae_course.engine import images as module

    streamed = run(from_generator(images), few)
    monkeypatch.setattr(module, "epoch_order", lambda n, seed, epoch: np.arange(n))
    assert children.same(streamed, run(images, few))


@pytest.mark.long
def test_a_stream_of_unknown_length_is_counted(images, few):
    dataset = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=IMAGE)
    assert children.same(run(dataset, few), run(from_generator(images), few))


def test_a_stream_without_end_is_refused(images, few):
    dataset = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=IMAGE)
    with pytest.raises(ValueError, match=r"the dataset never ends: leave .repeat\(\) out"):
        fit(RECIPE, dataset.repeat(), few, verbose=False)


def test_a_stream_that_ends_early_is_an_error(images, few):
    short = tf.data.Dataset.from_generator(lambda: iter(images[:100]), output_signature=IMAGE)
    with pytest.raises(tf.errors.OpError, match="expected to contain 602 elements but contained only 100"):
        fit(RECIPE, short.apply(tf.data.experimental.assert_cardinality(N)), few, verbose=False)


@pytest.mark.parametrize("change", [lambda x: x * 0.5, lambda x: x.reshape(N, 784)])
def test_grey_pixels_and_other_shapes_are_refused(images, few, change):
    with pytest.raises(ValueError, match="each pixel must be 0 or 1|a dataset must be of images"):
        fit(RECIPE, tf.data.Dataset.from_tensor_slices(change(images)), few, verbose=False)


def test_a_checkpoint_of_another_stream_is_refused(images, few, tmp_path):
    none = replace(RECIPE, epochs=0)
    fit(none, from_generator(images), few, verbose=False, checkpoint_dir=tmp_path)
    for other in (from_generator(images[:-1]), images):
        with pytest.raises(ValueError, match="its training images is"):
            fit(none, other, few, verbose=False, checkpoint_dir=tmp_path)


def child_memory(connection, n):
    """Runs in a child: its peak memory in bytes after an epoch of n images from a generator."""
    pattern = np.arange(784).reshape(28, 28, 1)
    dataset = tf.data.Dataset.from_generator(
        lambda: (np.float32((pattern + i) % 3 == 0) for i in range(n)), output_signature=IMAGE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(n))
    fit(replace(RECIPE, epochs=1, batch_size=64), dataset, np.float32(pattern[None] % 3 == 0), verbose=False)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.long
def test_memory_does_not_grow_with_the_data():
    few, many = (children.start(child_memory, n) for n in (2_000, 20_000))
    few, many = children.finish(few), children.finish(many)
    print(f"peak with 2,000 images {few / 2**20:.0f} MiB, with 20,000 {many / 2**20:.0f} MiB")
    # 18,000 images of 784 float32 are 54 MiB; the allocator's noise is a few.
    assert many - few < 18_000 * 784 * 4 / 4

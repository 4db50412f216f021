"""One run on several devices and processes: the same losses, and no worker is indispensable."""

import json
import os
import socket

import children
import numpy as np
import pytest
import tensorflow as tf

from vae_course.data import preprocess_images
from vae_course.training import Recipe, fit

# 489 images make 82 steps an epoch; the last batch has three images, two for one device and one
# for the other.
RECIPE = Recipe(epochs=3, batch_size=6, learning_rate=1e-3, filters=(4, 4))
# Two devices add the same float32 numbers in another order: each sum differs by a few parts in
# 2²⁴ ≈ 6e-8 of its size, and a hundred steps of a stable run do not multiply that by 100.
RTOL = 1e-5


@pytest.fixture(scope="module")
def images(mnist):
    return preprocess_images(mnist[0][0][:489]), preprocess_images(mnist[1][0][:200])


def make_strategy(kind):
    if kind == "two devices":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.MultiWorkerMirroredStrategy() if kind == "worker" else None


def child_fit(connection, kind, recipe, images, folder=None, config=None):
    """Runs in a child: `fit`; tells of each epoch, then sends weights and history, or the error."""
    os.environ["TF_CONFIG"] = json.dumps(config or {})
    try:
        model, history = fit(recipe, *images, verbose=False, checkpoint_dir=folder, checkpoint_seconds=0,
                             strategy=make_strategy(kind),
                             callbacks=[lambda epoch, *_: connection.send(epoch)])
        connection.send((model.get_weights(), history))
    except ValueError as error:
        connection.send(str(error))


def result(child):
    """What comes after the epochs."""
    process, connection = child
    try:
        while True:
            assert connection.poll(children.PATIENCE), "the child hangs"
            message = connection.recv()
            if not isinstance(message, int):
                return message
    except EOFError:
        raise AssertionError(f"the child died with {process.exitcode}") from None
    finally:
        children.stop(process)


def start_workers(recipe, images, folder=None):
    """Two processes on ports that are free now."""
    with socket.socket() as one, socket.socket() as two:
        for end in (one, two):
            end.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{end.getsockname()[1]}" for end in (one, two)]
    return [children.start(child_fit, "worker", recipe, images, folder,
                           {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
            for index in (0, 1)]


def assert_same_history(one, two, rtol):
    assert len(one) == len(two) and one[0].keys() == two[0].keys()
    for a, b in zip(one, two, strict=True):
        assert np.allclose([*a.values()], [*b.values()], rtol=rtol, atol=0), (a, b)


@pytest.fixture(scope="module")
def on_one_device(images):
    return result(children.start(child_fit, "one device", RECIPE, images))


@pytest.fixture(scope="module")
def in_two_processes(images):
    return [result(worker) for worker in start_workers(RECIPE, images)]


def test_two_devices_follow_one(images, on_one_device):
    history = result(children.start(child_fit, "two devices", RECIPE, images))[1]
    assert_same_history(history, on_one_device[1], RTOL)


def test_two_processes_follow_one_device_and_end_alike(in_two_processes, on_one_device):
    chief, other = in_two_processes
    assert children.same(chief, other)
    assert_same_history(chief[1], on_one_device[1], RTOL)


def test_a_killed_worker_is_replaced(images, tmp_path, in_two_processes):
    first, second = start_workers(RECIPE, images, tmp_path)
    while second[1].recv() != 1:  # the end of epoch 1
        pass
    second[0].kill()  # SIGKILL, while both work on epoch 2
    children.stop(first[0])  # it waits for the other in vain, or has noticed
    steps = [int(name[5:14]) for name in sorted(os.listdir(tmp_path)) if name.startswith("step-")]
    assert 50 <= steps[-1] < 246  # it was indeed in the middle
    again = [result(worker) for worker in start_workers(RECIPE, images, tmp_path)]
    assert children.same(*again)
    assert children.same(again[0], in_two_processes[0])
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:09}.npz" for step in (164, 214, 246)]


def test_a_batch_too_small_for_all_devices_is_refused(images):
    x_train, x_test = images
    message = result(children.start(child_fit, "two devices", RECIPE, (x_train[:487], x_test)))
    assert message == ("the last batch has 1 of the 487 images, too few for 2 devices; "
                       "choose another batch_size than 6.")

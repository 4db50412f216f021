"""One run on several devices and processes: the same losses, and no worker is indispensable."""

import json
import os
import socket
import sys
from dataclasses import replace

import children
import numpy as np
import pytest
import tensorflow as tf

from vae_course.engine import devices
from vae_course.engine.checkpoints import start_run
from vae_course.data import preprocess_images
from vae_course.engine.loop import fit, noisy_batches
from vae_course.engine.recipes import Recipe

# 489 images make 82 steps an epoch; the last batch has three images, two for one device and one
# for the other.
RECIPE = Recipe(epochs=3, batch_size=6, learning_rate=1e-3, filters=(4, 4))
# Two devices add the same float32 numbers in another order: each sum differs by a few parts in
# 2²⁴ ≈ 6e-8 of its size, and a hundred steps of a stable run do not multiply that by 100. Plain descent is
# stable; Adam is not: it divides each gradient by its size, so that of one near 0 nothing but rounding is left.
PLAIN = replace(RECIPE, optimizer="sgd", learning_rate=1e-4)
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
    return result(children.start(child_fit, "one device", PLAIN, images))


@pytest.fixture(scope="module")
def in_two_processes(images):
    return [result(worker) for worker in start_workers(RECIPE, images)]


def test_two_devices_follow_one(images, on_one_device):
    history = result(children.start(child_fit, "two devices", PLAIN, images))[1]
    assert_same_history(history, on_one_device[1], RTOL)


def test_two_processes_follow_one_device_and_end_alike(images, on_one_device):
    chief, other = [result(worker) for worker in start_workers(PLAIN, images)]
    assert children.same(chief, other)
    assert_same_history(chief[1], on_one_device[1], RTOL)


@pytest.mark.long
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


def child_start(connection, n, size):
    """Runs in a child: whether three devices can share the batches of n images, and TensorFlow's parts of them."""
    strategy, x, recipe = devices.make_strategy(3), np.zeros((n, 28, 28, 1), np.float32), Recipe(batch_size=size)
    parts = [[len(part) for part in strategy.experimental_local_results(x)]
             for x, _ in strategy.experimental_distribute_dataset(noisy_batches(recipe, x, 1))]
    try:
        with strategy.scope():
            start_run(recipe, x)
        connection.send((parts, ""))
    except ValueError as error:
        connection.send((parts, str(error)))


@pytest.mark.parametrize(("n", "size", "message"), [
    (20, 4, "the last batch has 4 of the 20 images"), (19, 4, "a full batch has 4 of the 19 images"),
    (22, 20, "the last batch has 2 of the 22 images"), (20, 5, ""), (3, 20, ""),
])
def test_a_run_is_refused_exactly_if_a_device_would_get_no_image(n, size, message):
    parts, found = children.finish(children.start(child_start, n, size))
    assert found.startswith(message) and bool(found) == bool(message)
    assert bool(message) == any(0 in batch for batch in parts)


def test_a_batch_too_small_for_all_devices_is_refused(images):
    x_train, x_test = images
    message = result(children.start(child_fit, "two devices", RECIPE, (x_train[:487], x_test)))
    assert message == ("the last batch has 1 of the 487 images, too few for 2 devices; "
                       "choose another batch_size than 6.")


# --- Strategies, and workers that do nothing -----------------------------------------------------

def child_strategy(connection, config, n):
    """Runs in a child: the strategy for n parts of the CPU, with this text in TF_CONFIG."""
    os.environ.pop("TF_CONFIG", None)
    if config is not None:
        os.environ["TF_CONFIG"] = config
    strategy = devices.make_strategy(n)
    connection.send((type(strategy).__name__, strategy.num_replicas_in_sync))


@pytest.mark.parametrize(("config", "n", "expected"), [
    (None, 1, ("_DefaultDistributionStrategy", 1)), (None, 3, ("MirroredStrategy", 3)),
    ("{}", 1, ("_DefaultDistributionStrategy", 1)), ("{}", 2, ("MirroredStrategy", 2)),
    # Cloud services set this for a job of a single machine.
    ('{"cluster": {}, "task": {"type": "worker", "index": 0}}', 1, ("_DefaultDistributionStrategy", 1)),
    ("one worker", 1, ("CollectiveAllReduceStrategy", 1)),
])
def test_the_strategy_fits_the_devices_that_are_there(config, n, expected):
    if config == "one worker":
        address = f"127.0.0.1:{devices.free_ports(1)[0]}"
        config = json.dumps({"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}})
    name, replicas = children.finish(children.start(child_strategy, config, n))
    assert name.removesuffix("V1").removeprefix("MultiWorker") == expected[0] and replicas == expected[1]


def test_bad_numbers_of_devices_and_workers_are_refused():
    for call, name in ((devices.make_strategy, "devices"), (lambda n: devices.start_workers(["true"], n), "n")):
        for number, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)):
            with pytest.raises(error, match=f"{name} must be"):
                call(number)


# A worker without TensorFlow: notes its start in the folder, dies there so often, else ends well.
WORKER = """
import json, os, pathlib, signal, sys, time
folder, deaths, how = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
config = json.loads(os.environ["TF_CONFIG"])
index = config["task"]["index"]
starts = len(list(folder.glob(f"{index}-*")))
(folder / f"{index}-{starts}").write_text(json.dumps(config["cluster"]["worker"]))
if index == 1 and starts < deaths:
    os.kill(os.getpid(), signal.SIGKILL) if how == "signal" else sys.exit(2 if how == "wrong use" else 7)
while index == 0 and not (folder / f"1-{deaths}").exists():
    time.sleep(0.01)  # for the other's gradients, in vain until it no longer dies
"""


def run_dummies(folder, deaths, how, **options):
    return devices.run_workers([sys.executable, "-c", WORKER, str(folder), str(deaths), how], 2, **options)


@pytest.mark.parametrize("how", ["signal", "exit"])
@pytest.mark.parametrize("deaths", [0, 2])
def test_workers_that_die_are_all_started_again(tmp_path, deaths, how):
    workers = run_dummies(tmp_path, deaths, how)
    assert [worker.returncode for worker in workers] == [0, 0]
    notes = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    # The first may be stopped before it has noted anything.
    assert {f"1-{i}" for i in range(deaths + 1)} <= notes.keys()
    assert notes[f"1-{deaths}"] == next(notes[name] for name in sorted(notes, reverse=True) if name[0] == "0")
    assert all(len(set(addresses)) == 2 for addresses in notes.values())


@pytest.mark.parametrize(("how", "code"), [("signal", -9), ("exit", 7)])
def test_workers_that_die_too_often_are_given_up(tmp_path, how, code):
    with pytest.raises(RuntimeError, match=rf"died 2 times, last with exit codes \[.*, {code}\]; their messages"):
        run_dummies(tmp_path, 99, how, restarts=1)
    assert {"1-0", "1-1"} == {path.name for path in tmp_path.glob("1-*")}


def test_workers_that_are_used_wrongly_are_not_started_again(tmp_path):
    with pytest.raises(ValueError, match="used wrongly; its message says how"):
        run_dummies(tmp_path, 99, "wrong use")
    assert {"1-0"} == {path.name for path in tmp_path.glob("1-*")}

"""Checkpoints: what was written or a clear refusal, and runs that nothing can stop for good."""

import errno
import itertools
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import children
import numpy as np
import pytest

from vae_course.engine import loop
from vae_course.engine.checkpoints import list_checkpoints, read_checkpoint, write_checkpoint
from vae_course.data import preprocess_images
from vae_course.engine.images import Images
from vae_course.engine.loop import fit
from vae_course.engine.recipes import Recipe

# Small filters: a step takes a millisecond. 200 steps an epoch make four portions of 50.
QUICK = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, filters=(4, 4))
# One of the arrays is longer than what zipfile reads, and checks, at once.
ARRAYS = {"model/0": np.arange(12, dtype=np.float32).reshape(3, 4), "flags": np.array([True, False]),
          "model/1": np.linspace(0, 1, 2000, dtype=np.float32), "step": np.array(150, np.int64),
          "double": np.float64([[np.pi]]), "empty": np.zeros(0, np.float32), "grey": np.uint8([0, 255])}
FACTS = {"history": [{"epoch": 1, "test_elbo": -1 / 3}], "identity": {"filters": [4, 4], "ε": "1e-3"}}


@pytest.fixture(scope="module")
def images(mnist):
    """Training and test images; 600 test images are evaluated in two batches."""
    return preprocess_images(mnist[0][0][:1600]), preprocess_images(mnist[1][0][:600])


def is_what_was_written(found):
    arrays, facts = found
    return facts == FACTS and arrays.keys() == ARRAYS.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in ((arrays[name], ARRAYS[name]) for name in ARRAYS))


# --- Files ---------------------------------------------------------------------------------------

def test_arrays_and_facts_come_back_to_the_last_bit(tmp_path):
    path = write_checkpoint(tmp_path / "new" / "folder", 7, ARRAYS, FACTS)
    assert path == tmp_path / "new" / "folder" / "step-000000007.npz"
    assert is_what_was_written(read_checkpoint(path))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_the_last_few_are_kept_in_the_order_of_their_steps(tmp_path, keep):
    for step in (0, 9, 10, 999_999, 1_000_000):
        write_checkpoint(tmp_path, step, ARRAYS, FACTS, keep)
    steps = [int(path.stem.removeprefix("step-")) for path in list_checkpoints(tmp_path)]
    assert steps == [0, 9, 10, 999_999, 1_000_000][-keep:]


def test_no_folder_has_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "nowhere") == []
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*nowhere.npz"):
        read_checkpoint(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_refused_and_deletes_nothing(tmp_path, value):
    for step in range(3):
        write_checkpoint(tmp_path, step, ARRAYS, FACTS)
    with pytest.raises(ValueError, match="model/1 holds NaN or infinity"):
        write_checkpoint(tmp_path, 3, ARRAYS | {"model/1": np.float32([0, value])}, FACTS, keep=1)
    assert len(os.listdir(tmp_path)) == 3


@pytest.fixture
def two(tmp_path):
    """The newer of two checkpoints."""
    write_checkpoint(tmp_path, 1, ARRAYS, FACTS)
    return write_checkpoint(tmp_path, 2, ARRAYS, FACTS)


def assert_refused(path):
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "to go on from step-000000001.npz" in str(caught.value)


def test_a_truncated_file_is_refused(two, rng):
    content = two.read_bytes()
    for length in [0, 1, len(content) - 1, *rng.integers(len(content), size=150)]:
        two.write_bytes(content[:length])
        assert_refused(two)


def test_a_flipped_bit_is_noticed_or_harmless(two, rng):
    """zip's checksums cover the arrays only while each is read to its end, and not its directory."""
    content = two.read_bytes()
    data = content.index(ARRAYS["model/1"].tobytes())
    where = np.r_[:data, rng.integers(data, data + 8000, 50), data + 8000:len(content)]
    silent = []
    for byte in where.tolist():
        damaged = bytearray(content)
        damaged[byte] ^= 1 << rng.integers(8)
        two.write_bytes(damaged)
        try:
            if not is_what_was_written(read_checkpoint(two)):
                silent.append(byte)
        except ValueError as error:
            assert str(two) in str(error) and "go on from step-000000001.npz" in str(error)
    assert not silent, f"other arrays came back after a change of the bytes {silent}"


def test_another_length_in_the_header_of_an_array_is_noticed(two):
    content = two.read_bytes()
    assert content.count(b"(2000,)") == 1
    two.write_bytes(content.replace(b"(2000,)", b"(0000,)"))  # one bit
    assert_refused(two)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [
    lambda path: path.write_text("not a checkpoint"),
    lambda path: path.write_bytes(b""),
    lambda path: np.savez(path, x=np.zeros(3)),
    lambda path: np.savez(path, facts=np.frombuffer(b"{", np.uint8)),
    lambda path: np.savez(path, facts=np.frombuffer(b"[1, 2]", np.uint8)),
    lambda path: np.savez(path, facts=np.frombuffer(b"\xff\xfe", np.uint8)),
    lambda path: path.write_bytes(b"\x93NUMPY" + bytes(100)),
    lambda path: shutil.make_archive(path.with_suffix(""), "zip", path.parent)
    and os.replace(path.with_suffix(".zip"), path),
], ids=["text", "nothing", "other arrays", "half a JSON", "JSON list", "no text", "half an npy", "zip"])
def test_other_files_are_refused(two, write):
    write(two)
    assert_refused(two)


@pytest.mark.parametrize("name", ["facts", "model/0"])
def test_nothing_is_unpickled(two, tmp_path, name):
    traces = tmp_path / "exploded"
    np.savez(two, **ARRAYS | {"facts": np.zeros(1, np.uint8), name: np.array([Bomb(traces)], object)})
    assert_refused(two)
    assert not traces.exists()
    np.load(two, allow_pickle=True)[name]
    assert traces.exists()  # the bomb works


# --- Disks ---------------------------------------------------------------------------------------

def assert_intact(folder):
    """One whole checkpoint, and not a byte of another."""
    assert os.listdir(folder) == ["step-000000001.npz"]
    assert is_what_was_written(read_checkpoint(folder / "step-000000001.npz"))


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"cannot write the checkpoint {folder}/step-000000001.npz"):
            write_checkpoint(folder, 1, ARRAYS, FACTS)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["numpy.savez", "os.replace", "os.fsync"])
def test_a_failing_disk_keeps_what_was_there(tmp_path, monkeypatch, call, code):
    write_checkpoint(tmp_path, 1, ARRAYS, FACTS)

    def fail(path, *_, **__):
        if call == "numpy.savez":
            path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(OSError, match=f"step-000000002.npz: {os.strerror(code)}. Free space") as caught:
            write_checkpoint(tmp_path, 2, ARRAYS, FACTS, keep=1)
    assert caught.value.errno == code
    assert_intact(tmp_path)
    write_checkpoint(tmp_path, 2, ARRAYS, FACTS)  # once there is room
    assert len(os.listdir(tmp_path)) == 2


def child_on_a_small_disk(connection, folder):
    """No file of this process may grow beyond 4 KiB; what a full disk is like, without filling one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        write_checkpoint(folder, 2, ARRAYS, FACTS)
    except OSError as error:
        connection.send((error.errno, str(error)))


def test_a_disk_that_fills_up_while_writing(tmp_path):
    write_checkpoint(tmp_path, 1, ARRAYS, FACTS)
    code, text = children.finish(children.start(child_on_a_small_disk, tmp_path))
    assert code == errno.EFBIG
    assert f"cannot write the checkpoint {tmp_path}/step-000000002.npz: File too large. Free space" in text
    assert_intact(tmp_path)


# --- Runs ----------------------------------------------------------------------------------------

SMALL = replace(QUICK, schedule="cosine", warmup=20)  # with 600 images: 75 steps an epoch, 50 and 25


@pytest.fixture(scope="module")
def few(images):
    return images[0][:600], images[1][:100]


@pytest.fixture(scope="module")
def finished(few, tmp_path_factory):
    """A run that wrote a checkpoint after each portion: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(SMALL, few, folder)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run's folder."""
    return shutil.copytree(finished[0], tmp_path / "run")


def run(recipe, images, folder=None, **options):
    """Weights and history."""
    model, history = fit(recipe, *images, verbose=False, checkpoint_dir=folder, checkpoint_seconds=0,
                         **options)
    return model.get_weights(), history


def test_checkpoints_change_nothing(finished, few):
    folder, result = finished
    assert children.same(result, run(SMALL, few))
    # Step 75 is the end of an epoch, 125 in the middle of one, 150 the end of the run.
    assert [path.name[-7:-4] for path in list_checkpoints(folder)] == ["075", "125", "150"]


def test_a_finished_run_is_returned_without_training(finished, few, folder, monkeypatch):
    monkeypatch.setattr(loop, "run_epoch", lambda *_: pytest.fail("it trains"))
    seen = []
    assert children.same(finished[1], run(SMALL, few, folder, callbacks=[lambda *args: seen.append(args)]))
    assert not seen and [path.read_bytes() for path in list_checkpoints(folder)] == [
        path.read_bytes() for path in list_checkpoints(finished[0])]


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 3), ("batch_size", 16), ("optimizer", "nadam"), ("learning_rate", 2e-3), ("beta_1", 0.8),
    ("beta_2", 0.95), ("schedule", "constant"), ("warmup", 10), ("estimator", "closed_form"),
    ("objective", "iwae"), ("output_bias", "log_odds"), ("seed", 1), ("latent_dim", 3), ("filters", (4, 8)),
])
def test_another_recipe_is_refused(few, folder, name, value):
    other = replace(SMALL, **{name: value} | ({"warmup": 0} if name == "schedule" else {}))
    with pytest.raises(ValueError, match=f"step-000000150.npz belongs to another run: its {name} is"):
        run(other, few, folder)


def test_other_images_are_refused(few, folder):
    x_train, x_test = few
    changed = x_train.copy()
    changed[-1, 0, 0, 0] = 1 - changed[-1, 0, 0, 0]  # one pixel
    for images, name in [((changed, x_test), "training images"), ((x_train, changed), "test images"),
                         ((x_train[:-1], x_test), "training images"), ((x_train[::-1], x_test), "training")]:
        with pytest.raises(ValueError, match=f"belongs to another run: its {name}"):
            run(SMALL, images, folder)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_goes_on(finished, few, folder):
    newest = folder / "step-000000150.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ValueError, match="step-000000150.npz is damaged.*go on from step-000000125.npz"):
        run(SMALL, few, folder)
    newest.unlink()
    seen = []
    result = run(SMALL, few, folder, callbacks=[lambda epoch, *_: seen.append(epoch)])
    assert children.same(result, finished[1])  # from the middle of epoch 2
    assert seen == [2]


def test_a_run_goes_on_from_the_end_of_an_epoch(finished, few, folder):
    for path in list_checkpoints(folder)[1:]:
        path.unlink()
    assert children.same(run(SMALL, few, folder), finished[1])


def test_a_checkpoint_that_cannot_be_written_is_noticed_before_any_work(few, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(loop, "run_epoch", lambda *_: pytest.fail("it trains"))
    with pytest.raises(OSError, match="cannot write the checkpoint .*/file/run/step-000000000.npz"):
        run(SMALL, few, tmp_path / "file" / "run")


def test_a_resumed_run_notices_a_read_only_folder_before_any_work(finished, few, folder, monkeypatch):
    """`os.replace` fails as on a read-only disk, for root too. A finished run is only read."""
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(loop, "run_epoch", lambda *_: pytest.fail("it trains"))
    assert children.same(finished[1], run(SMALL, few, folder))
    (folder / "step-000000150.npz").unlink()
    before = [path.read_bytes() for path in list_checkpoints(folder)]
    with pytest.raises(OSError, match="cannot write the checkpoint .*step-000000125.npz: Read-only file system"):
        run(SMALL, few, folder)
    assert before == [path.read_bytes() for path in list_checkpoints(folder)] and len(before) == 2


def test_a_disk_that_fills_up_in_the_middle_stops_the_run_and_more_room_ends_it(
        finished, few, tmp_path, monkeypatch):
    savez, folder = np.savez, tmp_path / "run"

    def full_after_two(path, **arrays):
        if len(list_checkpoints(folder)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(path, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_after_two)
        with pytest.raises(OSError, match="step-000000075.npz: No space left on device. Free space"):
            run(SMALL, few, folder)
    assert [path.name[-7:-4] for path in list_checkpoints(folder)] == ["000", "050"]
    assert children.same(run(SMALL, few, folder), finished[1])


# --- Kills ---------------------------------------------------------------------------------------

# Runs that are killed ten times each: at a point of the program that a generator draws, or at a moment that it draws.
ELBO = [QUICK, replace(QUICK, schedule="cosine", warmup=30, estimator="closed_form", output_bias="log_odds", seed=3)]
OTHERS = [replace(QUICK, model="conditional"), replace(QUICK, objective="iwae", samples=5)]
# A child passes three points when it writes its first checkpoint and five or six for each 50 steps after that, of
# which there are eight. So most children go on a little, and a run seldom ends before its ten kills.
FARTHEST = 12


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def set_trap(n, connection):
    """Let this process die at the n-th point that it passes, and say which it was; patches what `fit` calls there."""
    passed = itertools.count(1)

    def point(name, last_act=lambda: None):
        if next(passed) == n:
            last_act()
            connection.send(name)
            die()

    def write(path, **arrays):
        savez(path, **arrays)
        point("half a checkpoint", lambda: os.truncate(path, path.stat().st_size // 2))

    def rename(source, target):
        point("before the renaming")
        move(source, target)
        point("after the renaming")

    def delete(path, missing_ok=False):
        if path.name.startswith("step-"):
            point("before a deletion")
        unlink(path, missing_ok)

    def trace(function, model, *labels):
        traced = make_trace(function, model, *labels)

        def evaluated(*batch):
            terms = traced(*batch)
            point("evaluation")
            return terms

        return evaluated

    def make_run_steps(*arguments):
        run_steps = make_steps(*arguments)

        def portion(batches, n):
            point("between two portions")
            return run_steps(batches, n)

        return portion

    savez, move, unlink = np.savez, os.replace, Path.unlink
    make_trace, make_steps = loop.trace, loop.make_run_steps
    np.savez, os.replace, Path.unlink = write, rename, delete
    loop.trace, loop.make_run_steps = trace, make_run_steps


def set_clock(count, connection):
    """Say when the portion of that number begins; the next waits for the kill, which is on its way."""
    left = [count]

    def make_run_steps(*arguments):
        run_steps = make_steps(*arguments)

        def portion(batches, n):
            left[0] -= 1
            if left[0] == 0:
                run_steps(batches, loop.tf.constant(0))  # trace now, so that the steps begin at once
                connection.send("a moment")
            elif left[0] < 0:
                time.sleep(children.PATIENCE)
            return run_steps(batches, n)

        return portion

    make_steps, loop.make_run_steps = loop.make_run_steps, make_run_steps


def child_fit(connection, recipe, images, folder=None, set_death=None, number=None):
    """Runs in a child: `fit`, with a checkpoint after each portion of steps."""
    if set_death:
        set_death(number, connection)
    images = [Images(*x) if isinstance(x, tuple) else x for x in images]  # (x, labels)
    model, history = fit(recipe, *images, verbose=False, checkpoint_dir=folder, checkpoint_seconds=0)
    connection.send((model.get_weights(), history))


def fit_in_danger(recipe, images, folder, rng, log):
    """Start a child and kill it at random; None, or its result if it ends before that point."""
    by_clock = rng.random() < 0.3
    number, seconds = int(rng.integers(1, 3 if by_clock else FARTHEST + 1)), rng.uniform(0, 0.25)
    process, connection = children.start(child_fit, recipe, images, folder,
                                         set_clock if by_clock else set_trap, number)
    assert connection.poll(children.PATIENCE), "the child hangs"
    what = connection.recv()  # or the result
    if what == "a moment":
        time.sleep(seconds)
        process.kill()
        what = f"{what}, {1000 * seconds:.0f} ms after the beginning of its portion {number}"
    process.join(children.PATIENCE)
    if process.exitcode == 0:
        return connection.recv() if isinstance(what, str) else what
    assert process.exitcode == -signal.SIGKILL, log
    found = list_checkpoints(folder)
    for path in found:
        read_checkpoint(path)
    log.append(f"{folder.name}, {what}: {[path.stem for path in found]}, {len(os.listdir(folder)) - len(found)} leftover")
    return None


def fit_through_kills(recipe, images, folder, rng, kills):
    """Kill so many children; the folders and results of all runs that came to their end, and a log."""
    results, log = [], []
    while len(log) < kills:
        place, result = folder / f"run-{len(results)}", None
        place.mkdir(parents=True)
        while result is None and len(log) < kills:
            result = fit_in_danger(recipe, images, place, rng, log)
        results.append((place, result or children.finish(children.start(child_fit, recipe, images, place))))
    return results, log


@pytest.mark.parametrize("recipes", [ELBO, OTHERS], ids=["elbo", "conditional and iwae"])
@pytest.mark.long
def test_a_run_killed_twenty_times_ends_like_one_that_was_left_alone(images, mnist, tmp_path, recipes):
    seed = int(os.environ.get("KILL_SEED", 0))  # another number draws other points
    kills = int(os.environ.get("KILLS", 10))  # of each of the two runs
    labels = mnist[0][1][:1600], mnist[1][1][:600]
    images = tuple(zip(images, labels, strict=True))
    with ThreadPoolExecutor() as pool:  # the recipes side by side, in children of their own
        jobs = [pool.submit(fit_through_kills, recipe, images, tmp_path / str(i), np.random.default_rng([seed, i]), kills)
                for i, recipe in enumerate(recipes)]
        uninterrupted = [pool.submit(lambda job: children.finish(children.start(*job)), (child_fit, recipe, images))
                         for recipe in recipes]
    for recipe, job, alone in zip(recipes, jobs, uninterrupted, strict=True):
        results, log = job.result()
        print(*log, sep="\n")
        assert len(log) == kills and len(alone.result()[1]) == recipe.epochs
        for folder, result in results:
            assert children.same(result, alone.result())
            # The last three, and nothing left over from any kill.
            assert sorted(os.listdir(folder)) == [f"step-{step:09}.npz" for step in (300, 350, 400)], log


# --- Processes -----------------------------------------------------------------------------------

PROGRAM = """
import pickle, sys
from vae_course.engine.loop import fit
recipe, images = pickle.load(sys.stdin.buffer)
model, history = fit(recipe, *images, verbose=False)
pickle.dump((model.get_weights(), history), sys.stdout.buffer)
"""


@pytest.mark.parametrize("filters", [(4, 4), pytest.param((32, 64), marks=pytest.mark.long)])
def test_two_fresh_processes_agree_to_the_last_bit(few, filters):
    """One forked, one started from nothing; and this one, which has run much else before."""
    recipe = replace(SMALL, filters=filters)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        output = process.communicate(pickle.dumps((recipe, few)), timeout=children.PATIENCE)[0]
    fresh, forked = pickle.loads(output), children.finish(children.start(child_fit, recipe, few))
    assert children.same(fresh, forked) and children.same(fresh, run(recipe, few))

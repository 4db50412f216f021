"""One folder, one run: claims, locks, and what lies in a folder that is none of a run's."""

import io
import json
import multiprocessing
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from vae_course.data import preprocess_images
from vae_course.engine import cli
from vae_course.engine.checkpoints import is_chief
from vae_course.engine.images import Images
from vae_course.engine.recipes import Recipe
from vae_course.engine.run_folder import (
    HOLDER,
    LOCK,
    RunWriter,
    claim,
    hold,
    read_frames,
    write_settings,
)
from vae_course.model import CVAE

# A child runs no TensorFlow: it claims a folder, tells, waits for a word and ends.
FORK = multiprocessing.get_context("fork")


def claim_in_a_child(connection, name, out):
    """Send the claimed folder or the refusal; keep the folder until something is received."""
    try:
        with claim(name, out) as folder:
            connection.send(str(folder))
            connection.recv()
    except click.UsageError as error:
        connection.send(error.message)
    os._exit(0)


@pytest.fixture
def children():
    """A function that starts `claim_in_a_child`; what still runs is killed in the end."""
    started = []

    def start(name, out=None):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=claim_in_a_child, args=(theirs, name, out), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def test_processes_that_want_one_name_get_different_folders(tmp_path, monkeypatch, children):
    monkeypatch.chdir(tmp_path)
    at_work = [children("short") for _ in range(12)]
    got = [connection.recv() for _, connection in at_work]
    assert sorted(got) == sorted(["runs/short", *(f"runs/short-{i}" for i in range(2, 13))])
    for process, connection in at_work:
        connection.send("end")
        process.join()
    assert not list(Path("runs").glob(f"*/{HOLDER}"))


def test_threads_that_want_one_name_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate = threading.Barrier(16)

    def one(_):
        try:
            gate.wait()
            with claim("short") as folder:
                gate.wait()  # all hold theirs
                return folder
        except Exception:
            gate.abort()  # nobody waits for us
            raise

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(one, range(16)))) == 16


def test_of_many_that_want_one_folder_one_gets_it(tmp_path, children):
    at_work = [children("short", tmp_path / "mine") for _ in range(12)]
    got = [connection.recv() for _, connection in at_work]
    assert got.count(str(tmp_path / "mine")) == 1
    refused = [text for text in got if text != str(tmp_path / "mine")]
    assert all(text.startswith(f"{tmp_path / 'mine'} is in use: ") for text in refused)


def test_a_folder_in_use_says_who_has_it(tmp_path, children):
    process, connection = children("short", tmp_path / "mine")
    connection.recv()
    for want in (lambda: claim("short", tmp_path / "mine"), lambda: hold(tmp_path / "mine")):
        with pytest.raises(click.UsageError) as caught, want():
            pass
        text = f"is in use: process {process.pid} on {socket.gethostname()} has worked in it since 2"
        assert text in caught.value.message
    connection.send("end")
    process.join()
    with claim("short", tmp_path / "mine"), pytest.raises(click.UsageError, match=f"process {os.getpid()} "):
        hold(tmp_path / "mine").__enter__()  # this process has it itself


def test_the_lock_of_a_killed_process_is_gone(tmp_path, children):
    process, connection = children("short", tmp_path / "mine")
    connection.recv()
    process.kill()
    process.join()
    assert (tmp_path / "mine" / HOLDER).exists()  # it had no time to tidy up
    with claim("short", tmp_path / "mine"):
        assert json.loads((tmp_path / "mine" / HOLDER).read_text())["pid"] == os.getpid()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [LOCK]


def test_what_another_left_behind_is_seen_once_the_lock_is_free(tmp_path):
    with hold(tmp_path):
        write_settings(tmp_path, Recipe(), "mnist", 64)
    with pytest.raises(click.UsageError, match="holds something already"):
        claim("short", tmp_path).__enter__()
    with hold(tmp_path):  # a resumed run may
        pass


def test_no_lock_is_left_in_a_folder_of_other_things(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    for out in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(click.UsageError, match="holds something already"):
            claim("short", out).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# --- The command ---------------------------------------------------------------------------------

def command(*arguments):
    return CliRunner().invoke(cli.main, [str(word) for word in arguments], catch_exceptions=False)


@pytest.fixture
def no_training(monkeypatch):
    """`train` without the training: the folders in which it would have worked, and who held them."""
    seen = []
    monkeypatch.setattr(cli, "train_into", lambda folder, *_: seen.append((folder, (folder / HOLDER).exists())))
    return seen


def test_two_trainings_at_once_take_two_folders_and_keep_their_own_settings(tmp_path, monkeypatch):
    """The trial of the issue: in 7 of 8 both wrote one folder."""
    monkeypatch.chdir(tmp_path)
    inner = []

    def train_into(folder, *_):
        if not inner:  # while the first run is at work, a second one starts
            inner.append(folder)
            assert command("train", "--seed", 2).exit_code == 0
            for words in (["--out", folder], ["--resume"], ["--resume", "--out", folder]):
                if words == ["--resume"]:
                    os.utime(folder / "settings.json")  # the last run
                result = command("train", *words)
                assert result.exit_code == 2 and f"{folder} is in use: process {os.getpid()} on" in result.output
        else:
            inner.append(folder)

    monkeypatch.setattr(cli, "train_into", train_into)
    assert command("train", "--seed", 1).exit_code == 0
    assert inner == [Path("runs/short"), Path("runs/short-2")]
    seeds = [json.loads((folder / "settings.json").read_text())["recipe"]["seed"] for folder in inner]
    assert seeds == [1, 2]
    assert command("train", "--resume", "--out", inner[0]).exit_code == 0  # the first one is free again


def test_a_command_that_fails_lets_its_folder_go(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train_into", fail)
    result = command("train", "--out", tmp_path / "run")
    assert result.exit_code == 130 and "--resume --out" in result.output
    with hold(tmp_path / "run"):
        pass


def task(index):
    return json.dumps({"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]},
                       "task": {"type": "worker", "index": index}})


def test_of_several_workers_the_first_holds_the_folder(tmp_path, monkeypatch, no_training):
    out, held_by_parent = tmp_path / "run", []
    monkeypatch.setattr(cli, "run_workers", lambda *_: held_by_parent.append((out / HOLDER).exists()))
    assert command("train", "--out", out, "--processes", 2).exit_code == 0 and held_by_parent == [False]
    for index in (0, 1):
        monkeypatch.setenv("TF_CONFIG", task(index))
        assert command("train", "--resume", "--out", out).exit_code == 0
    assert no_training == [(out, True), (out, False)]


def test_the_chief_is_known_before_there_is_a_strategy(monkeypatch):
    import tensorflow as tf

    own = json.dumps(json.loads(task(0)) | {"cluster": {"chief": ["127.0.0.1:3"], "worker": ["127.0.0.1:1"]}})
    for config, chief in ((None, True), (task(0), True), (task(1), False), (own, False)):
        monkeypatch.setenv("TF_CONFIG", config) if config else monkeypatch.delenv("TF_CONFIG", raising=False)
        assert is_chief(tf.distribute.cluster_resolver.TFConfigClusterResolver()) is chief


# --- The film ------------------------------------------------------------------------------------

FRAMES = np.zeros((3, 20, 30), np.uint8)


def saved(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def claimed_huge():
    """A file of 2 kB whose header promises more bytes than there is memory."""
    file = io.BytesIO()
    np.savez(file, frames=FRAMES)
    header = b"(3, 20, 30), }" + b" " * 12
    assert header in file.getvalue()
    return file.getvalue().replace(header, b"(3999999999999, 20, 30), }")


BAD_FRAMES = {
    "empty file": b"", "text": b"no film", "half": saved(frames=FRAMES)[:-30], "other key": saved(images=FRAMES),
    "floats": saved(frames=FRAMES.astype(float)), "no frames": saved(frames=FRAMES[:0]),
    "one picture": saved(frames=FRAMES[0]), "colours": saved(frames=FRAMES[..., None]),
    "objects": saved(frames=np.array([FRAMES, None], object)), "one array": b"\x93NUMPY" + bytes(100),
    "a number": saved(frames=np.uint8(3)),
    "huge": claimed_huge()}


def test_frames_come_back(tmp_path):
    assert read_frames(tmp_path / "frames.npz") == []
    (tmp_path / "frames.npz").write_bytes(saved(frames=FRAMES))
    assert np.array_equal(read_frames(tmp_path / "frames.npz"), FRAMES)


@pytest.mark.parametrize("content", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_damaged_film_is_refused(tmp_path, content):
    (tmp_path / "frames.npz").write_bytes(content)
    with pytest.raises(ValueError, match="frames.npz is damaged or no film of a run. Move it away"):
        read_frames(tmp_path / "frames.npz")


def test_a_film_of_another_size_is_refused(tmp_path, mnist):
    (tmp_path / "frames.npz").write_bytes(saved(frames=FRAMES))
    writer = RunWriter(tmp_path, Recipe(), Images(preprocess_images(mnist[1][0][:16])))
    with pytest.raises(ValueError, match=r"frames.npz holds frames of \(20, 30\), those of this run are"):
        writer(3, CVAE(seed=0), [])
    assert np.array_equal(read_frames(tmp_path / "frames.npz"), FRAMES)  # it was left as it was

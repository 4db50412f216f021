"""Child processes for tests that kill, restart or compare whole runs.

A server process imports TensorFlow once and runs nothing of it; each child is a fork of that
server, so it starts at once and has a TensorFlow of its own that has not run anything yet.
"""

import multiprocessing
import threading

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vae_course.training", "vae_course.data"])
PATIENCE = 240  # seconds until a child counts as hung; no test waits as long on purpose


def start(function, *arguments):
    """Run function(connection, *arguments) in a child; the process and our end of the connection."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=run, args=(function, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def run(function, *arguments):
    """What a child does first: give tqdm a lock that needs no clearing up after a kill."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    function(*arguments)


def finish(child):
    """What the child sends as its result; AssertionError if it dies or hangs instead."""
    process, connection = child
    try:
        assert connection.poll(PATIENCE), "the child hangs"
        return connection.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the child died with {process.exitcode}") from None
    finally:
        stop(process)


def stop(process):
    """End a child, at once if it still runs."""
    process.join(1 if process.exitcode is None else 0)
    if process.is_alive():
        process.kill()
    process.join()


def same(one, two):
    """Whether two results (weights, history) of `fit` are equal to the last bit."""
    return one[1] == two[1] and all(np.array_equal(a, b) and a.dtype == b.dtype
                                    for a, b in zip(one[0], two[0], strict=True))

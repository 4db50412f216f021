"""Peak resident memory of the course's jobs, each in a process of its own.

This process imports no TensorFlow: a child's peak would otherwise begin at its parent's.
"""

import json
import subprocess
import sys

from common import log, machine, options, save

FULL = {"import": {}, "evaluate": {"images": 10000},
        "train_batch_32": {"images": 60000, "batch": 32},
        "train_batch_128": {"images": 60000, "batch": 128},
        # Allocators and thread pools fill up at first; what streams on must not add to that.
        "stream_50000": {"images": 50_000, "batch": 128},
        "stream_150000": {"images": 150_000, "batch": 128},
        "stream_300000": {"images": 300_000, "batch": 128}}
QUICK = {"import": {}, "evaluate": {"images": 100},
         "stream_100": {"images": 100, "batch": 128}}


def peak_mib() -> float:
    "The most memory that this process has had so far."
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def stream(n: int):
    "A dataset of n images that are made as they are asked for, and of which none is kept."
    import numpy as np
    import tensorflow as tf

    def images():
        for i in range(n):
            image = np.zeros((28, 28, 1), np.float32)
            image[i % 20:i % 20 + 8, i % 17:i % 17 + 6] = 1
            yield image

    kind = tf.TensorSpec((28, 28, 1), tf.float32)
    dataset = tf.data.Dataset.from_generator(images, output_signature=kind)
    return dataset.apply(tf.data.experimental.assert_cardinality(n))


def job(name: str, images: int = 0, batch: int = 0):
    "One child's work."
    import quiet  # noqa: F401
    from published import mnist

    from vae_course.engine.families import FastCVAE
    from vae_course.engine.recipes import Recipe
    from vae_course.engine.loop import fit
    from vae_course.training import evaluate

    if name == "evaluate":
        evaluate(FastCVAE(2, seed=0), mnist(1, images)[1])
    elif name != "import":
        x_train, x_test = mnist(images, 500)
        x_train = stream(images) if name.startswith("stream") else x_train
        fit(Recipe(epochs=1, batch_size=batch), x_train, x_test, verbose=False)


def measure(name: str, settings: dict) -> float:
    "Peak memory of a child that does one job, in MiB."
    command = [sys.executable, __file__, "--job", json.dumps({"name": name} | settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak = float(done.stdout.split()[-1])
    log(f"{name}: {peak:.0f} MiB")
    return peak


def main():
    parser = options(__doc__)
    parser.add_argument("--job", help="what a child does; not for people")
    chosen = parser.parse_args()
    if chosen.job:
        job(**json.loads(chosen.job))
        print(peak_mib())
        return
    facts, jobs = machine(), QUICK if chosen.quick else FULL
    peaks = {name: measure(name, settings) for name, settings in jobs.items()}
    figures = {name: jobs[name] | {"peak_mib": peak,
                                   "above_import_mib": round(peak - peaks["import"], 1)}
               for name, peak in peaks.items()}
    growth = {}
    if not chosen.quick:
        more = peaks["stream_300000"] - peaks["stream_150000"]
        growth = {"stream_growth_mib": round(more, 1),
                  # 784 float32 pixels an image: what it would grow by if images were kept.
                  "stream_growth_if_kept_mib": round(150_000 * 784 * 4 / 2**20, 1)}
    save("memory", {"jobs": figures} | growth, facts, chosen.quick)


if __name__ == "__main__":
    main()

"""How the cost of an epoch grows: with the number of images, the batch size and the filters.

Tracing and evaluation are not in these figures. The settings of one series take turns.
"""

import quiet  # noqa: F401  (before TensorFlow)

from functools import partial

import numpy as np
import tensorflow as tf
from common import log, machine, measure, options, rounded, save, summary
from published import mnist

from vae_course.engine.checkpoints import start_run
from vae_course.engine.recipes import Recipe
from vae_course.engine.loop import PORTION, make_run_steps, noisy_batches

FULL = {"rounds": 5, "images": (1920, 3840, 7680, 15360, 30720, 60000),
        "batch_size": (8, 16, 32, 64, 128, 256), "batch_images": 7680,
        "filters": ((16, 32), (32, 64), (64, 128)), "filters_images": 3840}
QUICK = {"rounds": 1, "images": (320, 640), "batch_size": (32,), "batch_images": 320,
         "filters": ((16, 32),), "filters_images": 320}


def make_epoch(recipe, x):
    "A function that trains on the first n images once, as `fit` does, without evaluation."
    strategy = tf.distribute.get_strategy()
    run_steps = make_run_steps(start_run(recipe, x), recipe, strategy)

    def epoch(n):
        batches = noisy_batches(recipe, x[:n], 1)
        batches = iter(strategy.experimental_distribute_dataset(batches))
        steps = -(-n // recipe.batch_size)
        for done in range(0, steps, PORTION):
            run_steps(batches, tf.constant(min(PORTION, steps - done))).numpy()

    epoch(2 * recipe.batch_size)  # traces, and makes the optimizer's variables
    return epoch


def series(name: str, tasks: dict, images: dict, rounds: int) -> dict:
    "Seconds of an epoch for each setting, and the cost of one image."
    log(f"series: {name}")
    found = {}
    for setting, seconds in measure(tasks, rounds).items():
        per_image = [1e6 * s / images[setting] for s in seconds]
        found[setting] = {"images": images[setting]} | summary(seconds, "s") | {
            "median_us_per_image": rounded(float(np.median(per_image)))}
    return found


def exponent(found: dict) -> float:
    "The slope of log seconds over log images: 1 is proportional."
    points = [(entry["images"], entry["median_s"]) for entry in found.values()]
    return round(float(np.polyfit(*np.log(points).T, 1)[0]), 3)


def main():
    chosen, facts = options(__doc__).parse_args(), machine()
    plan = QUICK if chosen.quick else FULL
    tf.get_logger().setLevel("ERROR")  # many engines in one process look like retracing to it
    recipe = {"estimator": "closed_form", "learning_rate": 1e-3}
    x, _ = mnist(max(plan["images"]), 1)

    epoch = make_epoch(Recipe(batch_size=64, **recipe), x)
    by_images = series("images", {str(n): partial(epoch, n) for n in plan["images"]},
                       {str(n): n for n in plan["images"]}, plan["rounds"])
    n = plan["batch_images"]
    by_batch = series("batch size", {
        str(size): partial(make_epoch(Recipe(batch_size=size, **recipe), x[:n]), n)
        for size in plan["batch_size"]}, dict.fromkeys(map(str, plan["batch_size"]), n),
        plan["rounds"])
    n = plan["filters_images"]
    by_filters = series("filters", {
        "-".join(map(str, filters)):
        partial(make_epoch(Recipe(batch_size=64, filters=filters, **recipe), x[:n]), n)
        for filters in plan["filters"]},
        dict.fromkeys(("-".join(map(str, f)) for f in plan["filters"]), n), plan["rounds"])
    save("scaling", {"batch_size_of_images_and_filters": 64, "by_images": by_images,
                     "exponent_of_images": exponent(by_images), "by_batch_size": by_batch,
                     "by_filters": by_filters}, facts, chosen.quick)


if __name__ == "__main__":
    main()

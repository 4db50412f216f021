"""How long until the test ELBO of the tutorial: its ten epochs against the recipe FAST.

Seeds 0, 1 and 2 of FAST run before, in the middle of, and after the tutorial's epochs, whose
clock stands still meanwhile. With --best: ELBO and time of the recipe BEST instead.
"""

import statistics
import time
from dataclasses import replace

from common import log, machine, options, rounded, save
from published import as_ours, mnist, published_dataset, train

from vae_course.engine.recipes import BEST, FAST
from vae_course.engine.loop import fit
from vae_course.training import evaluate

SEEDS = (0, 1, 2)


def run_ours(recipe, x_train, x_test) -> dict:
    "One `fit`, from the call to its return, and its test ELBO."
    start = time.perf_counter()
    model, _ = fit(recipe, x_train, x_test, verbose=False)
    seconds = time.perf_counter() - start
    elbo = evaluate(model, x_test)["elbo"]
    log(f"ours, seed {recipe.seed}: {seconds:.1f} s, test ELBO {elbo:.3f}")
    return {"seed": recipe.seed, "seconds": rounded(seconds), "test_elbo_nats": round(elbo, 4)}


def run_side_by_side(recipe, x_train, x_test, epochs) -> tuple[dict, list]:
    "The tutorial's epochs, and ours before, in the middle and after."
    def ours(seed):
        return run_ours(replace(recipe, seed=seed), x_train, x_test)

    runs, epoch_seconds = [ours(0)], []
    # The tutorial builds its datasets before the model; they are not on its clock.
    test_batches = published_dataset(x_test)
    program = train(published_dataset(x_train), test_batches, epochs)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        model, printed = next(program)
        epoch_seconds.append(time.perf_counter() - start)
        log(f"tutorial, epoch {epoch}: {epoch_seconds[-1]:.1f} s, test ELBO {printed:.3f}")
        if epoch == epochs // 2:
            runs.append(ours(1))
    runs.append(ours(2))
    elbo = evaluate(as_ours(model), x_test)["elbo"]
    published = {"epochs": epochs, "seconds": rounded(sum(epoch_seconds)),
                 "epoch_seconds": [rounded(s) for s in epoch_seconds],
                 "test_elbo_nats": round(elbo, 4), "test_elbo_as_printed_nats": round(printed, 4)}
    return published, runs


def without_stalls(published: dict, our_seconds: float) -> dict:
    "The ratio if each of the tutorial's epochs had taken as long as their median."
    seconds = published["epochs"] * statistics.median(published["epoch_seconds"])
    return {"published_seconds_at_median_epoch": rounded(seconds),
            "ratio_of_times_at_median_epoch": rounded(seconds / our_seconds)}


def compare(quick: bool) -> dict:
    "The figures of the main claim."
    x_train, x_test = mnist(640, 200) if quick else mnist()
    recipe = replace(FAST, warmup=5) if quick else FAST  # the quick runs are shorter than a warm-up
    published, runs = run_side_by_side(recipe, x_train, x_test, 2 if quick else 10)
    for run in runs:
        run["ratio_of_times"] = rounded(published["seconds"] / run["seconds"])
        run["reached_published_elbo"] = run["test_elbo_nats"] >= published["test_elbo_nats"]
    our_seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "train_images": len(x_train), "test_images": len(x_test),
        "published": published, "ours_fast": runs,
        "ours_median_seconds": our_seconds,
        "ratio_of_times_median": statistics.median(run["ratio_of_times"] for run in runs),
        **without_stalls(published, our_seconds),
        "all_reached_published_elbo": all(run["reached_published_elbo"] for run in runs),
    }


def best(quick: bool) -> dict:
    "ELBO and seconds of the recipe BEST."
    x_train, x_test = mnist(640, 200) if quick else mnist()
    recipe = replace(BEST, epochs=1, warmup=5) if quick else BEST
    runs = [run_ours(replace(recipe, seed=seed), x_train, x_test) for seed in SEEDS]
    return {
        "train_images": len(x_train), "test_images": len(x_test), "epochs": recipe.epochs,
        "ours_best": runs,
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "mean_test_elbo_nats": round(statistics.mean(r["test_elbo_nats"] for r in runs), 4),
    }


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--best", action="store_true", help="measure BEST; writes best.json")
    chosen, facts = parser.parse_args(), machine()
    name, figures = ("best", best) if chosen.best else ("time_to_elbo", compare)
    save(name, figures(chosen.quick), facts, chosen.quick)

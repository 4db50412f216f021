"""The test ELBO of 10,000 images: the tutorial's eager loop against `make_evaluate`.

Both have the same weights. The first call of ours is timed apart, because it traces.
"""

import statistics

from common import log, machine, measure, median_ratio, options, save, summary
from published import mnist, published_dataset, published_test_elbo, with_weights_of

from vae_course.engine.families import FastCVAE
from vae_course.engine.loop import make_evaluate


def main():
    chosen, facts = options(__doc__).parse_args(), machine()
    _, x = mnist(1, 500 if chosen.quick else 10000)
    model = FastCVAE(2, seed=0)
    published, batches = with_weights_of(model), published_dataset(x)
    elbos, kept = {}, {}

    def tutorial():
        elbos["tutorial_nats"] = published_test_elbo(published, batches)

    def first_call():
        kept["evaluate"] = make_evaluate(model)
        elbos["ours_nats"] = kept["evaluate"](x)["elbo"]

    published_test_elbo(published, batches.take(2))  # the eager operations' own first calls
    first_call()  # so that there is something to call again
    tasks = {"tutorial": tutorial, "ours_first": first_call,
             "ours_later": lambda: kept["evaluate"](x)}
    seconds = measure(tasks, 1 if chosen.quick else 7)
    figures = {f"{name}_call": summary(values, "s") for name, values in seconds.items()}
    ratios = {f"tutorial_over_{name}": median_ratio(seconds["tutorial"], seconds[name])
              for name in ("ours_first", "ours_later")}
    rate = len(x) / statistics.median(seconds["ours_later"])
    log(f"ratios: {ratios}, ELBO of the untrained weights: {elbos}")
    save("evaluation", {"images": len(x), "test_elbo_of_untrained_weights": elbos} | figures
         | {"ratios": ratios, "ours_later_images_per_s": round(rate)}, facts, chosen.quick)


if __name__ == "__main__":
    main()

"""log p(x) of 10,000 images by quadrature, chapter 21: seconds, peak resident memory, error.

The model is the one that comes with the package. Each call covers the plane and refines the grid anew.
"""

import quiet  # noqa: F401
from common import log, machine, measure, options, rounded, save, summary
from memory import peak_mib
from published import mnist

from vae_course.truth.evaluation import log_marginal
from vae_course.engine.runs import load_pretrained


def main():
    chosen, facts = options(__doc__).parse_args(), machine()
    _, x = mnist(1, 100 if chosen.quick else 10000)
    (model, _), found = load_pretrained(), []
    seconds = measure({"call": lambda: found.append(log_marginal(model, x))},
                      1 if chosen.quick else 5)
    figures = {"log_px_nats": round(float(found[-1].log_px.mean()), 4),
               "error_of_mean_nats": rounded(found[-1].error_of_mean),
               "finest_step": found[-1].step, "peak_mib": peak_mib()}
    log(f"{figures}")
    save("log_marginal", {"images": len(x), "call": summary(seconds["call"], "s")} | figures,
         facts, chosen.quick)


if __name__ == "__main__":
    main()

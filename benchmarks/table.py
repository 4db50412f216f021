"""Write the figures of results/*.json into README.md, between its two markers.

With --check nothing is written; the exit status is 1 if README.md says something else. With
--quick the table of the quick results is printed instead, to show that it can be made.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from common import HERE, RESULTS

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
AIM = 0.7  # share of the limit
LABELS = {"tutorial": "the tutorial's loop", "torch": "PyTorch",
          "torch_compile": "`torch.compile`", "jax": "JAX and Flax"}


def number(value: float, digits: int = 3) -> str:
    "A few digits, thousands apart, and a true minus sign."
    digits = max(digits - len(str(int(abs(value)))), 0) if abs(value) >= 1 else digits - 1
    return f"{value:,.{digits}f}".replace("-", "−")


def elbo(value: float) -> str:
    "Nats with two decimals."
    return f"{value:.2f}".replace("-", "−")


def listed(values, form=number) -> str:
    "One after the other."
    return ", ".join(form(value) for value in values)


def time_to_elbo_rows(result: dict):
    "The main claim, or what became of it."
    published, ours = result["published"], result["ours_fast"]
    missed = sum(not run["reached_published_elbo"] for run in ours)
    what = "" if not missed else f"; {missed} of {len(ours)} seeds stayed below"
    yield (f"Time to the test ELBO of the tutorial's {published['epochs']} epochs",
           f"{number(result['ours_median_seconds'])} s against {number(published['seconds'])} s: "
           f"{number(result['ratio_of_times_median'])} times as fast, or "
           f"{number(result['ratio_of_times_at_median_epoch'])} times if all of the tutorial's epochs had taken "
           f"their median time, {number(result['published_seconds_at_median_epoch'])} s{what}",
           f"recipe `fast`, seeds 0, 1, 2: {listed((r['test_elbo_nats'] for r in ours), elbo)}; "
           f"tutorial {elbo(published['test_elbo_nats'])} nats")


def best_rows(result: dict):
    "ELBO at the tutorial's number of epochs."
    elbos = [run["test_elbo_nats"] for run in result["ours_best"]]
    yield (f"Test ELBO after {result['epochs']} epochs", f"{elbo(result['mean_test_elbo_nats'])} nats",
           f"recipe `best`, seeds 0, 1, 2: {listed(elbos, elbo)}")


def throughput_rows(result: dict):
    "Images per second, and against whom."
    for key in (key for key in result if key.startswith("batch_")):
        figures = result[key]
        ratios = [f"{number(figures['ratios'][f'ours_over_{name}'])} times {label}"
                  for name, label in LABELS.items() if f"ours_over_{name}" in figures["ratios"]]
        rate = figures["rates"]["ours"]["median_images_per_s"]
        yield (f"Training, batch {key.removeprefix('batch_')}",
               f"{number(rate)} images/s; " + ", ".join(ratios),
               f"{result['rounds']} rounds in turns, {result['threads']} threads each")
        yield (f"Share of the limit, batch {key.removeprefix('batch_')}",
               f"{figures['share_of_limit_own_shapes']:.0%} of what the network's own matrix "
               f"products allow, {figures['share_of_limit_square']:.0%} of the rate of large ones",
               f"{figures['square_products']['flops_per_image'] / 1e6:.1f} MFLOP an image")


def evaluation_rows(result: dict):
    "The whole test set."
    ratios = result["ratios"]
    yield (f"Evaluation of {result['images']:,} images",
           f"{number(result['ours_later_call']['median_s'])} s, "
           f"{number(ratios['tutorial_over_ours_later'])} times as fast as the tutorial's loop "
           f"({number(ratios['tutorial_over_ours_first'])} times in the first call)",
           "same weights; the first call traces")


def log_marginal_rows(result: dict):
    "The integral of chapter 21."
    yield (f"log p(x) of {result['images']:,} images by quadrature",
           f"{number(result['call']['median_s'])} s, peak memory {number(result['peak_mib'])} MiB",
           f"estimated error of the mean {result['error_of_mean_nats']:.0e} nats".replace("-", "−"))


def manifold_rows(result: dict):
    "400 digits."
    yield (f"Manifold of {result['digits']} digits",
           f"{1e3 * result['ours_in_one_call']['median_s']:.0f} ms, {number(result['ratio'])} "
           "times as fast as one by one",
           f"pixels differ by {result['max_difference_of_probability']:.0e} at most"
           .replace("-", "−"))


def memory_rows(result: dict):
    "Peaks, and that a stream stays flat."
    peaks = {name: job["peak_mib"] for name, job in result["jobs"].items()}
    yield ("Peak memory", ", ".join(f"{name.replace('_', ' ')} {number(peak)} MiB"
                                    for name, peak in peaks.items()),
           "a process each; `import` is TensorFlow alone")
    if "stream_growth_mib" in result:
        growth = result["stream_growth_mib"]
        yield ("Twice the images from a stream",
               f"{number(abs(growth))} MiB {'less' if growth < 0 else 'more'}",
               f"kept images would need {number(result['stream_growth_if_kept_mib'])} MiB")


def scaling_rows(result: dict):
    "How cost grows."
    yield ("Time of an epoch against images",
           f"grows as images to the power {result['exponent_of_images']:.2f}",
           f"{listed((int(n) for n in result['by_images']), lambda n: f'{n:,}')} images")
    for key, what in (("by_batch_size", "batch size"), ("by_filters", "filters")):
        costs = {name: entry["median_us_per_image"] for name, entry in result[key].items()}
        yield (f"Time per image against {what}",
               ", ".join(f"{name}: {number(cost)} µs" for name, cost in costs.items()),
               "training steps, without tracing and evaluation")


def explorer_rows(result: dict):
    "The page in the browser."
    yield ("Explorer in the browser",
           f"{result['pointer_moving']['median_frames_per_s']:.0f} frames/s while the pointer moves, "
           f"{number(result['one_at_a_time']['median_codes_per_s'])} digits/s decoded without painting; "
           f"{result['bytes_loaded'] / 1e6:.2f} MB to load, "
           f"{result['bytes_with_gzip'] / 1e6:.2f} MB with gzip",
           f"{result['machine']['browser']}; pixels differ from Python's by "
           f"{result['max_difference_of_probability']:.0e} at most".replace("-", "−"))


def limit_line(result: dict) -> str:
    "Which reading of the limit reaches the share that was aimed at, and which does not."
    sizes = {key.removeprefix("batch_"): result[key] for key in result if key.startswith("batch_")}
    readings = []
    for name, what in (("own_shapes", "the network's own products"), ("square", "large square products")):
        shares = {size: figures[f"share_of_limit_{name}"] for size, figures in sizes.items()}
        reached = [size for size, share in shares.items() if share >= AIM]
        verdict = ("reaches it" if len(reached) == len(shares) else
                   f"reaches it at batch {listed(reached, str)} only" if reached else "does not reach it")
        readings.append(f"measured against {what}, training {verdict} ({listed(shares.values(), '{:.0%}'.format)})")
    return (f"The aim was {AIM:.0%} of what the machine's matrix products allow, and there are two readings of that: "
            + "; ".join(readings) + ".")


ROWS = {"time_to_elbo": time_to_elbo_rows, "best": best_rows, "throughput": throughput_rows,
        "evaluation": evaluation_rows, "log_marginal": log_marginal_rows,
        "manifold": manifold_rows, "memory": memory_rows, "scaling": scaling_rows,
        "explorer": explorer_rows}


def machine_line(machines: list) -> str:
    "Where and when, once; several times if the results are not of one machine and day."
    kinds = {}
    # The run with peers knows most versions: it comes first and speaks for the others.
    for machine in sorted(machines, key=len, reverse=True):
        libraries = ", ".join(f"{label} {machine[name]}" for name, label in (
            ("tensorflow", "TensorFlow"), ("torch", "PyTorch"), ("jax", "JAX")) if name in machine)
        kind = tuple(machine[name] for name in ("cpu", "cores", "system", "python", "tensorflow",
                                                "date_utc"))
        kinds.setdefault(kind, f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, "
                         f"Python {machine['python']}, {libraries}; {machine['date_utc']}")
    return "Measured on " + "; and on ".join(kinds.values()) + "."


def make_table(folder: Path) -> str:
    "The markdown of all results in a folder."
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
             for name in ROWS if (folder / f"{name}.json").exists()}
    if not found:
        sys.exit(f"there are no results in {folder.relative_to(HERE.parent)}; run the benchmarks")
    lines = ["| claim | figure | how measured |", "|---|---|---|"]
    for name, result in found.items():
        script = "time_to_elbo" if name == "best" else name
        link = f"[`{script}.py`](benchmarks/{script}.py)"
        lines += [f"| {claim} | {figure} | {how} ({link}) |"
                  for claim, figure, how in ROWS[name](result)]
    if "throughput" in found:
        lines += ["", limit_line(found["throughput"])]
    return "\n".join([*lines, "", machine_line([r["machine"] for r in found.values()])])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if README.md differs")
    parser.add_argument("--quick", action="store_true", help="print the table of quick results")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    chosen = parser.parse_args()
    if chosen.quick:
        print(make_table(RESULTS / "quick"))
        return
    text, table = chosen.readme.read_text(encoding="utf-8"), make_table(RESULTS)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        sys.exit(f"{chosen.readme.name} needs the lines {BEGIN} and {END}, once and in this order")
    new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.S)
    if chosen.check and new != text:
        sys.exit(f"{chosen.readme.name} differs from the results; run python benchmarks/table.py")
    if new != text:
        chosen.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

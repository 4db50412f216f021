"""Images per second of training: the course, the tutorial's loop, PyTorch, JAX, and the limit.

Each framework is a process of its own that sleeps until its turn, so that they are measured side
by side and never at once. `limit` is the time that the network's matrix products alone need.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from common import HERE, in_turns, log, machine, median_ratio, options, rounded, save, summary

PEERS = ("torch", "torch_compile", "jax")
MISSING = "not installed: pip install -e .[bench]"


def start(name: str, chosen, images: int, batches: list) -> subprocess.Popen:
    "A worker's process; it prepares itself while we go on."
    python = chosen.peer_python if name in PEERS else sys.executable
    command = [python, str(HERE / "workers.py"), name, "--threads", str(chosen.threads),
               "--images", str(images), "--batches", *map(str, batches)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            stderr=None if chosen.verbose else subprocess.DEVNULL)


def answer_of(process: subprocess.Popen) -> dict:
    "The next line of a worker; a silent end is an error too."
    line = process.stdout.readline()
    return json.loads(line) if line else {"error": f"ended with status {process.wait()}"}


def prepare(names: list, chosen, images: int, batches: list) -> tuple[dict, dict, dict]:
    "Processes that are ready, what they said, and why others are not."
    ready, said, absent = {}, {}, {}
    # One after the other: compilers that run at once would only delay each other.
    for name in names:
        process = start(name, chosen, images, batches)
        answer = answer_of(process)
        if answer.get("ready"):
            ready[name], said[name] = process, answer
        else:
            absent[name] = MISSING if "missing" in answer else answer["error"]
            process.stdin.close()
        log(f"{name}: {'ready' if name in ready else absent[name]}")
    return ready, said, absent


def ask(process: subprocess.Popen, batch: int, steps: int) -> dict:
    "One turn of one worker."
    process.stdin.write(f"{batch} {steps}\n")
    process.stdin.flush()
    answer = answer_of(process)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    time.sleep(0.3)  # thread pools spin for a moment before they sleep
    return answer


def take_turns(ready: dict, batch: int, steps: int, rounds: int) -> dict:
    "All answers of each worker."
    answers = {name: [] for name in ready}
    for i, names in in_turns(list(ready), rounds):
        for name in names:
            answers[name].append(ask(ready[name], batch, steps))
        log(f"batch {batch}, round {i + 1}/{rounds}: " + ", ".join(
            f"{name} {batch * steps / answers[name][-1]['seconds']:.0f}/s"
            for name in ready if "seconds" in answers[name][-1]))
    return answers


def rates(answers: dict, batch: int, steps: int) -> tuple[dict, dict]:
    "Images per second of each worker in each round, the two limits among them; GFLOP/s."
    found = {name: [batch * steps / answer["seconds"] for answer in several]
             for name, several in answers.items() if name != "limit"}
    square = [answer["square_gflop_per_s"] for answer in answers["limit"]]
    flops = answers["limit"][0]["flops_per_image"]
    found["limit_square"] = [1e9 * rate / flops for rate in square]
    found["limit_own_shapes"] = [batch / answer["own_shapes_seconds_per_step"]
                                 for answer in answers["limit"]]
    return found, {"flops_per_image": flops} | summary(square, "gflop_per_s")


def report(answers: dict, absent: dict, batch: int, steps: int) -> dict:
    "The figures for one batch size."
    found, square = rates(answers, batch, steps)
    result = {name: summary(values, "images_per_s") for name, values in found.items()}
    for name, several in answers.items():
        if name != "limit":
            result[name]["last_loss_nats"] = rounded(statistics.median(
                answer["loss_nats"] for answer in several[-3:]))
    ratios = {f"ours_over_{name}": median_ratio(found["ours"], found[name])
              for name in found if name != "ours"}
    return {"steps_per_round": steps, "rates": result | dict.fromkeys(absent), "ratios": ratios,
            "share_of_limit_square": ratios["ours_over_limit_square"],
            "share_of_limit_own_shapes": ratios["ours_over_limit_own_shapes"],
            "square_products": square}


def main():
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="cores that each worker may use")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--peers", action="store_true", help="with --quick: measure peers too")
    parser.add_argument("--peer-python", help="the Python that has PyTorch and JAX",
                        default=os.environ.get("BENCH_PEER_PYTHON", sys.executable))
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    chosen, facts = parser.parse_args(), machine()
    rounds = chosen.rounds or (1 if chosen.quick else 9)
    steps = {32: 10} if chosen.quick else {32: 150, 128: 50}
    images = 6400 if chosen.quick else 59904  # a multiple of 128: every batch is full
    names = ["ours", "tutorial", *(PEERS if chosen.peers or not chosen.quick else ()), "limit"]
    ready, said, absent = prepare(names, chosen, images, list(steps))
    if not {"ours", "tutorial", "limit"} <= set(ready):
        raise RuntimeError(f"run this where the course is installed: {absent}")
    absent |= {name: "not measured with --quick" for name in PEERS if name not in names}
    # Threads that work for one network must all have built the same one.
    if len({answer["parameters"] for answer in said.values()}) != 1:
        raise RuntimeError(f"the networks differ: {said}")
    try:
        figures = {f"batch_{batch}": report(take_turns(ready, batch, n, rounds), absent, batch, n)
                   for batch, n in steps.items()}
    finally:
        for process in ready.values():
            process.stdin.close()
            process.wait()
    versions = {name: version for answer in said.values()
                for name, version in answer["versions"].items()}
    save("throughput", {"threads": chosen.threads, "rounds": rounds, "absent": absent} | figures,
         facts | versions, chosen.quick)


if __name__ == "__main__":
    main()

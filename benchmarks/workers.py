"""One framework in one process, training the course's network; `throughput.py` starts these.

    python benchmarks/workers.py NAME [--threads N] [--images N] [--batches 32 128]

A worker answers in lines of JSON. It first says whether it is ready; then each line
"BATCH STEPS" on its input makes it train that much and answer how long that took. Peers need
neither TensorFlow nor the course: they read the images from the repository.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

RATE = 1e-3  # Adam's, the same for all
WARM_UP = 20  # steps before a worker is ready: tracing, compiling, first allocations


def read_images(n: int) -> np.ndarray:
    "The first n binarised training images, (n, 28, 28, 1) float32."
    path = Path(__file__).parent.parent / "vae_course" / "datasets" / "mnist.npz"
    with np.load(path) as arrays:
        return (arrays["x_train"][:n, :, :, None] > 127).astype(np.float32)


def shuffled_indices(n: int, batch: int):
    "Index batches without end, in a new order for each pass; n is a multiple of the batch."
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(n)
        for start in range(0, n, batch):
            yield order[start:start + batch]


class Ours:
    "The course's engine, driven as `fit` drives it."

    def __init__(self, images, batches):
        import quiet  # noqa: F401
        from vae_course.engine.checkpoints import start_run
        from vae_course.engine.recipes import Recipe

        self.images, self.versions = images, {"tensorflow": version("tensorflow")}
        recipes = [Recipe(batch_size=b, learning_rate=RATE, estimator="closed_form") for b in batches]
        self.runs = {r.batch_size: self.make(start_run(r, images), r) for r in recipes}
        self.parameters = start_run(recipes[0], images[:batches[0]]).model.count_params()

    def make(self, run, recipe):
        "A function that takes n steps."
        import tensorflow as tf
        from vae_course.engine.loop import PORTION, make_run_steps, noisy_batches

        strategy = tf.distribute.get_strategy()
        run_steps = make_run_steps(run, recipe, strategy)
        state = {"epoch": 0, "left": 0}

        def take(n):
            while n > 0:
                if not state["left"]:
                    state["epoch"] += 1
                    state["left"] = len(self.images) // recipe.batch_size
                    batches = noisy_batches(recipe, self.images, state["epoch"])
                    state["batches"] = iter(strategy.experimental_distribute_dataset(batches))
                now = min(n, PORTION, state["left"])
                losses = run_steps(state["batches"], tf.constant(now)).numpy()
                n, state["left"] = n - now, state["left"] - now
            return losses[-1]

        return take

    def train(self, batch, steps):
        return self.runs[batch](steps)


class Tutorial:
    "The tutorial's loop: Python calls its traced step for each batch of its dataset."

    def __init__(self, images, batches):
        import published
        import tensorflow as tf

        self.versions = {"tensorflow": version("tensorflow")}
        self.model, self.optimizer = published.PublishedCVAE(), tf.keras.optimizers.Adam(RATE)
        self.step = published.make_published_step()
        # The iterators live on between turns: filling the shuffle buffer is not on the clock.
        self.batches = {b: iter(published.published_dataset(images, b).repeat()) for b in batches}
        self.parameters = self.model.encoder.count_params() + self.model.decoder.count_params()

    def train(self, batch, steps):
        for _ in range(steps):
            loss = self.step(self.model, next(self.batches[batch]), self.optimizer)
        return loss


class Torch:
    "PyTorch, eager: channels last, fused Adam."

    compiled = False

    def __init__(self, images, batches):
        import torch
        from torch import nn

        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                              else os.cpu_count())
        self.torch, self.versions = torch, {"torch": version("torch")}
        layout = {"memory_format": torch.channels_last}
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(**layout)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2304, 4)).to(**layout)
        up = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        self.decoder = nn.Sequential(
            nn.Linear(2, 1568), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 64, **up), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, **up), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 3, padding=1)).to(**layout)
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.parameters = sum(weight.numel() for weight in weights)
        self.optimizer = torch.optim.Adam(weights, lr=RATE, fused=True)
        self.indices = {b: shuffled_indices(len(images), b) for b in batches}
        self.loss = torch.compile(self.loss_of, dynamic=False) if self.compiled else self.loss_of

    def loss_of(self, x, eps):
        "Minus the ELBO with the closed-form KL."
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + (0.5 * logvar).exp() * eps)
        entropy = self.torch.nn.functional.binary_cross_entropy_with_logits(
            logits, x, reduction="sum")
        kl = 0.5 * (mean**2 + self.torch.expm1(logvar) - logvar).sum()
        return (entropy + kl) / len(x)

    def train(self, batch, steps):
        for _ in range(steps):
            x = self.images[self.torch.from_numpy(next(self.indices[batch]))]
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(x, self.torch.randn(batch, 2))
            loss.backward()
            self.optimizer.step()
        return loss.item()


class TorchCompile(Torch):
    "PyTorch with loss and gradients compiled."

    compiled = True


def double(h, kernel):
    """Keras's stride-2 "same" transposed convolution of h with a 3 × 3 kernel, in JAX.

    XLA on a CPU has fast code for plain convolutions only. Even rows of the result see rows u - 1
    and u of h through kernel rows 2 and 0, odd ones see row u through kernel row 1, and so for
    columns: one plain 2 × 2 convolution with four times the filters, then reordered.
    """
    import jax

    inputs, filters = kernel.shape[2:]
    small = jax.numpy.zeros((2, 2, inputs, 2, 2, filters))
    row_of = {(0, 0): 2, (1, 0): 0, (1, 1): 1}  # (row of the window, parity): row of the kernel
    for (i, p), row in row_of.items():
        for (j, q), column in row_of.items():
            small = small.at[i, j, :, p, q].set(kernel[row, column])
    y = jax.lax.conv_general_dilated(h, small.reshape(2, 2, inputs, 4 * filters), (1, 1),
                                     ((1, 0), (1, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    n, height, width, _ = y.shape
    y = y.reshape(n, height, width, 2, 2, filters).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * height, 2 * width, filters)


class Jax:
    "JAX with Flax and Optax: one compiled step, its state donated, the images on the device."

    def __init__(self, images, batches):
        import jax
        import jax.numpy as jnp
        import optax

        self.versions = {name: version(name) for name in ("jax", "flax", "optax")}
        self.jax, self.images = jax, jnp.asarray(images)
        encoder, decoder = self.networks()
        keys = jax.random.split(jax.random.key(0), 3)
        weights = (encoder.init(keys[0], self.images[:1]), decoder.init(keys[1], jnp.zeros((1, 2))))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
        adam = optax.adam(RATE)

        def loss_of(weights, x, eps):
            mean, logvar = jnp.split(encoder.apply(weights[0], x), 2, axis=1)
            logits = decoder.apply(weights[1], mean + jnp.exp(0.5 * logvar) * eps)
            entropy = optax.sigmoid_binary_cross_entropy(logits, x).sum()
            kl = 0.5 * (mean**2 + jnp.expm1(logvar) - logvar).sum()
            return (entropy + kl) / len(x)

        def step(state, images, index):
            weights, moments, key = state
            key, now = jax.random.split(key)
            eps = jax.random.normal(now, (len(index), 2))
            loss, gradients = jax.value_and_grad(loss_of)(weights, images[index], eps)
            updates, moments = adam.update(gradients, moments)
            return (optax.apply_updates(weights, updates), moments, key), loss

        self.step = jax.jit(step, donate_argnums=0)
        self.state = weights, adam.init(weights), keys[2]
        self.indices = {b: shuffled_indices(len(images), b) for b in batches}

    @staticmethod
    def networks():
        "Encoder and decoder."
        from flax import linen as nn

        class Double(nn.Module):
            "A transposed convolution with stride 2; nn.ConvTranspose takes several times as long."
            filters: int

            @nn.compact
            def __call__(self, h):
                shape = (3, 3, h.shape[-1], self.filters)
                kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
                bias = self.param("bias", nn.initializers.zeros, shape[-1:])
                return double(h, kernel) + bias

        encoder = nn.Sequential([
            nn.Conv(32, (3, 3), 2, padding="VALID"), nn.relu,
            nn.Conv(64, (3, 3), 2, padding="VALID"), nn.relu,
            lambda h: h.reshape(len(h), -1), nn.Dense(4)])
        decoder = nn.Sequential([
            nn.Dense(1568), nn.relu, lambda h: h.reshape(-1, 7, 7, 32),
            Double(64), nn.relu, Double(32), nn.relu, nn.ConvTranspose(1, (3, 3))])
        return encoder, decoder

    def train(self, batch, steps):
        for _ in range(steps):
            self.state, loss = self.step(self.state, self.images, next(self.indices[batch]))
        self.jax.block_until_ready(self.state)
        return float(loss)


class Limit:
    "No training: how fast TensorFlow multiplies matrices, square ones and those of the network."

    def __init__(self, images, batches):
        import quiet  # noqa: F401
        from vae_course.engine import speed
        from vae_course.engine.families import FastCVAE

        self.speed, model = speed, FastCVAE(2, seed=0)
        self.products = speed.matrix_products(model)
        self.flops, self.parameters = speed.training_flops(model), model.count_params()
        self.versions = {"tensorflow": version("tensorflow")}

    def train(self, batch, steps):
        return 0.0

    def measure(self, batch):
        "Square rate, and the seconds that the products of one training step need."
        side, own = 2048, 0.0
        for i, (_, m, k, n) in enumerate(self.products):
            m = m * batch
            own += self.speed.matmul_seconds(m, k, n)
            own += self.speed.matmul_seconds(m, n, k) if i else 0  # images need no gradient
            own += self.speed.matmul_seconds(k, m, n)
        seconds = self.speed.matmul_seconds(side, side, side, times=2)
        return {"square_gflop_per_s": 2 * side**3 / seconds / 1e9,
                "flops_per_image": int(self.flops), "own_shapes_seconds_per_step": own}


WORKERS = {"ours": Ours, "tutorial": Tutorial, "torch": Torch, "torch_compile": TorchCompile,
           "jax": Jax, "limit": Limit}


def keep_to(threads: int):
    "Bind the process to so many cores before a framework counts them."
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # PyTorch's threads wait by spinning; one other busy process then costs it most of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def serve(worker, batches, say):
    "Say what was prepared, then do what the input asks for until it ends."
    warm_up = [float(worker.train(batch, WARM_UP)) for batch in batches]
    say({"ready": True, "parameters": int(worker.parameters), "versions": worker.versions,
         "first_losses_nats": warm_up})
    for line in sys.stdin:
        batch, steps = map(int, line.split())
        if isinstance(worker, Limit):
            say(worker.measure(batch))
            continue
        start = time.perf_counter()
        loss = float(worker.train(batch, steps))
        say({"seconds": time.perf_counter() - start, "loss_nats": loss})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=WORKERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=59904)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    chosen = parser.parse_args()
    # Answers go to what was standard output; whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    keep_to(chosen.threads)
    try:
        worker = WORKERS[chosen.name](read_images(chosen.images), chosen.batches)
        serve(worker, chosen.batches, say)
    except ModuleNotFoundError as error:
        say({"missing": error.name})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"[:300]})
        raise


if __name__ == "__main__":
    main()

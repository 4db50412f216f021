"""Is it right? Checks for what you write in my_vae, and for a VAE in one file.

    python check.py              your functions in order, up to the first that is missing or wrong
    python check.py --train      trains your package for a minute; is it as good as it should be? Draws plane.png
    python check.py FILE         a VAE of your own in one file, as the end of chapter 08 asks for it

Of FILE: it trains when it is run, and leaves `encoder` and `decoder` behind. `encoder(x)` gives the mean and
beside it the log-variance of q(z|x), `decoder(z)` the logits of 28 × 28 pixels.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from vae_course.support import quiet_tensorflow  # noqa: E402

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import vae_course.data as data  # noqa: E402
import vae_course.elbo as elbo  # noqa: E402
import vae_course.manifold as manifold  # noqa: E402
import vae_course.model as model  # noqa: E402
import vae_course.training as training  # noqa: E402
from vae_course.appendix.checks import check  # noqa: E402
from vae_course.reparameterization import draw_eps, reparameterize  # noqa: E402

SETTINGS = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3}  # of the minute of training
LINES, GOAL = 40, -165.0  # of a VAE in one file
BASELINE = -205.85  # nats: independent pixels, chapter 01


def numbers(*shape, seed=0):
    "Random numbers around 0, the same each time."
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(n=6):
    "A few binary images."
    return np.float32(np.random.default_rng(1).random((n, 28, 28, 1)) < 0.2)


def a_model(seed=0):
    "A small model of the course whose codes lie off the prior."
    small = model.CVAE(filters=(4, 8), seed=seed)
    small.encoder.layers[-1].bias.assign([1, -1, -2, 0.5])
    return small


def check_preprocess_images(mine):
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    grey[0, 0, :2] = 127, 128
    for threshold in (0.5, 0.25):
        right = data.preprocess_images(grey, threshold)
        found = np.asarray(mine.preprocess_images(grey, threshold))
        check(f"binary images at {threshold}", found, right,
              {"Ink and paper are swapped.": 1 - right,
               "These are grey values. Compare them with the threshold.": (grey / np.float32(255))[..., None],
               "The channel is missing: (n, 28, 28, 1).": right[..., 0],
               "The threshold is 0.5, whatever the argument says.": data.preprocess_images(grey)})
        assert found.dtype == np.float32, f"The type is {found.dtype}; networks compute in float32."


def check_reparameterize(mine):
    mean, logvar, eps = numbers(3, 4, 2)
    found = np.asarray(mine.reparameterize(*map(tf.constant, (mean, logvar, eps))))
    sigma = np.exp(logvar / 2)
    check("z", found, mean + sigma * eps,
          {"σ² stands where σ is due: σ = exp(logvar / 2).": mean + sigma**2 * eps,
           "logvar stands where σ is due.": mean + logvar * eps, "ε is not used.": mean,
           "The mean is missing.": sigma * eps, "logvar is σ already? It is log σ².": mean + np.exp(logvar * 2) * eps})
    with tf.GradientTape() as tape:
        tape.watch(logvar := tf.constant(logvar))
        z = mine.reparameterize(tf.constant(mean), logvar, tf.constant(eps))
    assert tape.gradient(z, logvar) is not None, "No gradient comes through. Compute with TensorFlow, not numpy."


def check_log_normal_pdf(mine):
    z, mean, logvar = numbers(3, 4, 2)
    right = elbo.log_normal_pdf(z, mean, logvar).numpy()
    per = -0.5 * ((z - mean)**2 / np.exp(logvar) + logvar + np.log(2 * np.pi))
    found = np.asarray(mine.log_normal_pdf(z, mean, logvar))
    check("log density", found, right,
          {"log 2π is missing.": right + np.log(2 * np.pi), "½ log 2π is missing, once for each component.":
           (per + 0.5 * np.log(2 * np.pi)).sum(1), "Sum over the components.": per,
           "A mean over the components stands where a sum is due.": per.mean(1),
           "σ stands where σ² is due: divide by exp(logvar).":
           -0.5 * ((z - mean)**2 / np.exp(logvar / 2) + logvar + np.log(2 * np.pi)).sum(1),
           "The term logvar is missing.": (per + 0.5 * logvar).sum(1),
           "This is the density. Its logarithm is asked for.": np.exp(right)}, rtol=1e-4, atol=1e-4)
    wide = numbers(3, 4, 5)
    check("with raxis", np.asarray(mine.log_normal_pdf(wide, 0.0, 0.0, raxis=[1, 2])),
          elbo.log_normal_pdf(wide, 0.0, 0.0, raxis=[1, 2]).numpy(), rtol=1e-4, atol=1e-4)


def check_bernoulli_log_prob(mine):
    x, logits = images(), 3 * numbers(6, 28, 28, 1)
    right = elbo.bernoulli_log_prob(x, logits).numpy()
    check("log p(x|z)", np.asarray(mine.bernoulli_log_prob(tf.constant(x), tf.constant(logits))), right,
          {"The sign is wrong: cross-entropy is a cost, a log-probability is at most 0.": -right,
           "A mean over the pixels stands where a sum is due.": right / 784,
           "One number for each image: do not sum over the batch.": right.sum(),
           "The logits were taken for probabilities.":
           np.sum(np.log(np.clip(np.where(x == 1, logits, 1 - logits), 1e-7, None)), axis=(1, 2, 3))}, rtol=1e-4)
    extreme = np.asarray(mine.bernoulli_log_prob(tf.constant(x), tf.constant(1e4 * (2 * x - 1))))
    check("certain and right", extreme, np.zeros(6), atol=1e-3)


def check_kl_standard_normal(mine):
    mean, logvar = numbers(2, 4, 3)
    right = elbo.kl_standard_normal(mean, logvar).numpy()
    check("KL", np.asarray(mine.kl_standard_normal(tf.constant(mean), tf.constant(logvar))), right,
          {"Sum over the components.": 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar),
           "A mean over the components stands where a sum is due.": right / 3,
           "The −1 is missing.": right + 1.5, "σ stands where σ² is due.":
           0.5 * (mean**2 + np.exp(logvar / 2) - 1 - logvar).sum(1),
           "The means are missing.": right - 0.5 * (mean**2).sum(1)}, rtol=1e-4, atol=1e-5)


def check_elbo(mine):
    parts = numbers(4, 5)
    terms = mine.ElboTerms(*map(tf.constant, parts))
    log_px_z, log_pz, log_qz_x, kl = parts
    single = log_px_z + log_pz - log_qz_x
    check("single sample", np.asarray(terms.elbo()), single,
          {"log p(z) and log q(z|x) are swapped.": log_px_z - log_pz + log_qz_x,
           "log q(z|x) is subtracted, not added.": log_px_z + log_pz + log_qz_x,
           "This is the closed form.": log_px_z - kl, "This is the loss. The ELBO has the other sign.": -single,
           "The prior is missing.": log_px_z - log_qz_x})
    check("closed form", np.asarray(terms.elbo("closed_form")), log_px_z - kl,
          {"The KL is a price: subtract it.": log_px_z + kl, "This is the single-sample form.": single})
    check("β = 3", np.asarray(terms.elbo("closed_form", 3.0)), log_px_z - 3 * kl, {"β is not used.": log_px_z - kl})


def check_elbo_terms(mine):
    x, eps, mine_too = images(), draw_eps(0, 0, (6, 2)), a_model()
    right, found = elbo.elbo_terms(mine_too, x, eps), mine.elbo_terms(mine_too, tf.constant(x), eps)
    mean, logvar = mine_too.encode(x)
    z = reparameterize(mean, logvar, eps)
    hints = {"log_px_z": {"The mean of q was decoded; decode the drawn z.": mine_too.log_likelihood(x, mean).numpy()},
             "log_pz": {"This is log q(z|x). The prior has mean 0 and log-variance 0.": right.log_qz_x.numpy(),
                        "This is the density of the mean, not of z.": elbo.log_normal_pdf(mean, 0.0, 0.0).numpy(),
                        "The prior has log-variance 0, that is variance 1.": elbo.log_normal_pdf(z, 0.0, 1.0).numpy()},
             "log_qz_x": {"This is log p(z).": right.log_pz.numpy(),
                          "This is the density of ε, not of z.": elbo.log_normal_pdf(eps, 0.0, 0.0).numpy()},
             "kl": {"This is its single-sample form.": (right.log_qz_x - right.log_pz).numpy()}}
    for name, values in right._asdict().items():
        check(name, np.asarray(getattr(found, name)), values.numpy(), hints[name], rtol=1e-4, atol=1e-3)


def same_layers(what, found, right):
    "Two networks have the same layers, sizes and activations."
    kinds = lambda network: [type(layer).__name__ for layer in network.layers]
    assert isinstance(found, keras.Sequential), f"{what}: a keras.Sequential is asked for, this is {type(found).__name__}."
    assert kinds(found) == kinds(right), f"{what}: the layers are {kinds(found)}, expected {kinds(right)}."
    for number, (mine, theirs) in enumerate(zip(found.layers, right.layers, strict=True), 1):
        where = f"{what}, layer {number} ({type(theirs).__name__})"
        assert mine.output.shape == theirs.output.shape, (
            f"{where}: its output has shape {mine.output.shape}, expected {theirs.output.shape}.")
        sizes = [[tuple(weight.shape) for weight in layer.weights] for layer in (mine, theirs)]
        assert sizes[0] == sizes[1], f"{where}: its weights have shapes {sizes[0]}, expected {sizes[1]}."
        names = [getattr(getattr(layer, "activation", None), "__name__", None) for layer in (mine, theirs)]
        assert names[0] == names[1], (f"{where}: its activation is {names[0]}, expected {names[1]}."
                                      + " The last layer may put out any real number." * (number == len(right.layers)))


def check_make_encoder(mine):
    for options in ({}, {"latent_dim": 5, "filters": (4, 8)}):
        same_layers("encoder", mine.make_encoder(seed=0, **options), model.make_encoder(seed=0, **options))


def check_make_decoder(mine):
    for options in ({}, {"latent_dim": 5, "filters": (4, 8)}):
        same_layers("decoder", mine.make_decoder(seed=0, **options), model.make_decoder(seed=0, **options))


def check_encode(mine):
    x, half = images(), SimpleNamespace(latent_dim=3, levels=2)
    output = numbers(6, 6)
    half.encoder = lambda x: tf.constant(output)
    mean, logvar = mine.CVAE.encode(half, tf.constant(x))
    check("mean", np.asarray(mean), output[:, :3],
          {"The first half is the mean.": output[:, 3:], "Halves, not every other number.": output[:, ::2]})
    check("logvar", np.asarray(logvar), output[:, 3:],
          {"This is the variance. Its logarithm is asked for.": np.exp(output[:, 3:]),
           "This is the mean.": output[:, :3]})


def check_compute_loss(mine):
    x, eps, small = images(), draw_eps(0, 0, (6, 2)), a_model()
    for estimator in elbo.ESTIMATORS:
        terms = elbo.elbo_terms(small, x, eps)
        right = float(training.compute_loss(small, x, eps, estimator))
        check(f"loss, {estimator}", float(mine.compute_loss(small, tf.constant(x), eps, estimator)), right,
              {"This is the ELBO. The loss has the other sign.": -right,
               "A sum over the batch stands where a mean is due.": 6 * right,
               "A mean over the pixels stands where a sum is due.":
               -float(tf.reduce_mean(terms.log_px_z / 784 - terms.kl)),
               "The KL is missing.": -float(tf.reduce_mean(terms.log_px_z)),
               "The estimator is not used.": float(training.compute_loss(
                   small, x, eps, *(name for name in elbo.ESTIMATORS if name != estimator)))}, rtol=1e-5, atol=1e-3)


def check_apply_step(mine):
    x, eps = images(), draw_eps(0, 0, (6, 2))
    results = []
    for step in (mine.apply_step, training.apply_step):
        small = a_model()
        adam = keras.optimizers.Adam(1e-2)
        before = [weight.numpy() for weight in small.trainable_variables]
        losses = [float(step(small, tf.constant(x), adam, eps, "monte_carlo")) for _ in range(2)]
        moved = [np.abs(weight - old).max() for weight, old in zip(small.trainable_variables, before, strict=True)]
        results.append((losses, moved))
    (losses, moved), (right, right_moved) = results
    check("loss", losses[0], right[0], {"Return the loss before the update.": right[1]}, rtol=1e-5)
    assert min(moved) > 0, (f"{sum(m == 0 for m in moved)} of {len(moved)} variables did not move. "
                            "Both networks are trained: model.trainable_variables.")
    check("loss after one step", losses[1], right[1], rtol=1e-3)
    check("how far the weights moved", np.array(moved), np.array(right_moved), rtol=1e-2, atol=1e-5)


def check_latent_image(mine):
    small = a_model()
    right = manifold.latent_image(small, 4)
    digits = right.reshape(4, 28, 4, 28).swapaxes(1, 2)
    sheet = lambda parts: parts.swapaxes(1, 2).reshape(112, 112)
    check("plane", np.asarray(mine.latent_image(small, 4)), right,
          {"It is upside down: z₂ grows upwards, rows of an image downwards.": sheet(digits[::-1]),
           "z₁ and z₂ are swapped.": sheet(digits[::-1].swapaxes(0, 1)[::-1]),
           "The digits are not laid side by side.": digits.reshape(16 * 28, 28),
           "These are logits. The picture shows probabilities.": np.log(right / (1 - right))}, atol=1e-4)


CHECKS = {"preprocess_images": check_preprocess_images, "reparameterize": check_reparameterize,
          "log_normal_pdf": check_log_normal_pdf, "bernoulli_log_prob": check_bernoulli_log_prob,
          "kl_standard_normal": check_kl_standard_normal, "ElboTerms.elbo": check_elbo,
          "elbo_terms": check_elbo_terms, "make_encoder": check_make_encoder,
          "make_decoder": check_make_decoder, "CVAE.encode": check_encode,
          "compute_loss": check_compute_loss, "apply_step": check_apply_step, "latent_image": check_latent_image}


def check_all() -> bool:
    """Each function in order; whether all are written and right."""
    tasks = json.loads((FOLDER / "tasks.json").read_text(encoding="utf-8"))
    for place, (module, name, chapter) in enumerate(tasks, 1):
        title = f"{place} of {len(tasks)}, my_vae/{module}.py: {name}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # each check says what is right; here the whole counts
                CHECKS[name](importlib.import_module(f"my_vae.{module}"))
        except NotImplementedError as error:
            missing = str(error).split()[0]
            print(f"\n{title}\n  {error}. Chapter {chapter} shows it." if missing == name
                  else f"\n{title}\n  It calls {missing}, which is not written yet.")
            return False
        except Exception as error:
            print(f"\n{title}\n  {type(error).__name__}: {error}" if not isinstance(error, AssertionError)
                  else f"\n{title}\n  {error}")
            return False
        print(f"  right: {title}")
    print("\nAll of it is right. Now let it train: python check.py --train")
    return True


def train_a_minute(package: str, seed: int = 0):
    """(model, test ELBO) of a package's own model after its own training, in nats; the ELBO is the course's."""
    prepare, model_of, training_of = (importlib.import_module(f"{package}.{name}")
                                      for name in ("data", "model", "training"))
    (grey, _), (grey_test, _) = data.load_mnist()
    x_train, x_test = prepare.preprocess_images(grey), prepare.preprocess_images(grey_test)
    mine = model_of.CVAE(seed=seed)
    training_of.train(mine, x_train, x_test, seed=seed, **SETTINGS)
    return mine, training.evaluate(mine, data.preprocess_images(grey_test), seed)["elbo"]


def check_training() -> bool:
    """Train the learner's package, compare with what the course's own reaches, draw the plane."""
    measured = json.loads((FOLDER / "interval.json").read_text(encoding="utf-8"))
    mine, found = train_a_minute("my_vae")
    low, high = measured["low"], measured["high"]
    sheet = importlib.import_module("my_vae.manifold").latent_image(mine, 20)
    keras.utils.save_img(FOLDER / "plane.png", sheet[..., None])
    print(f"Your test ELBO: {found:.2f} nats. {len(measured['elbos'])} runs of the course's functions reached "
          f"{measured['mean']:.2f} on average; another right run falls between {low} and {high}.")
    if not low <= found <= high:
        print(advice(found) if found < low else "Yours is better than that. What did you change?")
        return found > high
    print("It is yours, and it is right. plane.png shows what it has learned.")
    return True


def advice(found: float) -> str:
    """What a test ELBO that is too low suggests."""
    if not np.isfinite(found):
        return "It is not finite: look for exp or log of a network's raw output."
    if found < -400:
        return "That is where an untrained model stands. Does the optimizer get the gradients of both networks?"
    if found < BASELINE + 5:
        return (f"That is about what independent pixels reach, {BASELINE}: the code carries nothing. "
                "Does a mean over pixels stand where a sum is due, or is the KL weighed too much?")
    return ("It has learned something. Is the KL in the loss, with σ² = exp(logvar), once and with weight 1; "
            "is z drawn, with ε new for each image; is the learning rate about 1e-3?")


def lines_of_code(text: str) -> int:
    """Lines that are not empty and hold more than a comment or a docstring; `;` counts as a new line."""
    tree, lines = ast.parse(text), set()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not docstring:
            lines.update(range(node.lineno, node.end_lineno + 1))
    full = [number for number in lines if text.splitlines()[number - 1].strip()
            and not text.splitlines()[number - 1].lstrip().startswith("#")]
    several = sum(text.splitlines()[number - 1].count(";") for number in full)
    return len(full) + several


def judge_file(path: Path) -> bool:
    """Run a file that trains a VAE, and measure what it left behind."""
    text = path.read_text(encoding="utf-8")
    borrowed = sorted(set(line.split()[1] for line in text.splitlines() if line.startswith(("import vae", "from vae"))))
    left = runpy.run_path(str(path))
    faults = []
    if (count := lines_of_code(text)) > LINES:
        faults.append(f"It has {count} lines of code, {LINES} are allowed.")
    if set(borrowed) - {"vae_course.data"}:
        faults.append(f"It imports {', '.join(borrowed)}; only vae_course.data may be used.")
    if missing := [name for name in ("encoder", "decoder") if name not in left]:
        print(*faults, f"It leaves no {' and no '.join(missing)} behind. It defines: "
              f"{', '.join(name for name in left if name[0] != '_')}.", sep="\n")
        return False
    grey_test = data.load_mnist()[1][0]
    try:
        found = elbo_of(left["encoder"], left["decoder"], data.preprocess_images(grey_test))
    except ValueError as error:
        print(*faults, error, sep="\n")
        return False
    print(f"{count} lines. Test ELBO on 10,000 images: {found['elbo']:.2f} nats "
          f"(reconstruction {found['reconstruction']:.2f}, KL {found['kl']:.2f}).")
    if found["elbo"] < GOAL:
        faults.append(f"The goal is {GOAL:.0f}. {advice(found['elbo'])}")
    print(*faults or ["You have written a variational autoencoder."], sep="\n")
    return not faults


def elbo_of(encoder, decoder, x) -> dict:
    """ELBO, reconstruction and KL of the images under two networks; ValueError if they are no VAE's."""
    output = tf.convert_to_tensor(encoder(x[:2]))
    if output.shape.rank != 2 or output.shape[0] != 2 or output.shape[1] % 2 or output.shape[1] == 0:
        raise ValueError(f"encoder(x) of 2 images has shape {tuple(output.shape)}, expected (2, 2 * latent_dim): "
                         "the means, beside them the log-variances.")
    latent_dim = output.shape[1] // 2
    logits = tf.convert_to_tensor(decoder(tf.zeros((2, latent_dim))))
    if int(tf.size(logits)) != 2 * 784:
        raise ValueError(f"decoder(z) of 2 codes has shape {tuple(logits.shape)}, expected (2, 28, 28, 1).")
    draws = tf.convert_to_tensor(decoder(draw_eps(0, 0, (500, latent_dim))))
    if float(tf.reduce_min(draws)) >= 0 and float(tf.reduce_max(draws)) <= 1:
        raise ValueError("decoder(z) lies between 0 and 1 everywhere: these are probabilities. Leave the last sigmoid "
                         "out and use the cross-entropy of logits.")
    wrapped = SimpleNamespace(
        latent_dim=latent_dim, image_shape=(28, 28, 1), levels=2, reparameterize=reparameterize,
        encode=lambda x: tf.split(encoder(x), 2, axis=1),
        log_likelihood=lambda x, z: elbo.bernoulli_log_prob(x, tf.reshape(decoder(z), (-1, 28, 28, 1))))
    return training.evaluate(wrapped, x)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="a VAE in one file")
    parser.add_argument("--train", action="store_true", help="train my_vae for a minute")
    arguments = parser.parse_args()
    if arguments.file:
        right = judge_file(arguments.file)
    else:
        right = check_all() and (not arguments.train or check_training())
    sys.exit(not right)


if __name__ == "__main__":
    main()

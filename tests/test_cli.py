"""The main job as a process: files, refusals, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import imageio.v3 as iio
import pytest
import tensorflow as tf
from click.testing import CliRunner

from vae_course.engine import cli
from vae_course.further import other_data
from vae_course.engine.cli import main
from vae_course.engine.recipes import Recipe
from vae_course.engine.runs import load_run
from vae_course.support import interrupts_wait, safe_point
from vae_course.training import evaluate

COMMAND = [sys.executable, "-m", "vae_course", "train"]
FILES = {"cvae.keras", "cvae.json", "history.json", "history.png", "samples.png", "reconstructions.png",
         "cvae.gif", "manifold.png", "frames.npz", "settings.json", "checkpoints", ".lock"}


def test_a_run_writes_everything_and_its_card_is_true(tmp_path, x_test):
    result = CliRunner().invoke(main, ["train", "--epochs", "2", "--train-images", "1500", "--seed", "4",
                                       "--out", str(tmp_path / "run")], catch_exceptions=False)
    folder = tmp_path / "run"
    assert result.exit_code == 0 and {path.name for path in folder.iterdir()} == FILES
    history = json.loads((folder / "history.json").read_text())
    model, card = load_run(folder, "cvae")
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert card["test_elbo"] == history[-1]["test_elbo"] and card["recipe"]["seed"] == 4
    assert abs(evaluate(model, x_test, seed=4)["elbo"] - card["test_elbo"]) < 1e-3
    assert len(iio.imread(folder / "cvae.gif", plugin="pillow", mode="L")) == 3
    assert "Epoch: 2, Test set ELBO:" in result.output
    for name in FILES:
        if name.endswith(".png"):
            assert iio.imread(folder / name).size > 10_000


def test_help_explains_every_field_of_the_recipe():
    text = " ".join(CliRunner().invoke(main, ["train", "--help"]).output.split())
    for name in Recipe.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in text
    assert "of the KL term: monte_carlo or closed_form" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (["--recipe", "nonsense"], "nonsense"), (["--epochs", "0"], "epochs must be at least 1"),
    (["--epochs", "two"], "two"), (["--latent-dim", "0"], "latent_dim must be at least 1"),
    (["--optimizer", "adamm"], "adamm"), (["--train-images", "0"], "train-images"),
    (["--learning-rate", "-1"], "learning_rate must be in (0, inf)"), (["--filters", "3", "0"], "filters"),
])
def test_bad_values_are_refused_before_any_work(tmp_path, arguments, message):
    out = tmp_path / "run"
    result = CliRunner().invoke(main, ["train", *arguments, "--out", str(out)])
    assert result.exit_code == 2 and message in result.output and not out.exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "holds something already" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_default_folder_is_the_first_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "short").mkdir(parents=True)
    result = CliRunner().invoke(main, ["train", "--epochs", "1", "--train-images", "64"])
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "runs" / "short-2").iterdir()} == FILES


@pytest.mark.long
def test_ctrl_c_leaves_finished_files_whole(tmp_path, x_test):
    folder = tmp_path / "run"
    arguments = ["--epochs", "1000", "--train-images", "640", "--out", str(folder)]
    # A job in the background starts with SIGINT ignored, and would pass that on.
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(COMMAND + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, preexec_fn=default) as process:
        try:
            deadline = time.monotonic() + 120  # a guard against a hang, not a measurement
            while not (folder / "history.png").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)  # once: a user must not have to press again
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and "--resume --out" in output
    assert "Traceback" not in output and "ignored" not in output
    model, card = load_run(folder, "cvae")
    assert abs(evaluate(model, x_test)["elbo"] - card["test_elbo"]) < 1e-3
    assert json.loads((folder / "history.json").read_text())
    assert not [path.name for path in folder.iterdir() if ".tmp" in path.name]


def test_an_interrupt_waits_for_a_safe_point_and_a_second_one_does_not():
    before, passed = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            passed.append("the press")
            safe_point()
            passed.append("the point")
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            passed.append("the second press")
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            signal.raise_signal(signal.SIGINT)  # after the last point: the end is one, too
        assert passed == ["the press"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        safe_point()  # nothing is left over
    finally:
        signal.signal(signal.SIGINT, before)


def start_with(tensorflow, folder, **options):
    """The program with another `tensorflow` in place of the real one."""
    (folder / "tensorflow.py").write_text(tensorflow)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(COMMAND[:-1] + ["--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": path}, **options)


def test_ctrl_c_while_tensorflow_loads(tmp_path):
    """Also if the library that is being imported swallows whatever is raised there."""
    ready, tell = os.pipe()
    slow = f"""
import os, signal
os.write({tell}, b"loading")
while True:
    try:
        signal.pause()
    except BaseException:
        pass
"""
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with start_with(slow, tmp_path, pass_fds=[tell], preexec_fn=default) as process:
        try:
            os.close(tell)
            assert os.read(ready, 7) == b"loading"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=120)  # a guard against a hang, not a measurement
        finally:
            process.kill()
            os.close(ready)
    assert process.returncode == 130 and not output and errors == "\nStopped before it began.\n"


def test_a_library_that_is_not_there_is_told_in_a_line(tmp_path):
    with start_with("raise ImportError('TensorFlow is not for this machine')", tmp_path) as process:
        output, errors = process.communicate()
    assert process.returncode == 1 and errors == "Error: TensorFlow is not for this machine\n" and not output


def test_a_size_of_another_type_is_told_in_a_line(tmp_path):
    """Only the family of models knows that a width is a whole number."""
    result = command("--model", "residual", "--sizes", "width=1.5", "--train-images", 64, "--out", tmp_path / "run")
    assert result.exit_code == 1 and result.output.endswith("Error: width must be an integer, got 1.5.\n")


def test_ctrl_c_in_any_command_ends_in_a_line(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_run", interrupt)
    result = CliRunner().invoke(main, ["evaluate", "somewhere"])
    assert result.exit_code == 130 and result.output == "\nStopped.\n"


def test_the_model_of_the_package_is_evaluated_like_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["evaluate", "pretrained", "--test-images", "20", "--samples", "2"])
    assert result.exit_code == 0 and "log p(x)" in result.output and not list(tmp_path.iterdir())


def test_help_tells_the_exit_codes():
    text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert "Exit codes: 0 all is well, 1 it failed, 2 wrong use, 130 stopped by Ctrl-C." in text


@pytest.mark.parametrize("name", main.commands)
def test_help_of_each_command_has_an_example(name):
    text = CliRunner().invoke(main, [name, "--help"]).output
    assert f"vae-course {name} " in text[text.index("Example"):]


def test_a_dropped_interrupt_comes_again():
    """Python drops what is raised while it frees memory; here the first Ctrl-C falls there."""
    program = """
import signal, sys, time
from vae_course.support import interrupt_again

class Fragile:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # here the interrupt is raised

sys.unraisablehook = interrupt_again
thing = Fragile()
try:
    del thing
    for _ in range(600):  # a thread's signal does not wake a sleeper
        time.sleep(0.1)
except KeyboardInterrupt:
    print("interrupted")
"""
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
                          preexec_fn=default)
    assert done.stdout == "interrupted\n" and "ignored" not in done.stderr


def command(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_files(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--epochs", "3", "--train-images", "640", "--filters", "4", "4"]
    assert command(*options, "--out", whole).exit_code == 0
    with subprocess.Popen(COMMAND + [*options, "--out", str(killed)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120  # a guard against a hang, not a measurement
        while not (killed / "checkpoints" / "step-000000010.npz").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert command("--resume", "--out", killed).exit_code == 0
    for name in ("history.json", "cvae.gif", "manifold.png", "samples.png"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    weights = [load_run(folder, "cvae")[0].get_weights() for folder in (whole, killed)]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_resume_finds_the_last_run_and_its_settings(tmp_path, monkeypatch, small_run):
    monkeypatch.chdir(tmp_path)
    result = command("--resume")
    assert result.exit_code == 2 and "holds no run to resume" in result.output
    shutil.copytree(small_run, tmp_path / "runs" / "short")
    again = command("--resume")  # finished already: nothing to train, the same files
    assert again.exit_code == 0 and "epochs=1," in again.output and "Epoch: 1" not in again.output


def test_a_finished_run_without_its_film_gets_a_short_one(tmp_path, small_run):
    """`frames.npz` may be moved away, as the message about a damaged one says."""
    out = shutil.copytree(small_run, tmp_path / "run")
    (out / "frames.npz").write_bytes(b"no film")
    result = command("--resume", "--out", out)
    assert result.exit_code == 1 and "frames.npz is damaged or no film of a run. Move it away" in result.output
    (out / "frames.npz").unlink()
    (out / "cvae.gif").unlink()
    assert command("--resume", "--out", out).exit_code == 0
    assert len(iio.imread(out / "cvae.gif", plugin="pillow", mode="L")) == 1


def test_resume_with_another_recipe_is_refused(tmp_path, small_run):
    out = shutil.copytree(small_run, tmp_path / "run")
    for option, value, name in (("--seed", 5, "seed"), ("--train-images", 65, "train_images"),
                                ("--filters", "4 4", "filters"), ("--data", "cifar10", "data"),
                                ("--recipe", "best --epochs 1", "learning_rate"), ("--recipe", "short", "epochs")):
        result = command("--resume", "--out", out, option, *str(value).split())
        assert result.exit_code == 2 and f"started with another {name}: " in result.output
    # The options that the run was started with are fine, and so is the recipe that it took by default.
    assert command("--resume", "--out", out, "--recipe", "short", "--epochs", 1).exit_code == 0


@pytest.mark.parametrize("damage", [
    lambda settings: "{", lambda settings: "[]", lambda settings: "{}",
    lambda settings: json.dumps({"recipe": settings["recipe"]}),
    lambda settings: json.dumps(settings | {"train_images": "many"}),
    lambda settings: json.dumps(settings | {"recipe": {"filters": 3}}),
])
def test_damaged_settings_are_an_error_and_no_traceback(tmp_path, small_run, damage):
    shutil.copytree(small_run, tmp_path / "run")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(damage(json.loads(settings.read_text())))
    for arguments in (["train", "--resume", "--out"], ["evaluate"]):
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / "run")], catch_exceptions=False)
        assert result.exit_code == 2 and "holds no run to resume or to look at" in result.output
        assert "settings.json cannot be read" in result.output


@pytest.mark.parametrize("text", ["{", "{}", "[]", "3", '"sha256"'])
@pytest.mark.parametrize("arguments", [["evaluate"], ["explore", "--no-browser"]])
def test_a_damaged_card_is_an_error_and_no_traceback(tmp_path, small_run, arguments, text):
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run" / "cvae.json").write_text(text)
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 1 and "cvae.json is damaged or no card of a run" in result.output


def test_data_that_cannot_be_read_leave_no_folder(tmp_path, monkeypatch):
    def missing(**options):
        raise FileNotFoundError("there is no cifar-10-binary.tar.gz in the cache.")

    monkeypatch.setitem(other_data.DATASETS, "cifar10", missing)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as if scikit-learn were not installed
    for data, message in (("cifar10", "Error: there is no cifar-10-binary"),
                          ("photographs", "Error: the photographs come with scikit-learn: pip install")):
        result = command("--data", data, "--likelihood", "discretized_logistic", "--out", tmp_path / "run")
        assert result.exit_code == 2 and message in result.output and not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [
    tf.errors.UnavailableError(None, None, "the connection to the other worker is lost"),
    ImportError("something is not installed"),
])
def test_errors_of_other_workers_and_of_imports_give_no_traceback(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(cli, "fit", fail)
    result = command("--train-images", 64, "--out", tmp_path / "run")
    assert result.exit_code == 1 and result.output.endswith(f"Error: {error}\n")


def test_a_damaged_checkpoint_is_an_error_and_no_traceback(tmp_path, small_run):
    out = shutil.copytree(small_run, tmp_path / "run")
    last = sorted((out / "checkpoints").glob("*.npz"))[-1]
    last.write_bytes(last.read_bytes()[:100])
    result = command("--resume", "--out", out)
    assert result.exit_code == 1 and last.name in result.output and "step-000000000" in result.output


def test_a_diverging_run_ends_with_a_message(tmp_path):
    result = command("--epochs", 3, "--train-images", 640, "--learning-rate", "1e30", "--out", tmp_path / "run")
    assert result.exit_code == 1 and "epoch 1, step" in result.output and "learning rate" in result.output


@pytest.mark.long
def test_two_processes_write_one_run(tmp_path):
    options = ["--epochs", 1, "--train-images", 640]
    one, two = tmp_path / "one", tmp_path / "two"
    command(*options, "--out", one)
    result = command(*options, "--out", two, "--processes", 2)
    assert result.exit_code == 0 and {path.name for path in two.iterdir()} == FILES
    elbos = [json.loads((folder / "history.json").read_text())[0]["test_elbo"] for folder in (one, two)]
    assert abs(elbos[0] / elbos[1] - 1) < 1e-4  # float32, sums in another order, ten steps of Adam


@pytest.mark.parametrize("way", ["--devices", pytest.param("--processes", marks=pytest.mark.long)])
def test_a_batch_too_small_for_all_is_told_once_and_the_folder_stays_free(tmp_path, way):
    """In a process of its own: where TensorFlow has run, the CPU can no longer be divided."""
    def train(size):
        return subprocess.run([*COMMAND, "--epochs", "1", "--train-images", "33", "--batch-size", size, way, "2",
                               "--out", str(tmp_path / "run")], capture_output=True, text=True)

    wrong = train("32")  # the last batch has one image
    assert wrong.returncode == 2 and "the last batch has 1 of the 33 images, too few for 2 devices" in wrong.stderr
    assert "died" not in wrong.stderr
    assert not [path for path in (tmp_path / "run").iterdir() if path.name[0] != "."]
    right = train("11")
    assert right.returncode == 0 and {path.name for path in (tmp_path / "run").iterdir()} >= FILES, right.stderr


def test_devices_and_processes_exclude_each_other(tmp_path):
    result = command("--devices", 2, "--processes", 2, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "not both" in result.output


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run of one epoch on 640 images; tests change copies of it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    result = CliRunner().invoke(main, ["train", "--epochs", "1", "--train-images", "640", "--out", str(folder)],
                                catch_exceptions=False)
    assert result.exit_code == 0
    return folder


@pytest.mark.long
def test_evaluate_prints_and_writes_the_same_figures(small_run, x_test):
    result = CliRunner().invoke(main, ["evaluate", str(small_run), "--test-images", "200", "--samples", "5"],
                                catch_exceptions=False)
    found = json.loads((small_run / "evaluation.json").read_text())
    assert result.exit_code == 0 and found["images"] == 200 and found["iwae"]["k"] == 5
    assert found["elbo"] == evaluate(load_run(small_run, "cvae")[0], x_test[:200])["elbo"]
    # Bounds in order; the ELBO of 200 images has a Monte Carlo error of a few tenths of a nat.
    assert found["elbo"] - 1 < found["iwae"]["bound"] < found["log_px"] + 0.5
    rows = {line[:26].strip(): line[26:].split() for line in result.output.splitlines()}
    assert rows["log p(x)"] == [f"{found['log_px']:.3f}", "nats", "200"]
    assert f"active units: {found['active_units']} of 2" in result.output
    assert rows["IWAE bound, k = 5"] == [f"{found['iwae']['bound']:.3f}", "nats", "200"]
    assert rows["ELBO of the same images"] == [f"{found['iwae']['elbo_of_the_same']:.3f}", "nats", "200"]


def test_evaluate_refuses_a_single_image(small_run):
    result = CliRunner().invoke(main, ["evaluate", str(small_run), "--test-images", "1"])
    assert result.exit_code == 1 and "active units need at least 2 images, got 1" in result.output


@pytest.mark.parametrize(("arguments", "message"), [
    (["evaluate", "nowhere"], "there is no nowhere"),
    (["evaluate", "nowhere", "--samples", "0"], "0 is not in the range"),
    (["explore", "nowhere"], "there is no nowhere"),
    (["explore", "nowhere", "--port", "70000"], "70000 is not in the range"),
    (["train", "--data", "letters"], "'letters' is not one of 'mnist', 'fashion_mnist', 'cifar10', 'photographs'"),
    (["train", "--likelihood", "poisson"], "likelihood must be one of ('bernoulli',"),
    (["train", "--beta", "-1"], "beta must be in [0, inf)"),
])
def test_bad_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split())
    assert not any(tmp_path.iterdir())  # nothing was left behind


@pytest.mark.long
def test_grey_digits_train_with_their_own_likelihood(tmp_path):
    out = tmp_path / "grey"
    result = CliRunner().invoke(main, ["train", "--epochs", "1", "--train-images", "320", "--likelihood",
                                       "discretized_logistic", "--filters", "8", "16", "--out", str(out)],
                                catch_exceptions=False)
    model, card = load_run(out, "cvae")
    assert result.exit_code == 0 and card["recipe"]["likelihood"] == "discretized_logistic"
    assert model.decoder.output_shape == (None, 28, 28, 2) and (out / "manifold.png").exists()
    looked = CliRunner().invoke(main, ["evaluate", str(out), "--test-images", "50", "--samples", "2"])
    assert looked.exit_code == 0 and "bits per dimension" in looked.output
    assert json.loads((out / "evaluation.json").read_text())["log_px_images"] == 50


def test_photographs_train_in_colour(tmp_path):
    out = tmp_path / "photographs"
    result = command("--data", "photographs", "--likelihood", "discretized_logistic", "--latent-dim", 4,
                     "--filters", 4, 8, "--train-images", 64, "--epochs", 1, "--out", out)
    model, card = load_run(out, "cvae")
    assert result.exit_code == 0 and {path.name for path in out.iterdir()} == FILES - {"manifold.png"}
    assert model.decoder.output_shape == (None, 32, 32, 6) and card["recipe"]["latent_dim"] == 4
    shown = iio.imread(out / "reconstructions.png")[..., :3].astype(int)
    assert (shown.max(axis=2) - shown.min(axis=2)).max() > 20  # the images above the reconstructions have colours


def test_a_failing_download_is_a_message(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("keras.utils.get_file", refuse)
    out = tmp_path / "run"
    result = command("--data", "cifar10", "--likelihood", "discretized_logistic", "--train-images", 64, "--out", out)
    text = " ".join(result.output.split())
    assert result.exit_code == 2 and "there is no cifar-10-binary.tar.gz" in text and "URL fetch failure" in text
    assert f"Put the file into {tmp_path / 'keras' / 'datasets'}" in text

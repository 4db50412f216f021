"""A trained model at work: the functions against the library's own, and the commands as a script meets them."""

import csv
import io
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from vae_course.elbo import elbo_terms
from vae_course.engine.checkpoints import write_checkpoint
from vae_course.engine.cli import main
from vae_course.engine.families import MODELS
from vae_course.engine.images import Images, take_images
from vae_course.engine.recipes import Recipe
from vae_course.engine.runs import save_run
from vae_course.further import using
from vae_course.live import commands
from vae_course.further.other_data import prepare
from vae_course.further.using import open_pictures, open_run, own_noise, sample_images, score_images, score_pictures
from vae_course.generation import reconstruct
from vae_course.manifold import encode_images, walk
from vae_course.reparameterization import draw_eps
from vae_course.truth.evaluation import iwae_bound, log_marginal, sample_log_weights

KINDS = {  # of runs: recipe, and the shape of an image
    "binary": (Recipe(filters=(2, 3), latent_dim=1), (9, 8, 1)),
    "density": (Recipe(filters=(2, 3), likelihood="continuous_bernoulli", latent_dim=1), (8, 8, 1)),
    "colour": (Recipe(filters=(2, 3), likelihood="discretized_logistic", latent_dim=3), (8, 7, 3)),
    "labels": (Recipe(filters=(2, 3), model="conditional", sizes={"labels": 3}, latent_dim=1), (28, 28, 1)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An untrained run of each kind, and beside it a folder of images in sub-folders 0, 1, 2."""
    home, rng = tmp_path_factory.mktemp("using"), np.random.default_rng(0)
    for kind, (recipe, shape) in KINDS.items():
        blank = prepare(np.zeros((1, *shape), np.uint8), recipe.likelihood)
        model = MODELS[recipe.model].make(recipe, Images(blank, levels=recipe.levels))
        save_run(home / kind, "cvae", model, recipe, [{"test_elbo": -1.0}])
        for i in range(7):
            folder = home / f"{kind}-images" / str(i % 3)
            folder.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, shape).astype(np.uint8)
            PIL.Image.fromarray(image[..., 0] if shape[2] == 1 else image).save(folder / f"{i}.png")
    return home


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def images_of(runs, kind):
    """The run, its pictures, and the same images, prepared, with their labels."""
    run = open_run(runs / kind)
    pictures = open_pictures(run, runs / f"{kind}-images")
    files = [np.asarray(PIL.Image.open(runs / f"{kind}-images" / name)) for name in pictures.names]
    return run, pictures, prepare(np.stack(files), run.recipe.likelihood)


def given(run, pictures, i):
    return run.model.given(int(pictures.labels[i])) if run.labels else run.model


def test_every_kind_encodes_and_reconstructs_as_the_library_does(runs, kind):
    run, pictures, x = images_of(runs, kind)
    codes, (images, again) = using.encode_pictures(run, pictures), using.reconstruct_pictures(run, pictures)
    assert (images == x).all() and list(codes["file"]) == pictures.names
    for i in range(7):
        model = given(run, pictures, i)
        mean, logvar = encode_images(model, x[i:i + 1])
        # Other batches, other sums: the last digits of float32.
        np.testing.assert_allclose(codes["mean"][i], mean[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(codes["logvar"][i], logvar[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again[i], reconstruct(model, x[i:i + 1])[0], rtol=1e-5, atol=1e-6)


def test_every_kind_is_scored_as_the_library_does_and_the_oddest_comes_first(runs, kind):
    run, pictures, x = images_of(runs, kind)
    scores = score_pictures(run, pictures, samples=4, seed=2)
    numbers = [pictures.names.index(name) for name in scores["file"]]
    for place, i in enumerate(numbers):
        model, one = given(run, pictures, i), x[i:i + 1]
        eps = own_noise(one, 2, (4, run.model.latent_dim))
        log_w = sample_log_weights(model, one, eps).numpy()
        single = np.mean([elbo_terms(model, one, eps[:, k]).elbo().numpy() for k in range(4)])
        # float32 sums over up to 784 pixels, relative to their size
        assert np.isclose(scores["elbo"][place], single, rtol=1e-5)
        assert np.isclose(scores["iwae"][place], iwae_bound(log_w, 4)[0], rtol=1e-5)
    assert ("log_px" in scores) == (run.model.latent_dim <= 2)
    if "log_px" in scores:
        for label in np.unique(pictures.labels if run.labels else 0):
            mine = [place for place, i in enumerate(numbers) if not run.labels or pictures.labels[i] == label]
            mine = sorted(mine, key=lambda place: numbers[place])  # the same batch: the same numbers
            found = log_marginal(given(run, pictures, numbers[mine[0]]), x[[numbers[place] for place in mine]])
            assert (scores["log_px"][mine] == np.float32(found.log_px)).all()
            assert (scores["log_px_error"][mine] == np.float32(found.error)).all()
    assert (np.diff(scores.get("log_px", scores["iwae"])) >= 0).all() and (scores["elbo"] <= scores["iwae"]).all()
    line = "score", runs / kind, runs / f"{kind}-images", "--samples", 4, "--seed", 2
    table = rows(call(*line).stdout)
    assert [row["file"] for row in table] == list(scores["file"])
    for name in set(scores) - {"file"}:
        assert [np.float32(row[name]) for row in table] == scores[name].tolist()


def test_with_the_same_batch_scores_are_equal_to_the_last_digit(pretrained, x):
    model, _ = pretrained
    elbo, iwae = score_images(model, x, samples=5, seed=1)
    log_w = sample_log_weights(model, x, own_noise(x, 1, (5, 2)))
    assert (elbo == iwae_bound(log_w, 1)).all() and (iwae == iwae_bound(log_w, 5)).all()


def test_a_score_depends_on_the_image_and_the_seed_alone(pretrained, x_test):
    model, _ = pretrained
    x = x_test[:30]
    whole = score_images(model, x, samples=5)[1]
    np.testing.assert_allclose(score_images(model, x[::-1], samples=5)[1][::-1], whole, rtol=1e-5)
    np.testing.assert_allclose(score_images(model, x[7:8], samples=5)[1], whole[7:8], rtol=1e-5)
    assert np.abs(score_images(model, x, samples=5, seed=1)[1] - whole).max() > 0.01
    eps = own_noise(x, 0, (5, 2)).numpy()
    assert (own_noise(x[[4, 2]], 0, (5, 2)).numpy() == eps[[4, 2]]).all()
    assert abs(eps.mean()) < 4 / 300**0.5 and abs(eps.std() - 1) < 4 / 600**0.5  # of 300 numbers


def test_samples_depend_on_seed_and_place_alone(runs, kind):
    run = open_run(runs / kind)
    for drawn in (False, True):
        many = sample_images(run, 9, seed=3, drawn=drawn)
        np.testing.assert_allclose(sample_images(run, 4, seed=3, drawn=drawn), many[:4], atol=1e-6)
        assert many.shape == (9, *run.model.image_shape) and 0 <= many.min() <= many.max() <= 1
        assert np.abs(sample_images(run, 9, seed=4, drawn=drawn) - many).max() > 1e-3
    z = draw_eps(3, 5, (1, run.model.latent_dim))
    model = run.model.given(5 % 3) if run.labels else run.model
    np.testing.assert_allclose(sample_images(run, 9, seed=3)[5:6], model.sample(z), atol=1e-6)


def test_drawn_pixels_have_values_that_a_pixel_can_have(runs, kind):
    run = open_run(runs / kind)
    drawn = sample_images(run, 5, drawn=True)
    Images(drawn, levels=run.recipe.levels)  # raises if one has not
    same = np.unique(drawn.reshape(5, -1), axis=0)
    assert len(same) == 5


def test_drawn_pixels_follow_their_probabilities(pretrained):
    run = open_run("pretrained")
    means, drawn = sample_images(run, 400), sample_images(run, 400, drawn=True)
    error = np.sqrt((means * (1 - means)).sum())  # of a sum of independent pixels
    assert abs(drawn.sum() - means.sum()) < 4 * error


def test_a_folder_larger_than_a_part_is_the_same(runs, kind):
    run, pictures, _ = images_of(runs, kind)
    line = run, pictures.labels, encode_images, 7, lambda rows: take_images(pictures.images, rows).numpy()
    whole, parts = using.in_parts(*line), using.in_parts(*line, floats=2 * int(np.prod(run.model.image_shape)))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_result_that_is_not_finite_names_its_file(runs):
    run, pictures, x = images_of(runs, "binary")
    broken = lambda model, x: (np.where(np.arange(len(x)) == 2, np.nan, 0.0),)
    with pytest.raises(ArithmeticError, match=pictures.names[2]):
        using.over_pictures(run, pictures, broken)


def test_labels_are_asked_for_and_checked(runs):
    labelled, plain = open_run(runs / "labels"), open_run(runs / "binary")
    flat = runs / "binary-images" / "0"
    with pytest.raises(ValueError, match="give a label from 0 to 2"):
        open_pictures(labelled, runs / "labels-images" / "0")
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        open_pictures(labelled, flat, label=3)
    with pytest.raises(ValueError, match="asks for no label, got 1"):
        open_pictures(plain, flat, label=1)
    with pytest.raises(ValueError, match="give a label"):
        using.interpolate(labelled, [0, 0], [1, 1])
    one, all_in_turn = sample_images(labelled, 6, label=2), sample_images(labelled, 6)
    np.testing.assert_allclose(one[[2, 5]], all_in_turn[[2, 5]], atol=1e-6)
    assert (open_pictures(labelled, runs / "labels-images" / "0", label=1).labels == 1).all()


def test_a_card_without_a_recipe_is_one_message(runs, tmp_path):
    for name in ("cvae.keras", "cvae.json"):
        (tmp_path / name).write_bytes((runs / "binary" / name).read_bytes())
    card = json.loads((tmp_path / "cvae.json").read_text())
    for recipe in (None, 3, {}, card["recipe"] | {"unknown": 1}, card["recipe"] | {"epochs": "x"}):
        (tmp_path / "cvae.json").write_text(json.dumps(card | {"recipe": recipe}))
        result = call("info", tmp_path)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and str(tmp_path) in result.stderr


def test_encode_prints_what_the_library_returns(runs, kind, tmp_path):
    run, pictures, _ = images_of(runs, kind)
    codes = using.encode_pictures(run, pictures)
    line = "encode", runs / kind, runs / f"{kind}-images"
    result, as_json = call(*line), call(*line, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    for table in (rows(result.stdout), json.loads(as_json.stdout)):
        assert [row["file"] for row in table] == pictures.names
        for name in ("mean", "logvar"):
            found = np.float32([[row[f"{name}_{d + 1}"] for d in range(run.model.latent_dim)] for row in table])
            assert (found == codes[name]).all()  # to the last bit
    for suffix in (".csv", ".json", ".npz"):
        out = tmp_path / f"codes{suffix}"
        assert call(*line, "--out", out).stdout == f"written to {out}\n"
    assert (tmp_path / "codes.csv").read_text() == result.stdout
    assert (tmp_path / "codes.json").read_text() == as_json.stdout
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as arrays:
        assert list(arrays["files"]) == pictures.names and (arrays["mean"] == codes["mean"]).all()


def read_png(path, shape):
    with PIL.Image.open(path) as image:
        return np.asarray(image).reshape(*image.size[::-1], shape[2]) / 255


def test_sample_writes_sheets_files_and_arrays(runs, kind, tmp_path):
    run, shape = open_run(runs / kind), KINDS[kind][1]
    x = sample_images(run, 6, seed=2)
    for out in ("sheet.png", "arrays.npz", "files"):
        result = call("sample", runs / kind, "-n", 6, "--seed", 2, "--out", tmp_path / out)
        assert result.stdout == f"written to {tmp_path / out}\n"
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert (arrays["images"] == x).all()
    files = sorted((tmp_path / "files").iterdir())
    assert [path.name for path in files] == [f"sample{i:05}.png" for i in range(6)]
    for path, image in zip(files, x, strict=True):
        assert np.abs(read_png(path, shape) - image).max() <= 0.5001 / 255
    sheet = read_png(tmp_path / "sheet.png", shape)  # three columns: as square as possible, or a column a label
    assert sheet.shape == (2 * shape[0], 3 * shape[1], shape[2])
    assert np.abs(sheet[shape[0]:, shape[1]:2 * shape[1]] - x[4]).max() <= 0.5001 / 255


def test_reconstruct_puts_each_image_beside_its_reconstruction(runs, kind, tmp_path):
    run, pictures, x = images_of(runs, kind)
    _, again = using.reconstruct_pictures(run, pictures)
    line = "reconstruct", runs / kind, runs / f"{kind}-images", "--out"
    for out in ("sheet.png", "pairs", "arrays.npz"):
        assert call(*line, tmp_path / out).exit_code == 0
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert (arrays["images"] == x).all() and (arrays["reconstructions"] == again).all()
        assert list(arrays["files"]) == pictures.names
    assert len(list((tmp_path / "pairs").iterdir())) == 7
    pair = read_png(tmp_path / "pairs" / (pictures.names[3].replace("/", "_")), KINDS[kind][1])
    assert np.abs(pair - np.concatenate([x[3], again[3]], axis=1)).max() <= 0.5001 / 255
    assert call(*line[:3], "--first", 2, "--out", tmp_path / "few").exit_code == 0
    assert len(list((tmp_path / "few").iterdir())) == 2


def test_interpolate_takes_images_codes_and_seeds(runs, tmp_path):
    run, pictures, x = images_of(runs, "colour")
    mean, _ = encode_images(run.model, x)
    ends = {str(runs / "colour-images" / pictures.names[2]): mean[2], "-1.5,0.25,1": [-1.5, 0.25, 1],
            "-.5,-2,3e-1": [-0.5, -2, 0.3], "7": draw_eps(7, 0, (3,))}
    for number, ((a, start), (b, end)) in enumerate(zip(ends.items(), [*ends.items()][1:], strict=False)):
        out = tmp_path / f"{number}.npz"
        result = call("interpolate", runs / "colour", a, b, "--steps", 5, "--out", out)
        assert result.exit_code == 0, result.output
        with np.load(out, allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["images"], walk(run.model, start, end, 5), atol=1e-6)
    assert call("interpolate", runs / "binary", 3, 4, "--steps", 5, "--out", tmp_path / "strip.png").exit_code == 0
    assert read_png(tmp_path / "strip.png", (9, 8, 1)).shape == (9, 5 * 8, 1)
    labels = call("interpolate", runs / "labels", 3, 4, "--label", 1, "--out", tmp_path / "labels.png")
    assert labels.exit_code == 0


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["sample", "nowhere"], 1, "there is no nowhere"),
    (["sample", "pretrained", "-n", "0"], 2, "0 is not in the range"),
    (["sample", "pretrained", "--label", "3"], 1, "asks for no label, got 3"),
    (["sample", "pretrained", "--out", "x.jpg"], 2, "--out must be .png or .npz or FOLDER, got x.jpg"),
    (["encode", "pretrained", "--out", "codes"], 2, "--out must be .csv or .json or .npz, got codes"),
    (["encode", "pretrained", "nowhere"], 1, "nowhere"),
    (["interpolate", "pretrained", "a", "b"], 1, "'a' is no image, no code such as 0.5,-1, and no seed"),
    (["interpolate", "pretrained", "1,2,3", "4"], 1, "start must have shape (2,), got (3,)"),
    (["interpolate", "pretrained", "nan,0", "4"], 1, "must be finite"),
    (["interpolate", "pretrained", "1", "2", "--stepps", "3"], 2, "unexpected extra argument"),
    (["score", "pretrained", "--samples", "0"], 2, "0 is not in the range"),
    (["info", "nowhere"], 1, "there is no nowhere"), (["info"], 2, "Missing argument"),
])
def test_errors_are_one_line_with_a_code_and_leave_nothing(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    error = result.stderr.split("Error: ")[-1]
    assert result.exit_code == code and message in error and error.count("\n") == 1, result.output
    assert result.stdout == "" and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.png", "out.npz"])
def test_what_is_there_is_kept_without_force(runs, tmp_path, name):
    out = tmp_path / name
    line = "sample", runs / "binary", "-n", 3, "--out", out
    assert call(*line).exit_code == 0
    before = out.read_bytes()
    result = call(*line, "--seed", 1)
    assert result.exit_code == 2 and "is there already; give another --out, or --force" in result.stderr
    assert out.read_bytes() == before
    assert call(*line, "--seed", 1, "--force").exit_code == 0
    assert out.read_bytes() != before and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_must_be_new_or_empty(runs, tmp_path, force):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "full" / "more").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("file", "folder.png", "full"):
        result = call("sample", runs / "binary", "--out", tmp_path / name, *force)
        assert result.exit_code == 2 and "give another --out" in result.stderr
    assert (tmp_path / "file").read_text() == "mine" and not any((tmp_path / "folder.png").iterdir())
    assert call("sample", runs / "binary", "-n", 2, "--out", tmp_path / "empty", *force).exit_code == 0
    assert len(list((tmp_path / "empty").iterdir())) == 2


def test_broken_files_are_left_out_and_named(runs, tmp_path):
    folder = shutil.copytree(runs / "binary-images", tmp_path / "images")
    (folder / "1" / "4.png").write_bytes(b"no picture")
    result = call("encode", runs / "binary", folder)
    assert result.exit_code == 0 and len(rows(result.stdout)) == 6
    assert "1/4.png is left out" in result.stderr and result.stderr.count("\n") == 1
    alone = call("encode", runs / "binary", folder / "1" / "4.png")
    assert alone.exit_code == 1 and "4.png is no image that can be read" in alone.stderr


def test_array_files_are_read(runs, tmp_path):
    run, pictures, x = images_of(runs, "binary")
    codes = using.encode_pictures(run, pictures)
    grey = np.stack([np.asarray(PIL.Image.open(runs / "binary-images" / name)) for name in pictures.names])
    np.save(tmp_path / "one.npy", grey)
    np.savez(tmp_path / "two.npz", x_train=grey[:1], x_test=grey)
    np.savez(tmp_path / "other.npz", images=grey[:, 1:])
    for name in ("one.npy", "two.npz"):
        found = using.encode_pictures(run, open_pictures(run, tmp_path / name))
        assert found["file"][3] == f"{name} 3"
        np.testing.assert_allclose(found["mean"], codes["mean"], rtol=1e-5, atol=1e-6)
    result = call("encode", runs / "binary", tmp_path / "other.npz")
    assert result.exit_code == 1 and "this run is for images (9, 8, 1), got (8, 8, 1)" in result.stderr


def test_without_a_folder_the_test_images_are_taken(pretrained, x_test):
    run = open_run("pretrained")
    pictures = open_pictures(run, first=3)
    assert pictures.names == ["test 0", "test 1", "test 2"]
    assert (using.over_pictures(run, pictures, lambda model, x: (x,))[0] == x_test[:3]).all()


def test_labels_go_by_the_names_of_the_runs_own_classes(runs, tmp_path):
    run = open_run(runs / "labels")
    folder = shutil.copytree(runs / "labels-images", tmp_path / "images")
    shutil.rmtree(folder / "0")  # what is left is no 0 and 1, but 1 and 2
    assert set(open_pictures(run, folder).labels) == {1, 2}
    (folder / "1").rename(folder / "boot")
    with pytest.raises(ValueError, match="this run has no class 'boot', but 0, 1, 2"):
        open_pictures(run, folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError("two\nlines"),
                                   tf.errors.ResourceExhaustedError(None, None, "out of memory")])
@pytest.mark.parametrize("name", ["out.png", "out.npz", "out"])
def test_what_fails_while_writing_leaves_nothing(runs, tmp_path, monkeypatch, error, name):
    def fail(*arguments, **options):
        raise error

    out = tmp_path / name
    write = commands.np if name == "out.npz" else PIL.Image.Image
    monkeypatch.setattr(write, "savez_compressed" if name == "out.npz" else "save", fail)
    result = call("sample", runs / "binary", "-n", 3, "--out", out)
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "\n" not in result.stderr.strip() and "Traceback" not in result.stderr and not any(tmp_path.iterdir())


def test_info_says_what_a_run_is(runs, tmp_path):
    found = json.loads(call("info", "pretrained", "--json").stdout)
    assert found["parameters"] == {"encoder": 69_989 - 28_033, "decoder": 28_033} or sum(found["parameters"].values()) == 69_989
    assert found["recipe"]["epochs"] == 10 and not found["can_go_on"]
    text = call("info", runs / "colour").stdout
    assert "discretized_logistic" in text and "[8, 7, 3]" in text


def test_info_knows_whether_a_run_can_go_on(runs, tmp_path):
    folder = shutil.copytree(runs / "binary", tmp_path / "run")
    recipe = open_run(folder).recipe

    def progress(epochs, step):
        (folder / "history.json").write_text(json.dumps([{"epoch": 1}] * epochs))
        write_checkpoint(folder / "checkpoints", step, {"a": np.ones(2)}, {})
        found = json.loads(call("info", folder, "--json").stdout)
        assert found["epochs_done"] == epochs and found["data"] == "mnist" and found["train_images"] == 64
        return found["can_go_on"]

    for max_steps, epochs, step, expected in ((0, 3, 30, True), (0, 10, 100, False), (105, 9, 104, True), (105, 9, 105, False)):
        settings = {"recipe": asdict(replace(recipe, max_steps=max_steps)), "data": "mnist", "train_images": 64}
        save_run(folder, "cvae", open_run(folder).model, replace(recipe, max_steps=max_steps), [{"test_elbo": -1.0}])
        (folder / "settings.json").write_text(json.dumps(settings))
        assert progress(epochs, step) is expected
    for name in ("history", "settings"):
        kept = (folder / f"{name}.json").read_text()
        for damage in ("{", "3", "[" * 100_000):
            (folder / f"{name}.json").write_text(damage)
            result = call("info", folder)
            assert result.exit_code == 1 and f"{name}.json is damaged" in result.stderr
        (folder / f"{name}.json").write_text(kept)


@pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda command: command.name)
def test_help_shows_examples_that_are_commands(command):
    text = call(command.name, "--help").stdout
    examples = [line.split() for line in text.splitlines() if line.startswith("    vae-course")]
    assert len(examples) == 2
    for example in examples:
        words = example[2:example.index(">")] if ">" in example else example[2:]
        words = words[:words.index("|")] if "|" in words else words
        with command.make_context(command.name, list(words)):
            pass  # every option exists and every value fits


def complete(words, incomplete):
    shell = ShellComplete(main, {}, "vae-course", "_VAE_COURSE_COMPLETE")
    return [(item.value, item.type) for item in shell.get_completions(words, incomplete)]


def test_a_shell_completes_commands_options_recipes_and_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ("reconstruct", "plain") in complete([], "rec")
    assert ("--samples", "plain") in complete(["score"], "--sa")
    assert ("tutorial", "plain") in complete(["train", "--recipe"], "tu")
    assert complete(["info"], "pre") == [("pretrained", "plain")]
    assert complete(["info"], "x") == [("x", "dir")]
    (tmp_path / "runs" / "short").mkdir(parents=True)
    (tmp_path / "runs" / "short" / "cvae.json").write_text("{}")
    assert complete(["sample"], "runs/") == [("runs/short", "plain")]


def test_progress_never_gets_into_a_table(runs):
    """tqdm shows itself in a terminal only; and then on stderr."""
    result = call("encode", runs / "binary", runs / "binary-images")
    assert len(rows(result.stdout)) == 7 and result.stderr == ""

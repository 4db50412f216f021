"""Exported models: read by processes without this course, compared with the model, whole or not at all."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from vae_course.engine.cli import main
from vae_course.engine.families import Bernoulli, FastCVAE
from vae_course.engine.recipes import SHORT
from vae_course.engine.runs import save_run
from vae_course.further import export
from vae_course.further.export import FORMATS, export_model, largest_difference, probes
from vae_course.further.larger import ResidualVAE
from vae_course.further.objectives import ConditionalVAE
from vae_course.further.variants import FunctionalNetworks
from vae_course.model import CVAE

ATOL = 1e-5  # what is promised; relative where a number is larger than 1
with_onnx = pytest.mark.skipif(bool(export.missing_packages()), reason="the extra `export` is not installed")

MODELS = {
    "tutorial": lambda: CVAE(filters=(3, 5), seed=0),
    "colours": lambda: FastCVAE(1, (3, 5), 0, (12, 9, 3), "continuous_bernoulli"),
    "levels": lambda: FastCVAE(3, (3, 5), 0, (16, 16, 1), "discretized_logistic"),
    "residual": lambda: ResidualVAE(2, 8, 2, 0.5, seed=0),
    "functional": lambda: FunctionalNetworks(2, 0),
    "conditional": lambda: ConditionalVAE(10, 2, (3, 5), seed=0),
}

# Whoever imports one of the modules gets an ImportError.
PROGRAM = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import json
from pathlib import Path
import numpy as np
{imports}
for folder in map(Path, sys.argv[2:]):
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    graphs, found = {load}, {{}}
    for number in range(3):
        for graph in ("encode", "decode"):
            values = {{key.split("-")[2]: inputs[key] for key in inputs if key.startswith(f"{{graph}}-{{number}}-")}}
            {call}
            found.update({{f"{{number}}-{{key}}": np.asarray(value) for key, value in outputs.items()}})
    np.savez(folder / "{name}.npz", **found)
"""
SAVED_MODEL = PROGRAM.format(
    name="saved_model", imports="import tensorflow as tf",
    load="tf.saved_model.load(str(folder / 'export' / 'saved_model')).signatures",
    call="outputs = graphs[graph](**{key: tf.constant(value) for key, value in values.items()})")
ONNX = PROGRAM.format(
    name="onnx", imports="import onnxruntime",
    load="{graph: onnxruntime.InferenceSession(str(folder / 'export' / f'{graph}r.onnx'), "
         "providers=['CPUExecutionProvider']) for graph in ('encode', 'decode')}",
    call="outputs = dict(zip([output.name for output in graphs[graph].get_outputs()], graphs[graph].run(None, values)))")


def assert_close(found, expected):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))) <= ATOL


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """For each model its folder: the export, inputs in batches of three sizes; and what the model itself gives."""
    top, expected = tmp_path_factory.mktemp("export"), {}
    rng = np.random.default_rng(0)
    formats = tuple(FORMATS) if not export.missing_packages() else ("saved_model",)
    for name, make in MODELS.items():
        model, inputs = make(), {}
        report = export_model(model, top / name / "export", formats, {"test_elbo": -150.0})
        assert set(report["largest_difference"]) == set(formats)
        for number, n in enumerate((1, 3, 17)):
            x = rng.random((n, *model.image_shape)).astype(np.float32)
            x = x if model.levels is None else (np.round(x * (model.levels - 1)) / (model.levels - 1)).astype(np.float32)
            z = rng.normal(0, 2, (n, model.latent_dim)).astype(np.float32)
            y = rng.integers(0, 10, n).astype(np.int32)
            label = {"y": y} if getattr(model, "labels", None) else {}
            here = model.given(y) if label else model
            mean, logvar = here.encode(x)
            expected[name, number] = {"mean": mean, "logvar": logvar, "pixels": here.sample(z)}
            for graph, values in (("encode", {"x": x}), ("decode", {"z": z})):
                inputs |= {f"{graph}-{number}-{key}": value for key, value in (values | label).items()}
        np.savez(top / name / "inputs.npz", **inputs)
    return top, expected


@pytest.mark.long
@pytest.mark.parametrize(("format", "program", "without"), [
    ("saved_model", SAVED_MODEL, "vae_course,tensorflow_probability,tf_keras"),
    pytest.param("onnx", ONNX, "vae_course,tensorflow,keras,tf2onnx", marks=with_onnx)])
def test_another_process_without_the_course_computes_the_same(exported, format, program, without):
    top, expected = exported
    folders = [str(top / name) for name in MODELS]
    done = subprocess.run([sys.executable, "-c", program, without, *folders], capture_output=True, text=True, cwd=top)
    assert done.returncode == 0, done.stderr
    for (name, number), outputs in expected.items():
        with np.load(top / name / f"{format}.npz") as file:
            for key, value in outputs.items():
                assert_close(file[f"{number}-{key}"], value.numpy())


def test_the_card_says_what_goes_in_and_holds_the_sums_of_the_files(exported):
    top, _ = exported
    for name, make in MODELS.items():
        model, folder = make(), top / name / "export"
        card = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        assert card["encode"]["x"] == ["batch", *model.image_shape]
        assert card["decode"]["z"] == ["batch", model.latent_dim]
        assert (card["labels"] is None) == (name != "conditional")
        assert card["test_elbo"] == -150.0
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(card["sha256"]) == files - {"export.json"}
        for file, digest in card["sha256"].items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
        assert max(card["largest_difference"].values()) <= ATOL


@with_onnx
def test_onnx_files_are_valid_and_their_batch_is_free(exported):
    import onnx

    for name, make in MODELS.items():
        model = make()
        for file, inputs, outputs in (("encoder", {"x": model.image_shape}, {"mean", "logvar"}),
                                      ("decoder", {"z": (model.latent_dim,)}, {"pixels"})):
            graph = onnx.load(exported[0] / name / "export" / f"{file}.onnx")
            onnx.checker.check_model(graph, full_check=True)
            assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}  # no operation of our own
            found = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                     for value in graph.graph.input}
            expected = {key: ["batch", *shape] for key, shape in inputs.items()}
            assert found == expected | ({"y": ["batch"]} if name == "conditional" else {})
            assert {value.name for value in graph.graph.output} == outputs


# --- compared before it is kept


def shifted(there, by):
    """The graphs of another program, which gives all pixels a little brighter."""
    return there | {"decode": lambda inputs: {"pixels": np.asarray(there["decode"](inputs)["pixels"]) + np.float32(by)}}


@pytest.mark.parametrize(("by", "kept"), [(0, True), (8e-6, True), (1.3e-5, False), (np.nan, False)])
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, by, kept):
    read = FORMATS["saved_model"]
    monkeypatch.setitem(FORMATS, "saved_model", lambda folder: shifted(read(folder), by))
    model = FastCVAE(filters=(2, 3), seed=0)
    if kept:
        export_model(model, tmp_path / "export", ("saved_model",))
    else:
        with pytest.raises(ValueError, match="saved_model differs from the model by .* nothing was written"):
            export_model(model, tmp_path / "export", ("saved_model",))
    assert [path.name for path in tmp_path.iterdir()] == ["export"] * kept


def test_another_shape_counts_as_another_result():
    model = FastCVAE(filters=(2, 3), seed=0)
    functions = export.graphs(model)
    there = {"encode": lambda inputs: functions["encode"](**inputs),
             "decode": lambda inputs: {"pixels": np.zeros((1, 28, 28), np.float32)}}
    assert largest_difference(model, functions, there) == float("inf")


@pytest.mark.parametrize("layer", ["encoder", "decoder"])
def test_one_changed_weight_is_seen(tmp_path, layer):
    model, other = (FastCVAE(filters=(2, 3), seed=0) for _ in range(2))
    export.write_saved_model(model, export.graphs(model), tmp_path / "saved_model")
    there = export.read_saved_model(tmp_path / "saved_model")
    assert largest_difference(other, export.graphs(other), there) <= 1e-6
    bias = getattr(other, layer).layers[-1].bias
    bias.assign_add(tf.one_hot(0, bias.shape[0]) * 1e-3)
    assert largest_difference(other, export.graphs(other), there) > ATOL


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = FastCVAE(filters=(2, 3), seed=0)
    model.decoder.layers[0].bias.assign(np.full(1568, np.nan))
    with pytest.raises(ValueError, match="holds numbers that are not finite; train the model again"):
        export_model(model, tmp_path / "export", ("saved_model",))
    assert not list(tmp_path.iterdir())


@with_onnx
def test_what_onnx_cannot_say_is_refused_in_one_line(tmp_path, capfd):
    class Own(Bernoulli):
        """With a mean that ONNX has no word for."""

        def mean(self, x_logits):
            return tf.math.lgamma(1 + tf.abs(x_logits))

    model = FastCVAE(filters=(2, 3), seed=0)
    model.likelihood = Own()
    with pytest.raises(ValueError, match="cannot be written as ONNX: [^\n]*Lgamma"):
        export_model(model, tmp_path / "export")
    assert not list(tmp_path.iterdir())
    export_model(model, tmp_path / "export", ("saved_model",))  # TensorFlow can say it
    assert "tf2onnx" not in capfd.readouterr().err


@pytest.mark.parametrize("levels", [2, 256, None])
def test_probes_are_images_of_the_model(levels):
    likelihood = {2: "bernoulli", 256: "discretized_logistic", None: "continuous_bernoulli"}[levels]
    model = FastCVAE(4, (2, 3), 0, (9, 8, 3), likelihood)
    found = probes(model, 6)
    model.encode(found["encode"]["x"])  # which checks the pixels
    assert found["encode"]["x"].shape == (6, 9, 8, 3) and found["decode"]["z"].shape == (6, 4)


# --- the folder and the command


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something already"):
        export_model(FastCVAE(filters=(2, 3), seed=0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("formats", [(), ("tflite",), ("onnx", "tflite")])
def test_unknown_formats_are_refused(tmp_path, formats):
    with pytest.raises(ValueError, match="formats must be some of"):
        export_model(FastCVAE(filters=(2, 3), seed=0), tmp_path / "export", formats)
    assert not list(tmp_path.iterdir())


def test_an_error_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(export, "largest_difference", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(FastCVAE(filters=(2, 3), seed=0), tmp_path / "export", ("saved_model",))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path):
    """A folder of a run."""
    save_run(tmp_path / "run", "cvae", FastCVAE(filters=(2, 3), seed=0), SHORT, [{"test_elbo": -200.0}])
    return tmp_path / "run"


def call(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_the_command_writes_into_the_run_and_not_twice(run):
    result = call(run, "--format", "saved_model")
    assert result.exit_code == 0, result.output
    assert "differs from the model by" in result.output and str(run / "export") in result.output
    assert (run / "export" / "saved_model" / "saved_model.pb").is_file()
    assert not list((run / "export").glob("*.onnx"))
    again = call(run, "--format", "saved_model")
    assert again.exit_code == 1
    assert f"Error: {run / 'export'} holds something already" in again.output


def test_the_command_prints_json(run, tmp_path):
    result = call(run, "--format", "saved_model", "--out", tmp_path / "other", "--json")
    found = json.loads(result.stdout)
    assert found["folder"] == str(tmp_path / "other") and found["test_elbo"] == -200.0
    assert found["decode"]["gives"] == ["pixels"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_without_the_packages_one_line_says_how_to_get_them(run, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    result = call(run)
    assert result.exit_code == 1 and not (run / "export").exists()
    (line,) = result.output.splitlines()
    assert line == "Error: ONNX needs onnx, onnxruntime, tf2onnx: pip install 'vae_course[export]'."
    assert call(run, "--format", "saved_model").exit_code == 0


def test_the_command_without_a_run(tmp_path):
    result = call(tmp_path / "none")
    assert result.exit_code == 1 and "there is no" in result.output and len(result.output.splitlines()) == 1
    assert call(tmp_path, "--format", "tflite").exit_code == 2

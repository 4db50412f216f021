"""The page of chapter 00: it fits on a page, needs nothing of the course but the data, and learns."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import IPython.display
import matplotlib
import numpy as np
import pytest

import vae_course.data

PATH = Path(__file__).parent.parent / "nbs" / "tutorial" / "00_one_page.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
TEXT = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
PAGE = [source for source in ("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
        if re.search(r"^# Page", source, flags=re.M)]


def test_page_has_the_lines_that_the_chapter_says_and_at_most_sixty():
    lines = [line for source in PAGE for line in source.split("\n") if line.strip() and line.lstrip()[0] != "#"]
    said = {int(number) for number in re.findall(r"\b(\d+) lines\b", TEXT)}
    assert said == {len(lines)} and len(lines) <= 60


def test_page_imports_nothing_of_the_course_but_the_data():
    nodes = [node for node in ast.walk(ast.parse("\n".join(PAGE))) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [(getattr(node, "module", ""), alias.name) for node in nodes for alias in node.names]
    assert [name for name in names if "vae_course" in "".join(name)] == [("vae_course.data", "load_mnist")]


def test_table_at_the_end_names_the_chapters_that_replace_the_pieces():
    table = TEXT.split("## What this page hides")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .*\[(\d\d)\b[^]]*\]\(\1_\w+\.ipynb\)", table, flags=re.M)
    assert rows == [f"{n:02}" for n in range(1, 9)]


@pytest.fixture(scope="module")
def namespace():
    """The names that the page leaves behind after a training on few images; in `shown` what it showed meanwhile."""
    (x, y), (x_test, y_test) = vae_course.data.load_mnist()
    names = {"shown": []}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context({"backend": "agg"}):
        patch.setattr(vae_course.data, "load_mnist", lambda: ((x[:3200], y[:3200]), (x_test[:1000], y_test[:1000])))
        patch.setattr(IPython.display, "display",
                      lambda *args, **options: SimpleNamespace(update=names["shown"].append))
        exec("\n\n".join(PAGE), names)
    matplotlib.pyplot.close("all")
    return names


def test_page_alone_trains_a_vae_shows_it_meanwhile_and_draws_a_plane(namespace):
    encoder, decoder, x = (namespace[name] for name in ("encoder", "decoder", "x_test"))
    assert set(np.unique(x)) == {0, 1} and x.shape == (1000, 28, 28, 1) and x.dtype == np.float32
    assert (encoder.count_params(), decoder.count_params()) == (28_036, 41_953)  # those of chapter 04
    assert len(namespace["shown"]) == 3  # after steps 1, 30 and 100
    assert np.mean(namespace["negative_elbo"](encoder, decoder, x)) < 210  # 544 at the start
    side = np.array([-1.0, 0.0, 2.0])
    picture = namespace["plane"](decoder, side)
    lower_right = 1 / (1 + np.exp(-decoder(np.array([[2.0, -1.0]]))[0, ..., 0]))
    assert picture.shape == (84, 84) and np.allclose(picture[-28:, -28:], lower_right, atol=1e-5)


def test_loss_of_the_page_is_the_courses(namespace, monkeypatch):
    """Same images, same noise: misfit and KL of the page are the terms of chapter 03, with their signs changed."""
    import tensorflow as tf

    from vae_course.elbo import bernoulli_log_prob, kl_standard_normal
    from vae_course.reparameterization import reparameterize

    encoder, decoder, x = namespace["encoder"], namespace["decoder"], namespace["x_test"][:50]
    eps = tf.random.stateless_normal((50, 2), seed=(0, 0))
    monkeypatch.setattr(tf.random, "normal", lambda shape: eps)
    mean, logvar = tf.split(encoder(x), 2, axis=1)
    x_logits = decoder(reparameterize(mean, logvar, eps))
    expected = kl_standard_normal(mean, logvar) - bernoulli_log_prob(x, x_logits)
    # float32: 784 terms of a sum of about 200 nats.
    assert np.allclose(namespace["negative_elbo"](encoder, decoder, x), expected, rtol=1e-4)

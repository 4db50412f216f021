"""Rows of a table: the likelihood against scipy, and a linear decoder, of which everything is known in closed form."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from vae_course.beyond import tables
from vae_course.beyond.tables import (Cells, TableVAE, as_images, cell_log_p, column_scale, fill_in, fit_normal, load_table,
                                      normal_fill, normal_log_density, register_tables, swap_cells)
from vae_course.engine.loop import fit
from vae_course.engine.recipes import Recipe
from vae_course.engine.runs import load_model, save_model
from vae_course.truth.evaluation import iwae_bound, log_marginal, log_weights

COLUMNS = 5


@pytest.fixture(scope="module")
def rows():
    """Rows of correlated cells, and which of them were seen."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS)), rng.random((60, COLUMNS)) < 0.7


@pytest.fixture(scope="module")
def linear():
    """A VAE whose decoder is z W + b with noise: its marginal is normal, with the covariance W'W + diag σ²."""
    rng, model = np.random.default_rng(1), TableVAE(COLUMNS, width=2, seed=0)
    slopes, offset = rng.normal(size=(2, COLUMNS)), rng.normal(size=COLUMNS)
    log_scale = rng.normal(-0.5, 0.3, COLUMNS)

    class Linear:
        layers = model.decoder.layers

        def __call__(self, z):
            mean = tf.matmul(z, tf.constant(slopes, tf.float32)) + tf.constant(offset, tf.float32)
            return tf.stack([mean, tf.broadcast_to(tf.constant(log_scale, tf.float32), tf.shape(mean))], axis=-1)[:, None]

    model.decoder = Linear()
    return model, offset, slopes.T @ slopes + np.diag(np.exp(2 * log_scale))


def log_p_of_seen(t, seen, mean, covariance):
    """log density of the seen cells of each row."""
    return np.array([stats.multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0
                     for row, o in zip(t, seen, strict=True)])


def test_likelihood_is_scipys_and_leaves_out_what_was_not_seen(rows):
    t, seen = rows
    rng = np.random.default_rng(2)
    parameters = rng.normal(size=(60, 1, COLUMNS, 2)).astype(np.float32)
    mean, scale = parameters[:, 0, :, 0], np.exp(parameters[:, 0, :, 1])
    expected = np.sum(stats.norm(mean, scale).logpdf(t) * seen, axis=1)
    # A pixel is ½ + t / 64, rounded at 6e-8: t at 4e-6, and squares of some 1e3 at 1e-2 of a thousandth.
    assert np.allclose(Cells().log_prob(as_images(t, seen), parameters), expected, rtol=1e-4, atol=1e-3)
    other = np.where(seen, t, 7.0)
    assert np.array_equal(as_images(other, seen), as_images(t, seen))


def test_pairs_are_each_row_with_each_code(rows):
    t, seen = rows
    rng = np.random.default_rng(3)
    x, parameters = as_images(t, seen), rng.normal(size=(7, 1, COLUMNS, 2)).astype(np.float32)
    expected = [Cells().log_prob(np.repeat(row[None], 7, axis=0), parameters).numpy() for row in x]
    assert np.allclose(Cells().pairs(x, parameters), expected, rtol=1e-4, atol=1e-3)


def test_scale_looks_at_seen_training_cells_only(rows):
    t, seen = rows
    mean, std = column_scale(t, seen)
    known = np.where(seen, t, np.nan)
    assert np.allclose(mean, np.nanmean(known, axis=0)) and np.allclose(std, np.nanstd(known, axis=0))
    seen = seen.copy()
    seen[:, 2] = False
    with pytest.raises(ValueError, match="column 2"):
        column_scale(t, seen)


def test_a_cell_far_away_is_refused(rows):
    t, seen = rows[0].copy(), np.ones(rows[0].shape)
    t[3, 1] = -33
    with pytest.raises(ValueError, match="logarithms"):
        as_images(t, seen)
    seen[3, 1] = 0
    x = as_images(t, seen)
    assert x.shape == (60, 1, COLUMNS, 2) and x[3, 0, 1].tolist() == [0.5, 0]


def test_marginal_of_a_linear_decoder_is_normal(linear, rows):
    model, mean, covariance = linear
    t, seen = rows
    found = log_marginal(model, as_images(t, seen), tolerance=0.01)
    assert np.allclose(found.log_px, log_p_of_seen(t, seen, mean, covariance), atol=0.02)
    whole = log_marginal(model, as_images(t, np.ones(t.shape)), tolerance=0.01).log_px
    assert np.allclose(whole, normal_log_density(t, mean, covariance), atol=0.02)


def test_filling_with_a_linear_decoder_is_the_conditional_mean(linear, rows):
    model, mean, covariance = linear
    t, seen = rows[0].clip(-2, 2), rows[1]  # codes within the grid from -5 to 5
    filled = fill_in(model, as_images(t, seen))
    assert np.allclose(filled[seen], t[seen], atol=1e-4)
    assert np.allclose(filled, normal_fill(t, seen, mean, covariance)[0], atol=0.02)


def test_log_p_of_a_cell_is_that_of_the_conditional(linear, rows):
    model, mean, covariance = linear
    t = rows[0][:4]
    found = cell_log_p(model, as_images(t, np.ones(t.shape)))
    for j in range(COLUMNS):
        others = np.delete(np.arange(COLUMNS), j)
        whole = stats.multivariate_normal(mean, covariance).logpdf(t)
        rest = stats.multivariate_normal(mean[others], covariance[np.ix_(others, others)]).logpdf(t[:, others])
        assert np.allclose(found[:, j], whole - rest, atol=0.1)
    x = as_images(t, np.tile([1, 1, 0, 1, 1], (4, 1)))
    assert np.allclose(cell_log_p(model, x)[:, 2], 0, atol=1e-6)  # nothing was seen, nothing can surprise


def test_a_normal_of_complete_rows_needs_no_em(rows):
    t, _ = rows
    mean, covariance = fit_normal(t, np.ones(t.shape), rounds=1)
    assert np.allclose(mean, t.mean(axis=0)) and np.allclose(covariance, np.cov(t.T, ddof=0) + 1e-3 * np.eye(COLUMNS))
    assert np.allclose(normal_log_density(t, mean, covariance), stats.multivariate_normal(mean, covariance).logpdf(t))


def test_em_climbs_and_fills_by_regression(rows):
    t, seen = rows
    fits = [fit_normal(t, seen, rounds) for rounds in (1, 5, 50)]
    log_p = [log_p_of_seen(t, seen, *normal).sum() for normal in fits]
    assert log_p[0] < log_p[1] < log_p[2]
    pair, half = np.array([[1.0, 9.0]]), np.array([[1, 0]])
    filled, left = normal_fill(pair, half, np.array([0.0, 1.0]), np.array([[4.0, 2.0], [2.0, 3.0]]))
    assert np.allclose(filled, [[1, 1.5]]) and np.allclose(left, [[0, 0], [0, 2]])  # 1 + 2/4, 3 - 2²/4


def test_swapped_cells_come_from_other_rows_of_the_column(rows):
    t, _ = rows
    for count in (1, 4):
        odd, swapped = swap_cells(t, count, seed=count)
        assert np.all(swapped.sum(axis=1) == count) and np.array_equal(odd[~swapped], t[~swapped])
        assert np.all(odd[swapped] != t[swapped])
        assert all(np.isin(odd[:, j], t[:, j]).all() for j in range(COLUMNS))
    with pytest.raises(ValueError, match="two rows"):
        swap_cells(t[:1], 1)


def test_a_table_model_is_kept_and_loaded(tmp_path, rows):
    model = TableVAE(COLUMNS, latent_dim=3, width=4, seed=1)
    model.decoder.layers[-1].log_scale.assign(np.arange(COLUMNS, dtype=np.float32))
    save_model(model, tmp_path / "table.keras")
    loaded, z = load_model(tmp_path / "table.keras"), np.ones((2, 3), np.float32)
    assert np.array_equal(loaded.decode(z), model.decode(z)) and loaded.levels is None
    x = as_images(*rows)
    assert np.array_equal(loaded.encode(x)[0], model.encode(x)[0])


def test_bounds_stay_below_the_truth(rows):
    model, x = TableVAE(COLUMNS, width=8, seed=0), as_images(*rows)[:20]
    bound = iwae_bound(log_weights(model, x, samples=500), 1)
    assert np.all(bound < log_marginal(model, x, tolerance=0.01).log_px + 0.3)  # Monte Carlo noise of 500 samples


def test_the_table_says_where_it_comes_from(monkeypatch):
    table, names, classes = load_table()
    assert table.shape == (569, 30) and len(names) == 30 and set(classes) == {0, 1} and names[3] == "mean area"
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        load_table()


def test_the_engine_trains_on_rows():
    """A few passes, and the bound is above what columns on their own can reach."""
    register_tables()
    table = load_table()[0][:, :10]
    seen = np.random.default_rng(0).random(table.shape) < 0.8
    mean, std = column_scale(table[:400], seen[:400])
    t = (table - mean) / std
    x = as_images(t, seen)
    recipe = Recipe(model="table", likelihood="cells", epochs=2, batch_size=64, learning_rate=5e-3, sizes={"width": 16},
                    estimator="closed_form")
    model, history = fit(recipe, np.tile(x[:400], (8, 1, 1, 1)), x[400:], verbose=False)
    alone = np.sum(np.where(seen, stats.norm.logpdf(t), 0), axis=1)[400:].mean()
    assert history[-1]["test_elbo"] > alone + 0.5
    assert isinstance(model, TableVAE) and tables.SPAN == 64

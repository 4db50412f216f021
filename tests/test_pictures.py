"""Generation, animation and the manifold."""

import imageio.v3 as iio
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from matplotlib.figure import Figure

from vae_course.animation import (
    CARD,
    GREYS,
    PLANE,
    FrameRecorder,
    draw_on_card,
    figure_to_frame,
    film,
    log_steps,
    plot_plane,
    show_gif,
    take_snapshots,
    to_palette,
    write_gif,
)
from vae_course.engine.families import FastCVAE
from vae_course.generation import (
    display_image,
    generate_and_save_images,
    image_grid,
    plot_images,
    plot_reconstructions,
    reconstruct,
    save_figure,
)
from vae_course.manifold import (
    encode_images,
    latent_grid,
    latent_image,
    plot_encoded,
    plot_latent_images,
    walk,
)
from vae_course.model import CVAE
from vae_course.reparameterization import draw_eps
from vae_course.support import CLASS_COLOURS
from vae_course.training import train


@pytest.mark.parametrize(("n", "columns", "shape"), [(16, None, (4, 4)), (5, None, (2, 3)), (6, 6, (1, 6)),
                                                     (7, 2, (4, 2)), (1, None, (1, 1))])
def test_image_grid_puts_each_image_in_its_place(rng, n, columns, shape):
    images = rng.random((n, 3, 5, 1))
    sheet = image_grid(images, columns)
    assert sheet.shape == (shape[0] * 3, shape[1] * 5)
    for i, image in enumerate(images):
        row, column = divmod(i, shape[1])
        assert (sheet[3 * row:3 * row + 3, 5 * column:5 * column + 5] == image[..., 0]).all()
    assert np.isclose(sheet.sum(), images.sum())  # empty places stay 0


@pytest.mark.parametrize("images", [np.zeros((3, 4, 4)), np.zeros((0, 4, 4, 1)), np.zeros((2, 4, 4, 5)), np.zeros((2, 0, 4, 1))])
def test_image_grid_refuses_what_is_no_batch(images):
    with pytest.raises(ValueError, match="images must have shape"):
        image_grid(images)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_sheet_has_the_colours_and_opacity_of_its_images(rng, channels):
    images = rng.random((3, 7, 11, channels))
    sheet = image_grid(images, columns=2)
    assert sheet.shape == (14, 22) + {1: (), 2: (4,), 3: (3,), 4: (4,)}[channels]
    expected = images[2][..., [0, 0, 0, 1]] if channels == 2 else images[2]  # grey and opacity
    assert (sheet[7:, :11].reshape(7, 11, -1) == expected).all()


def drawn(figure):
    """What a figure shows: the array of its only picture."""
    return np.asarray(figure.axes[0].images[0].get_array())


def test_bytes_are_drawn_as_their_share_of_255(rng):
    images = rng.integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)
    assert np.allclose(drawn(plot_images(images)), image_grid(images) / 255)
    assert np.allclose(drawn(plot_images(list(images / 255))), image_grid(images) / 255)


@pytest.mark.parametrize(("images", "error", "message"), [
    (np.full((2, 9, 9, 1), 255.0), ValueError, "uint8, or numbers from 0 to 1, got values from 255 to 255"),
    (np.linspace(-1, 1, 81).reshape(1, 9, 9, 1), ValueError, "got values from -1 to 1: scale them"),
    (np.full((2, 9, 9, 1), np.nan), ValueError, "got .*nan"),
    (np.full((2, 9, 9, 1), "a"), TypeError, "must be (real )?numbers.*<U1"),
    (np.full((2, 9, 9, 1), 1j), TypeError, "must be (real )?numbers"),
    (np.zeros((2000, 9, 9, 1)), ValueError, "2000 images make a sheet of 900 × 0 inches: draw fewer"),
    (np.zeros((9, 9)), ValueError, "images must have shape"),
])
def test_what_cannot_be_drawn_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        plot_images(images, columns=len(images))


@pytest.mark.parametrize(("size", "inches"), [((28, 28), (0.45, 0.45)), ((14, 28), (0.225, 0.45)), ((28, 7), (0.45, 0.1125)),
                                              ((64, 64), (0.64, 0.64)), ((600, 300), (1.35, 0.675))])
def test_an_image_keeps_its_shape_and_a_larger_one_gets_more_room(size, inches):
    width, height = plot_images(np.zeros((16, *size, 1), np.uint8), columns=16).get_size_inches()
    assert np.allclose((height - 0.3, width), (inches[0], 16 * inches[1]))


SHAPES = [(7, 7, 1), (9, 16, 1), (20, 13, 2), (12, 10, 3), (10, 31, 4)]


@pytest.fixture(scope="module")
def of_any_shape():
    """Untrained models of images of several sizes and colours, and four images for each."""
    rng = np.random.default_rng(0)
    return [(FastCVAE(filters=(2, 3), seed=0, image_shape=shape, likelihood="discretized_logistic"),
             rng.integers(0, 256, (4, *shape)).astype(np.float32) / 255) for shape in SHAPES]


def test_every_picture_of_every_shape_and_colour(tmp_path, of_any_shape):
    for model, x in of_any_shape:
        height, width, channels = model.image_shape
        colours = {1: (), 2: (4,), 3: (3,), 4: (4,)}[channels]
        above = drawn(plot_reconstructions(model, x))[:height]
        assert above.shape == (height, 4 * width, *colours)
        assert np.allclose(above, image_grid(x, columns=4), atol=1e-6)  # float32
        sheet = drawn(plot_latent_images(model, 3))
        assert sheet.shape == (3 * height, 3 * width, *colours)
        assert np.allclose(sheet, latent_image(model, 3))
        generate_and_save_images(model, channels, x, tmp_path)
        picture = display_image(channels, tmp_path)
        assert picture.size[0] >= 150 and picture.size[1] > 30
        recorder = FrameRecorder(x)
        recorder(0, model, [])
        assert recorder.frames[0].ndim == (2 if channels < 3 else 3)
        write_gif(recorder.frames, tmp_path / "film.gif")
        assert iio.imread(tmp_path / "film.gif", plugin="pillow", mode="RGB").shape[1:] == (*recorder.frames[0].shape[:2], 3)


def test_a_film_of_colours_is_in_colour():
    class Red(FastCVAE):
        def decode(self, z, apply_sigmoid=False):
            return tf.tile(tf.constant([[[[1.0, 0.0, 0.0]]]]), (len(z), 8, 8, 1))

    recorder = FrameRecorder(np.zeros((4, 8, 8, 3), np.float32))
    recorder(0, Red(filters=(2, 3), seed=0, image_shape=(8, 8, 3), likelihood="discretized_logistic"), [])
    (frame,) = recorder.frames
    assert frame.shape[-1] == 3 and (frame == [255, 0, 0]).all(axis=-1).mean() > 0.4


def test_ticks_stand_at_the_middle_of_digits_that_are_no_squares(of_any_shape):
    model, _ = of_any_shape[1]  # 9 × 16
    ax = plot_latent_images(model, 4).axes[0]
    assert np.allclose(ax.get_xticks(), 16 * np.arange(4) + 7.5)
    assert np.allclose(ax.get_yticks(), 9 * np.arange(4)[::-1] + 4)


def test_the_tutorials_call_names_the_size(pretrained):
    named = plot_latent_images(pretrained[0], 3, digit_size=28)
    assert (drawn(named) == drawn(plot_latent_images(pretrained[0], 3))).all()


def test_codes_without_labels_have_one_colour_and_no_names(rng):
    mean = rng.normal(size=(50, 2))
    ax = plot_encoded(mean).axes[0]
    (dots,) = ax.collections
    assert np.allclose(np.asarray(dots.get_offsets()), mean) and len(np.unique(dots.get_facecolors(), axis=0)) == 1
    assert not ax.texts and ax.get_legend() is None


def test_plots_return_figures_and_write_nothing(tmp_path, monkeypatch, pretrained, x):
    monkeypatch.chdir(tmp_path)
    model = pretrained[0]
    mean, _ = encode_images(model, x)
    figures = (plot_images(x), plot_reconstructions(model, x), plot_latent_images(model, 3),
               plot_encoded(mean, np.arange(8)))
    assert all(isinstance(figure, Figure) for figure in figures)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_reconstruction_beats_the_mean_image_for_nearly_every_digit(pretrained, x_test):
    x = x_test
    p = np.clip(np.stack([reconstruct(pretrained[0], x), np.broadcast_to(x.mean(axis=0), x.shape)]), 1e-6, 1 - 1e-6)
    log_prob = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(2, 3, 4))
    assert np.mean(log_prob[0] > log_prob[1]) > 0.9


def test_reconstruct_refuses_what_is_not_binary(model, mnist):
    with pytest.raises(TypeError, match="must be float32 from 0 to 1, got uint8. Call preprocess_images"):
        reconstruct(model, mnist[1][0][:2, ..., None])


@pytest.mark.parametrize("draw", [
    lambda model, x: plot_reconstructions(model, x),
    lambda model, x: generate_and_save_images(model, 1, x),
    lambda model, x: encode_images(model, x),
    lambda model, x: FrameRecorder(x),
])
def test_what_wants_prepared_images_says_how_to_prepare_bytes(tmp_path, monkeypatch, model, mnist, draw):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="got uint8.*prepare"):
        draw(model, mnist[1][0][:2, ..., None])
    assert not any(tmp_path.iterdir())


def test_samples_are_a_little_too_white_on_average(pretrained, x_test):
    white = pretrained[0].sample(draw_eps(0, 1, (2000, 2))).numpy().mean(axis=(1, 2, 3))
    error = white.std() / np.sqrt(len(white))
    assert 5 * error < white.mean() - x_test.mean() < 0.02


def test_tutorials_picture_is_saved_and_read_back(tmp_path, pretrained, x_test):
    fig = generate_and_save_images(pretrained[0], 3, x_test[:16], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image_at_epoch_0003.png"]
    save_figure(fig, tmp_path / "again.png")
    assert (np.asarray(display_image(3, tmp_path)) == iio.imread(tmp_path / "again.png")).all()


def test_tutorials_call_uses_the_working_directory(tmp_path, monkeypatch, model, x):
    monkeypatch.chdir(tmp_path)
    generate_and_save_images(model, 0, x)
    assert [path.name for path in tmp_path.iterdir()] == ["image_at_epoch_0000.png"]
    assert display_image(0).size[0] > 100


def test_display_image_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="image_at_epoch_0007.png: call generate_and_save_images"):
        display_image(7, tmp_path)


def test_gif_frames_read_back_exactly(tmp_path, rng):
    frames = list(rng.integers(0, 256, (5, 20, 30), dtype=np.uint8))
    write_gif(frames, tmp_path / "film.gif", duration=120, last_duration=900)
    back = iio.imread(tmp_path / "film.gif", plugin="pillow", mode="L")
    times = [iio.immeta(tmp_path / "film.gif", plugin="pillow", index=i)["duration"] for i in range(5)]
    assert (back == frames).all() and times == [120] * 4 + [900]
    assert iio.immeta(tmp_path / "film.gif", plugin="pillow", index=0)["loop"] == 0  # for ever


def test_gif_takes_colour_frames(tmp_path):
    frames = [np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255))]
    write_gif(frames, tmp_path / "film.gif")
    back = iio.imread(tmp_path / "film.gif", plugin="pillow", mode="RGB")
    assert np.abs(back.astype(int) - np.stack(frames)).max() <= 1


@pytest.mark.parametrize(("frames", "duration", "error", "message"), [
    ([], 100, ValueError, "no frames"),
    ([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], 100, ValueError, "frame 1"),
    ([np.zeros((4, 4))], 100, TypeError, "uint8"),
    ([np.zeros((4, 4), np.uint8)], 0.5, ValueError, "milliseconds"),
    ([np.zeros((4, 4), np.uint8)], float("nan"), ValueError, "duration must be finite"),
])
def test_bad_frames_write_nothing(tmp_path, frames, duration, error, message):
    with pytest.raises(error, match=message):
        write_gif(frames, tmp_path / "film.gif", duration)
    assert not list(tmp_path.iterdir())


def test_a_gif_is_called_gif(tmp_path):
    with pytest.raises(ValueError, match="must end in .gif"):
        write_gif([np.zeros((4, 4), np.uint8)], tmp_path / "film.png")
    assert not list(tmp_path.iterdir())


def test_recorder_keeps_only_its_own_frames(tmp_path, pretrained, model, x):
    save_figure(plot_images(x), tmp_path / "image_at_epoch_0009.png")  # left by an earlier run
    recorder = FrameRecorder(x, tmp_path)
    recorder(0, model, [])
    recorder(1, pretrained[0], [])
    assert len(recorder.frames) == 2 and (recorder.frames[0] != recorder.frames[1]).any()
    saved = np.asarray(display_image(1, tmp_path)).astype(float)
    opacity = saved[..., 3] / 255
    on_card = opacity * saved[..., :3].mean(axis=-1) + (1 - opacity) * CARD
    assert np.abs(on_card - recorder.frames[1]).max() <= 1  # a frame is rounded, twice


def test_frames_do_not_jitter(pretrained, x):
    recorder = FrameRecorder(x)
    for _ in range(2):
        recorder(1, pretrained[0], [])
    assert (recorder.frames[0] == recorder.frames[1]).all()


def test_frame_of_a_figure_is_grey(x):
    frame = figure_to_frame(plot_images(x, title="epoch 1"))
    assert frame.dtype == np.uint8 and frame.ndim == 2 and frame.max() == 255


def test_frames_are_opaque(x):
    fig = Figure(figsize=(0.4, 0.3), dpi=100, facecolor="none")
    assert (draw_on_card(fig) == CARD).all() and draw_on_card(fig).shape == (30, 40, 3)
    fig.set_facecolor((1, 0, 0, 0.5))
    assert np.allclose(draw_on_card(fig), [(255 + CARD) / 2, CARD / 2, CARD / 2], atol=1.5)  # opacity in bytes


def test_palette_takes_the_nearest_colour(rng):
    frame = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    for palette in (GREYS, PLANE):
        found = to_palette(frame, palette)
        distances = np.linalg.norm(frame[:, :, None].astype(float) - palette, axis=-1)
        assert found.dtype == np.uint8
        assert np.allclose(np.linalg.norm(frame.astype(float) - found, axis=-1), distances.min(axis=-1))
    assert (to_palette(PLANE[None], PLANE) == PLANE).all() and CARD in GREYS and len(PLANE) == 15


@pytest.mark.parametrize(("last", "n", "first"), [(1876, 15, 5), (10, 30, 5), (3, 4, 5), (1, 1, 5), (100, 2, 1)])
def test_log_steps_go_from_0_to_the_last(last, n, first):
    steps = log_steps(last, n, first)
    assert steps[0] == 0 and steps[-1] == last and steps == sorted(set(steps)) and len(steps) <= n + 1
    ratios = np.divide(steps[2:], steps[1:-1])
    assert n != 15 or np.ptp(ratios) < 0.2  # even on a logarithmic scale, but for the rounding


def test_snapshots_are_those_of_the_plain_loop(x_test, capsys):
    few, one, other = x_test[:100], CVAE(filters=(4, 8), seed=0), CVAE(filters=(4, 8), seed=0)
    first = one.get_weights()
    snapshots = take_snapshots(one, few, [0, 2, 8], batch_size=32, seed=3)
    train(other, few, few, epochs=2, batch_size=32, learning_rate=1e-3, seed=3)
    assert list(snapshots) == [0, 2, 8]
    for weights, expected in ((snapshots[0], first), (snapshots[8], other.get_weights()), (snapshots[8], one.get_weights())):
        assert all((a == b).all() for a, b in zip(weights, expected, strict=True))
    assert any((a != b).any() for a, b in zip(snapshots[2], snapshots[8], strict=True))


def test_a_film_shows_each_snapshot_and_leaves_the_last(pretrained, model, x):
    actor, snapshots = CVAE(seed=5), {0: model.get_weights(), 7: pretrained[0].get_weights()}
    frames = film(actor, snapshots, lambda model, step: plot_images(reconstruct(model, x), title=f"{step}"))
    expected = [plot_images(reconstruct(each, x), title=title) for each, title in ((model, "0"), (pretrained[0], "7"))]
    assert all((a == to_palette(draw_on_card(b), GREYS)).all() for a, b in zip(frames, expected, strict=True))
    assert np.allclose(reconstruct(actor, x), reconstruct(pretrained[0], x))


def test_plane_shows_every_code_and_an_ellipse_a_label():
    mean = np.float32([[0, 0], [1, 2], [-1, 0.5], [3, 3]])
    logvar = np.log(np.float32([[1, 1], [4, 0.25], [1, 1], [1, 1]]))
    ax = plot_plane(mean, logvar, np.array([3, 7, 3, 0]), "a title").axes[0]
    dots = np.concatenate([collection.get_offsets() for collection in ax.collections])
    assert sorted(map(tuple, dots)) == sorted(map(tuple, mean))
    assert {text.get_text() for text in ax.texts} == {"0", "3", "7", "a title"}
    (ellipse,) = [line.get_xydata() for line in ax.lines if line.get_color() == CLASS_COLOURS[7]]
    assert np.allclose(((ellipse - [1, 2]) / [2, 0.5])**2 @ [1, 1], 1)
    circles = [np.linalg.norm(line.get_xydata(), axis=1) for line in ax.lines if line.get_linestyle() == "--"]
    assert np.allclose(circles, [[1], [2]])


def test_show_gif_is_markdown_with_alt_text(tmp_path, x):
    pytest.importorskip("IPython", reason="IPython comes with notebooks (lab extra)")
    write_gif([figure_to_frame(plot_images(x))], tmp_path / "film.gif")
    for source in (tmp_path / "film.gif", (tmp_path / "film.gif").read_bytes()):
        text = show_gif(source, alt="a film").data
        assert text.startswith("![a film](data:image/gif;base64,R0lGOD") and text.endswith(")")
        # In the same paragraph: alone in one, Quarto would print the alternative text as a caption.
        assert show_gif(source, "a film", "Look.").data == text + "\\\n*Look.*"
    with pytest.raises(ValueError, match="no GIF"):
        show_gif(b"PNG")


def test_grid_is_the_quantiles_of_the_prior():
    expected = scipy.stats.norm.ppf(np.linspace(0.05, 0.95, 20))
    assert np.allclose(latent_grid(20), expected, atol=1e-5)  # float32
    assert latent_grid(1, 0.5, 0.5) == 0


@pytest.mark.parametrize("n", [1, 2, 7])
def test_manifold_pixels_equal_a_direct_decode(pretrained, n):
    model, grid = pretrained[0], latent_grid(n)
    image = latent_image(model, n)
    for row in range(n):
        for column in range(n):
            z = np.float32([[grid[column], grid[n - 1 - row]]])
            patch = image[28 * row:28 * (row + 1), 28 * column:28 * (column + 1)]
            assert np.allclose(patch, model.sample(z)[0, ..., 0], atol=1e-5)  # float32


def test_manifold_axes_carry_z(pretrained):
    ax = plot_latent_images(pretrained[0], 5).axes[0]
    grid = [f"{z:.2f}" for z in latent_grid(5)]
    assert [label.get_text() for label in ax.get_xticklabels()] == grid
    assert [label.get_text() for label in ax.get_yticklabels()] == grid
    heights = ax.get_yticks()
    assert (np.diff(heights) < 0).all()  # larger z2 nearer to row 0, the top
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


def test_encoding_in_batches_changes_nothing(pretrained, x_test):
    whole, parts = (encode_images(pretrained[0], x_test[:50], size) for size in (50, 7))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))  # float32


def test_walk_starts_and_ends_where_it_should(pretrained):
    model, z0, z1 = pretrained[0], np.float32([0, 1]), np.float32([-1, 0.5])
    path = walk(model, z0, z1, steps=5)
    ends = model.sample(np.stack([z0, z1]))
    middle = model.sample((z0 + z1)[None] / 2)
    assert path.shape == (5, 28, 28, 1)
    assert np.allclose(path[[0, -1]], ends, atol=1e-5) and np.allclose(path[2], middle[0], atol=1e-5)


@pytest.mark.parametrize(("call", "message"), [
    (lambda model: latent_image(CVAE(latent_dim=1), 3), "latent_dim 2, got 1"),
    (lambda model: latent_image(model, 3, digit_size=27), "digit_size=27"),
    (lambda model: plot_latent_images(CVAE(filters=(2, 3), image_shape=(9, 16, 1)), 3, digit_size=9),
     r"draws digits of \(9, 16\) pixels, got digit_size=9: leave it out"),
    (lambda model: latent_grid(0), "n must be at least 1"),
    (lambda model: latent_grid(3, 0.9, 0.1), "low <= high"),
    (lambda model: latent_grid(3, 0, 1), "0 < low"),
    (lambda model: walk(model, [0, 0], [1, 1], steps=1), "steps must be at least 2"),
    (lambda model: walk(model, [0], [1]), r"shape \(2,\)"),
    (lambda model: plot_encoded(np.zeros((3, 3)), np.zeros(3)), r"\(n, 2\)"),
    (lambda model: plot_encoded(np.zeros((5, 2)), np.zeros(10)), r"got \(5, 2\) and \(10,\)"),
    (lambda model: plot_latent_images(CVAE(latent_dim=3), 5), "latent_dim 2, got 3"),
])
def test_bad_input_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)

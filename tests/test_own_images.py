"""Chapters 10 and 31, pictures and sources: data as people have them, and the pixels that come of them."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import children
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

import vae_course.further.own_images as own_images
from vae_course import pictures
from vae_course.data import check_images
from vae_course.engine import images as engine_images
from vae_course.engine.cli import main
from vae_course.engine.checkpoints import list_checkpoints
from vae_course.engine.images import Images, fingerprint
from vae_course.engine.loop import fit, make_evaluate
from vae_course.engine.recipes import FAST
from vae_course.further.other_data import fit_images, prepare
from vae_course.further.own_images import check_pictures, look_at, read_data, read_folder, run_data
from vae_course.model import CVAE
from vae_course.pictures import count_frames, read_picture, split_names
from vae_course.sources import Reading, read_arrays

TINY = replace(FAST, epochs=2, max_steps=0, warmup=0, filters=(2, 4), batch_size=4, latent_dim=2,
               likelihood="discretized_logistic", output_bias="zero")
rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)  # 6 high, 5 wide: no symmetry hides a turn
GREY = rng.integers(0, 256, (6, 5), dtype=np.uint8)
ALPHA = np.concatenate([COLOUR, rng.integers(0, 256, (6, 5, 1), dtype=np.uint8)], -1)


def on_white(rgba):
    """What a picture with transparency looks like on white; rounding may differ by one."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def save(folder, name, pixels=COLOUR, **options):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def palette(pixels):
    """The picture with as many colours as pixels, at most 256: exact."""
    flat, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "L")
    image.putpalette(flat.tobytes())
    return image


# ---------------------------------------------------------------- one file


EXACT = {"png": {}, "webp": {"lossless": True, "exact": True}, "tiff": {}, "tif": {"compression": "tiff_lzw"}, "bmp": {}}


@pytest.mark.parametrize("kind", EXACT)
def test_a_lossless_file_comes_back_to_the_last_bit(tmp_path, kind):
    path = save(tmp_path, f"a.{kind}", **EXACT[kind])
    assert np.array_equal(read_picture(path), COLOUR) and count_frames(path) == 1


def test_a_jpeg_comes_back_nearly(tmp_path):
    smooth = np.add.outer(4 * np.arange(16), 5 * np.arange(24)).astype(np.uint8)
    found = read_picture(save(tmp_path, "a.JPG", smooth, quality=95))
    assert found.shape == (16, 24, 1) and np.abs(found[..., 0].astype(int) - smooth).max() <= 8  # quantised by JPEG


TRANSPARENT = palette(COLOUR)
TRANSPARENT.info["transparency"] = 0
SEEN = np.asarray(TRANSPARENT.convert("RGBA"))


@pytest.mark.parametrize(("image", "own"), [
    (Image.fromarray(GREY), GREY[..., None]),
    (Image.fromarray(COLOUR), COLOUR),
    (Image.fromarray(ALPHA), ALPHA),
    (palette(COLOUR), COLOUR),
    (TRANSPARENT, SEEN),
    (Image.fromarray(GREY > 99), np.uint8(255 * (GREY > 99))[..., None]),
    (Image.fromarray(GREY.astype(np.uint16) * 256 + 77), GREY[..., None]),
    (Image.fromarray(np.stack([GREY, ALPHA[..., 3]], -1), "LA"), np.dstack([GREY, GREY, GREY, ALPHA[..., 3]])),
], ids=["grey", "colour", "transparency", "palette", "palette-transparent", "one-bit", "16-bit", "grey-transparent"])
def test_every_mode_becomes_bytes(tmp_path, image, own):
    path = save(tmp_path, "a.png", image)
    assert np.array_equal(read_picture(path), own)
    shown = on_white(own) if own.shape[-1] == 4 else np.broadcast_to(own, (6, 5, 3))
    assert np.abs(read_picture(path, channels=3) - shown).max() <= 1
    luma = shown @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(read_picture(path, channels=1)[..., 0] - luma).max() <= 1.5
    assert read_picture(path, channels=4).shape == (6, 5, 4)


def test_16_bits_of_a_tiff_keep_the_upper_eight(tmp_path):
    path = save(tmp_path, "a.tif", Image.fromarray(GREY.astype(np.uint16) * 256 + 200))
    assert np.array_equal(read_picture(path)[..., 0], GREY)


@pytest.mark.parametrize("pixels", [np.float32(GREY), np.int32(GREY)])
def test_numbers_without_a_white_are_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match="numbers without a largest one; save it with 8 or 16 bits"):
        read_picture(save(tmp_path, "a.tif", Image.fromarray(pixels)))


def test_inks_become_colours(tmp_path):
    image = Image.fromarray(COLOUR).convert("CMYK")
    assert np.array_equal(read_picture(save(tmp_path, "a.tif", image)), np.asarray(image.convert("RGB")))


UPRIGHT = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
           5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
           8: lambda x: np.rot90(x)}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_note_about_the_orientation_is_obeyed(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path, f"a.{kind}", exif=exif, **EXACT[kind])
    assert np.array_equal(read_picture(path), UPRIGHT[orientation](COLOUR))


def test_a_telephones_jpeg_stands_upright(tmp_path):
    dark = np.zeros((16, 32), np.uint8)
    dark[:, :16] = 255  # white on the left; turned to the right it is at the top
    exif = Image.Exif()
    exif[274] = 6
    found = read_picture(save(tmp_path, "a.jpg", dark, exif=exif))[..., 0]
    assert found.shape == (32, 16) and found[:14].min() > 250 and found[18:].max() < 5


FILM = [np.full((6, 5, 3), shade, np.uint8) for shade in (10, 120, 250)]


@pytest.mark.parametrize(("name", "options"), [("a.gif", {"duration": 100}), ("a.tif", {}), ("a.webp", {"lossless": True})])
def test_each_frame_of_a_film_is_a_picture(tmp_path, name, options):
    first, *others = map(Image.fromarray, FILM)
    path = save(tmp_path, name, first, save_all=True, append_images=others, **options)
    assert count_frames(path) == 3
    folder = read_folder(tmp_path, channels=3)
    assert folder.files == (name, f"{name}#1", f"{name}#2") and np.array_equal(folder.read([2, 0, 1]),
                                                                               np.stack(FILM)[[2, 0, 1]])


def test_a_gif_of_one_picture_is_exact(tmp_path):
    assert np.array_equal(read_picture(save(tmp_path, "a.gif", palette(COLOUR)), channels=3), COLOUR)


def test_crop_keeps_the_middle_and_resize_the_whole(tmp_path):
    bands = np.repeat(np.uint8([0, 100, 200]), 8)[None].repeat(8, 0)  # 8 high, 24 wide
    path = save(tmp_path, "a.png", bands)
    assert np.array_equal(read_picture(path, size=(8, 8), fit="crop")[..., 0], bands[:, 8:16])
    stretched = read_picture(path, size=(8, 12), fit="resize")[0, :, 0]
    assert stretched[0] == 0 and stretched[-1] == 200 and stretched.shape == (12,)
    assert np.array_equal(read_picture(path, size=(8, 24))[..., 0], bands)  # the right size is not touched


# ---------------------------------------------------------------- a folder


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in two sub-folders, of which nobody has read any."""
    for i in range(12):
        save(tmp_path, f"{'ab'[i % 2]}/{i:02}.png", np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return tmp_path


def pixels_of(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_a_folder_has_files_labels_and_pixels(photos):
    save(photos, ".hidden/x.png")
    save(photos, "a/._00.png")
    (photos / "a" / "notes.txt").write_text("no picture")
    folder = read_folder(photos)
    numbers = [*range(0, 12, 2), *range(1, 12, 2)]
    assert folder.files == tuple(f"{'ab'[i % 2]}/{i:02}.png" for i in numbers) and len(folder) == 12
    assert folder.classes == ("a", "b") and folder.labels.tolist() == [0] * 6 + [1] * 6
    assert folder.shape == (8, 8, 3) and folder.broken == ()
    assert np.array_equal(folder.read(np.arange(12)), [pixels_of(i) for i in numbers])
    found = list(folder.dataset([3, 7]).as_numpy_iterator())
    assert [label for _, label in found] == [0, 1] and np.array_equal(found[1][0], pixels_of(numbers[7]))


def test_sub_folders_are_labels_only_if_every_file_lies_in_one(photos):
    save(photos, "b/deep/er.png", pixels_of(0))
    assert read_folder(photos).classes == ("a", "b")
    save(photos, "top.png", pixels_of(0))
    assert read_folder(photos).labels is None and read_folder(photos).classes is None


@pytest.mark.parametrize("arguments", [{}, {"size": 8, "fit": "refuse"}])
def test_the_first_picture_that_does_not_fit_is_named(photos, arguments):
    save(photos, "b/05x.png", np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"^b/05x\.png has 9 × 8 pixels in 3 channels, expected 8 × 8 in 3: say by size"):
        read_folder(photos, **arguments)
    for way in ("crop", "resize"):
        assert len(read_folder(photos, fit=way)) == 13 and len(read_folder(photos, size=(8, 8), fit=way)) == 13
    assert read_folder(photos, size=(4, 5)).shape == (4, 5, 3)


def test_other_channels_are_refused_unless_a_number_is_given(photos):
    save(photos, "b/05x.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"^b/05x\.png has 8 × 8 pixels in 1 channels, expected 8 × 8 in 3"):
        read_folder(photos)
    for channels in (1, 3, 4):
        assert read_folder(photos, channels=channels).read([0]).shape == (1, 8, 8, channels)


def damaged(folder):
    """Files that end in .png and hold no whole picture."""
    whole = save(folder, "a/whole.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).read_bytes()
    (folder / "a" / "whole.png").unlink()
    for name, content in (("empty", b""), ("text", b"a letter"), ("half", whole[:len(whole) // 2]), ("head", whole[:20])):
        (folder / "a" / f"{name}.png").write_bytes(content)
    return {f"a/{name}.png" for name in ("empty", "text", "half", "head")}


def test_broken_files_are_listed_and_left_out(photos):
    names = damaged(photos)
    folder = read_folder(photos)
    assert {file for file, _ in folder.broken} == names and len(folder) == 12 and not names & set(folder.files)
    reasons = dict(folder.broken)
    assert "it is no picture of a known kind" in reasons["a/text.png"] and "truncated" in reasons["a/half.png"].lower()
    assert not any("\n" in reason for reason in reasons.values())
    with pytest.raises(ValueError, match=r"a/(empty|half|head|text)\.png cannot be read: "):
        read_folder(photos, broken="raise")


def test_a_file_that_breaks_later_is_named_when_it_is_read(photos):
    folder = read_folder(photos, broken="later")
    (photos / "a" / "00.png").write_bytes(b"")
    (photos / "a" / "02.png").unlink()
    with pytest.raises(ValueError, match=r"a/00\.png cannot be read: it is no picture"):
        folder.read([0])
    with pytest.raises(ValueError, match=r"a/02\.png cannot be read: No such file"):
        folder.read([1])
    assert len(check_pictures(folder)) == 10


@pytest.mark.parametrize(("make", "message"), [
    (lambda folder: read_folder(folder / "nowhere"), "nowhere is no folder; pictures end in .png"),
    (lambda folder: read_folder(save(folder, "one.png")), "one.png is no folder"),
    (lambda folder: read_folder((folder / "empty").mkdir() or folder / "empty"), "empty holds no picture; pictures end"),
    (lambda folder: read_folder(folder, size=0), "size must be at least 1, got 0"),
    (lambda folder: read_folder(folder, size=(1, 2, 3)), "size must be one number, or height and width"),
    (lambda folder: read_folder(folder, channels=2), "channels must be one of"),
    (lambda folder: read_folder(folder, fit="squeeze"), "fit must be one of .*got 'squeeze'"),
    (lambda folder: read_folder(folder, broken="maybe"), "broken must be one of .*got 'maybe'"),
])
def test_what_makes_no_folder_is_refused(photos, make, message):
    with pytest.raises(ValueError, match=message):
        make(photos)


@pytest.mark.parametrize("take", [lambda folder, numbers: folder.read(numbers), lambda folder, numbers: folder.take(numbers),
                                  lambda folder, numbers: folder.dataset(numbers)])
@pytest.mark.parametrize(("numbers", "error", "message"), [
    ([0, 12], ValueError, "numbers must be from 0 to 11, got 0 to 12"), ([-1], ValueError, "numbers must be from 0 to 11, got -1"),
    ([0.5], TypeError, "numbers must be integers in one row, got float64"),
    (np.ones(12, bool), TypeError, "numbers must be integers in one row, got bool"),
    ([[0, 1]], TypeError, r"numbers must be integers in one row, got int64 of shape \(1, 2\)")])
def test_numbers_that_no_picture_has_are_refused(photos, take, numbers, error, message):
    with pytest.raises(error, match=message):
        take(read_folder(photos, broken="later"), numbers)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 2}, "channels must be one of"), ({"size": (8, 8, 8)}, "size must be one number, or height and width"),
    ({"fit": "squeeze"}, "fit must be one of"), ({"frame": -1}, "frame must be at least 0"), ({"frame": 1}, "it has no such frame")])
def test_one_picture_is_asked_for_as_a_folder_is(tmp_path, arguments, message):
    path = save(tmp_path, "a.png")
    assert read_picture(path, size=4).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=message):
        read_picture(path, **arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"size": (8, 0)}, "size must be at least 1"), ({"channels": 2}, "channels must be one of"), ({"fit": "squeeze"}, "fit must be one of"),
    ({"test_share": 1.0}, "test must be in"), ({"split_seed": -1}, "seed must be at least 0")])
def test_a_reading_that_makes_no_sense_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reading(**arguments)


@pytest.mark.parametrize("names", [(1, 2, 3), [["a"], ["b"]], np.zeros((3, 2))])
def test_names_to_split_are_words(names):
    with pytest.raises(TypeError, match=r"names\[0\] must be of type str"):
        split_names(names)


def test_a_folder_of_broken_files_alone_is_refused(tmp_path):
    damaged(tmp_path)
    with pytest.raises(ValueError, match="holds no picture that can be read; the last was a/text.png"):
        read_folder(tmp_path)


# ---------------------------------------------------------------- the split


NAMES = tuple(f"{i}.png" for i in range(1000))


def test_a_split_has_its_shares_and_no_file_twice():
    train, validation, test = split_names(NAMES, 3, 0.2, 0.1)
    assert sorted([*train, *validation, *test]) == list(range(1000))
    assert abs(len(test) - 200) < 5 * 13 and abs(len(validation) - 100) < 5 * 10  # five standard deviations
    again = split_names(NAMES, 3, 0.2, 0.1)
    assert all(np.array_equal(a, b) for a, b in zip((train, validation, test), again, strict=True))
    assert not np.array_equal(split_names(NAMES, 4, 0.2, 0.1)[2], test)


def test_a_file_stays_where_it_is_when_others_come():
    parts = split_names(NAMES, 0, 0.2, 0.1)
    more = tuple(f"new {i}.png" for i in range(300)) + NAMES
    for one, other in zip(parts, split_names(more, 0, 0.2, 0.1), strict=True):
        assert {NAMES[i] for i in one} == {more[i] for i in other} & set(NAMES)


@pytest.mark.parametrize(("n", "sizes"), [(2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_few_files_are_split_so_that_each_part_has_one(n, sizes):
    assert tuple(map(len, split_names(NAMES[:n], 0, 0.01, 0.01))) == sizes


def test_a_split_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="1 file is too few to train and to test"):
        split_names(NAMES[:1])
    assert [len(part) for part in split_names(NAMES[:1], 0, 0, 0)] == [1, 0, 0]
    for shares in ((1, 0), (0.5, 0.5), (-0.1, 0), (float("nan"), 0)):
        with pytest.raises(ValueError, match="must be in|test|validation"):
            split_names(NAMES, 0, *shares)


def test_the_frames_of_a_film_stay_together(photos):
    for i in range(6):
        first, *others = (Image.fromarray(pixels_of(100 + 3 * i + k)) for k in range(3))
        save(photos, f"a/film{i}.tif", first, save_all=True, append_images=others)
    folder = read_folder(photos)
    parts = folder.split(1, 0.3, 0.3)
    names = [{folder.names[i] for i in part} for part in parts]
    assert all(names) and not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]


# ---------------------------------------------------------------- streams


X = rng.integers(0, 256, (10, 8, 9, 3), dtype=np.uint8)
Y = rng.integers(0, 4, 10)
slices = tf.data.Dataset.from_tensor_slices


def unknown(dataset):
    """The same dataset, but nobody knows its length."""
    return dataset.filter(lambda *element: True)


KINDS = {
    "bytes, one by one": lambda: slices(X),
    "pairs": lambda: slices((X, Y)),
    "pairs in batches": lambda: slices((X, Y)).batch(4),
    "pairs in full batches": lambda: slices((X, Y)).batch(5, drop_remainder=True),
    "of unknown length, in batches": lambda: unknown(slices((X, Y))).batch(4),
    "dicts": lambda: slices({"image": X, "label": Y, "id": np.arange(10)}),
    "dicts in batches": lambda: slices({"image": X, "label": Y}).batch(3),
    "dicts without labels": lambda: slices({"image": X}),
    "tuples of one": lambda: slices((X,)).batch(4),
    "floats from 0 to 255": lambda: slices(X.astype(np.float32)).batch(4),
    "floats from 0 to 1": lambda: slices(X / np.float32(255)).batch(4),
    "doubles": lambda: slices(X / 255.0),
    "a function of bytes": lambda: lambda: iter(X),
    "a function of pairs": lambda: lambda: zip(X, Y.tolist(), strict=True),
    "a function of batches": lambda: lambda: ((X[i:i + 4], Y[i:i + 4]) for i in range(0, 10, 4)),
    "a function of dicts": lambda: lambda: ({"image": x, "label": int(y)} for x, y in zip(X, Y, strict=True)),
    "an array of bytes": lambda: X,
    "an array of floats to 255": lambda: X.astype(float),
    "an array of floats": lambda: X / np.float32(255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_pixels(kind):
    images = Images(KINDS[kind](), levels=256)
    assert len(images) == 10 and images.shape == (8, 9, 3)
    batches = list(images.batches(4))
    x = np.concatenate([batch[0] if images.labelled else batch for batch in batches])
    assert x.dtype == np.float32 and np.array_equal(x, prepare(X, "discretized_logistic"))
    assert np.array_equal(images.first(3), x[:3]) and [len(b[0] if images.labelled else b) for b in batches] == [4, 4, 2]
    assert images.labelled == any(word in kind for word in ("pairs", "of unknown", "dicts", "function of batches")) * ("without" not in kind)
    if images.labelled:
        assert np.array_equal(np.concatenate([y for _, y in batches]), Y)


@pytest.mark.parametrize("kind", ["grey images in batches", "grey images", "grey with a channel"])
def test_grey_streams_need_no_channel(kind):
    grey = X[..., 0]
    dataset = {"grey images in batches": slices(grey).batch(4), "grey images": slices(grey),
               "grey with a channel": slices(grey[..., None]).batch(4)}[kind]
    images = Images(dataset, levels=2)
    assert images.shape == (8, 9, 1) and np.array_equal(images.first(10), prepare(grey, "bernoulli"))


def test_a_folder_as_keras_reads_it(photos):
    dataset = tf.keras.utils.image_dataset_from_directory(str(photos), image_size=(8, 8), batch_size=5, shuffle=False,
                                                          verbose=False)
    images, own = Images(dataset, levels=256), read_folder(photos)
    assert len(images) == 12 and images.classes == own.classes == ("a", "b") and images.labelled
    assert np.array_equal(images.first(12), Images(own, levels=256).first(12))


def test_the_length_is_counted_in_one_pass():
    passes = []

    def made():
        passes.append(0)
        for i in range(100):
            passes[-1] += 1
            yield X[i % 10]

    assert len(Images(made, levels=256)) == 100 and passes.count(100) == 1


def once():
    yield from X


ONCE = once()


@pytest.mark.parametrize(("source", "error", "message"), [
    (once(), TypeError, "a generator can be read once.*pass the function that makes it, without calling it"),
    (iter(X), TypeError, "can be read once"),
    (lambda: ONCE, ValueError, "must return a fresh iterator at each call, it returned the same one twice"),
    (lambda: iter(()), ValueError, "the function makes no image"),
    (slices(X).repeat(), ValueError, "never ends: leave .repeat.. out, or say by .take.n. what an epoch is"),
    (slices((X, Y)).batch(2).repeat(), ValueError, "never ends"),
    (slices(X).take(0), ValueError, "the dataset is empty"),
    (slices({"picture": X, "label": Y}), TypeError, "must have the key 'image', this one has 'label', 'picture'"),
    (slices((X, Y, Y)), TypeError, "got 3 parts: use dataset.map"),
    (slices((X, np.eye(10))), TypeError, "labels must be integers.*argmax"),
    (slices((X, X)), TypeError, "labels must be integers.*lambda x, y: x"),
    (slices((X, Y / 2)), TypeError, "labels must be integers"),
    (slices(X.reshape(10, -1)), ValueError, "must be of images .height, width, channels., or of batches of them"),
    (slices(X[..., 0]).batch(5, drop_remainder=True), ValueError, "for grey images in batches, use dataset.map"),
    (slices(X.astype(np.int64)), TypeError, "images must be float32 from 0 to 1, got int64"),
    (slices(X.astype(np.uint16) * 257), TypeError, "images must be float32 from 0 to 1, got uint16"),
    (slices(X / np.float32(127.5) - 1), ValueError, r"If they are from -1 to 1: x / 2 \+ 0.5"),
    (X / np.float32(127.5) - 1, ValueError, r"If they are from -1 to 1: x / 2 \+ 0.5"),
    (X.astype(np.uint16) * 257, TypeError, "images must be float32 from 0 to 1, got uint16"),
    (X.astype(np.float32) * 257, ValueError, "got values from 0 to 65535"),
    (X > 99, TypeError, r'got bool'),
    (X[0], ValueError, r"x\[None\] is one image, x\[..., None\] are grey ones"),
    (np.float32(X[0] > 9), ValueError, r"x\[None\] is one image"),
    (np.float32(X[..., 0] > 9), ValueError, r"x\[..., None\] are grey images"),
    (np.zeros((4, 784), np.float32), ValueError, r"x.reshape\(-1, 28, 28, 1\) are digits"),
    (rng.random((4, 8, 8, 1)), ValueError, r"round them to bytes: \(255 \* x\).round\(\) / 255"),
])
def test_what_is_no_source_is_refused_with_the_line_that_mends_it(source, error, message):
    with pytest.raises(error, match=message):
        Images(source, levels=256)


def test_colours_do_not_become_binary_pixels():
    for source in (X, slices(X), slices(X).batch(2)):
        with pytest.raises(ValueError, match="binary pixels have no colours, got 3 channels"):
            Images(source, levels=2)


def test_a_stream_that_never_ends_is_not_counted_for_ever(monkeypatch):
    from vae_course import sources

    def endless():
        while True:
            yield X[0]

    monkeypatch.setattr(sources, "MOST", 3000)
    with pytest.raises(ValueError, match=r"has not ended after 3,000 images: say by .take\(n\)"):
        Images(endless, levels=256)


@pytest.mark.parametrize("change", [lambda x: x * 1.01, lambda x: -x, lambda x: x * np.nan])
def test_a_bad_pixel_late_in_a_stream_of_grey_floats_is_an_error(change):
    late = X.astype(np.float32)
    late[9] = change(np.float32(255))
    with pytest.raises(tf.errors.InvalidArgumentError, match="each pixel must be from 0 to 255"):
        list(Images(slices(late), levels=256).batches(4))


def test_images_of_two_sizes_in_a_stream_are_refused():
    dataset = tf.data.Dataset.from_generator(lambda: iter([X[0], X[1], X[2][:5]]),
                                             output_signature=tf.TensorSpec((None, None, 3), tf.uint8))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="each image must have the size of the first"):
        list(Images(dataset, levels=256).batches(4))


@pytest.mark.parametrize("x", [slices(X), once(), lambda: iter(X)])
def test_functions_of_arrays_say_where_streams_belong(x):
    with pytest.raises(TypeError, match="images must be an array, got a .*; `Images` takes it"):
        check_images(x)


def test_bytes_to_functions_of_pixels_name_prepare():
    with pytest.raises(TypeError, match=r"or prepare on other uint8 images"):
        check_images(X)


def test_bytes_of_0_and_1_are_no_binary_pixels():
    """They were grey values, all of them dark: black images without a word."""
    ones = np.ones((2, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="grey values from 0 to 255, and the largest here is 1"):
        Images(ones)
    assert Images(ones.astype(np.float32)).first(2).min() == 1 and Images(0 * ones).first(2).max() == 0
    assert Images(ones, levels=256).first(2).max() == np.float32(1 / 255)


@pytest.mark.parametrize("function", [len, int, lambda: 5])
def test_a_function_that_makes_no_images_is_refused(function):
    with pytest.raises(TypeError, match="the function must .* images"):
        Images(function)


@pytest.mark.parametrize("classes", ["ab", [1, 2], 5])
def test_names_of_classes_are_words(classes):
    with pytest.raises(TypeError, match="classes"):
        Images(X, levels=256, classes=classes)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seed": -1}, {"epoch": 0}, {"done": -1}])
def test_batches_are_asked_for_by_whole_numbers(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        Images(X, levels=256).batches(**{"batch_size": 2} | wrong)


# ---------------------------------------------------------------- in memory or not


@pytest.fixture
def nothing_in_memory(monkeypatch):
    for module in (pictures, engine_images, own_images):
        monkeypatch.setattr(module, "IN_MEMORY", 0, raising=module is not pictures)


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, in order."""
    found = []

    def read(path, *arguments, **options):
        found.append(Path(path).name)
        return read_picture(path, *arguments, **options)

    monkeypatch.setattr(pictures, "read_picture", read)
    return found


def test_a_large_folder_is_read_as_it_is_needed(photos, nothing_in_memory, reads):
    folder = read_folder(photos, broken="later")
    assert len(folder) == 12 and len(reads) == 1  # the first picture says which shape
    images = Images(folder, levels=256)
    assert len(reads) == 2 and not tf.is_tensor(images.source)
    batches = iter(images.batches(2, seed=0, epoch=1))
    next(batches)
    del batches
    assert 2 <= len(reads) - 2 <= 8  # a batch, two more are prepared, one is under way
    checked = check_pictures(folder)
    assert checked.pixels is None and len(checked) == 12


@pytest.mark.parametrize("shape", [(4, 4), (4,), (4, 4, 3), (4, 0, 4), (2, 2, 4, 4, 1)])
def test_a_large_array_must_be_images_too(nothing_in_memory, shape):
    with pytest.raises(ValueError, match="images must have shape|may be one image"):
        Images(np.ones(shape, np.uint8))


def test_a_small_folder_is_read_once(photos, reads):
    images = Images(read_folder(photos), levels=256)
    for epoch in (1, 2):
        list(images.batches(4, seed=0, epoch=epoch))
    assert len(reads) == 13  # the first picture twice: once for the shape


def trained(source, folder=None):
    model, history = fit(TINY, source, source, verbose=False, checkpoint_dir=folder, checkpoint_seconds=0)
    return model.get_weights(), history


def test_a_streamed_folder_trains_as_one_in_memory_and_goes_on_bit_for_bit(photos, tmp_path_factory, request):
    inside = trained(Images(read_folder(photos), levels=256))
    request.getfixturevalue("nothing_in_memory")
    streamed, folder = Images(read_folder(photos), levels=256), tmp_path_factory.mktemp("run")
    assert not tf.is_tensor(streamed.source)
    assert children.same(inside, trained(streamed, folder))
    for path in list_checkpoints(folder)[1:]:  # back to an earlier step
        path.unlink()
    assert list_checkpoints(folder) and children.same(inside, trained(streamed, folder))


def test_a_large_array_of_bytes_is_read_row_by_row(nothing_in_memory, tmp_path):
    np.save(tmp_path / "x.npy", X)
    array = read_arrays(tmp_path / "x.npy")["images"]
    images = Images(array, Y, levels=256)
    assert not tf.is_tensor(images.source) and fingerprint(images) != fingerprint(Images(X[::-1].copy(), Y, levels=256))
    found = list(images.batches(4, seed=1, epoch=2))
    monkey = Images(X / np.float32(255), Y, levels=256)
    for one, other in zip(found, monkey.batches(4, seed=1, epoch=2), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_stream_of_test_images_gives_the_same_elbo():
    model = CVAE(seed=0)
    x = np.float32(rng.random((30, 28, 28, 1)) < 0.5)
    evaluate = make_evaluate(model)
    assert evaluate(slices(x).batch(7), batch_size=8) == evaluate(x, batch_size=8)


def test_done_batches_are_not_read_again(photos, nothing_in_memory, reads):
    images = Images(read_folder(photos, broken="later"), levels=256)
    del reads[:]
    rest = list(images.batches(4, seed=0, epoch=1, done=2))
    assert len(reads) == 4
    whole = list(images.batches(4, seed=0, epoch=1))
    assert all(np.array_equal(a, b) for a, b in zip(rest[0], whole[2], strict=True))


def test_fit_images_takes_what_images_takes(photos):
    folder = read_folder(photos)
    results = []
    for source in (folder, folder.read(np.arange(12)), Images(folder, levels=256)):
        model, history = fit_images(source, source, TINY, verbose=False)
        results.append((model.get_weights(), history))
    assert children.same(results[0], results[1]) and children.same(results[0], results[2])
    with pytest.raises(ValueError, match=r"must have one size, got \(8, 8, 3\) and \(8, 9, 3\)"):
        fit_images(folder, slices(X), TINY)


# ---------------------------------------------------------------- array files


def test_npz_files_are_read_by_the_usual_names(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X[:7], y_train=Y[:7], x_test=X[7:], y_test=Y[7:])
    train, test = read_data(TINY, tmp_path / "a.npz")
    assert (len(train), len(test)) == (7, 3) and np.array_equal(test.labels, Y[7:])
    assert np.array_equal(test.first(3), prepare(X[7:], "discretized_logistic"))
    for names in (("images", "labels"), ("x", "y"), ("arr_0", "arr_1")):
        np.savez(tmp_path / "b.npz", **dict(zip(names, (X, Y), strict=True)))
        train, test = read_data(TINY, tmp_path / "b.npz", None, Reading(test_share=0.3))
        assert len(train) + len(test) == 10 and len(test) >= 1 and train.labelled
    np.savez(tmp_path / "c.npz", anything=X)
    assert len(read_data(TINY, tmp_path / "c.npz")[0]) >= 8


def test_npy_files_are_mapped(tmp_path):
    np.save(tmp_path / "a.npy", X)
    assert isinstance(read_arrays(tmp_path / "a.npy")["images"], np.memmap)
    assert sum(map(len, read_data(TINY, tmp_path / "a.npy"))) == 10


def test_array_files_that_hold_no_images_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", one=X, two=X)
    np.save(tmp_path / "b.npy", np.array([{}, "x"], object), allow_pickle=True)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    (tmp_path / "d.npy").write_bytes(b"")
    for name, message in (("a.npz", "must hold images as 'images', or as 'x_train' and 'x_test'; it holds 'one', 'two'"),
                          ("b.npy", "objects are never unpickled"), ("c.npz", "damaged, or no file of plain arrays"),
                          ("d.npy", "damaged, or no file of plain arrays")):
        with pytest.raises(ValueError, match=message):
            read_arrays(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_arrays(tmp_path / "e.npy")
    with pytest.raises(ValueError, match="data must be one of mnist, .*a folder, or a file .npy or .npz, got"):
        read_data(TINY, save(tmp_path, "x.png"))


# ---------------------------------------------------------------- the data of a run


@pytest.fixture
def run(photos, tmp_path_factory):
    folder, reading = tmp_path_factory.mktemp("run"), Reading(test_share=0.3, split_seed=5)
    settings = {"recipe": asdict(TINY), "data": str(photos), "train_images": None, "reading": look_at(TINY, photos, reading)}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder, reading


def test_a_run_finds_its_own_images(run, photos):
    for one, other in zip(run_data(run[0]), read_data(TINY, photos, None, run[1]), strict=True):
        assert fingerprint(one) == fingerprint(other) and one.classes == ("a", "b")
    assert len(run_data(run[0], train_images=1)[0]) == 1


def test_a_run_notices_other_files_and_finds_moved_ones(run, photos, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "photos"
    os.rename(photos, moved)
    with pytest.raises(FileNotFoundError, match="there is no .*data must be one of"):
        run_data(run[0])
    assert sum(map(len, run_data(run[0], moved))) == 12
    save(moved, "a/new.png", pixels_of(99))
    with pytest.raises(ValueError, match="is not what the run began with: that was 12 files.*this is 13 files"):
        run_data(run[0], moved)


@pytest.mark.parametrize("damage", [lambda s: "{", lambda s: "[]", lambda s: json.dumps(s | {"reading": {"colour": 1}}),
                                    lambda s: json.dumps(s | {"reading": 5}), lambda s: json.dumps(s | {"recipe": None})])
def test_damaged_settings_are_a_value_error(run, damage):
    path = run[0] / "settings.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match="settings.json is damaged"):
        run_data(run[0])


def test_no_training_image_is_no_number_of_them(run, photos):
    for ask in (lambda: read_data(TINY, photos, 0), lambda: run_data(run[0], train_images=0)):
        with pytest.raises(ValueError, match="train_images must be at least 1, got 0"):
            ask()


def test_a_part_of_the_training_files_is_a_part_of_each_class(photos):
    train, _ = read_data(TINY, photos, 6)
    assert len(train) == 6 and set(train.labels.numpy()) == {0, 1}


def command(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_the_command_trains_on_three_pictures_and_goes_on(tmp_path):
    for i in range(3):
        save(tmp_path, f"photos/{i}.jpg", rng.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no")
    options = ["--data", tmp_path / "photos", "--size", 16, 12, "--likelihood", "discretized_logistic", "--epochs", 1,
               "--filters", 2, 4]
    result = command(*options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["reading"]["size"] == [16, 12]
    again = command("--resume", "--out", tmp_path / "run", "--size", 16, 12)
    assert again.exit_code == 0, again.output
    other = command("--resume", "--out", tmp_path / "run", "--size", 16, 16)
    assert other.exit_code == 2 and "started with another size: (16, 12), not (16, 16)" in " ".join(other.output.split())
    save(tmp_path, "photos/new.jpg")
    changed = command("--resume", "--out", tmp_path / "run")
    assert changed.exit_code == 1 and "is not what the run began with" in changed.output


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "nowhere"], "'nowhere' is not one of 'mnist'.*no such folder or file"),
    (["--size", "12", "y"], "'y' is not a valid integer"),
    (["--test-share", "1"], r"test must be in \[0, 1\), got 1"),
    (["--channels", "2"], "channels must be one of"),
])
def test_the_command_refuses_bad_options(photos, tmp_path_factory, arguments, message):
    out = tmp_path_factory.mktemp("out") / "run"
    result = command("--data", photos, "--likelihood", "discretized_logistic", *arguments, "--out", out)
    assert result.exit_code == 2 and re.search(message, " ".join(result.output.split())) and not out.exists()

"""Pictures made into 28x28 images, and `nnfs predict`."""

import io
import json
import os
import shutil
import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tinygrad_nnfs.models import cli, prediction
from tinygrad_nnfs.models.evaluation import evaluate, probabilities
from tinygrad_nnfs.models.networks import load_model
from tinygrad_nnfs.models.prediction import ImageError, decode, prepare

from tinygrad_nnfs import checkpoint, data

any_data = st.sampled_from(list(data.CLASS_NAMES))
margins = st.tuples(st.integers(0, 30), *[st.integers(1, 30)] * 3)  # it may touch the top


@st.composite
def drawings(draw, smallest=1):
    """Ink in [0, 255] without margins, uint8 (h, w): a pen's random walk, two pixels wide."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(smallest, 60), st.integers(smallest, 60)))
    ink = np.zeros(shape, np.uint8)
    place = random.random(2) * shape
    for step in random.normal(0, 2, (100, 2)):
        place = np.clip(place + step, 0, np.subtract(shape, 1))
        row, column = place.astype(int)
        ink[row : row + 2, column : column + 2] = random.integers(150, 256)
    rows, columns = np.nonzero(ink)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assume(min(ink.shape) >= smallest)
    return ink


def on_canvas(ink, margins, background=0):
    """Ink on an evenly dark canvas, float32; never 28x28, which would be taken as it is."""
    top, bottom, left, right = margins
    bottom += top + ink.shape[0] + bottom == 28
    return np.pad(ink, ((top, bottom), (left, right))).astype(np.float32) + background


def centre(image):
    rows, columns = (image.sum(axis=axis) @ np.arange(28.0) / image.sum() for axis in (1, 0))
    return rows, columns


# -- preparation -----------------------------------------------------------------------------------


@given(arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70))), any_data)
def test_whatever_the_picture_the_result_is_an_image_or_one_line(picture, name):
    try:
        found = prepare(picture.astype(np.float32), name)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert (found.dtype, found.shape) == (np.uint8, (28, 28))
        assert picture.shape == (28, 28) or found.max() == 255


@given(drawings(), margins, margins, any_data)
def test_where_the_drawing_is_on_the_canvas_does_not_matter(ink, here, there, name):
    expected = prepare(on_canvas(ink, here), name)
    np.testing.assert_array_equal(prepare(on_canvas(ink, there), name), expected)


@given(drawings(), margins, any_data, st.integers(0, 100), st.sampled_from([0.25, 0.5, 1]))
def test_dark_on_light_is_light_on_dark_on_any_paper(ink, margins, name, background, contrast):
    assume(background + contrast * 255 <= 255)
    picture = on_canvas(ink * contrast, margins, background)
    expected = prepare(on_canvas(ink, margins), name)
    np.testing.assert_array_equal(prepare(picture, name), expected)
    np.testing.assert_array_equal(prepare(255 - picture, name), expected)


@given(drawings(smallest=20), margins, any_data, st.integers(2, 4))
def test_enlarging_hardly_matters(ink, margins, name, factor):
    picture = on_canvas(ink, margins)
    found = prepare(picture, name).astype(int)
    large = prepare(np.kron(picture, np.ones((factor, factor), np.float32)), name).astype(int)
    if name == "fashion-mnist":
        np.testing.assert_array_equal(large, found)
        return
    # where two places are as near to the centre of mass, round-off may choose the other one
    places = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    unlike = [abs(np.roll(large, place, (0, 1)) - found).mean() for place in places]
    assert min(unlike) < 12  # a drawing a pixel off differs by 30


@given(drawings(), margins)
def test_as_mnist_the_centre_of_mass_is_the_middle(ink, margins):
    found = prepare(on_canvas(ink, margins), "mnist")
    inside = np.argwhere(found)
    size = np.ptp(inside, axis=0) + 1
    assert max(size) in (19, 20)  # a weak outermost line may round to 0
    for axis, place in enumerate(centre(found)):
        at_the_edge = inside[:, axis].min() == 0 or inside[:, axis].max() == 27
        assert abs(place - 14) <= 0.51 or at_the_edge


@given(drawings(), margins)
def test_as_fashion_mnist_the_longest_edge_is_28_and_in_the_middle(ink, margins):
    solid = np.full_like(ink, 255)
    found = prepare(on_canvas(solid, margins), "fashion-mnist")
    height, width = solid.shape
    rows, columns = np.nonzero(found)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == tuple(
        max(1, int(28 * n / max(height, width) + 0.5)) for n in (height, width)
    )
    assert abs(rows.min() - (27 - rows.max())) <= 1
    assert abs(columns.min() - (27 - columns.max())) <= 1
    assert (found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 255).all()


def test_sharpening_is_imagemagicks():
    point = np.zeros((5, 5))
    point[2, 2] = 50
    point += 100
    found = prediction._sharpen(point) - 100
    near, far = np.exp(-0.5), np.exp(-1)  # of a Gaussian, in units of its middle
    whole = 1 + 4 * near + 4 * far
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = [[-far, -near, -far], [-near, 2 * whole, -near], [-far, -near, -far]]
    np.testing.assert_allclose(found, 50 * expected / (whole + 1), atol=1e-12)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist"])
def test_images_of_the_data_sets_are_taken_as_they_are(name):
    for image in data.load("digits").test_images[:100]:
        np.testing.assert_array_equal(prepare(image.astype(np.float32), name), image)


def test_of_28x28_pixels_only_a_dark_background_is_taken_as_it_is():
    drawing = np.zeros((28, 28), np.float32)
    drawing[5:15, 8:12] = 200
    night = np.maximum(drawing, 100)
    np.testing.assert_array_equal(prepare(night, "mnist"), night)
    paper = 255 - drawing
    expected = prepare(np.pad(drawing, 3), "mnist")
    np.testing.assert_array_equal(prepare(paper, "mnist"), expected)


def test_weak_ink_is_noise_in_a_digit_and_cloth_in_clothes():
    picture = np.zeros((100, 100), np.float32)
    picture[20:80, 20:80] = 200
    picture[40:60, 40:60] = 25
    assert prepare(picture, "mnist")[14, 14] == 0
    assert prepare(picture, "fashion-mnist")[14, 14] == round(255 * 25 / 200)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_of_the_real_sets_are_taken_as_they_are(name):
    if "NNFS_DATA" not in os.environ:
        pytest.skip("NNFS_DATA is not set")
    images = data.load(name).test_images
    found = np.stack([prepare(image.astype(np.float32), name) for image in images])
    np.testing.assert_array_equal(found, images)


def test_digits_on_large_paper_are_still_read(digits_run):
    network, _ = load_model(digits_run)
    digits = data.load("digits")
    images, labels = digits.test_images, digits.test_labels
    random = np.random.default_rng(0)
    photos = []
    for image in images:
        smooth = Image.fromarray(image).resize((140, 140), Image.Resampling.BICUBIC)
        ink = np.pad(np.asarray(smooth), random.integers(0, 50, (2, 2)))
        paper = 220 - 0.7 * ink + random.normal(0, 3, ink.shape)
        photos.append(prepare(paper.clip(0, 255).astype(np.float32), "digits"))
    _, as_they_are = evaluate(network, images, labels)
    _, of_photos = evaluate(network, np.stack(photos), labels)
    assert as_they_are > 0.93
    assert of_photos > as_they_are - 0.12


# -- files -----------------------------------------------------------------------------------------


def encoded(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.fixture(scope="module")
def seven():
    """A 7, dark on light, 60x50."""
    picture = np.full((60, 50), 230, np.uint8)
    picture[10:15, 10:40] = 30
    for row in range(15, 52):
        column = 36 - row // 2
        picture[row, column : column + 6] = 30
    return Image.fromarray(picture)


LOSSLESS = {
    "grey": ("L", {}),
    "colour": ("RGB", {}),
    "alpha": ("RGBA", {}),
    "grey and alpha": ("LA", {}),
    "palette": ("P", {}),
    "gif": ("P", {"form": "GIF"}),
    "bmp": ("RGB", {"form": "BMP"}),
    "webp": ("RGB", {"form": "WEBP", "lossless": True}),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_kinds_of_files_do_not_matter(seven, kind):
    mode, options = LOSSLESS[kind]
    found = decode(encoded(seven.convert(mode), **options))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(seven))


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG")])
def test_jpeg_hardly_matters(seven, mode, form):
    expected = prepare(np.asarray(seven, np.float32), "mnist").astype(int)
    found = prepare(decode(encoded(seven.convert(mode), form, quality=90)), "mnist")
    assert abs(found - expected).mean() < 3


def test_sixteen_bits_and_one(seven):
    grey = np.asarray(seven)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    np.testing.assert_allclose(decode(encoded(deep)), grey)
    found = decode(encoded(seven.point(lambda level: 255 * (level > 100)).convert("1")))
    np.testing.assert_array_equal(found, np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("ink", [0, 90, 160, 255])
@pytest.mark.parametrize("hidden", [0, 255])
def test_a_transparent_background_is_not_what_is_drawn(seven, ink, hidden):
    there = np.asarray(seven) < 100
    grey = np.where(there, ink, hidden).astype(np.uint8)  # what is hidden must not matter
    alpha = np.where(there, 255, 0).astype(np.uint8)
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    expected = prepare(255 * there.astype(np.float32), "mnist")
    np.testing.assert_array_equal(prepare(decode(encoded(image)), "mnist"), expected)
    palette = Image.fromarray(there.astype(np.uint8), "P")
    palette.putpalette([hidden] * 3 + [ink] * 3)
    found = prepare(decode(encoded(palette, transparency=0)), "mnist")
    np.testing.assert_array_equal(found, expected)


def test_photos_are_turned_as_they_were_taken(seven):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees, clockwise
    lying = seven.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(decode(encoded(lying, exif=exif)), np.asarray(seven))


def test_of_an_animation_the_first_frame_counts(seven):
    other = Image.new("L", seven.size, 255)
    for form in ("GIF", "PNG", "WEBP"):
        more = {"lossless": True} if form == "WEBP" else {}
        content = encoded(seven, form, save_all=True, append_images=[other, seven], **more)
        np.testing.assert_array_equal(decode(content), np.asarray(seven))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (28, 28)), "is blank"),
        (Image.new("L", (1, 1), 255), "is blank"),
        (Image.new("RGB", (300, 200), (10, 200, 30)), "is blank"),
        (Image.new("LA", (50, 50), (0, 0)), "is blank"),
        (Image.linear_gradient("L").point(lambda level: 200 + level // 22), "is blank"),
    ],
)
@pytest.mark.parametrize("name", data.CLASS_NAMES)
def test_a_blank_picture_is_one_line(image, name, message):
    with pytest.raises(ImageError, match=message) as error:
        prepare(decode(encoded(image)), name)
    assert "\n" not in str(error.value)


def test_lines_too_thin_for_subsampling_are_one_line():
    picture = np.zeros((400, 400), np.float32)
    picture[100:300, 100] = picture[100, 100:300] = 255
    with pytest.raises(ImageError, match="lines too thin to be seen in 28x28 pixels"):
        prepare(picture, "fashion-mnist")
    assert prepare(picture, "mnist").max() == 255


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@given(st.data())
def test_damaged_files_are_one_line(seven, form, drawn):
    content = bytearray(encoded(seven, form))
    for _ in range(drawn.draw(st.integers(0, 3))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    content = bytes(content[: drawn.draw(st.integers(0, len(content)))])
    try:
        found = decode(content)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert found.ndim == 2
        assert np.isfinite(found).all()


@pytest.mark.parametrize("factor", [1, 3])  # Pillow only warns up to twice its limit
def test_a_decompression_bomb_is_one_line(seven, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 50 // factor - 1)
    with pytest.raises(ImageError, match=r"has more than (2,)?999 pixels: make it smaller"):
        decode(encoded(seven))


def test_what_is_too_long_is_not_read(monkeypatch):
    class Endless:
        buffer = property(lambda self: self)

        def read(self, count=-1):
            assert count > 0
            return bytes(count)

    monkeypatch.setattr(prediction, "LARGEST", 100)
    monkeypatch.setattr(sys, "stdin", Endless())
    with pytest.raises(ImageError, match=r"^standard input: has more than 100 bytes"):
        prediction.load_image("-", "mnist")


def test_formats_that_could_run_programs_are_not_opened(seven):
    for form in ("EPS", "TIFF", "PPM"):
        with pytest.raises(ImageError, match="is not an image: expected PNG, JPEG, GIF, BMP or W"):
            decode(encoded(seven, form))


# -- the command -----------------------------------------------------------------------------------


def nnfs(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_predict_is_what_evaluate_counts(capsys, digits_run, tmp_path):
    images = data.load("digits").test_images[:12]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    status, out, err = nnfs(capsys, "predict", digits_run, *paths, "--json")
    assert (status, err) == (0, "")
    network, _ = load_model(digits_run)
    expected = probabilities(network, images, data.DIGITS)
    printed = json.loads(out)
    assert (printed["model"], printed["data"]) == (str(digits_run), "digits")
    assert [found["image"] for found in printed["images"]] == [str(path) for path in paths]
    for found, row in zip(printed["images"], expected):
        best = sorted(range(10), key=lambda i: -row[i])[:3]
        assert [top["class"] for top in found["classes"]] == [data.DIGITS[i] for i in best]
        assert [top["probability"] for top in found["classes"]] == [float(row[i]) for i in best]


def test_predict_prints_a_table_and_goes_on_after_a_bad_image(
    capsys, digits_run, tmp_path, monkeypatch, seven
):
    monkeypatch.chdir(tmp_path)
    seven.save("[a].png")
    (tmp_path / "text.png").write_text("hello")
    os.mkdir("folder")
    arguments = ["[a].png", "text.png", "none.png", "folder", "-", "nu\0ll", "[a].png"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded(seven, "JPEG"))))
    status, out, err = nnfs(capsys, "predict", digits_run, *arguments)
    assert status == 1
    assert err.splitlines() == [
        "nnfs: text.png: is not an image: expected PNG, JPEG, GIF, BMP or WebP",
        "nnfs: none.png: cannot be read: No such file or directory",
        "nnfs: folder: cannot be read: Is a directory",
        "nnfs: nu\0ll: cannot be read: embedded null byte",
    ]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in rows if row and row[0] not in ("", "image")]
    assert [row[0] for row in rows] == ["[a].png", "-", "[a].png"]
    assert rows[0][1:] == rows[2][1:]
    assert rows[0][2].endswith("%")
    assert out.count("%") == 9


def test_predict_of_bad_images_alone(capsys, digits_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert nnfs(capsys, "predict", digits_run, "-") == (
        *(1, ""),
        "nnfs: standard input: is empty, expected an image\n",
    )
    status, out, _ = nnfs(capsys, "predict", digits_run, "nowhere", "--json")
    assert (status, json.loads(out)["images"]) == (1, [])


def test_predict_prepares_for_the_data_asked_for(capsys, digits_run, tmp_path, seven):
    seven.save(tmp_path / "seven.png")
    model = shutil.copy(digits_run / "model.safetensors", tmp_path)
    classes = {}
    for name in (None, "digits", "fashion-mnist"):
        asked = ("--data", name) if name else ()
        _, out, _ = nnfs(capsys, "predict", model, tmp_path / "seven.png", "--json", *asked)
        classes[name] = json.loads(out)["images"][0]["classes"]
    assert classes[None] == classes["digits"]
    assert classes["fashion-mnist"][0]["class"] in data.CLASS_NAMES["fashion-mnist"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none", "none: cannot be read: No such file or directory"),
        ("seven.png", "seven.png: is cut off or not a safetensors file"),
        ("nameless", "nameless: does not say what data it is for: add --data NAME (digits, mnist"),
    ],
)
def test_predict_with_a_bad_model_is_one_line(
    capsys, digits_run, tmp_path, monkeypatch, seven, model, message
):
    monkeypatch.chdir(tmp_path)
    seven.save("seven.png")
    checkpoint.save("nameless", checkpoint.load(digits_run / "model.safetensors")[0])
    status, out, err = nnfs(capsys, "predict", model, "seven.png")
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_predict_without_images_and_of_names_that_are_no_text(capsys, digits_run, tmp_path, seven):
    status, _, err = nnfs(capsys, "predict", digits_run)
    assert status == 2
    assert "required: IMAGE" in err
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    try:
        seven.save(name)
    except OSError:  # a file system of text names
        pytest.skip("names must be text here")
    status, out, _ = nnfs(capsys, "predict", digits_run, name)
    assert status == 0
    assert "\N{REPLACEMENT CHARACTER}.png" in out.replace("│\n│", "").replace(" ", "")


def test_decoding_leaves_warnings_as_they_were(seven):
    before = list(warnings.filters)
    decode(encoded(seven))
    assert warnings.filters == before


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help_has_an_example(capsys, command):
    status, out, _ = nnfs(capsys, command, "--help")
    assert status == 0
    assert f"example: nnfs {command}" in out

"""Pictures of any kind -> the 28x28 images that networks were trained on.

Each data set was once prepared in a way of its own, and a network knows only images of that way.
First what all have in common: the picture becomes grey; the background is the median of its border;
the drawing, or the piece of clothing, is what differs from that, whether darker or lighter. Then

- as MNIST (LeCun et al., 1998): cropped, scaled to fit 20x20 pixels with its proportions kept and
  smooth edges, and placed so that its centre of mass is the centre of 28x28;
- as scikit-learn's digits: scaled to fit 8x8 pixels, each of which is then 3x3;
- as Fashion-MNIST (Xiao et al., 2017, section 2): cropped, scaled to 28 pixels at its longest edge
  by taking every n-th pixel, sharpened, and centred in 28x28.

In all of them the background is 0 and the brightest pixel 255. A picture that already is 28x28
pixels with dark corners is taken as it is: an image of a data set stays that image.
"""

import io
import math
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # of others, EPS would start a program
LARGEST = 2**28  # bytes of a file
FAINT = 0.05 * 255  # a picture in which nothing differs more from the background is blank
WEAK = 0.2  # of the strongest ink: what is weaker is no edge but noise, a shadow or paper


class ImageError(Exception):
    """A picture cannot be read or holds nothing; the message is one line."""


def load_image(path: str, data: str) -> np.ndarray:
    """The picture at `path`, "-" for standard input, as an image of the data set `data`.

    uint8 (28, 28). Raises ImageError.
    """
    try:
        if path == "-":
            content = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(LARGEST + 1)
        return prepare(decode(content), data)
    except ImageError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except ValueError as error:  # a path with a null character
        reason = f"cannot be read: {error}"
    raise ImageError(f"{'standard input' if path == '-' else path}: {reason}")


def decode(content: bytes) -> np.ndarray:
    """The bytes of a PNG, JPEG, GIF, BMP or WebP file -> grey float32 (h, w) in [0, 255].

    Turned as its EXIF data says; of an animation the first frame. What is transparent becomes
    white where the rest is dark, else black. Raises ImageError.
    """
    if not content:
        raise ImageError("is empty, expected an image")
    if len(content) > LARGEST:
        raise ImageError(f"has more than {LARGEST:,} bytes: make it smaller")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _grey(ImageOps.exif_transpose(image))
        except UnidentifiedImageError:
            raise ImageError("is not an image: expected PNG, JPEG, GIF, BMP or WebP") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ImageError(
                f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
            ) from None
        except Exception as error:  # damaged files make Pillow raise exceptions of many types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"cannot be decoded: {reason}") from None


def prepare(grey: np.ndarray, data: str) -> np.ndarray:
    """A grey picture (h, w) in [0, 255] -> uint8 (28, 28) as images of the data set `data` are.

    Raises ImageError for a picture that holds nothing.
    """
    ink = _ink(grey)
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    if grey.shape == (28, 28) and np.median(corners) < 128:
        prepared = grey
    elif data == "fashion-mnist":
        prepared = _as_fashion_mnist(ink)
    elif data == "digits":
        prepared = _as_digits(ink)
    else:
        prepared = _as_mnist(ink)
    return np.rint(prepared).astype(np.uint8)


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        return np.asarray(image, np.float32) / 257
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.asarray(image.convert("RGB").convert("L"), np.float32)
    image = image.convert("RGBA")
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    mean = (grey * alpha).sum() / max(alpha.sum(), 1)
    return grey * alpha + (255 if mean < 128 else 0) * (1 - alpha)


def _ink(grey: np.ndarray) -> np.ndarray:
    """How far each pixel is from the background, towards what differs from it most."""
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    background = np.median(border)
    lighter, darker = grey.max() - background, background - grey.min()
    if max(lighter, darker) <= FAINT:
        raise ImageError(
            "is blank: nothing in it differs from its background (what most of its border is)"
        )
    ink = grey - background if lighter > darker else background - grey
    return np.maximum(ink, 0, out=ink)


def _as_mnist(ink: np.ndarray) -> np.ndarray:
    small = _fit(_crop(ink, clean=True), 20)
    mass = small.sum()
    starts = []
    for axis, size in enumerate(small.shape):
        centre = small.sum(axis=1 - axis) @ np.arange(size) / mass
        # MNIST's centre is pixel 14; and nothing of the drawing may be lost
        starts.append(min(max(0, round(14 - centre)), 28 - size))
    return _place(small, 28, *starts)


def _as_digits(ink: np.ndarray) -> np.ndarray:
    small = _fit(_crop(ink, clean=True), 8)
    small = np.rint(_centred(small, 8))
    return np.pad(np.kron(small, np.ones((3, 3))), 2)  # as in tinygrad_nnfs.data


def _as_fashion_mnist(ink: np.ndarray) -> np.ndarray:
    small = _fit(_crop(ink), 28, smooth=False)
    return _centred(_sharpen(small), 28)


def _crop(ink: np.ndarray, clean: bool = False) -> np.ndarray:
    """The rectangle of all ink that is not weak; `clean` makes the weak in it background."""
    seen = ink > WEAK * ink.max()
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.where(seen[inside], ink[inside], 0) if clean else ink[inside]


def _fit(ink: np.ndarray, size: int, smooth: bool = True) -> np.ndarray:
    """Scaled to `size` at the longest edge, proportions kept, the strongest ink 255.

    Not `smooth`: by taking some of the pixels.
    """
    longest = max(ink.shape)
    height, width = (
        max(1, (2 * n * size + longest) // (2 * longest)) for n in ink.shape
    )  # rounded
    if smooth:
        picture = Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR)
        small = np.asarray(picture)
    else:  # in whole numbers: enlarging a picture must not change which are taken
        rows, columns = (
            (2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip((height, width), ink.shape)
        )
        small = ink[np.ix_(rows, columns)]
    if not small.any():
        raise ImageError(f"has lines too thin to be seen in {size}x{size} pixels")
    return small * (255 / small.max())


def _sharpen(ink: np.ndarray) -> np.ndarray:
    """Minus a Gaussian of radius and sigma 1 around each pixel, as ImageMagick's -sharpen 1x1."""
    offsets = np.array([-1, 0, 1])
    gauss = np.exp(-np.add.outer(offsets**2, offsets**2) / 2)
    kernel = -gauss
    kernel[1, 1] = 2 * gauss.sum()
    kernel /= kernel.sum()
    around = np.lib.stride_tricks.sliding_window_view(np.pad(ink, 1, mode="edge"), (3, 3))
    return np.einsum("hwij,ij->hw", around, kernel).clip(0, 255)


def _centred(small: np.ndarray, size: int) -> np.ndarray:
    height, width = small.shape
    return _place(small, size, math.floor((size - height) / 2), math.floor((size - width) / 2))


def _place(small: np.ndarray, size: int, top: int, left: int) -> np.ndarray:
    image = np.zeros((size, size))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image

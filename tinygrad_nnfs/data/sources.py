"""Where the files of MNIST and Fashion-MNIST are: a folder given, the system, Kaggle, or the cache,
which is filled by a download.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinygrad_nnfs.data.formats import FILES, DataError, read_idx

SYSTEM = Path("/usr/share/datasets")  # of Debian's packages
KAGGLE = Path("/kaggle/input")
KAGGLE_DEPTH = 4  # how many folders deep: a data set may have any name, and folders inside


class Content(NamedTuple):
    """What an IDX file is, uncompressed: its bytes and their SHA-256."""

    size: int
    sha256: str


class Remote(NamedTuple):
    """Where a set can be had: folders of its files with .gz, and their content by part."""

    mirrors: tuple[str, ...]
    contents: dict[str, Content]


TRAIN_IMAGES, TRAIN_LABELS = 16 + 60_000 * 28 * 28, 8 + 60_000  # bytes: a header and the content
TEST_IMAGES, TEST_LABELS = 16 + 10_000 * 28 * 28, 8 + 10_000
REMOTES = {
    "mnist": Remote(
        (  # the mirrors of torchvision and of TensorFlow Datasets
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train_images": Content(
                TRAIN_IMAGES, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train_labels": Content(
                TRAIN_LABELS, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "test_images": Content(
                TEST_IMAGES, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "test_labels": Content(
                TEST_LABELS, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
    ),
    "fashion-mnist": Remote(
        (  # Keras's mirror and the authors' repository and bucket
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        ),
        {
            "train_images": Content(
                TRAIN_IMAGES, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train_labels": Content(
                TRAIN_LABELS, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "test_images": Content(
                TEST_IMAGES, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "test_labels": Content(
                TEST_LABELS, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
}


def find(name: str, directory: str | os.PathLike[str] | None, *, offline: bool) -> dict[str, Path]:
    """The files of the set `name`: four IDX files by part as in FILES, or CSV: "train", "test".

    Raises DataError with all that was looked for, or with what each mirror did.
    """
    given = directory if directory is not None else os.environ.get("NNFS_DATA") or None
    if given is not None:
        return _in_given(name, given)
    if found := _idx_in(SYSTEM / name) or _in_kaggle(name):
        return found
    try:
        folder = cache_folder() / name
    except ImportError as error:
        raise DataError(
            f"data set {name!r} is not in {SYSTEM / name} or {KAGGLE}, and its download needs "
            f"{error.name}: pip install 'tinygrad_nnfs[models]'. Or {_what_to_do(name)}"
        ) from None
    remote = REMOTES[name]
    if any(not is_complete(folder / FILES[part], c.size) for part, c in remote.contents.items()):
        if offline:
            raise DataError(
                f"{_not_found(name, [SYSTEM / name, KAGGLE, folder], [KAGGLE])}, and offline it is "
                f"not downloaded. To have it, {_what_to_do(name)}"
            )
        from tinygrad_nnfs.data.download import fetch  # urllib takes a while to import

        try:
            fetch(remote, folder)
        except DataError as error:
            raise DataError(
                f"data set {name!r} could not be downloaded: {error}. Try again, or "
                f"{_what_to_do(name)}"
            ) from None
    return {part: folder / file for part, file in FILES.items()}


def cache_folder() -> Path:
    """The user's cache of data sets, ~/.cache/tinygrad_nnfs on Linux."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tinygrad_nnfs", appauthor=False))


def is_complete(path: Path, size: int) -> bool:
    """Whether a file is in the cache: what is there was checked before it got its name."""
    return os.path.isfile(path) and os.path.getsize(path) == size


def _in_given(name: str, directory: str | os.PathLike[str]) -> dict[str, Path]:
    """The set in a folder `name` of `directory`, or in `directory` itself if its name tells which.

    IDX files are named alike in all sets: those in a folder of another name may be another set's.
    """
    folder = Path(os.path.abspath(os.path.expanduser(directory)))
    own = [folder / name, *([folder] if folder.name == name else [])]
    for place in own:
        if found := _idx_in(place):
            return found
    either = [folder / name, folder]
    for place in either:
        if found := _csv_in(place, name):
            return found
    hint = "" if os.path.isdir(folder) else f": {folder} is no folder that can be read"
    raise DataError(f"{_not_found(name, own, either)}{hint}. To have it, {_what_to_do(name)}")


def _idx_in(folder: Path) -> dict[str, Path]:
    """The four IDX files in a folder by part, {} if one is missing."""
    found = {part: _idx_file(folder, file) for part, file in FILES.items()}
    return {} if None in found.values() else {part: path for part, path in found.items() if path}


def _idx_file(folder: Path, file: str) -> Path | None:
    # as it is, as most have it, and as some programs unpack it
    for spelling in (file, f"{file}.gz", file.replace("-idx", ".idx")):
        if os.path.isfile(folder / spelling):
            return folder / spelling
    return None


def _csv_in(folder: Path, name: str) -> dict[str, Path]:
    """The two CSV files of a set in a folder by part, {} if one is missing."""
    found = {part: folder / f"{name}_{part}.csv" for part in ("train", "test")}
    return found if all(os.path.isfile(path) for path in found.values()) else {}


def _in_kaggle(name: str) -> dict[str, Path]:
    """The set in any folder below Kaggle's, {} if it is not there."""
    for path, folders, _ in os.walk(KAGGLE):
        folder = Path(path)
        folders.sort()
        if len(folder.relative_to(KAGGLE).parts) == KAGGLE_DEPTH:
            folders.clear()
        idx = _idx_in(folder)
        if idx and _is_of(name, idx["test_labels"]):
            return idx
        if csv := _csv_in(folder, name):
            return csv
    return {}


def _is_of(name: str, test_labels: Path) -> bool:
    """Whether test labels are those of the set `name`: the files of all sets are named alike."""
    try:
        labels = read_idx(test_labels, 1)
    except DataError:
        return False
    header = struct.pack(">2I", 0x801, len(labels))
    digest = hashlib.sha256(header + labels.tobytes()).hexdigest()
    return digest == REMOTES[name].contents["test_labels"].sha256


def _not_found(name: str, idx_places: Sequence[Path], csv_places: Sequence[Path]) -> str:
    """What was looked for where; of a set that is there in part, the first file that is missing."""
    idx = [file for file in FILES.values() if not any(_idx_file(p, file) for p in idx_places)]
    csv = [f"{name}_{part}.csv" for part in ("train", "test")]
    csv = [file for file in csv if not any(os.path.isfile(p / file) for p in csv_places)]
    files = [f"no {file}[.gz] in {', '.join(map(str, idx_places))}" for file in idx[:1]]
    files += [f"no {file} in {', '.join(map(str, csv_places))}" for file in csv[:1]]
    return f"data set {name!r} was not found: {' and '.join(files)}"


def _what_to_do(name: str) -> str:
    return (
        f"put its four IDX files or its two CSV files into a folder DIR/{name} and set "
        "NNFS_DATA=DIR or --data-dir DIR"
        + (", or install Debian's dataset-fashion-mnist" if name == "fashion-mnist" else "")
        + "; `--data digits` needs no files"
    )

"""Files of arrays: written whole or not at all, read with every byte under suspicion.

The format is safetensors (https://huggingface.co/docs/safetensors): a JSON header, then numbers.
Nothing in it is code, so that a file from a stranger can be read; pickle is never used. The library
`safetensors` is of the extra `models` and imported when it is needed.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tinygrad_nnfs import nn

AnyPath: TypeAlias = str | os.PathLike[str]

MODEL_FORMAT = "tinygrad_nnfs model 1"  # the metadata "format" of a network's weights
CHECKPOINT_FORMAT = "tinygrad_nnfs checkpoint 1"  # of all that training is resumed from
FOREIGN_FORMATS = (None, "pt")  # weights that somebody else's program has written
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
LARGEST = 2**32  # bytes of a file: more is no network of this library
LARGEST_HEADER = 2**24  # bytes
ABANDONED = 3600  # seconds after which nobody can still be writing a file


class CheckpointError(Exception):
    """A file cannot be written, read or used; the message says which and why, in one line."""


def save(
    path: AnyPath, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `arrays` (of DTYPES, any shape and memory order) and `metadata`, both by name.

    The same content makes the same bytes. See `write_file` for what a full disk or a crash leaves.
    Raises CheckpointError.
    """
    path = Path(path)
    try:
        content = _serialize(arrays, metadata or {})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_one_line(error)}") from None
    try:
        write_file(path, content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_file(path: AnyPath, content: bytes) -> None:
    """Replace the file `path` by `content`, in one step: its folder holds the old or the new one.

    That is so after an error (OSError), and if the process is killed or the power fails at any
    moment. What a killed process leaves behind, a hidden `.NAME.XXXXXXXX.partial`, goes with a
    write an hour later: a younger one may be another process's, at work. A symbolic link is
    followed: it stays, and the file that it points at is replaced.
    """
    if "\0" in os.fspath(path):  # Python raises a ValueError
        raise OSError(errno.EINVAL, "embedded null byte", os.fspath(path))
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    leftover = f".{path.name}."
    for other in path.parent.glob(".*.partial"):
        if other.name.startswith(leftover) and len(other.name) == len(leftover) + 16:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - other.stat().st_mtime > ABANDONED:
                    other.unlink()
    # a name of its own: two processes that write one file must not write into each other's
    partial = path.with_name(f"{leftover}{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):  # who may read it stays as it is
                os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    # the new name, too, must reach the disk; some file systems cannot sync a folder
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: AnyPath) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file.

    Raises CheckpointError for everything that is not exactly that: cut off, longer than declared,
    with duplicate names, of dtypes that numpy lacks, or of another kind.
    """
    library = _library()
    path = Path(path)
    content, header_size = _read(path)
    try:
        # the library holds the header to its rules, so what json sees is sound, but for names that
        # come twice: the library takes the last
        arrays = library.numpy.load(content)
        header = json.loads(content[8 : 8 + header_size].decode(), object_pairs_hook=_no_duplicates)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: holds numbers of dtype {error.args[0]}, which numpy lacks: convert to float32"
        ) from None
    except (library.SafetensorError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: is cut off, damaged or not a safetensors file: {_one_line(error)}"
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    return {name: arrays[name] for name in header}, metadata


def load_weights(network: nn.Module, path: AnyPath, *, allow_nan: bool = False) -> dict[str, str]:
    """Copy the weights of a model file into `network`; returns the file's metadata.

    Names, shapes and dtypes must be those of `network.state_dict()`. The file may be of another
    program: a `state_dict` of PyTorch written by `safetensors.torch`. Raises CheckpointError, and
    then nothing in the network has changed; so for NaN and infinite weights without `allow_nan`.
    """
    arrays, metadata = load(path)
    check_model_format(path, metadata)
    problems = _differences(arrays, network.state_dict())
    if problems:
        raise CheckpointError(f"{path}: does not fit this {type(network).__name__}: {problems}")
    if not allow_nan:
        bad = [quoted(name) for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise CheckpointError(
                f"{path}: NaN or infinite numbers in {listed(bad)}: training has failed, or "
                "the file is damaged"
            )
    network.load_state_dict(arrays)
    return metadata


def check_model_format(path: AnyPath, metadata: Mapping[str, str]) -> None:
    """Raise CheckpointError if a file with this metadata holds anything but a network's weights."""
    form = metadata.get("format")
    if form == CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: is a training checkpoint: give the run's folder or its model.safetensors"
        )
    if form != MODEL_FORMAT and form not in FOREIGN_FORMATS:
        raise CheckpointError(
            f"{path}: is of format {quoted(form)}, expected {MODEL_FORMAT!r}: is it of a newer "
            "version?"
        )


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise CheckpointError(
            "model files need the package safetensors: pip install 'tinygrad_nnfs[models]'"
        ) from None
    return safetensors


def _serialize(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file. Raises TypeError and ValueError for what cannot be in one."""
    library = _library()
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"expected arrays by name, such as network.state_dict(), found {type(arrays).__name__}"
        )
    for text in (*arrays, *metadata, *metadata.values()):
        if not isinstance(text, str):
            raise TypeError(f"names and metadata are strings, found {quoted(text)}")
    if "__metadata__" in arrays:
        raise ValueError("the name '__metadata__' is the format's own")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
            is_array = isinstance(array, np.ndarray)
            found = array.dtype if is_array else f"a {type(array).__name__}"
            raise TypeError(
                f"{quoted(name)} is {found}, expected a numpy array of one of {', '.join(DTYPES)}"
            )
    # the library writes an array's memory as it lies, whatever its strides
    content: bytes = library.numpy.save(
        {name: np.asarray(a, order="C") for name, a in arrays.items()}
    )
    # and would write the metadata in another order each time
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    if metadata:
        entries = {"__metadata__": dict(sorted(metadata.items())), **entries}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of 8 bytes
    if len(header) > LARGEST_HEADER or len(header) + len(content) > LARGEST:
        raise ValueError(
            f"{len(header)} bytes of names and metadata, {len(content)} in all: "
            f"{LARGEST_HEADER} and {LARGEST} at most"
        )
    return len(header).to_bytes(8, "little") + header + content[start:]


def _read(path: Path) -> tuple[bytes, int]:
    """A file's content and the size of its header, if it looks like a safetensors file at all."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe might never end
            found = "directory" if path.is_dir() else "device or pipe"
            raise CheckpointError(f"{path}: is a {found}, expected a safetensors file")
        if status.st_size > LARGEST:
            raise CheckpointError(f"{path}: has {status.st_size} bytes, {LARGEST} at most")
        with path.open("rb") as file:
            start = file.read(8)
            header_size = int.from_bytes(start, "little")
            if len(start) < 8:
                raise CheckpointError(
                    f"{path}: has {len(start)} bytes: it is empty or cut off, expected a "
                    "safetensors file"
                )
            if header_size > min(status.st_size - 8, LARGEST_HEADER):
                raise CheckpointError(
                    f"{path}: is cut off or not a safetensors file: it begins with {start!r} "
                    "(pickle and .pt files could run code: PyTorch's safetensors.torch.save_file "
                    "writes what can be read here)"
                )
            file.seek(0)
            return file.read(), header_size
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{path}: cannot be read: {reason or _one_line(error)}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What json makes of an object: a dict, or an error where a name comes twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = [quoted(name) for name, count in times.items() if count > 1]
        raise ValueError(f"the header has {listed(twice)} more than once")
    return entries


def _differences(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> str:
    """What is missing, unknown and of another shape or dtype, short; empty if everything fits."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    wrong = [
        f"{quoted(name)} is {found[name].dtype} {found[name].shape}, expected {a.dtype} {a.shape}"
        for name, a in expected.items()
        if name in found and (found[name].shape, found[name].dtype) != (a.shape, a.dtype)
    ]
    groups = {
        "missing: ": [quoted(name) for name in missing],
        "unknown: ": [quoted(name) for name in unknown],
        "": wrong,
    }
    return "; ".join(label + listed(group) for label, group in groups.items() if group)


def listed(texts: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(texts[:3]) + f" and {len(texts) - 3} more" * (len(texts) > 3)


def quoted(text: object) -> str:
    """A string of a file, which may hold anything, for a message."""
    safe = ascii(text)
    return safe if len(safe) <= 60 else safe[:57] + "..."


def _one_line(error: BaseException) -> str:
    """An error's message without line breaks or control characters, short."""
    text = str(error).removeprefix("Error while deserializing: ") or type(error).__name__
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= 200 else printable[:197] + "..."

"""The networks by name, and which of them a file of weights is for."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import get_rng_state, nn, set_rng_state
from tinygrad_nnfs.checkpoint import (
    CheckpointError,
    check_model_format,
    listed,
    load,
    load_weights,
    quoted,
)

NETWORKS = {"mlp": MLP, "cnn": CNN}
WEIGHTS = Path(__file__).parent / "weights"  # of the networks that come with the package
SHIPPED = "cnn-fashion-mnist"  # the one that does


def shipped(name: str) -> Path:
    """The model file `name` that comes with the package. Raises CheckpointError."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        found = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
        raise CheckpointError(f"no model {name!r} comes with this package: there is {found}")
    return path


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, str]]:
    """The network of a model file, or of a run's folder, in eval mode; and the file's metadata.

    Which network it is follows from names and shapes: nothing in a file can choose what is run.
    Raises CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            if (path.parent / "config.json").exists():
                raise CheckpointError(
                    f"{path.parent}: this training has not ended: go on with nnfs train --resume "
                    f"{path.parent}, or use its best.safetensors if there is one"
                )
            raise CheckpointError(
                f"{path.parent}: has no {path.name}: expected a run's folder, or a model file"
            )
    arrays, metadata = load(path)
    check_model_format(path, metadata)
    for name in NETWORKS:
        network = build(name)
        if _shapes(network.state_dict()) == _shapes(arrays):
            load_weights(network, path)
            return network.eval(), metadata
    found = listed([f"{quoted(name)} {shape}" for name, shape in _shapes(arrays).items()])
    raise CheckpointError(
        f"{path}: is for none of the networks known here, {' and '.join(NETWORKS)}: it holds "
        f"{found or 'nothing'}"
    )


def find(name: str) -> nn.Module:
    """A network by its name, with fresh weights, or that of a model file or a run's folder.

    Raises CheckpointError.
    """
    if name in NETWORKS:
        return build(name)
    if not Path(name).exists():
        if Path(name).suffix or os.sep in name:
            raise CheckpointError(f"{name}: there is no such model file or run's folder")
        raise CheckpointError(
            f"{quoted(name)} is neither a network, which are {' and '.join(NETWORKS)}, nor a model "
            "file, nor a run's folder"
        )
    return load_model(name)[0]


def build(name: str) -> nn.Module:
    """A network whose weights will be replaced: the caller's random streams stay where they are."""
    state = get_rng_state()
    network = NETWORKS[name]()
    set_rng_state(state)
    return network


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}

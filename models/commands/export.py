"""`nnfs export`."""

import argparse
import json
import os

from tinygrad_nnfs.models.commands.arguments import Commands
from tinygrad_nnfs.models.networks import load_model

from tinygrad_nnfs.interop import to_onnx


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "export",
        help="write a trained network for other programs",
        description="Write a trained network to an ONNX file, which onnxruntime, browsers and "
        "many other programs run.",
        epilog="example: nnfs export model.safetensors --onnx model.onnx",
    )
    command.add_argument("model", metavar="FILE|RUN", help="a model file, or a run's folder")
    command.add_argument(
        "--onnx",
        type=onnx_name,
        required=True,
        metavar="FILE.onnx",
        help="the file to write, or to replace",
    )
    command.add_argument(
        "--json", action="store_true", help="print what was written as one JSON object"
    )
    command.set_defaults(run=run)


def onnx_name(name: str) -> str:
    """An argparse type: a name that no file of weights or data has."""
    if not name.endswith(".onnx"):
        raise argparse.ArgumentTypeError(f"{name!r} must end in .onnx")
    return name


def run(options: argparse.Namespace) -> None:
    network, metadata = load_model(options.model)
    shapes = to_onnx(network, options.onnx)
    size = os.path.getsize(options.onnx)
    if options.json:
        written = {"onnx": options.onnx, "bytes": size, "shapes": shapes, "metadata": metadata}
        print(json.dumps(written))
        return
    inputs, outputs = (f"float32 ({', '.join(map(str, shape))})" for shape in shapes.values())
    name = json.dumps(options.onnx, ensure_ascii=False)
    print(
        f"{options.onnx}: {type(network).__name__}, {size:,} bytes\n"
        f"input:  images, {inputs}, pixels in [0, 1]\n"
        f"output: logits, {outputs}\n"
        "to run: "
        f'onnxruntime.InferenceSession({name}).run(["logits"], {{"images": images}})'
    )

"""A small convolutional network, defined by TensorRT's own calls from NumPy weights, and the same in NumPy.

    python examples/convnet/network.py --target tensorrt          on a machine with a GPU
    python examples/convnet/network.py --target tensorrt-rtx      builds on any machine

Input 1x28x28, two convolutions of 5x5 with max pooling, two fully connected layers with ReLU between them.  The
weights are random: it shows how a network is defined, not digits.

TensorRT no longer has a fully connected layer: it is a matrix product and a sum.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def make_weights(seed: int = 0) -> dict[str, Array]:
    """Weights as He et al. (2015) start them: normal, variance 2 over the number of inputs; small random biases."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (800, 500), "fc2": (500, 10)}
    weights = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if name.startswith("conv") else shape[0]
        weights[name] = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        outputs = shape[0] if name.startswith("conv") else shape[1]
        weights[f"{name}_bias"] = (rng.standard_normal(outputs) * 0.1).astype(np.float32)
    return weights


WEIGHTS = make_weights()


def convnet(network: Any, trt: Any) -> None:
    """Fill ``network``; ``trt`` is the module ``tensorrt`` or ``tensorrt_rtx``."""
    x = network.add_input("image", trt.DataType.FLOAT, (-1, 1, 28, 28))
    for name in ("conv1", "conv2"):
        kernel = WEIGHTS[name]
        x = network.add_convolution_nd(x, kernel.shape[0], kernel.shape[2:], kernel, WEIGHTS[f"{name}_bias"])
        x = network.add_pooling_nd(x.get_output(0), trt.PoolingType.MAX, (2, 2))
        x.stride_nd = (2, 2)
        x = x.get_output(0)
    flat = network.add_shuffle(x)
    flat.reshape_dims = (-1, WEIGHTS["fc1"].shape[0])
    x = fully_connected(network, trt, flat.get_output(0), "fc1")
    x = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    x = fully_connected(network, trt, x, "fc2")
    x.name = "scores"
    network.mark_output(x)


def fully_connected(network: Any, trt: Any, x: Any, name: str) -> Any:
    weight = network.add_constant(WEIGHTS[name].shape, WEIGHTS[name]).get_output(0)
    bias = WEIGHTS[f"{name}_bias"][None]
    product = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, weight, trt.MatrixOperation.NONE)
    shift = network.add_constant(bias.shape, bias).get_output(0)
    return network.add_elementwise(product.get_output(0), shift, trt.ElementWiseOperation.SUM).get_output(0)


def numpy_convnet(inputs: dict[str, npt.NDArray[Any]]) -> dict[str, Array]:
    """The same network in NumPy, for the gate to compare with."""
    x = inputs["image"]
    for name in ("conv1", "conv2"):
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(2, 3))
        x = np.einsum("bihwyx,oiyx->bohw", windows, WEIGHTS[name], optimize=True)
        x = x + WEIGHTS[f"{name}_bias"][:, None, None]
        batch, maps, height, width = x.shape
        x = x.reshape(batch, maps, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    x = np.maximum(x.reshape(len(x), -1) @ WEIGHTS["fc1"] + WEIGHTS["fc1_bias"], 0)
    return {"scores": x @ WEIGHTS["fc2"] + WEIGHTS["fc2_bias"]}


def main() -> None:
    from repo_builder import BuildOptions, Target, add_model
    from repo_builder.errors import RepoBuilderError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    parser.add_argument("--repository", default="model_repository")
    arguments = parser.parse_args()
    try:
        published = add_model(
            convnet,
            reference=numpy_convnet,
            repository=arguments.repository,
            build=BuildOptions(target=Target(arguments.target)),
            progress=print,
        )
    except RepoBuilderError as error:
        parser.exit(error.exit_code, f"error: {error}\n\nhint: {error.hint}, or try another --target\n")
    print(f"published {published.name} version {published.version} in {published.folder}")
    print(f"verified: {published.manifest['verification'] or published.manifest['unverified']}")


if __name__ == "__main__":
    main()

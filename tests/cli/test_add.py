"""``repo-builder add``: options reach the build, and a person and a program are each told what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder.config.proto import parse_config
from tests import models
from tests.conftest import Cli
from tests.models import linear, save
from tests.support import untouched

ORT = ("--target", "onnxruntime")


@pytest.fixture(autouse=True)
def _net(tmp_path: Path) -> None:
    save(linear(), tmp_path / "net.onnx")


def config(folder: Path, name: str = "net", repository: str = "model_repository") -> Any:
    return parse_config((folder / repository / name / "config.pbtxt").read_text(encoding="utf-8"), "published")


def test_tells_a_person_what_was_made_and_what_comes_next(cli: Cli, tmp_path: Path) -> None:
    result = cli("add", "net.onnx", *ORT)

    assert result.code == 0
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[0].startswith("  reading net.onnx")
    assert lines[0].endswith(" s")
    assert "published net version 1 in model_repository/net (" in result.err
    assert "  target    onnxruntime (asked for)" in lines
    assert (
        "  batching  up to 8: its first axes are free, and on random inputs rows of a batch do not influence each other"
        in lines
    )
    assert any(
        line.startswith("  verified  equal to ONNX Runtime at batch 1, 8: largest relative error ") for line in lines
    )
    assert lines[-1] == "next: repo-builder serve"


def test_tells_a_program_the_manifest(cli: Cli, tmp_path: Path) -> None:
    result = cli("add", "net.onnx", *ORT, "--json")

    assert result.code == 0
    manifest = json.loads((tmp_path / "model_repository/net/1/manifest.json").read_text(encoding="utf-8"))
    assert result.json == {**manifest, "folder": "model_repository/net", "unchanged": False}
    again = cli("add", "net.onnx", *ORT, "--json")
    assert again.json == {**manifest, "folder": "model_repository/net", "unchanged": True}


def test_says_when_nothing_changed(cli: Cli, tmp_path: Path) -> None:
    cli("add", "net.onnx", *ORT)

    with untouched(tmp_path):
        result = cli("add", "net.onnx", *ORT)

    assert "net version 1 is already made from this file with these options; nothing changed" in result.err
    assert "version 2" in cli("add", "net.onnx", *ORT, "--force").err


def test_names_the_repository_in_the_next_command(cli: Cli) -> None:
    result = cli("add", "net.onnx", *ORT, "--repository", "my models/here")

    assert result.err.splitlines()[-1] == "next: repo-builder serve --repository 'my models/here'"


def test_says_why_there_is_no_batching(cli: Cli, tmp_path: Path) -> None:
    save(models.mean_over_rows(), tmp_path / "mean.onnx")

    result = cli("add", "mean.onnx", *ORT)

    assert "  batching  none: its first axis is no batch: output 'y' of a batch of 2 is not what each row" in result.err
    assert "  note      if random inputs are unlike real ones, say what these are: --input x=FILE.npy" in result.err


def test_a_tolerance_is_no_leave_for_rows_to_meet(cli: Cli, tmp_path: Path) -> None:
    save(models.rows_meet_from(2), tmp_path / "late.onnx")

    result = cli("add", "late.onnx", "--atol", "100", *ORT)
    asked = cli("add", "late.onnx", "--atol", "100", "--max-batch-size", 4, *ORT)

    assert config(tmp_path, "late").max_batch_size == 0
    assert "  batching  none: its first axis is no batch: output 'y' of a batch of 8 is not what each row" in result.err
    assert "--max-batch-size 4: the model can't be batched" in asked.error
    assert "--no-batching" in asked.err


def test_a_branch_may_go_another_way_on_other_inputs(cli: Cli, tmp_path: Path) -> None:
    save(models.branch_on_the_batch(), tmp_path / "branch.onnx")

    result = cli("add", "branch.onnx", "--input-range", "x=-2:-1", *ORT)

    assert config(tmp_path, "branch").max_batch_size == 8
    assert "  note      if random inputs are unlike real ones, say what these are: --input x=FILE.npy" in result.err


def test_says_aloud_that_nothing_was_verified(cli: Cli, tmp_path: Path) -> None:
    result = cli("add", "net.onnx", *ORT, "--no-verify")

    assert result.err.splitlines()[0].startswith("WARNING: --no-verify: ")
    assert "  verified  NO: --no-verify" in result.err
    assert cli("list").out.splitlines()[1].endswith("NO")


def test_serving_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "extra.pbtxt").write_text("version_policy { all { } }", encoding="utf-8")

    result = cli(
        *("add", "net.onnx", *ORT, "--name", "other", "-r", "models", "--max-batch-size", 16),
        *("--preferred-batch-sizes", "4,16", "--max-queue-delay-us", 300, "--instance-count", 2),
        *("--instance-kind", "cpu", "--labels", "labels.txt", "--config", "extra.pbtxt"),
    )

    assert result.code == 0, result.err
    made = config(tmp_path, "other", "models")
    assert made.name == "other"
    assert made.max_batch_size == 16
    assert list(made.dynamic_batching.preferred_batch_size) == [4, 16]
    assert made.dynamic_batching.max_queue_delay_microseconds == 300
    assert made.instance_group[0].count == 2
    assert made.output[0].label_filename == "labels.txt"
    assert made.version_policy.HasField("all")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"resize": 256, "crop": [224, 224], "color": "RGB", "mean": [0.485, 0.456, 0.406]}),
        (["--resize", "232"], {"resize": 232, "crop": [224, 224]}),
        (["--resize", "300x320", "--crop", "0"], {"resize": [300, 320], "crop": None}),
        (["--crop", "200"], {"crop": [200, 200]}),
        (["--crop", "200x100"], {"crop": [200, 100]}),
        (["--mean", "0.5", "--std", "0.25"], {"mean": [0.5] * 3, "std": [0.25] * 3}),
        (["--mean", "1,2,3", "--color", "BGR"], {"mean": [1, 2, 3], "color": "BGR"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_image_options(options: list[str], expected: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    save(models.picture("height", "width"), tmp_path / "picture.onnx")

    result = cli("add", "picture.onnx", *ORT, "--image", "imagenet", *options)

    assert result.code == 0, result.err
    stored = json.loads(config(tmp_path, "picture").parameters["image_preprocessing"].string_value)
    assert stored["input"] == "image"
    assert {key: stored[key] for key in expected} == expected


def test_sizes_of_pictures_that_were_asked_for(cli: Cli, tmp_path: Path) -> None:
    save(models.picture(8, 8), tmp_path / "picture.onnx")

    refusal = cli("add", "picture.onnx", *ORT, "--image", "imagenet", "--crop", 200)
    result = cli("add", "picture.onnx", *ORT, "--image", "imagenet", "--resize", 10)

    assert refusal.error == "--crop 200x200: the input takes pictures of 8x8 pixels"
    assert refusal.hint == "--crop 8x8, or drop it"
    stored = json.loads(config(tmp_path, "picture").parameters["image_preprocessing"].string_value)
    assert result.code == 0
    assert (stored["resize"], stored["crop"]) == (10, [8, 8])


def test_image_options_of_grey_pictures_with_channels_last(cli: Cli, tmp_path: Path) -> None:
    save(models.picture(8, 8, layout="NHWC", channels=1), tmp_path / "picture.onnx")

    result = cli("add", "picture.onnx", *ORT, "--image", "imagenet", "--color", "GRAY", "--layout", "NHWC")

    assert result.code == 0, result.err
    stored = json.loads(config(tmp_path, "picture").parameters["image_preprocessing"].string_value)
    assert (stored["color"], stored["layout"], stored["crop"]) == ("GRAY", "NHWC", [8, 8])
    assert stored["mean"] == [pytest.approx(0.449)]


def test_inputs(cli: Cli, tmp_path: Path) -> None:
    save(models.lookup(), tmp_path / "lookup.onnx")
    np.save(tmp_path / "ids.npy", np.zeros((2, 2), np.int64))

    assert cli("add", "lookup.onnx", *ORT).code == 1
    for options in (["--input", "ids=ids.npy"], ["--input-range", "ids=0:0"], ["--input-range", "ids=-0.5:0"]):
        assert cli("add", "lookup.onnx", *ORT, *options).code == 0


def test_shapes(cli: Cli, tmp_path: Path) -> None:
    proto = models.model(
        [models.node("MatMul", ["x=1", "W"], ["y"])],
        {"x=1": (models.FP32, ["N", "features"])},
        {"y": (models.FP32, ["N", 2])},
        {"W": models.weights(13, 2)},
    )
    save(proto, tmp_path / "net13.onnx")

    refusal = cli("add", "net13.onnx", *ORT)
    assert "--shape x=1=1x64" in refusal.hint
    assert cli("add", "net13.onnx", *ORT, "--shape", "x=1=1x13").code == 0


def test_bounds_of_64_bit_integers_are_exact(cli: Cli, tmp_path: Path) -> None:
    save(models.identity(models.INT64), tmp_path / "ids.onnx")

    assert cli("add", "ids.onnx", *ORT, "--input-range", f"x={2**63 - 1}:{2**63 - 1}").code == 0
    assert "do not go so far" in cli("add", "ids.onnx", *ORT, "--input-range", f"x=0:{2**63}").error


def test_tolerances(cli: Cli, tmp_path: Path) -> None:
    result = cli("add", "net.onnx", *ORT, "--rtol", 0.5, "--atol", 0.25, "--json")

    assert (result.json["verification"]["rtol"], result.json["verification"]["atol"]) == (0.5, 0.25)


@pytest.mark.parametrize("option", ["--no-batching", "--max-batch-size=0"])
def test_no_batching(option: str, cli: Cli, tmp_path: Path) -> None:
    assert "  batching  none: " in cli("add", "net.onnx", *ORT, option).err
    assert config(tmp_path).max_batch_size == 0


def test_auto_says_what_it_took_and_why(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo_builder.compilers._obstacle_to_tensorrt", lambda: "there is no GPU here")

    assert "  target    onnxruntime (there is no GPU here)" in cli("add", "net.onnx").err


def test_a_path_with_a_new_line_stays_on_one_line(cli: Cli, tmp_path: Path) -> None:
    save(linear(), tmp_path / "two\nlines.onnx")

    lines = cli("add", "two\nlines.onnx", "--name", "net", *ORT).err.splitlines()

    assert lines[0].startswith(r"  reading two\nlines.onnx  ")


def test_says_that_sequences_are_batched(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "extra.pbtxt").write_text("sequence_batching { }", encoding="utf-8")

    result = cli("add", "net.onnx", *ORT, "--config", "extra.pbtxt")

    assert "  batching  up to 8: --config has sequence_batching in place of dynamic_batching" in result.err
    assert "do not influence" not in result.err
    assert "  note      sequence_batching is not served by repo-builder serve" in result.err


def test_names_from_the_model_do_not_reach_the_terminal_raw(cli: Cli, tmp_path: Path) -> None:
    name = "y\n\x1b[31m"
    proto = models.model(
        [models.node("ReduceSum", ["x"], [name], keepdims=0)], {"x": (models.FP32, ["N", 2])}, {name: (models.FP32, [])}
    )
    save(proto, tmp_path / "evil.onnx")

    result = cli("add", "evil.onnx", *ORT)

    assert result.code == 0
    assert "\x1b" not in result.err
    shown = cli("show", "evil")
    assert "\x1b" not in shown.out
    assert parse_config((tmp_path / "model_repository/evil/config.pbtxt").read_text(), "shown").output[0].name == name

"""``add_model`` from file to repository: what is built again, what is kept, what the gate lets through."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import repo_builder
from repo_builder import (
    BuildOptions,
    Published,
    Repository,
    SampleOptions,
    ServingOptions,
    Target,
    Tolerance,
    add_model,
    image_preset,
)
from repo_builder.compilers import choose_compiler
from repo_builder.compilers.base import Artifact
from repo_builder.config.proto import parse_config
from repo_builder.errors import ConfigError, ModelError, RepositoryError, UsageError, VerificationError
from repo_builder.model import DataType
from repo_builder.runtime import Session, open_session
from tests import models
from tests.models import (
    FP32,
    INT64,
    STRING,
    identity,
    linear,
    model,
    node,
    save,
    two_outputs,
    weights,
    with_external_data,
)
from tests.support import snapshot, untouched

BUILD = BuildOptions(target=Target.ONNXRUNTIME)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save(linear(), tmp_path / "source" / "net.onnx")


def add(source: Path, repository: Path, *, build: BuildOptions = BUILD, **options: Any) -> Published:
    return add_model(source, repository=repository, build=build, **options)


def config_of(published: Published) -> Any:
    return parse_config((published.folder / "config.pbtxt").read_text(encoding="utf-8"), "published")


def file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestPublished:
    def test_says_what_it_made(self, net: Path, repository: Path) -> None:
        published = add(net, repository)

        assert (published.name, published.version, published.unchanged) == ("net", 1, False)
        assert published.folder == repository / "net"
        on_disk = json.loads((repository / "net/1/manifest.json").read_text(encoding="utf-8"))
        assert json.loads(json.dumps(published.manifest)) == on_disk
        files = {
            path.name: path.stat().st_size for path in (repository / "net/1").iterdir() if path.name != "manifest.json"
        }
        assert on_disk["files"] == files
        digests = {name: hashlib.sha256((repository / "net/1" / name).read_bytes()).hexdigest() for name in files}
        assert on_disk["sha256"] == digests

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("net.onnx", "net"),
            ("deep/model.onnx", "deep"),
            ("a.b.onnx", "a.b"),
            ("net", "net"),
            ("UPPER.ONNX", "UPPER"),
            ("deep/Model.Onnx", "deep"),
        ],
    )
    def test_is_called_after_the_file_or_its_folder(
        self, path: str, name: str, tmp_path: Path, repository: Path
    ) -> None:
        assert add(save(linear(), tmp_path / path), repository).name == name

    @pytest.mark.parametrize("file_name", ["my model.onnx", "ä.onnx", ".onnx"])
    def test_asks_for_a_name_when_the_files_own_will_not_do(
        self, file_name: str, tmp_path: Path, repository: Path
    ) -> None:
        path = save(linear(), tmp_path / "source" / file_name)

        with untouched(tmp_path), pytest.raises(UsageError, match="is not a model name"):
            add(path, repository)
        assert add(path, repository, name="net").name == "net"

    def test_with_options_from_a_file_whose_name_is_not_text(self, net: Path, tmp_path: Path, repository: Path) -> None:
        labels = file(tmp_path / os.fsdecode(b"\xff.txt"), "a\nb\nc")

        published = add(net, repository, serving=ServingOptions(labels=labels))

        assert published.manifest["options"]["serving"]["labels"]["file"] == "\ufffd.txt"

    def test_tells_its_steps(self, net: Path, repository: Path) -> None:
        steps: list[str] = []

        add(net, repository, progress=steps.append)

        assert steps[0] == f"reading {net}"
        assert any("verifying" in step for step in steps)

    def test_a_quantised_model_is_compared_as_onnx_runtime_serves_it(self, tmp_path: Path, repository: Path) -> None:
        """Its fused kernels are not what the graph says, and no fault of the copy that is served."""
        models.quantised(tmp_path / "net.onnx", batch=1)

        build = replace(BUILD, samples=SampleOptions(ranges={"x": (2, 4)}))
        published = add(tmp_path / "net.onnx", repository, build=build)

        assert published.manifest["batching"]["batchable"]
        assert published.manifest["verification"]["outputs"][0]["max_absolute_error"] == 0
        assert any("is off by up to" in hint and "reduce_range=True" in hint for hint in published.hints)

    def test_suggests_a_preset_for_what_looks_like_pictures(self, tmp_path: Path, repository: Path) -> None:
        path = save(models.picture(), tmp_path / "net.onnx")

        assert any("--image" in hint for hint in add(path, repository).hints)
        assert not add(path, repository, serving=ServingOptions(image=image_preset("unit"))).hints

    def test_suggests_flags_where_random_rows_ruled_a_batch_out(self, tmp_path: Path, repository: Path) -> None:
        (hint,) = add(save(models.mean_over_rows(), tmp_path / "net.onnx"), repository).hints

        assert "--input x=FILE.npy" in hint


class TestAgain:
    @pytest.fixture
    def no_session(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def forbid() -> None:
            def fail(*_: object, **__: object) -> Session:
                raise AssertionError("ONNX Runtime was asked")

            monkeypatch.setattr("repo_builder.runtime.open_session", fail)
            monkeypatch.setattr("repo_builder.gate.open_session", fail)
            monkeypatch.setattr("repo_builder.compilers.onnxruntime.open_session", fail)
            monkeypatch.setattr("onnxruntime.InferenceSession", fail)

        return forbid

    def test_is_recognised_without_running_anything(
        self, net: Path, repository: Path, no_session: Callable[[], None]
    ) -> None:
        first = add(net, repository)
        no_session()

        with untouched(repository.parent):
            again = add(net, repository)

        assert again.unchanged
        assert (again.version, again.folder) == (1, first.folder)
        assert again.manifest == json.loads(json.dumps(first.manifest))

    @pytest.mark.parametrize("damage", ["lost", "cut short"])
    def test_is_built_again_when_a_file_is(self, damage: str, net: Path, repository: Path) -> None:
        broken = add(net, repository).folder / "1" / "model.onnx"
        if damage == "lost":
            broken.unlink()
        else:
            broken.write_bytes(broken.read_bytes()[:100])

        again = add(net, repository)

        assert (again.unchanged, again.version) == (False, 2)
        assert (again.folder / "2" / "model.onnx").read_bytes() == net.read_bytes()

    def test_with_files_among_the_options(
        self, tmp_path: Path, repository: Path, no_session: Callable[[], None]
    ) -> None:
        path = save(linear(), tmp_path / "net.onnx")
        np.save(tmp_path / "x.npy", weights(2, 4))
        labels, extra = file(tmp_path / "labels", "a\nb\nc"), file(tmp_path / "extra", "version_policy { all { } }")

        def once() -> Published:
            options = ServingOptions(labels=labels, config=extra)
            samples = SampleOptions(files={"x": tmp_path / "x.npy"})
            return add(path, repository, build=replace(BUILD, samples=samples), serving=options)

        once()
        no_session()

        assert once().unchanged

    @pytest.mark.parametrize("other", ["source", "options", "labels", "config", "samples", "build", "external data"])
    def test_anything_else_is_a_new_version(self, other: str, tmp_path: Path, repository: Path) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        labels, extra = file(tmp_path / "labels", "a\nb\nc"), file(tmp_path / "extra", "version_policy { all { } }")
        np.save(tmp_path / "x.npy", weights(2, 4))
        samples = SampleOptions(files={"x": tmp_path / "x.npy"})
        build, serving = replace(BUILD, samples=samples), ServingOptions(labels=labels, config=extra)
        assert add(path, repository, build=build, serving=serving).version == 1
        match other:
            case "source":
                proto = onnx.load(path, load_external_data=False)
                proto.producer_name = "another"
                path.write_bytes(proto.SerializeToString())
            case "options":
                serving = replace(serving, max_queue_delay_us=1)
            case "labels":
                labels.write_text("a\nb\nd", encoding="utf-8")
            case "config":
                extra.write_text("version_policy { latest { num_versions: 2 } }", encoding="utf-8")
            case "samples":
                np.save(tmp_path / "x.npy", weights(3, 4))
            case "build":
                build = replace(build, tolerance=Tolerance(rtol=0.1))
            case _:
                (tmp_path / "weights.bin").write_bytes(weights(4, 3, seed=9).tobytes())

        assert add(path, repository, build=build, serving=serving).version == 2

    def test_force_builds_again(self, net: Path, repository: Path) -> None:
        add(net, repository)

        assert add(net, repository, force=True).version == 2

    def test_goes_by_the_latest_version(self, net: Path, repository: Path) -> None:
        small, large = ServingOptions(max_batch_size=2), ServingOptions(max_batch_size=4)
        add(net, repository, serving=small)
        add(net, repository, serving=large)

        assert add(net, repository, serving=small).version == 3
        Repository(repository).remove("net", 3)
        assert add(net, repository, serving=large).unchanged


@pytest.mark.parametrize(("batch", "largest"), [("batch", 8), (1, 8), (5, 0)])
def test_a_graph_without_nodes_is_a_model(batch: int | str, largest: int, tmp_path: Path, repository: Path) -> None:
    tensors = {"x": (FP32, [batch, 3])}

    published = add(save(model([], tensors, tensors), tmp_path / "net.onnx"), repository)

    assert published.manifest["max_batch_size"] == largest


class TestAtTheSameTime:
    @staticmethod
    def both(net: Path, repository: Path, *, force: bool = False) -> tuple[Published, Published]:
        """Two calls alike; the second begins and ends while the first is at its last step."""
        inner: list[Published] = []

        def meanwhile(step: str) -> None:
            if step.startswith("verifying"):
                inner.append(add(net, repository, force=force))

        outer = add(net, repository, force=force, progress=meanwhile)
        return inner[0], outer

    def test_the_same_is_published_once(self, net: Path, repository: Path) -> None:
        first, second = self.both(net, repository)

        assert (first.version, first.unchanged) == (1, False)
        assert (second.version, second.unchanged) == (1, True)
        assert second.manifest == first.manifest
        assert not (repository / "net/2").exists()

    def test_force_publishes_both(self, net: Path, repository: Path) -> None:
        assert [published.version for published in self.both(net, repository, force=True)] == [1, 2]


class TestConfigEditedByHand:
    def edit(self, repository: Path) -> Path:
        path = repository / "net/config.pbtxt"
        text = path.read_text(encoding="utf-8")
        return file(path, text.replace("max_queue_delay_microseconds: 0", "max_queue_delay_microseconds: 700"))

    def test_is_not_overwritten(self, net: Path, repository: Path) -> None:
        add(net, repository)
        config = self.edit(repository)

        with (
            untouched(repository.parent),
            pytest.raises(RepositoryError, match="edited by hand since version 1") as caught,
        ):
            add(net, repository, serving=ServingOptions(max_batch_size=2))

        assert f"--config {config}" in str(caught.value.hint)
        assert "--force" in str(caught.value.hint)

    def test_of_another_tool_is_not_overwritten(self, net: Path, repository: Path) -> None:
        (repository / "net/1").mkdir(parents=True)
        file(repository / "net/config.pbtxt", "max_batch_size: 3")

        with untouched(repository.parent), pytest.raises(RepositoryError, match=r"config\.pbtxt was written by hand$"):
            add(net, repository)

    def test_is_kept_as_the_hint_says(self, net: Path, repository: Path) -> None:
        add(net, repository)
        options = ServingOptions(config=self.edit(repository), instance_count=1)

        published = add(net, repository, serving=options)

        assert published.version == 2
        assert config_of(published).dynamic_batching.max_queue_delay_microseconds == 700
        assert not Repository(repository).find("net").edited_by_hand

    @pytest.mark.parametrize("merged", [False, True])
    def test_while_the_next_version_is_built(self, merged: bool, net: Path, repository: Path) -> None:
        config = add(net, repository).folder / "config.pbtxt"
        options = ServingOptions(config=config, instance_count=1) if merged else ServingOptions(max_batch_size=2)

        def progress(line: str) -> None:
            if line.startswith("verifying"):
                self.edit(repository)

        with pytest.raises(RepositoryError, match="edited by hand since version 1"):
            add(net, repository, serving=options, progress=progress)

        assert Repository(repository).find("net").versions == (1,)
        assert "max_queue_delay_microseconds: 700" in config.read_text(encoding="utf-8")

    def test_another_config_does_not_keep_it(self, net: Path, repository: Path, tmp_path: Path) -> None:
        add(net, repository)
        self.edit(repository)

        with pytest.raises(RepositoryError, match="edited by hand"):
            add(net, repository, serving=ServingOptions(config=file(tmp_path / "other", "")))

    def test_is_replaced_by_force(self, net: Path, repository: Path) -> None:
        add(net, repository)
        self.edit(repository)

        assert config_of(add(net, repository, force=True)).dynamic_batching.max_queue_delay_microseconds == 0

    def test_does_not_matter_when_nothing_changes(self, net: Path, repository: Path) -> None:
        add(net, repository)
        self.edit(repository)

        with untouched(repository.parent):
            assert add(net, repository).unchanged

    def test_written_before_the_first_version(self, net: Path, repository: Path) -> None:
        (repository / "net").mkdir(parents=True)
        file(repository / "net/config.pbtxt", "max_batch_size: 2")

        with untouched(repository.parent), pytest.raises(RepositoryError, match="written by hand"):
            add(net, repository)


class TestConfigOfTheUsers:
    def add(self, folder: Path, text: str, proto: onnx.ModelProto | None = None, **options: Any) -> Any:
        serving = ServingOptions(config=file(folder / "extra.pbtxt", text), **options)
        return config_of(add(save(proto or linear(), folder / "net.onnx"), folder / "models", serving=serving))

    def test_decides_the_batch_size_that_everything_has_to_fit(self, tmp_path: Path) -> None:
        config = self.add(tmp_path, "max_batch_size: 16 dynamic_batching { preferred_batch_size: [ 16 ] }")

        assert config.max_batch_size == 16
        assert [sample.batch_size for sample in config.model_warmup] == [1, 16]
        manifest = json.loads((tmp_path / "models/net/1/manifest.json").read_text(encoding="utf-8"))
        assert manifest["verification"]["batch_sizes"] == [1, 16]

    def test_may_turn_batching_off(self, tmp_path: Path) -> None:
        config = self.add(tmp_path, "max_batch_size: 0")

        assert config.max_batch_size == 0
        assert list(config.input[0].dims) == [-1, 4]
        assert not config.HasField("dynamic_batching")

    @pytest.mark.parametrize(
        ("text", "options", "why"),
        [
            ("max_batch_size: 4", {"max_batch_size": 8}, "--max-batch-size 8, but .*extra.pbtxt says 4"),
            ("max_batch_size: 0", {"max_batch_size": 8}, "--max-batch-size 8, but .* says 0"),
            ("max_batch_size: 8", {"max_batch_size": 0}, "--max-batch-size 0, but .* says 8"),
            (
                "dynamic_batching { preferred_batch_size: [ 2, 4 ] }",
                {"preferred_batch_sizes": (4, 8)},
                "--preferred-batch-sizes 4,8, but .* says 2,4",
            ),
            (
                "dynamic_batching { max_queue_delay_microseconds: 5 }",
                {"max_queue_delay_us": 0},
                "--max-queue-delay-us 0, but .* says 5",
            ),
            (
                "instance_group [ { kind: KIND_CPU }, { count: 2 } ]",
                {"instance_count": 1},
                "--instance-count 1, but .* says 3",
            ),
            ("instance_group [ { kind: KIND_CPU } ]", {"instance_kind": "gpu"}, "--instance-kind gpu, but .* says cpu"),
            ("sequence_batching { }", {"max_queue_delay_us": 5}, "--max-queue-delay-us: .* has sequence_batching"),
            (
                'parameters { key: "image_preprocessing" value { string_value: "{}" } }',
                {"image": image_preset("unit")},
                "--image and its options do not say what parameter 'image_preprocessing' in .*extra.pbtxt says",
            ),
        ],
    )
    def test_may_not_contradict_other_options(
        self, text: str, options: dict[str, Any], why: str, tmp_path: Path
    ) -> None:
        net, extra = save(models.picture(8, 8), tmp_path / "net.onnx"), file(tmp_path / "extra.pbtxt", text)

        with untouched(tmp_path), pytest.raises(UsageError, match=why) as caught:
            add(net, tmp_path / "models", serving=ServingOptions(config=extra, **options))
        assert "drop --" in str(caught.value.hint)

    def test_may_say_the_same_as_other_options(self, repository: Path, tmp_path: Path) -> None:
        """As a published config.pbtxt does that is handed back with the options it was made with."""
        net = save(models.picture(8, 8), tmp_path / "net.onnx")
        options = ServingOptions(
            max_batch_size=4,
            preferred_batch_sizes=(2, 4),
            max_queue_delay_us=5,
            instance_count=2,
            instance_kind="cpu",
            image=image_preset("unit"),
        )
        first = add(net, repository, serving=options)

        again = add(net, repository, serving=replace(options, config=first.folder / "config.pbtxt"))

        assert again.version == 2
        assert config_of(again) == config_of(first)

    def test_that_is_not_there(self, net: Path, tmp_path: Path) -> None:
        with untouched(tmp_path), pytest.raises(UsageError, match=r"--config .*none.pbtxt can't be read: No such file"):
            add(net, tmp_path / "models", serving=ServingOptions(config=tmp_path / "none.pbtxt"))

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ('input [ { name: "x" dims: [ 5 ] } ]', "dims"),
            ('output [ { name: "y" data_type: TYPE_INT8 } ]', "TYPE_INT8"),
            ('input [ { name: "z" dims: [ 4 ] } ]', "no input 'z'"),
            ('name: "other"', "'other' is not the model's name"),
            ('platform: "tensorrt_plan"', "tensorrt_plan"),
            ("dynamic_batching { preferred_batch_size: [ 64 ] }", "preferred_batch_size 64"),
            ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }", "preferred_batch_size 8"),
            ('model_warmup [ { inputs { key: "x" value { input_data_file: "none" } } } ]', "'none'"),
            ('output [ { name: "y" label_filename: "mine.txt" } ]', "--labels|label file"),
            ('input [ { name: "x" optional: true } ]', "input 'x' is optional"),
            (
                'max_batch_size: 0 input [ { name: "x" optional: true } ]',
                "input 'x' is optional, and the model needs it",
            ),
            ("model_transaction_policy { decoupled: true }", "decoupled"),
            (
                "version_policy { specific { versions: 77 } }",
                "takes versions 77, and the model has 1: nothing is loaded",
            ),
        ],
    )
    def test_contradicts_the_model(self, text: str, why: str, tmp_path: Path) -> None:
        save(linear(), tmp_path / "net.onnx")
        file(tmp_path / "extra.pbtxt", text)

        with untouched(tmp_path), pytest.raises(ConfigError, match=why):
            self.add(tmp_path, text)

    def test_may_keep_an_earlier_version_in_service(self, net: Path, repository: Path, tmp_path: Path) -> None:
        add(net, repository)
        policy = file(tmp_path / "policy.pbtxt", "version_policy { specific { versions: 1 } }")

        published = add(net, repository, serving=ServingOptions(config=policy))

        assert published.version == 2
        assert "version_policy takes versions 1: version 2, the latest, is not served" in published.hints[0]
        later = file(tmp_path / "policy.pbtxt", "version_policy { specific { versions: 3 } }")
        assert add(net, repository, serving=ServingOptions(config=later)).hints == ()

    @pytest.mark.parametrize("policy", ["all { }", "latest { num_versions: 2 }", "specific { versions: [ 1, 2 ] }"])
    def test_versions_that_one_configuration_does_not_fit(self, policy: str, tmp_path: Path, repository: Path) -> None:
        """Triton would load neither."""
        path = tmp_path / "policy.pbtxt"
        serving = ServingOptions(config=file(path, f"version_policy {{ {policy} }}"))
        add(save(linear(classes=3), tmp_path / "net.onnx"), repository)
        other = save(linear(classes=4), tmp_path / "net.onnx")
        with untouched(repository), pytest.raises(ConfigError, match="keeps version 1 in service, whose outputs are"):
            add(other, repository, serving=serving)
        add(other, repository)
        file(path, "version_policy { specific { versions: [ 2, 3 ] } }")
        assert add(other, repository, serving=serving).version == 3

    @pytest.mark.parametrize(
        ("program", "why"), [("exit 9", "there is none here"), ("echo one; echo two", "are 2 here")]
    )
    def test_names_gpus_of_another_machine(
        self, program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bin").mkdir()
        file(tmp_path / "bin/nvidia-smi", f"#!/bin/sh\n{program}\n").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        groups = file(tmp_path / "groups.pbtxt", "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 7 ] } ]")

        published = add(
            save(linear(), tmp_path / "net.onnx"), tmp_path / "models", serving=ServingOptions(config=groups)
        )

        assert len(published.hints) == 1
        assert why in published.hints[0]

    @pytest.mark.parametrize("size", [1, 8])
    def test_a_batch_for_a_model_that_has_none(self, size: int, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be batched: its first axis is no batch"):
            self.add(tmp_path, f"max_batch_size: {size}", models.mean_over_rows())


class TestBatching:
    def size(self, proto: onnx.ModelProto, folder: Path, *, batching: bool = True, asked: int | None = None) -> int:
        build, serving = replace(BUILD, batching=batching), ServingOptions(max_batch_size=asked)
        published = add(save(proto, folder / "net.onnx"), folder / "models", build=build, serving=serving)
        assert config_of(published).max_batch_size == published.manifest["max_batch_size"]
        return int(published.manifest["max_batch_size"])

    def test_on_by_default(self, tmp_path: Path) -> None:
        assert self.size(linear(), tmp_path) == 8

    def test_turned_off(self, tmp_path: Path) -> None:
        assert self.size(linear(), tmp_path, batching=False) == 0

    def test_of_0(self, tmp_path: Path) -> None:
        assert self.size(linear(), tmp_path, asked=0) == 0

    @pytest.mark.parametrize("asked", [1, 3, 128])
    def test_as_asked(self, asked: int, tmp_path: Path) -> None:
        assert self.size(linear(1), tmp_path, asked=asked) == asked

    def test_asked_of_a_model_that_has_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be batched: its first axis is no batch"):
            self.size(models.mean_over_rows(), tmp_path, asked=4)

    @pytest.mark.parametrize(
        ("off", "asked", "why"),
        [
            ({"batching": False}, {"max_batch_size": 4}, "--no-batching and a max_batch_size of 4"),
            ({"batching": False}, {"preferred_batch_sizes": (4,)}, "--no-batching and --preferred-batch-sizes"),
            ({"batching": False}, {"max_queue_delay_us": 1}, "--no-batching and --max-queue-delay-us"),
            ({}, {"max_batch_size": 0, "preferred_batch_sizes": (4,)}, "a max_batch_size of 0 and --preferred-batch-s"),
            ({}, {"max_batch_size": 0, "max_queue_delay_us": 1}, "a max_batch_size of 0 and --max-queue-delay-us"),
        ],
    )
    def test_turned_off_and_asked_for(
        self, off: dict[str, Any], asked: dict[str, Any], why: str, net: Path, tmp_path: Path
    ) -> None:
        with untouched(tmp_path), pytest.raises(UsageError, match=f"{why}.* contradict each other"):
            add(net, tmp_path / "models", build=replace(BUILD, **off), serving=ServingOptions(**asked))

    def test_turned_off_and_asked_for_in_a_file(self, net: Path, tmp_path: Path) -> None:
        serving = ServingOptions(config=file(tmp_path / "extra.pbtxt", "max_batch_size: 4"))

        with untouched(tmp_path), pytest.raises(UsageError, match="--no-batching and a max_batch_size of 4"):
            add(net, tmp_path / "models", build=replace(BUILD, batching=False), serving=serving)

    def test_a_delay_of_zero_asks_for_nothing(self, net: Path, repository: Path) -> None:
        published = add(
            net, repository, build=replace(BUILD, batching=False), serving=ServingOptions(max_queue_delay_us=0)
        )

        assert published.manifest["max_batch_size"] == 0

    def test_larger_than_can_be_verified(self, tmp_path: Path) -> None:
        save(linear(), tmp_path / "net.onnx")

        with untouched(tmp_path), pytest.raises(VerificationError, match="too large to be verified"):
            self.size(linear(), tmp_path, asked=2**31 - 1)


@pytest.mark.parametrize("dtype", DataType)
def test_every_type_as_input_and_output(dtype: DataType, tmp_path: Path, repository: Path) -> None:
    published = add(save(identity(dtype), tmp_path / "net.onnx"), repository)

    assert [tensor["datatype"] for tensor in published.manifest["inputs"]] == [dtype.value]
    assert [tensor["datatype"] for tensor in published.manifest["outputs"]] == [dtype.value]
    assert published.manifest["max_batch_size"] == 8
    assert published.manifest["verification"]["batch_sizes"] == [1, 8]
    assert any("BF16" in hint for hint in published.hints) == (dtype is DataType.BF16)


class TestShapes:
    def dims(self, proto: onnx.ModelProto, folder: Path, **options: Any) -> tuple[list[int], list[int]]:
        config = config_of(add(save(proto, folder / "net.onnx"), folder / "models", **options))
        session = open_session(folder / "models/net/1/model.onnx")
        batched = config.max_batch_size > 0
        for tensor, spec in (
            *zip(config.input, session.inputs, strict=True),
            *zip(config.output, session.outputs, strict=True),
        ):
            stated = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
            assert stated == (list(spec.dims[batched:]) or ([] if batched else [1])), "Triton compares the two"
        return list(config.input[0].dims), list(config.output[0].dims)

    def test_free_axes_of_every_spelling(self, tmp_path: Path) -> None:
        shape: list[int | str | None] = ["batch", "floor(height/2)", "?", 0, -1, None]

        assert self.dims(identity(FP32, shape, shape), tmp_path) == ([-1] * 5, [-1] * 5)

    def test_scalars(self, tmp_path: Path) -> None:
        assert self.dims(identity(FP32, [], []), tmp_path) == ([1], [1])

    def test_one_number_a_row(self, tmp_path: Path) -> None:
        assert self.dims(identity(INT64, ["N"], ["N"]), tmp_path) == ([1], [1])

    @pytest.mark.parametrize("stated", [None, [1, 4], [4, 4], ["N", 4, 1], ["N", 5], []])
    def test_outputs_that_state_no_shape_or_a_wrong_one(self, stated: list[int | str] | None, tmp_path: Path) -> None:
        proto = model(
            [node("Compress", ["x", "keep"], ["y"], axis=1)],
            {"x": (FP32, ["N", 4])},
            {"y": (FP32, stated)},
            {"keep": np.ones(4, bool)},
        )

        x, y = self.dims(proto, tmp_path)

        assert x == [4]
        assert y in ([4], [-1])

    def test_an_output_of_unknown_rank_needs_a_run(self, tmp_path: Path) -> None:
        path = save(identity(FP32, ["N"], None), tmp_path / "net.onnx")

        with untouched(tmp_path), pytest.raises(ModelError, match="only running it would tell") as caught:
            add(path, tmp_path / "models", build=replace(BUILD, verify=False))
        assert "--no-verify" in str(caught.value.hint)

    def test_ir_version_3(self, tmp_path: Path) -> None:
        proto = model(
            [node("Add", ["x", "W"], ["y"])],
            {"x": (FP32, [0, 4])},
            {"y": (FP32, [0, 4])},
            {"W": weights(4)},
            ir_version=3,
            opset=8,
        )

        assert self.dims(proto, tmp_path) == ([4], [4])

    def test_functions(self, tmp_path: Path) -> None:
        twice = onnx.helper.make_function(
            "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [onnx.helper.make_opsetid("", 17)]
        )
        proto = model(
            [node("Twice", ["x"], ["y"], domain="mine")],
            {"x": (FP32, ["N", 4])},
            {"y": (FP32, ["N", 4])},
            functions=[twice],
            domains={"mine": 1},
        )

        assert self.dims(proto, tmp_path) == ([4], [4])


class TestExternalData:
    def test_is_copied_to_where_the_model_looks_for_it(self, tmp_path: Path, repository: Path) -> None:
        path = with_external_data(tmp_path / "source", "data/w.bin")
        (tmp_path / "source/data").mkdir()
        (tmp_path / "source/weights.bin").rename(tmp_path / "source/data/w.bin")

        published = add(path, repository)

        assert published.manifest["source"]["external_data"].keys() == {"data/w.bin"}
        shutil.rmtree(tmp_path / "source")
        x = np.ones((2, 4), np.float32)
        got = open_session(repository / "net/1/model.onnx").run({"x": x})["y"]
        np.testing.assert_allclose(got, x @ weights(4, 3), rtol=1e-6)

    @pytest.mark.parametrize("batch", [0, 1], ids=["size of zero", "made free"])
    def test_of_a_graph_that_is_changed(self, batch: int, tmp_path: Path, repository: Path) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        proto = onnx.load(path, load_external_data=False)
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        path.write_bytes(proto.SerializeToString())

        published = add(path, repository)

        assert published.manifest["max_batch_size"] == 8
        assert sorted(published.manifest["files"]) == ["config.pbtxt", "model.onnx", "weights.bin"]

    @pytest.mark.parametrize(
        "name", ["model.onnx", "manifest.json", "config.pbtxt", "labels.txt", "warmup/x", "source.onnx"]
    )
    def test_may_not_be_called_like_a_file_of_the_repository(self, name: str, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, name)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "weights.bin").rename(tmp_path / name)

        with untouched(tmp_path), pytest.raises(ModelError, match="name of another file"):
            add(path, tmp_path / "models")

    def test_that_is_cut_short(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        (tmp_path / "weights.bin").write_bytes(bytes(10))

        with untouched(tmp_path), pytest.raises(ModelError, match=r"'weights\.bin', which is too short: 10 bytes"):
            add(path, tmp_path / "models")

    @pytest.mark.usefixtures("file_modes_hold")
    def test_that_can_not_be_read(self, tmp_path: Path) -> None:
        path = with_external_data(tmp_path, "weights.bin")
        (tmp_path / "weights.bin").chmod(0)

        with pytest.raises(ModelError, match=r"weights\.bin can't be read: Permission denied"):
            add(path, tmp_path / "models")


def perturbed(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make whatever compiler is chosen build artifacts whose outputs went through ``change``."""

    class Wrong:
        def __init__(self, right: Any) -> None:
            self.right = right
            self.target = right.target

        def identity(self) -> str:
            return "wrong"

        def compile(self, *arguments: Any, **options: Any) -> Artifact:
            artifact: Artifact = self.right.compile(*arguments, **options)
            run = artifact.run
            assert run is not None
            return replace(artifact, run=lambda arrays: change(run(arrays)))

    def chosen(*arguments: Any) -> tuple[Wrong, str]:
        compiler, why = choose_compiler(*arguments)
        return Wrong(compiler), why

    monkeypatch.setattr("repo_builder.add.choose_compiler", chosen)


class TestGate:
    def test_a_wrong_artifact_is_refused_and_its_worst_output_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(two_outputs(), tmp_path / "net.onnx")
        perturbed(monkeypatch, lambda outputs: {**outputs, "features": outputs["features"] * 1.01})

        with untouched(tmp_path), pytest.raises(VerificationError, match="output 'features'"):
            add(path, tmp_path / "models")

    def test_an_older_version_survives_the_refusal(
        self, net: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(net, repository)
        perturbed(monkeypatch, lambda outputs: {"y": -outputs["y"]})

        with untouched(repository.parent), pytest.raises(VerificationError):
            add(net, repository)

    def test_an_error_within_the_tolerance_is_written_down(
        self, net: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        perturbed(monkeypatch, lambda outputs: {"y": outputs["y"] * np.float32(1.0005)})

        (report,) = add(net, repository).manifest["verification"]["outputs"]

        assert report["max_relative_error"] == pytest.approx(5e-4, rel=0.01)
        assert report["mismatched"] == 0

    def test_is_not_asked_without_verification(
        self, net: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        perturbed(monkeypatch, lambda outputs: {"y": outputs["y"] * np.nan})

        published = add(net, repository, build=replace(BUILD, verify=False))

        assert published.manifest["verification"] is None
        assert not config_of(published).model_warmup

    @pytest.mark.parametrize(
        ("make", "why", "hint"),
        [
            (models.random_numbers, "differs from run to run", "--no-verify"),
            (models.not_a_number, "is NaN under ONNX Runtime on random inputs", "--input-range x=LOW:HIGH"),
            (
                models.lookup,
                "can't run .* on random inputs: .*indices element out of data bounds",
                "--input ids=FILE.npy",
            ),
        ],
        ids=["random", "nan", "index"],
    )
    def test_inputs_that_need_meaning(
        self, make: Callable[[], onnx.ModelProto], why: str, hint: str, tmp_path: Path
    ) -> None:
        path = save(make(), tmp_path / "net.onnx")

        with untouched(tmp_path), pytest.raises(ModelError, match=why) as caught:
            add(path, tmp_path / "models")

        assert hint in str(caught.value.hint)

    def test_are_given_it_by_ranges_and_files(self, tmp_path: Path, repository: Path) -> None:
        path = save(models.lookup(), tmp_path / "net.onnx")
        np.save(tmp_path / "ids.npy", np.array([[0, 0], [-1, 0]]) * 0)

        assert add(path, repository, build=replace(BUILD, samples=SampleOptions(ranges={"ids": (0, 0)}))).version == 1
        assert (
            add(
                path, repository, build=replace(BUILD, samples=SampleOptions(files={"ids": tmp_path / "ids.npy"}))
            ).version
            == 2
        )

    def test_random_models_are_published_without_verification(self, tmp_path: Path, repository: Path) -> None:
        path = save(models.random_numbers(), tmp_path / "net.onnx")

        assert add(path, repository, build=replace(BUILD, verify=False)).manifest["max_batch_size"] == 8

    def test_indices_into_weights_are_found_without_flags(self, tmp_path: Path, repository: Path) -> None:
        proto = model(
            [node("Gather", ["table", "ids"], ["y"])],
            {"ids": (INT64, ["N", 3])},
            {"y": (FP32, ["N", 3, 2])},
            {"table": weights(1000, 2)},
        )

        assert add(save(proto, tmp_path / "net.onnx"), repository).manifest["max_batch_size"] == 8


class TestWarmup:
    def test_zeros_where_they_do(self, net: Path, repository: Path) -> None:
        config = config_of(add(net, repository))

        assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
        assert not (repository / "net/warmup").exists()

    def test_files_where_they_do_not(self, tmp_path: Path, repository: Path) -> None:
        """Zeros are out of range here; text goes behind its length, as Triton reads it."""
        proto = model(
            [
                node("Sub", ["ids", "nine"], ["near"]),
                node("Mul", ["near", "hundred"], ["index"]),
                node("Gather", ["table", "index"], ["y"]),
                node("Identity", ["text"], ["z"]),
            ],
            {"ids": (INT64, ["N", 1]), "text": (STRING, ["N", 1])},
            {"y": (FP32, ["N", 1, 2]), "z": (STRING, ["N", 1])},
            {"nine": np.array(9), "hundred": np.array(100), "table": weights(10, 2)},
        )
        np.save(tmp_path / "text.npy", np.array([["ä"]]))
        samples = SampleOptions(ranges={"ids": (9, 9)}, files={"text": tmp_path / "text.npy"})

        published = add(save(proto, tmp_path / "net.onnx"), repository, build=replace(BUILD, samples=samples))

        inputs = config_of(published).model_warmup[0].inputs
        folder = published.folder / "warmup"
        assert (folder / inputs["ids"].input_data_file).read_bytes() == np.array([9]).tobytes()
        assert (folder / inputs["text"].input_data_file).read_bytes() == b"\x02\0\0\0" + "ä".encode()
        assert snapshot(folder) == snapshot(published.folder / "1/warmup")

    @pytest.mark.parametrize(
        ("shape", "fields", "dims"),
        [
            (["N", 4], "dims: [ 2, 2 ] reshape { shape: [ 4 ] }", [2, 2]),
            (["N", "k", 4], "dims: [ 2, -1, 2 ] reshape { shape: [ -1, 4 ] }", [2, 16, 2]),
            (["N"], "dims: [ 1, 1 ] reshape { }", [1, 1]),
        ],
    )
    def test_is_of_the_shape_that_requests_have(
        self, shape: list[int | str], fields: str, dims: list[int], tmp_path: Path, repository: Path
    ) -> None:
        path = save(identity(FP32, shape, shape), tmp_path / "net.onnx")
        extra = file(tmp_path / "extra.pbtxt", f'input [ {{ name: "x" {fields} }} ]')

        config = config_of(add(path, repository, serving=ServingOptions(config=extra)))

        assert [list(sample.inputs["x"].dims) for sample in config.model_warmup] == [dims, dims]


class TestLabels:
    def add(self, folder: Path, data: bytes) -> Published:
        (folder / "labels").write_bytes(data)
        path = save(linear(), folder / "net.onnx")
        with_labels = ServingOptions(labels=folder / "labels")
        return add(path, folder / "models", serving=with_labels)

    @pytest.mark.parametrize(
        "data",
        [b"a\nb\nc", b"a\nb\nc\n\n\n", b"a\r\nb\r\nc\r\n", b"\xef\xbb\xbfa\nb\nc\n", b" a\nb \n\tc"],
        ids=["plain", "blank lines at the end", "from Windows", "byte order mark", "blanks"],
    )
    def test_are_one_a_line(self, data: bytes, tmp_path: Path) -> None:
        published = self.add(tmp_path, data)

        assert (published.folder / "labels.txt").read_bytes() == b"a\nb\nc\n"
        assert (published.folder / "1/labels.txt").read_bytes() == b"a\nb\nc\n"
        assert config_of(published).output[0].label_filename == "labels.txt"

    def test_may_hold_anything_but_a_new_line(self, tmp_path: Path) -> None:
        text = 'a "b" \\ {c}\u2028d\x0ce\n\nf: "} #'

        assert (self.add(tmp_path, text.encode()).folder / "labels.txt").read_text(encoding="utf-8") == text + "\n"

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"a\nb", "2 labels for the 3 classes of output 'y'"),
            (b"a\nb\nc\nd", "4 labels"),
            (b"", "is empty"),
            (b"\n\n", "is empty"),
            (b"a\nb\n\xff", "is not UTF-8"),
        ],
    )
    def test_that_do_not_fit(self, data: bytes, why: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=why):
            self.add(tmp_path, data)
        assert not (tmp_path / "models").exists()

    def test_that_are_not_there(self, net: Path, tmp_path: Path) -> None:
        with untouched(tmp_path), pytest.raises(UsageError, match="can't be read: No such file"):
            add(net, tmp_path / "models", serving=ServingOptions(labels=tmp_path / "nothing"))


def test_two_processes_that_add_at_once_make_two_versions(net: Path, repository: Path) -> None:
    code = (
        "from repo_builder import *\n"
        "import sys\n"
        f"add_model({str(net)!r}, repository={str(repository)!r}, force=True,"
        " build=BuildOptions(target=Target.ONNXRUNTIME))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(repo_builder.__file__).parents[1])}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]

    assert [process.wait() for process in running] == [0, 0]
    assert Repository(repository).find("net").versions == (1, 2)


def test_a_full_disk_while_the_model_is_copied(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device", str(target))

    add(net, tmp_path / "models")
    monkeypatch.setattr(shutil, "copyfile", full)

    with untouched(tmp_path), pytest.raises(RepositoryError, match=r"the disk of .* is full; nothing was changed"):
        add(net, tmp_path / "models", force=True)


@pytest.mark.parametrize("moment", ["_copy_external_data", "_verify", "_write_model_files"])
def test_killed_in_the_middle(moment: str, net: Path, repository: Path) -> None:
    """Nobody gets to clean up; the repository is as it was, and the next ``add`` clears the rest away."""
    add(net, repository)
    before = snapshot(repository)
    code = (
        "import os, signal\n"
        "from repo_builder import BuildOptions, Target, add_model, build\n"
        f"build.Build.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "options = BuildOptions(target=Target.ONNXRUNTIME)\n"
        f"add_model({str(net)!r}, repository={str(repository)!r}, force=True, build=options)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(repo_builder.__file__).parents[1])}

    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)

    assert killed.returncode == -9
    assert snapshot(repository) == before
    left = [path.name for path in repository.parent.iterdir() if path.name.startswith(".model_repository.staging-")]
    assert len(left) == 1
    assert add(net, repository, force=True).version == 2
    assert sorted(path.name for path in repository.parent.iterdir()) == ["model_repository", "source"]

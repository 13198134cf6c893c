"""The configuration that a model gets, and a user's own fields over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repo_builder.config.build import (
    INPUTS_TO_HOST,
    ServingOptions,
    Warmup,
    build_config,
    choose_max_batch_size,
    merge_config,
    wanted_max_batch_size,
)
from repo_builder.config.proto import ModelConfig, messages, parse_config, read_config, stated_max_batch_size
from repo_builder.errors import ConfigError, UsageError
from repo_builder.model import DataType, TensorSpec
from tests.config.artifacts import FP32, INT64, artifact


def merged(base: str, extra: str) -> ModelConfig:
    config = parse_config(base, "base")
    merge_config(config, parse_config(extra, "extra"))
    return config


def pbtxt(folder: Path, text: str) -> Path:
    path = folder / "mine.pbtxt"
    path.write_text(text, encoding="utf-8")
    return path


class TestBuild:
    def test_batched(self) -> None:
        config = build_config("net", artifact(), ServingOptions(), 8, None)

        assert (config.name, config.platform, config.max_batch_size) == ("net", "onnxruntime_onnx", 8)
        assert (config.input[0].name, list(config.input[0].dims)) == ("x", [4])
        assert (config.output[0].name, list(config.output[0].dims)) == ("y", [3])
        assert config.HasField("dynamic_batching")
        assert config.version_policy.latest.num_versions == 1
        assert [(group.count, group.kind) for group in config.instance_group] == [
            (1, messages().ModelInstanceGroup.KIND_AUTO)
        ]

    def test_not_batched(self) -> None:
        config = build_config("net", artifact(max_batch_size=0), ServingOptions(), 0, None)

        assert list(config.input[0].dims) == [-1, 4]
        assert not config.HasField("dynamic_batching")

    @pytest.mark.parametrize(
        ("engine", "mine", "stated"), [(False, False, None), (True, False, "no"), (True, True, "yes")]
    )
    def test_what_is_on_the_gpu_stays_there(self, engine: bool, mine: bool, stated: str | None, tmp_path: Path) -> None:
        text = f'parameters {{ key: "{INPUTS_TO_HOST}" value {{ string_value: "yes" }} }}' if mine else ""
        options = ServingOptions(config=pbtxt(tmp_path, text))

        config = build_config("net", artifact(gpu_only=engine), options, 8, None)

        found = {name: parameter.string_value for name, parameter in config.parameters.items()}
        assert found == ({INPUTS_TO_HOST: stated} if stated else {})

    @pytest.mark.parametrize("dtype", DataType)
    def test_every_type(self, dtype: DataType) -> None:
        made = artifact((TensorSpec("x", dtype, ("N",)),), (TensorSpec("y", dtype, ("N",)),))

        config = build_config("net", made, ServingOptions(), 8, None)

        assert messages().DataType.Name(config.input[0].data_type) == f"TYPE_{dtype.value}"
        assert messages().DataType.Name(config.output[0].data_type) == f"TYPE_{dtype.value}"

    @pytest.mark.parametrize(("batched", "shape"), [(True, ("N",)), (False, ())], ids=["one per row", "scalar"])
    def test_a_tensor_without_axes_of_its_own(self, batched: bool, shape: tuple[str, ...]) -> None:
        made = artifact((TensorSpec("x", FP32, shape),), (TensorSpec("y", FP32, shape),))

        config = build_config("net", made, ServingOptions(), 8 if batched else 0, None)

        for tensor in (config.input[0], config.output[0]):
            assert list(tensor.dims) == [1]
            assert tensor.HasField("reshape") == batched  # Triton's core refuses it without batching
            assert list(tensor.reshape.shape) == []

    def test_options(self) -> None:
        options = ServingOptions(
            preferred_batch_sizes=(2, 4), max_queue_delay_us=500, instance_count=3, instance_kind="cpu"
        )

        config = build_config("net", artifact(), options, 8, None)

        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert config.instance_group[0].count == 3
        assert config.instance_group[0].kind == messages().ModelInstanceGroup.KIND_CPU

    def test_warmup_of_one_and_of_the_largest_batch(self) -> None:
        made = artifact(
            (TensorSpec("x", FP32, ("N", "k")), TensorSpec("ids", INT64, ("N",))),
        )
        warmup = Warmup({"x": (1, 7), "ids": (1,)}, {"ids": "input_1.bin"})

        one, eight = build_config("net", made, ServingOptions(), 8, warmup).model_warmup

        assert (one.batch_size, eight.batch_size) == (1, 8)
        for sample in (one, eight):
            assert list(sample.inputs["x"].dims) == [7]
            assert sample.inputs["x"].zero_data
            assert list(sample.inputs["ids"].dims) == [1]
            assert sample.inputs["ids"].input_data_file == "input_1.bin"

    @pytest.mark.parametrize(("size", "batches"), [(1, [1]), (0, [1])])
    def test_warmup_is_not_done_twice(self, size: int, batches: list[int]) -> None:
        config = build_config("net", artifact(), ServingOptions(), size, Warmup({"x": (1, 4)}, {}))

        assert [sample.batch_size for sample in config.model_warmup] == batches
        assert list(config.model_warmup[0].inputs["x"].dims) == ([4] if size else [1, 4])


class TestLabels:
    scores = TensorSpec("scores", FP32, ("N", 3))
    features = TensorSpec("features", FP32, ("N", 9))
    best = TensorSpec("best", INT64, ("N",))

    def build(self, folder: Path, *outputs: TensorSpec, extra: str = "") -> list[str]:
        options = ServingOptions(labels=folder / "labels", config=pbtxt(folder, extra))
        config = build_config("net", artifact(outputs=outputs), options, 8, None)
        return [output.label_filename for output in config.output]

    def test_go_with_the_only_output(self, tmp_path: Path) -> None:
        assert self.build(tmp_path, self.best) == ["labels.txt"]

    def test_go_with_the_only_output_of_floating_point(self, tmp_path: Path) -> None:
        assert self.build(tmp_path, self.best, self.scores) == ["", "labels.txt"]

    def test_of_several_outputs_the_user_names_one_as_the_hint_says(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="scores, features") as caught:
            self.build(tmp_path, self.scores, self.features)
        assert "label_filename" in str(caught.value.hint)

        extra = 'output { name: "scores" label_filename: "labels.txt" }'
        assert self.build(tmp_path, self.scores, self.features, extra=extra) == ["labels.txt", ""]


class TestMaxBatchSize:
    def choose(self, *, asked: int | None = None, limit: int | None = None, preferred: tuple[int, ...] = ()) -> int:
        options = ServingOptions(max_batch_size=asked, preferred_batch_sizes=preferred)
        return choose_max_batch_size(options, artifact(max_batch_size=limit), batchable=True, reason="")

    def test_default(self) -> None:
        assert self.choose() == 8
        assert self.choose(preferred=(4, 16)) == 16
        assert self.choose(limit=5) == 5
        assert wanted_max_batch_size(ServingOptions(preferred_batch_sizes=(2,))) == 8

    def test_asked(self) -> None:
        assert self.choose(asked=32) == 32
        assert self.choose(asked=1, limit=5) == 1
        assert self.choose(asked=0) == 0

    def test_more_than_the_artifact_takes(self) -> None:
        with pytest.raises(ConfigError, match="up to 5") as caught:
            self.choose(asked=6, limit=5)
        assert "5" in str(caught.value.hint)

    @pytest.mark.parametrize(
        "options", [{"max_batch_size": 4}, {"preferred_batch_sizes": (4,)}, {"max_queue_delay_us": 4}]
    )
    def test_asked_of_a_model_that_has_none(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="because") as caught:
            choose_max_batch_size(ServingOptions(**options), artifact(), batchable=False, reason="because")
        assert caught.value.hint == "drop the flag; --no-batching serves it as it is"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_batch_size": -1}, "--max-batch-size -1"),
        ({"max_batch_size": 2**31}, "--max-batch-size 2147483648"),
        ({"preferred_batch_sizes": (4, 0)}, "--preferred-batch-sizes: 0"),
        ({"preferred_batch_sizes": (2**31,)}, "--preferred-batch-sizes: 2147483648"),
        ({"max_queue_delay_us": -1}, "--max-queue-delay-us -1"),
        ({"max_queue_delay_us": 3_600_000_001}, "--max-queue-delay-us"),
        ({"instance_count": 0}, "--instance-count 0"),
        ({"instance_count": 1025}, "--instance-count"),
        ({"instance_kind": "tpu"}, "--instance-kind tpu"),
    ],
)
def test_options_that_no_model_can_have(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag) as caught:
        ServingOptions(**options)
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 0},
        {"max_batch_size": 2**31 - 1},
        {"max_queue_delay_us": 3_600_000_000},
        {"instance_count": 1024},
    ],
)
def test_options_at_their_limits(options: dict[str, Any]) -> None:
    assert ServingOptions(**options)


class TestMerge:
    def test_single_fields_replace(self) -> None:
        config = merged("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 5 }", "max_batch_size: 4")

        assert config.max_batch_size == 4
        assert config.dynamic_batching.max_queue_delay_microseconds == 5

    def test_messages_are_merged_field_by_field(self) -> None:
        config = merged(
            "dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 5 }",
            "dynamic_batching { preserve_ordering: true }",
        )

        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 5
        assert config.dynamic_batching.preserve_ordering

    def test_lists_are_replaced_whole(self) -> None:
        config = merged(
            "dynamic_batching { preferred_batch_size: [ 2, 4 ] } instance_group [ { count: 1 }, { count: 2 } ]",
            "dynamic_batching { preferred_batch_size: [ 8 ] } instance_group [ { count: 5 } ]",
        )

        assert list(config.dynamic_batching.preferred_batch_size) == [8]
        assert [group.count for group in config.instance_group] == [5]

    def test_inputs_and_outputs_are_merged_by_name(self) -> None:
        config = merged(
            'input [ { name: "a" dims: [ 1 ] }, { name: "b" dims: [ 2 ] } ] output [ { name: "c" dims: [ 3 ] } ]',
            'input [ { name: "b" optional: true } ] output [ { name: "c" label_filename: "l" dims: [ 4 ] } ]',
        )

        assert [(tensor.name, list(tensor.dims), tensor.optional) for tensor in config.input] == [
            ("a", [1], False),
            ("b", [2], True),
        ]
        assert [(tensor.label_filename, list(tensor.dims)) for tensor in config.output] == [("l", [4])]

    def test_maps_are_merged_by_key(self) -> None:
        config = merged(
            'parameters { key: "a" value { string_value: "1" } } parameters { key: "b" value { string_value: "2" } }',
            'parameters { key: "b" value { string_value: "3" } } parameters { key: "c" value { string_value: "4" } }',
        )

        assert {key: value.string_value for key, value in config.parameters.items()} == {"a": "1", "b": "3", "c": "4"}

    def test_one_of_several_takes_the_place_of_the_other(self) -> None:
        ours = "dynamic_batching { } version_policy { latest { num_versions: 1 } }"

        config = merged(ours, "sequence_batching { } version_policy { all { } }")

        assert config.WhichOneof("scheduling_choice") == "sequence_batching"
        assert config.version_policy.WhichOneof("policy_choice") == "all"

    def test_an_empty_message_counts(self) -> None:
        assert merged("", "dynamic_batching { }").HasField("dynamic_batching")

    def test_nothing_changes_nothing(self) -> None:
        ours = 'name: "a" max_batch_size: 8 input [ { name: "x" dims: [ 1 ] } ] parameters { key: "a" value { } }'

        assert merged(ours, "") == parse_config(ours, "ours")

    @pytest.mark.parametrize("role", ["input", "output"])
    def test_a_tensor_that_the_model_does_not_have(self, role: str) -> None:
        with pytest.raises(ConfigError, match=f"the model has no {role} 'b'") as caught:
            merged(f'{role} [ {{ name: "a" }} ]', f'{role} [ {{ name: "b" }} ]')
        assert "'a'" in str(caught.value.hint)

    def test_a_group_without_count_has_one_as_triton_would_say(self, tmp_path: Path) -> None:
        options = ServingOptions(config=pbtxt(tmp_path, "instance_group [ { kind: KIND_CPU }, { count: 2 } ]"))

        assert [group.count for group in build_config("net", artifact(), options, 8, None).instance_group] == [1, 2]


class TestFile:
    @pytest.mark.parametrize(
        ("text", "size"), [("max_batch_size: 0", 0), ("max_batch_size: 4", 4), ("max_batch_size: -3", -3), ("", None)]
    )
    def test_what_it_says_of_batching(self, text: str, size: int | None, tmp_path: Path) -> None:
        assert stated_max_batch_size(pbtxt(tmp_path, text)) == size

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"max_batch: 4", "1:1 : .* no field named"),
            (b"max_batch_size: 2147483648", "out of range"),
            (b"max_batch_size: 1\nmax_batch_size: 2", "2:.*multiple"),
            (b"input [ {", "Expected"),
            (b"input [ { data_type: TYPE_FP33 } ]", "TYPE_FP33"),
            (b'name: "\xff"', "not UTF-8"),
            (b'name: "\\377"', "utf-8"),
            (b'{"name": "json"}', "1:1"),
        ],
    )
    def test_that_is_no_model_config(self, data: bytes, why: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.pbtxt"
        path.write_bytes(data)

        with pytest.raises(ConfigError, match=why) as caught:
            read_config(path)

        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint

    def test_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be read: No such file"):
            stated_max_batch_size(tmp_path / "nothing.pbtxt")

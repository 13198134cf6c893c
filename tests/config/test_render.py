"""config.pbtxt as text: what is read back is what was meant, whatever strangers call their tensors."""

from __future__ import annotations

import random
from typing import Any

import pytest

from repo_builder.config.build import ServingOptions, Warmup, build_config
from repo_builder.config.proto import messages, new_config, parse_config
from repo_builder.config.render import render_config
from repo_builder.model import TensorSpec
from tests.config.artifacts import FP32, artifact

NASTY = {
    "double quote": 'a"b',
    "single quote": "a'b",
    "both quotes": "a'b\"c",
    "backslash": "a\\b",
    "backslash and quote": 'a\\"b',
    "ends in backslash": "a\\",
    "newline": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "nul": "a\0b",
    "escape": "\x1b[31m",
    "brace": '" } input [ { name: "b',
    "comment": "a # b",
    "jinja expression": "{{ config.name }}",
    "jinja statement": "{% raw %}",
    "jinja comment": "{# a #}",
    "line separator": "a\u2028b\u0085c\x0bd",
    "non-ASCII": "画像 ñ ü 🐈",
    "bidirectional": "a\u202eb",
    "blank": " ",
    "path": "../../etc/passwd",
    "html": "<script>&amp;</script>",
    "expression": "div(1 + 2, 3)%4",
}


@pytest.mark.parametrize("name", NASTY.values(), ids=list(NASTY))
def test_any_text_comes_back_as_it_was(name: str) -> None:
    made = artifact((TensorSpec(name, FP32, ("batch", 4)),), (TensorSpec(name + "_out", FP32, ("batch", 3)),))
    config = build_config("model", made, ServingOptions(), 8, Warmup({name: (1, 4)}, {name: "input_0.bin"}))
    config.parameters[name].string_value = name
    config.metric_tags[name] = name
    config.model_warmup[0].name = name
    config.output[0].label_filename = name
    config.cc_model_filenames[name] = name

    text = render_config(config)

    assert parse_config(text, "text") == config
    assert "\0" not in text
    assert "\x1b" not in text


def test_json_stays_readable() -> None:
    config = new_config(name="model")
    config.parameters["image_preprocessing"].string_value = '{"input": "image", "resize": 256}'

    assert """string_value: '{"input": "image", "resize": 256}'""" in render_config(config)


def test_lines_are_in_the_order_a_person_reads_them_in() -> None:
    config = build_config("model", artifact(), ServingOptions(preferred_batch_sizes=(4,)), 8, Warmup({"x": (1, 4)}, {}))
    config.parameters["b"].string_value = config.parameters["a"].string_value = "1"
    config.optimization.graph.level = 1

    lines = render_config(config).splitlines()

    headings = [line.split()[0] for line in lines if line and line[0] not in " ]}"]
    assert headings == [
        *("name:", "platform:", "max_batch_size:", "input", "output", "dynamic_batching", "instance_group"),
        *("version_policy", "model_warmup", "parameters", "parameters", "optimization"),
    ]
    assert not any(line != line.rstrip() for line in lines)
    assert "\n\n\n" not in render_config(config)


def test_a_max_batch_size_of_0_is_said() -> None:
    assert "max_batch_size: 0\n" in render_config(build_config("model", artifact(), ServingOptions(), 0, None))


@pytest.mark.parametrize("seed", range(40))
def test_any_config_comes_back_as_it_was(seed: int) -> None:
    """Every field that Triton's message has, at random, is in the text."""
    config = new_config()
    fill(config, random.Random(seed))

    assert parse_config(render_config(config), "text") == config


def fill(message: Any, rng: random.Random, depth: int = 0) -> None:
    for field in message.DESCRIPTOR.fields:
        if rng.random() < (0.4 if depth else 0.2) or depth > 5:
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fill_map(target, field.message_type, rng, depth)
        elif hasattr(target, "add"):
            for _ in range(rng.randrange(3)):
                fill(target.add(), rng, depth + 1)
        elif field.message_type is not None:
            target.SetInParent()
            fill(target, rng, depth + 1)
        elif hasattr(target, "extend"):
            target.extend(scalar(field, rng) for _ in range(rng.randrange(4)))
        else:
            setattr(message, field.name, scalar(field, rng))


def fill_map(target: Any, entry: Any, rng: random.Random, depth: int) -> None:
    value_field = entry.fields_by_name["value"]
    for _ in range(rng.randrange(3)):
        key = scalar(entry.fields_by_name["key"], rng)
        if value_field.message_type is None:
            target[key] = scalar(value_field, rng)
        else:
            fill(target[key], rng, depth + 1)


def scalar(field: Any, rng: random.Random) -> Any:
    if field.type == field.TYPE_ENUM:
        return rng.choice([*field.enum_type.values_by_number, 77])
    if field.type == field.TYPE_STRING:
        return rng.choice([*NASTY.values(), "plain"])
    if field.type == field.TYPE_BYTES:
        return rng.choice([b"\0\xff", b"plain"])
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in {field.TYPE_FLOAT, field.TYPE_DOUBLE}:
        return rng.choice([0.0, 1.5, -3.25e10])
    return rng.choice([0, 1, 2**31 - 1] if field.type in {field.TYPE_UINT32, field.TYPE_UINT64} else [0, -1, 2**31 - 1])


def test_the_random_configs_reach_every_field() -> None:
    seen = set()
    for seed in range(40):
        config = new_config()
        fill(config, random.Random(seed))
        seen |= {field.name for field, _ in config.ListFields()}

    assert seen == set(messages().ModelConfig.DESCRIPTOR.fields_by_name)

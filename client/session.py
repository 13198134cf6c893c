"""One run of ``python -m client.infer``, from its options to its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from client.client import Client, check_inputs
from client.errors import InferenceRejected, InputError, UsageError
from client.exchange import Exchange
from client.image import Picture
from client.inputs import find_pictures, parse_assignments, parse_range, random_arrays, read_arrays
from client.metadata import ModelMetadata
from client.outputs import OutputFolder
from client.pictures import Batch, PictureModel
from client.protocol import Response, inference_outputs, inference_request
from client.report import (
    classes_json,
    classes_table,
    latency_json,
    latency_tables,
    show,
    tensors_json,
    tensors_table,
)
from client.tensors import Array
from client.text import printable
from client.topk import Classification


@dataclass(frozen=True)
class Options:
    """What the command line asks for; the fields are named after its flags."""

    files: tuple[Path, ...] = ()
    model: str | None = None
    version: str = ""
    url: str | None = None
    timeout: float = 30.0
    top: int = 5
    batch: int | None = None
    repeat: int = 1
    warmup: int = 0
    inputs: tuple[str, ...] = ()
    random: bool = False
    seed: int = 0
    shapes: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    output_dir: Path | None = None


@dataclass(frozen=True)
class Answer:
    """What the model makes of one picture, or of one request of arrays: classes or tensors."""

    file: str | None
    classes: list[Classification] = field(default_factory=list)
    outputs: dict[str, Array] = field(default_factory=dict)
    saved: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read."""

    file: str
    message: str
    hint: str | None


def run(options: Options, *, as_json: bool) -> int:
    """Answer everything that ``options`` name and write it to stdout; 1 if a picture could not be read."""
    _check(options)
    with Client(options.url, timeout=options.timeout) as client:
        model = client.metadata(options.model or client.default_model(), options.version)
        if not as_json:
            _note(f"model {model.name}, version {model.version}, at {client.url}")
        exchange = Exchange(client, model, options.warmup, options.repeat)
        results = _picture_answers(options, exchange) if options.files else _array_answers(options, exchange)
        entries: list[dict[str, Any]] = []
        failed = False
        hints: dict[str, None] = {}  # in order, each once: a folder may have many files that are broken in one way
        for result in results:
            if isinstance(result, Failure):
                failed = True
                hints |= {result.hint: None} if result.hint else {}
                _note(f"error: {result.message}")
            if as_json:
                entries.append(_entry(model, result))
            elif isinstance(result, Answer):
                _show(model, result)
        report = exchange.report()
        if as_json:
            document = {
                "model": model.name,
                "version": model.version,
                "url": client.url,
                "results": entries,
                "latency": report and latency_json(report),
            }
            sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
        elif report:
            for table in latency_tables(report, "picture" if options.files else "item"):
                show(table)
    sys.stdout.flush()
    if hints and (as_json or not report):  # else the last table ends in an empty line
        sys.stderr.write("\n")
    for hint in hints:
        _note(f"hint: {hint}")
    return 1 if failed else 0


def _check(options: Options) -> None:
    """What can be refused before a server is asked."""
    _assignments(options)
    if options.files and (options.inputs or options.random):
        flag = "--random" if options.random else "--input"
        raise UsageError(f"pictures can't go together with {flag}", f"leave out {options.files[0]}, or {flag}")
    for flag, given in (("--shape", options.shapes), ("--input-range", options.ranges)):
        if given and not options.random:
            raise UsageError(f"{flag} is for random values", f"--random {flag} {given[0]}")
    if options.batch and options.inputs and not options.random:
        raise UsageError(
            "--batch is for pictures and --random; the arrays of --input have their batch size", "leave out --batch"
        )


def _assignments(options: Options) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """By input: files, shapes and ranges."""
    return (
        parse_assignments(options.inputs, "--input", "image=FILE.npy"),
        parse_assignments(options.shapes, "--shape", "image=1x3x224x224"),
        parse_assignments(options.ranges, "--input-range", "ids=0:9"),
    )


def _picture_answers(options: Options, exchange: Exchange) -> Iterator[Answer | Failure]:
    target = PictureModel.of(exchange.model)
    top = 0 if target.classes is None or options.output_dir else options.top
    folder = OutputFolder(options.output_dir) if options.output_dir else None
    failures: list[Failure] = []

    def on_error(picture: Picture, error: InputError) -> None:
        failures.append(Failure(str(picture), error.message, error.hint))

    def read(batch: Batch, response: Response) -> list[Answer]:
        names = [str(picture) for picture in batch.pictures]
        if top:
            classes = target.read_classes(response, len(names), top)
            return [Answer(name, classes=best) for name, best in zip(names, classes, strict=True)]
        outputs = inference_outputs(response)
        if not exchange.model.batched:
            return [Answer(names[0], outputs=outputs)]
        return [Answer(name, outputs={k: v[i] for k, v in outputs.items()}) for i, name in enumerate(names)]

    for batch in target.batches(find_pictures(options.files, on_error), options.batch, on_error):
        yield from _drain(failures)
        answers = exchange.send(
            partial(target.request, batch.array, top),
            partial(read, batch),
            items=len(batch.pictures),
            preprocess_ns=batch.preprocess_ns,
        )
        for answer in answers:
            yield _saved(answer, folder, Path(answer.file or "").stem)
    yield from _drain(failures)


def _array_answers(options: Options, exchange: Exchange) -> Iterator[Answer]:
    model = exchange.model
    tensors = check_inputs(model, _arrays(options, model))
    try:
        outputs = exchange.send(
            lambda: inference_request(model.name, model.version, tensors),
            inference_outputs,
            items=len(tensors[0].array) if model.batched else 1,
        )
    except InferenceRejected as error:
        hint = "see the values of --input: the model can't use them"
        if options.random:
            hint = "--input-range NAME=LOW:HIGH and --shape set what --random sends, --input NAME=FILE.npy sends values"
        raise InferenceRejected(error.message, hint) from error
    yield _saved(Answer(None, outputs=outputs), OutputFolder(options.output_dir) if options.output_dir else None)


def _arrays(options: Options, model: ModelMetadata) -> dict[str, Array]:
    """The arrays of ``--input`` and ``--random``: one for each input that must have one."""
    files, shapes, ranges = _assignments(options)
    arrays = read_arrays(model, files, _note)
    if options.random:
        limits = {name: parse_range(text) for name, text in ranges.items()}
        arrays |= random_arrays(model, arrays, shapes, options.batch, options.seed, limits)
    missing = [tensor for tensor in model.inputs if tensor.name not in arrays and not tensor.optional]
    if missing:
        picture = "pictures, " if model.image and not arrays else ""
        flags = " ".join(f"--input {tensor.name}=FILE.npy" for tensor in missing)
        raise UsageError(
            f"model {model.name!r} needs {', '.join(map(str, missing))}", f"send {picture}{flags}, or --random"
        )
    return arrays


def _saved(answer: Answer, folder: OutputFolder | None, prefix: str = "") -> Answer:
    if folder is None:
        return answer
    return Answer(answer.file, outputs=answer.outputs, saved=folder.save(answer.outputs, prefix))


def _drain(failures: list[Failure]) -> Iterator[Failure]:
    yield from failures
    failures.clear()


def _show(model: ModelMetadata, answer: Answer) -> None:
    if answer.classes:
        show(classes_table(answer.file, answer.classes))
    else:
        show(tensors_table(answer.file or "", model, answer.outputs, answer.saved))


def _entry(model: ModelMetadata, result: Answer | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"file": result.file, "error": result.message, "hint": result.hint}
    if result.classes:
        return {"file": result.file, "classes": classes_json(result.classes)}
    return {"file": result.file, "outputs": tensors_json(model, result.outputs, result.saved)}


def _note(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")

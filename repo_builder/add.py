"""``add``: an ONNX file in, a configured, verified and published version of a Triton model out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from repo_builder import cc_plans, network
from repo_builder.build import Build, BuildOptions
from repo_builder.compilers import choose_compiler
from repo_builder.compilers.base import Maker, Progress
from repo_builder.compilers.container import open_container
from repo_builder.config.build import ServingOptions, batching_flags, reconcile
from repo_builder.config.proto import ModelConfig
from repo_builder.errors import ConfigError, ModelError, RepositoryError, UsageError
from repo_builder.network import ReferenceFunction
from repo_builder.onnx_model import is_text, read_model
from repo_builder.repository import (
    CONFIG,
    MANIFEST,
    MANIFEST_SCHEMA,
    Model,
    Repository,
    batch_limit,
    check_name,
    file_sha256,
)
from repo_builder.trt.definition import Definition

__all__ = ["BuildOptions", "Published", "add_model", "default_name"]


@dataclass(frozen=True)
class Published:
    """What ``add`` made, or found already there when ``unchanged``.

    ``hints`` are sentences worth telling a person: what was decided and why, what could be added.
    """

    name: str
    version: int
    folder: Path
    unchanged: bool
    manifest: Mapping[str, Any]
    hints: tuple[str, ...] = ()


def add_model(
    source: Path | str | Definition,
    *,
    reference: ReferenceFunction | None = None,
    name: str | None = None,
    repository: Path | str = "model_repository",
    build: BuildOptions | None = None,
    serving: ServingOptions | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Published:
    """Publish an ONNX file as the next version of a Triton model.

    The same source with the same options as the latest version is recognised and nothing is done.  A refused, failed
    or killed call leaves the repository as it was.

    Args:
        source: the ONNX file; or a function that fills a TensorRT network, called with the ``INetworkDefinition`` and
            the module, ``tensorrt`` or ``tensorrt_rtx``.  A function's network is always built anew.
        reference: for such a function, one that computes the same: from the inputs by name, the batch axis too, the
            outputs by name.  Without it nothing is verified, and a warning says so.
        name: the model's name; by default the file's, or its folder's if the file is called ``model.onnx``, or the
            function's.
        repository: the folder Triton serves; made when missing.
        build: how to compile and verify.
        serving: what to write into config.pbtxt.
        force: build and publish even if nothing changed, and over a config.pbtxt that was edited by hand.
        progress: called with a line whenever something that takes time begins.

    Raises:
        RepoBuilderError: see :mod:`repo_builder.errors`.
    """
    build, serving = build or BuildOptions(), reconcile(serving or ServingOptions())
    _refuse_batching_without(build, serving)
    if name is not None:
        check_name(name)
    store = Repository(repository)
    if not is_text(place := store.root.resolve()):
        raise RepositoryError(f"the path {str(place)!r} is not UTF-8 text", "name a folder with --repository")
    compiler, why = (
        open_container(build.target, build.tensorrt, build.container, store, progress)
        if build.container
        else choose_compiler(build.target, build.tensorrt)
    )
    if build.cc_plan:
        cc_plans.refuse_misuse(compiler.target, build.tensorrt)
    if callable(source):
        network.refuse_misuse(compiler.target, why, build)
        origin = _of_definition(source, reference)
    else:
        progress(f"reading {source}")
        origin = _of_file(Path(source), reference)
    name = name or check_name(origin.name)
    maker, options = compiler.identity(), _plain({"build": build, "serving": serving})
    fingerprint = _fingerprint(origin.facts, maker, options) if origin.recognisable else None
    new_plan = cc_plans.NewPlan(origin.facts, options, maker) if build.cc_plan and not force else None
    current = store.get(name)
    if current and not force:
        if made := _made_already(current, fingerprint):
            return made
        _refuse_to_lose_edits(current, options)
        if new_plan:
            cc_plans.version_to_join(current, new_plan)  # what would be refused is refused before it is built
    started = time.perf_counter()
    versions = (*current.versions, (current.latest or 0) + 1) if current else (1,)
    with store.staging() as staged:
        stages = origin.stages(name, build, serving, staged, progress, versions)
        stages.run(compiler)
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "name": name,
            "version": 0,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source": origin.facts,
            "fingerprint": fingerprint,
            "target": compiler.target.value,
            "target_reason": why,
            **stages.describe(),
            "options": options,
            "seconds": round(time.perf_counter() - started, 3),
        }
        _refuse_versions_apart(current, stages.config, manifest)
        try:
            number = _publish(store, staged, stages, manifest, new_plan, force=force)
        except _MadeMeanwhileError as meanwhile:
            return meanwhile.published
    as_read = json.loads(json.dumps(manifest))
    return Published(name, number, store.root / name, False, as_read, stages.hints())


class _MadeMeanwhileError(Exception):
    """Another call published the same while this one was building it."""

    def __init__(self, published: Published) -> None:
        super().__init__(published.name)
        self.published = published


def _made_already(current: Model, fingerprint: str | None) -> Published | None:
    """The latest version, if it was made from the same and is whole."""
    latest = current.latest
    manifest = current.manifest(latest) if latest else None
    if latest and manifest and fingerprint in _fingerprints(manifest) and not current.damage(latest):
        return Published(current.name, manifest["version"], current.folder, True, manifest)
    return None


def _publish(
    store: Repository,
    staged: Path,
    stages: Build,
    manifest: dict[str, Any],
    new_plan: cc_plans.NewPlan | None,
    *,
    force: bool,
) -> int:
    """Publish what ``stages`` made, as a new version or into the one that ``new_plan`` joins; complete ``manifest``.

    Raises:
        _MadeMeanwhileError: the same is there by now; not with ``force``.
        RepositoryError: config.pbtxt was edited while it was built; not with ``force``.
    """
    name, config = stages.name, stages.config

    def finish(number: int, folder: Path, earlier: Mapping[str, Any]) -> None:
        latest = None if force else store.get(name)  # no other writer comes in between from here on
        if latest:
            if made := _made_already(latest, manifest["fingerprint"]):
                raise _MadeMeanwhileError(made)
            _refuse_to_lose_edits(latest, manifest["options"])
        manifest["version"] = number
        if stages.artifact.cc_filenames:
            manifest["plans"] = cc_plans.describe_plans(manifest, earlier, stages.artifact.cc_filenames)
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        hashes = {name: file_sha256(file) for name, file in files.items()}
        for key, facts in (("files", sizes), ("sha256", hashes)):
            manifest[key] = dict(sorted({**earlier.get(key, {}), **facts}.items()))
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    current = store.get(name)
    number = cc_plans.version_to_join(current, new_plan) if current and new_plan else None
    if current and new_plan and number and cc_plans.joined_config(current, number, config):

        def join(model: Model) -> None:
            finish(number, staged / "version", cc_plans.join(model, number, new_plan, config, staged))

        store.extend(name, number, staged, join)
        return number
    return store.publish(name, staged, lambda number, folder: finish(number, folder, {}))


def _refuse_to_lose_edits(current: Model, options: Mapping[str, Any]) -> None:
    """Raise RepositoryError where a config.pbtxt was edited by hand, unless that very file is merged into the new."""
    config, merged = current.folder / CONFIG, options["serving"]["config"]
    if not current.edited_by_hand or (merged and merged["sha256"] == file_sha256(config)):
        return
    ours = current.latest and current.manifest(current.latest)
    how = f"edited by hand since version {current.latest}" if ours else "written by hand"
    raise RepositoryError(
        f"{config} was {how}", f"keep your edits with --config {config}, or replace them with --force"
    )


def _refuse_versions_apart(current: Model | None, config: ModelConfig, manifest: Mapping[str, Any]) -> None:
    """Raise ConfigError where version_policy keeps a version in service that the new config.pbtxt does not fit.

    A model has one for all of its versions, and Triton serves none of them where one can't be loaded.
    """
    versions, policy = current.versions if current else (), config.version_policy
    if policy.HasField("latest"):  # the new one is among them
        versions = versions[max(len(versions) + 1 - policy.latest.num_versions, 0) :]
    elif policy.HasField("specific"):
        versions = tuple(set(versions) & set(policy.specific.versions))
    for version in versions:
        there = (current.manifest(version) if current else None) or manifest
        for key in ("platform", "inputs", "outputs"):
            if there.get(key) != manifest[key]:
                raise ConfigError(
                    f"version_policy keeps version {version} in service, whose {key} are not those of the new one",
                    "drop version_policy from --config, or publish it as another model with --name",
                )
        smallest = batch_limit(there)
        if smallest is not None and smallest < config.max_batch_size:
            raise ConfigError(
                f"version_policy keeps version {version} in service, which takes batches of up to {smallest}",
                f"--max-batch-size {smallest}, or drop version_policy from --config",
            )


def _fingerprints(manifest: Mapping[str, Any]) -> set[str]:
    """What a version was made from; more than one where it has plans for several GPUs."""
    return {str(manifest.get("fingerprint")), *(plan.fingerprint for plan in cc_plans.plans_of(manifest))}


def default_name(source: Path) -> str:
    """The file's name without ending; its folder's where the file is just called ``model``."""
    stem = source.stem if source.suffix.lower() == ".onnx" else source.name
    return source.absolute().parent.name if stem.lower() == "model" else stem


@dataclass(frozen=True)
class _Origin:
    """What is to be published: what the manifest says of it, the name it has by itself, the stages that build it.

    ``recognisable``: equal ``facts`` make it the same model.
    """

    facts: Mapping[str, Any]
    name: str
    stages: Callable[..., Build]
    recognisable: bool = True


def _of_file(path: Path, reference: ReferenceFunction | None) -> _Origin:
    """An ONNX file, read and hashed."""
    if reference is not None:
        raise UsageError(f"{path} is its own reference", "leave out reference=: it is for a network definition")
    model = read_model(path)
    try:
        facts = {
            "file": path.name,
            "sha256": file_sha256(path),
            "external_data": {file.as_posix(): file_sha256(path.parent / file) for file in model.spec.external_files},
            "ir_version": model.spec.ir_version,
            "opset": model.spec.opset,
        }
    except OSError as error:
        raise ModelError(f"{error.filename} can't be read: {error.strerror}", "check its permissions") from None
    return _Origin(facts, default_name(path), lambda name, *rest: Build(name, model, *rest))


def _of_definition(definition: Definition, reference: ReferenceFunction | None) -> _Origin:
    """A function that defines a network: what it will do can't be told from it."""
    return _Origin(
        network.describe_source(definition),
        getattr(definition, "__name__", type(definition).__name__),
        lambda name, *rest: network.NetworkBuild(name, definition, reference, *rest),
        recognisable=False,
    )


def _refuse_batching_without(build: BuildOptions, serving: ServingOptions) -> None:
    """Raise UsageError where batching is turned off and asked for."""
    if build.batching and serving.max_batch_size != 0:
        return
    off = "--no-batching" if not build.batching else "a max_batch_size of 0"
    asked = ((f"a max_batch_size of {serving.max_batch_size}",) if serving.max_batch_size else ()) + batching_flags(
        serving
    )
    if asked:
        raise UsageError(f"{off} and {asked[0]} contradict each other", "drop one of the two")


def _fingerprint(source: Mapping[str, Any], maker: Maker, options: Mapping[str, Any]) -> str:
    """The SHA-256 of everything that decides what gets published."""
    facts = {
        "source": [source["sha256"], sorted(source["external_data"].items())],
        "compiler": str(maker),
        "options": options,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Options as JSON data; a file is its name and its hash."""
    if isinstance(value, Path):
        try:
            # File names may hold any bytes, JSON may not.
            return {"file": os.fsencode(value.name).decode("utf-8", "replace"), "sha256": file_sha256(value)}
        except OSError as error:
            why = f"{value} can't be read: {error.strerror}"
            raise UsageError(why, "check the path and its permissions") from None
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: _plain(getattr(value, entry.name))
            for entry in dataclasses.fields(value)
            if entry.metadata.get("fingerprint", True)
        }
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value

"""Several plans in one version, each for the GPUs of one compute capability: Triton's ``cc_model_filenames``.

Triton looks the compute capability of the GPU an instance runs on, such as ``9.0``, up in that map, and takes
``default_model_filename``, else ``model.plan``, where the map does not have it
(https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto).  A version made here has
neither, so a GPU without a plan of its own is told that ``model.plan`` is missing and never gets another GPU's.

The plans of a version are built one after the other, each on its own machine, from the same source with the same
options by the same TensorRT.  The manifest tells of each under ``plans``, by compute capability; what it says beside
that (``engine``, ``verification`` ...) is of the plan that was added last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Artifact, Maker, Target
from repo_builder.config.proto import ModelConfig, new_config, read_config
from repo_builder.config.render import render_config
from repo_builder.errors import ConfigError, RepositoryError, UsageError
from repo_builder.repository import CONFIG, Model
from repo_builder.trt.options import TensorRTOptions

OF_A_PLAN = ("fingerprint", "created", "engine", "verification", "unverified", "tools", "seconds")
"""What the manifest says of each plan."""


@dataclass(frozen=True)
class CcPlan:
    """A plan as a manifest tells of it."""

    capability: str
    file: str
    gpu: str
    library: str
    fingerprint: str
    verified: bool


def refuse_misuse(target: Target, options: TensorRTOptions) -> None:
    """Raise UsageError where a plan for one type of GPU is not what would be built."""
    if target is not Target.TENSORRT:
        raise UsageError(
            f"--cc-plan: only plans of TensorRT are for one type of GPU, and the target is {target.value}",
            "--target tensorrt, or drop --cc-plan",
        )
    if options.hardware_compatibility == "ampere_plus":
        raise UsageError(
            "--cc-plan with --hardware-compatibility ampere+: that plan is for all GPUs since Ampere",
            "drop one of the two",
        )


def filename(capability: str) -> str:
    """``model_cc90.plan`` for ``9.0``."""
    return f"model_cc{capability.replace('.', '')}.plan"


def name_by_capability(artifact: Artifact, folder: Path) -> Artifact:
    """Rename the plan in ``folder`` after the compute capability of the GPU that it was built on."""
    capability = artifact.details["engine"]["gpu"]["compute_capability"]
    name = filename(capability)
    (folder / artifact.filename).rename(folder / name)
    return replace(artifact, filename=name, cc_filenames={capability: name})


def plans_of(manifest: Mapping[str, Any]) -> tuple[CcPlan, ...]:
    """The plans that a manifest lists, by compute capability; none where one plan is for all."""
    listed = manifest.get("plans")
    if not isinstance(listed, dict):
        return ()
    try:
        found = [
            CcPlan(
                capability,
                plan["file"],
                plan["engine"]["gpu"]["name"],
                plan["engine"]["library"],
                plan["fingerprint"],
                bool(plan["verification"]) and not plan["unverified"],
            )
            for capability, plan in listed.items()
        ]
        return tuple(sorted(found, key=lambda plan: [int(part) for part in plan.capability.split(".")]))
    except (KeyError, TypeError, ValueError):
        return ()


@dataclass(frozen=True)
class NewPlan:
    """A plan to be built: ``source`` and ``options`` as the manifest is to have them, and what builds it."""

    source: Mapping[str, Any]
    options: Mapping[str, Any]
    maker: Maker


def version_to_join(model: Model, new: NewPlan) -> int | None:
    """The version of ``model`` that the plan belongs into, None where it needs a new one.

    Raises:
        RepositoryError: it belongs into the latest version, but can't be together with the plans there.
    """
    manifest = model.manifest(model.latest) if model.latest else None
    if model.latest is None or not manifest or manifest.get("options") != new.options or model.damage(model.latest):
        return None
    source = manifest.get("source") or {}
    if any(source.get(key) != new.source[key] for key in ("sha256", "external_data")):
        return None
    plans = plans_of(manifest)
    for plan in plans:
        _refuse_together(f"{model.name} version {model.latest}", plan, new)
    return model.latest if plans else None


def _refuse_together(where: str, plan: CcPlan, new: NewPlan) -> None:
    gpu, library = new.maker.gpu, new.maker.library
    if gpu is None:
        raise RepositoryError("--cc-plan needs the GPU that the plan is for", "run it on a machine with that GPU")
    if plan.library != library:
        raise RepositoryError(
            f"{where} has a plan of {plan.library} for {plan.gpu}, here is {library}: no one container loads both",
            f"install {plan.library} here, or begin a new version with --force",
        )
    one_for_both = new.options["build"]["tensorrt"]["hardware_compatibility"] == "same_compute_capability"
    if plan.capability == gpu.compute_capability and plan.gpu != gpu.name and not one_for_both:
        raise RepositoryError(
            f"{where} has a plan for {plan.gpu}, and Triton can't tell that GPU from {gpu.name}: it chooses by compute "
            f"capability, {plan.capability} for both",
            "publish a model for each with --name, or one plan for both with --hardware-compatibility "
            "same-compute-capability",
        )


def joined_config(model: Model, number: int, config: ModelConfig) -> ModelConfig | None:
    """The configuration of version ``number`` with the plan of ``config`` added; None where they differ otherwise."""
    try:
        there = read_config(model.folder / str(number) / CONFIG)
    except ConfigError:
        return None
    joined = new_config()
    joined.CopyFrom(there)
    joined.cc_model_filenames.clear()
    joined.cc_model_filenames.update(config.cc_model_filenames)
    if joined != config:
        return None
    joined.cc_model_filenames.update(there.cc_model_filenames)
    return joined


def join(model: Model, number: int, new: NewPlan, config: ModelConfig, staged: Path) -> dict[str, Any]:
    """Write the joined configuration into ``staged`` and return the manifest that the version has now.

    Raises:
        RepositoryError: since the build began the model was changed, so that the plan does not belong there any more.
    """
    joined = joined_config(model, number, config) if version_to_join(model, new) == number else None
    manifest = model.manifest(number)
    if joined is None or manifest is None:
        raise RepositoryError(f"{model.name} was changed while the plan was built", "run it again")
    text = render_config(joined)
    for folder in ("version", "model"):
        (staged / folder / CONFIG).write_text(text, encoding="utf-8")
    return manifest


def describe_plans(manifest: Mapping[str, Any], earlier: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """``plans`` of a manifest: those of ``earlier``, and the one that it tells of, which is in ``files``."""
    own = {
        capability: {"file": file, **{key: manifest[key] for key in OF_A_PLAN}} for capability, file in files.items()
    }
    return {**earlier.get("plans", {}), **own}

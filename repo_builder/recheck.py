"""The gate again, later: on a version as it was published, or on what a running server answers for it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.cc_plans import plans_of
from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Artifact, Progress, Target
from repo_builder.errors import CompileError, ModelError, RepositoryError, UsageError, VerificationError
from repo_builder.gate import check_artifact, known_shapes, open_source
from repo_builder.model import ModelSpec
from repo_builder.network import FunctionSession, ReferenceFunction
from repo_builder.onnx_model import read_model
from repo_builder.passes.shapes import free_zero_axes
from repo_builder.repository import Repository, file_sha256, read_tensors
from repo_builder.runtime import open_session
from repo_builder.samples import SampleOptions, Sampler, index_ranges
from repo_builder.served import ServedModel
from repo_builder.trt.options import TensorRTOptions, read_profiles
from repo_builder.verify import Reference, Verification, sizes_to_verify

ROUNDS = 5
"""How often rows are sent together until the server has joined some: a fast model may be done with each before the
next arrives."""


@dataclass(frozen=True)
class Rechecked:
    """A version that passed the gate again.

    ``served`` is the URL whose answers were compared, None for the artifact itself; ``joined`` the largest batch that
    the server made of requests of one row, None where it may make none.  ``hints`` are sentences for a person.
    """

    name: str
    version: int
    target: str
    source: str
    served: str | None
    joined: int | None
    verification: Verification
    hints: tuple[str, ...] = ()


def verify_model(
    name: str,
    version: int | None = None,
    *,
    repository: Path | str = "model_repository",
    source: Path | str | None = None,
    reference: ReferenceFunction | None = None,
    served: str | None = None,
    tolerance: Tolerance | None = None,
    samples: SampleOptions | None = None,
    progress: Progress = lambda _: None,
) -> Rechecked:
    """Hold a published version to ONNX Runtime on its source once more; nothing in the repository changes.

    Args:
        name: the model.
        version: its version; the latest by default.
        repository: the folder that Triton serves.
        source: the ONNX file it was made from; not needed where the artifact is that file, byte for byte.
        reference: for a network that a function defined, the function that computes the same.
        served: the HTTP address of a server of this repository.  The same inputs then go to it, whole batches in one
            request and their rows in requests that are on their way together, so that artifact, configuration,
            batching and client are checked in one.
        tolerance: the default is what the version was published with.
        samples: what is known of the inputs, the same way.
        progress: called with a line whenever something that takes time begins.

    Raises:
        VerificationError: a file is not the one published, or an output is outside the tolerance.
        RepoBuilderError: the version, its source or the server can't be had; see :mod:`repo_builder.errors`.
    """
    found = Repository(repository).find(name, version)
    number = version or found.latest
    damage = found.damage(number) if number else None
    if damage:
        raise VerificationError(f"{name}@{number} is damaged: {damage}", "publish it anew: repo-builder add --force")
    manifest = found.manifest(number) if number else None
    if number is None or manifest is None:
        raise RepositoryError(
            f"{name!r} has no manifest that says what it was made from", "publish it with repo-builder add"
        )
    folder = found.folder / str(number)
    with _as_written(folder):
        change = found.change(number)
        if change:
            raise VerificationError(f"{name}@{number}: {change}", "publish it anew: repo-builder add --force")
        recorded = _Recorded.read(manifest)
    samples = known_shapes(samples or recorded.samples_or_refuse(), recorded.first_profile)
    if "definition" in manifest["source"]:
        if reference is None or source is not None:
            raise UsageError(
                f"{name}@{number} was made from the network definition {manifest['source']['definition']}",
                "verify it from Python: repo_builder.verify_model(NAME, reference=FUNCTION)",
            )
        origin = str(manifest["source"]["definition"])
        gate = _Gate.open_function(reference, origin, recorded, samples, tolerance)
    else:
        path = _find_source(f"{name}@{number}", folder, manifest, Path(source) if source is not None else None)
        origin = str(path)
        progress("running the source under ONNX Runtime")
        gate = _Gate.open(path, recorded, samples, tolerance)
    whose = f"{gate.reference.session.runner} for {Path(origin).name}"
    if served is None:
        progress(f"verifying {name}@{number} against {whose}")
        sizes = sizes_to_verify(recorded.artifact.max_batch_size or 0, batchable=gate.batchable)
        verification = gate.check(_load(folder, recorded), sizes)
        own = (_SAME_FILE,) if Path(origin) == folder / Target.ONNXRUNTIME.filename else ()
        hints = (*own, *verification.hints)
        return Rechecked(name, number, recorded.target.value, origin, None, None, verification, hints)
    with contextlib.closing(ServedModel(served, name, number, recorded.artifact)) as server:
        progress(f"verifying what {server.url} answers for {name}@{number} against {whose}")
        verification, joined = _check_served(gate, recorded.artifact, server)
        own = (_NOT_JOINED,) if joined == 1 else ()
        hints = (*own, *verification.hints)
        return Rechecked(name, number, recorded.target.value, origin, server.url, joined, verification, hints)


_SAME_FILE = (
    "the artifact is the source itself, byte for byte, so this compares whole batches with single rows; "
    "--served URL checks configuration and server too"
)
_NOT_JOINED = (
    "the server joined none of the requests, so its batching is not proved: with a queue delay of 0 it joins those "
    "that wait for a busy instance, without dynamic_batching none; add --max-queue-delay-us 100 makes them wait"
)


@dataclass(frozen=True)
class _Recorded:
    """What a manifest says of a version, as the stages of ``add`` have it."""

    target: Target
    artifact: Artifact
    batchable: bool
    looked_for_batch: bool
    tolerance: Tolerance
    samples: SampleOptions
    sample_files: tuple[str, ...]
    cc_filenames: Mapping[str, str]
    first_profile: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> _Recorded:
        """Raises KeyError, TypeError or ValueError where the manifest is not one of ours."""
        options = manifest["options"]["build"]
        tensorrt, samples, target = options["tensorrt"], options["samples"], Target(manifest["target"])
        profiles = read_profiles((manifest.get("engine") or {}).get("profiles", ()))
        asked = read_profiles(tensorrt["profiles"])
        artifact = Artifact(
            platform=manifest["platform"],
            backend=target.backend,
            filename="",
            inputs=read_tensors(manifest["inputs"]),
            outputs=read_tensors(manifest["outputs"]),
            max_batch_size=manifest["max_batch_size"],
            run=None,
            tolerance=_tolerance_of(target, tensorrt, quantised=bool((manifest.get("engine") or {}).get("quantised"))),
            profiles=profiles,
            shape_tensors=frozenset(entry["name"] for entry in manifest["inputs"] if entry.get("shape_tensor")),
        )
        return cls(
            target,
            artifact,
            manifest["batching"]["batchable"],
            options["batching"] and manifest["options"]["serving"]["max_batch_size"] != 0,
            Tolerance(**options["tolerance"]),
            SampleOptions(
                ranges={name: (low, high) for name, (low, high) in samples["ranges"].items()},
                shapes={name: tuple(shape) for name, shape in samples["shapes"].items()},
                seed=samples["seed"],
            ),
            tuple(samples["files"]),
            {plan.capability: plan.file for plan in plans_of(manifest)},
            asked[0].opt if asked else {},
        )

    def samples_or_refuse(self) -> SampleOptions:
        """The published samples; raises UsageError where arrays belonged to them, which no manifest holds."""
        if self.sample_files:
            flags = " ".join(f"--input {name}=FILE.npy" for name in self.sample_files)
            raise UsageError(
                f"it was published with arrays of your own for {', '.join(self.sample_files)}",
                f"give them again: {flags}",
            )
        return self.samples


@dataclass(frozen=True)
class _Gate:
    """The source, ready to be compared with."""

    spec: ModelSpec
    reference: Reference
    samples: SampleOptions
    ranges: Mapping[str, int]
    tolerance: Tolerance
    batchable: bool

    @classmethod
    def open(
        cls,
        source: Path,
        recorded: _Recorded,
        samples: SampleOptions,
        tolerance: Tolerance | None,
    ) -> _Gate:
        model = read_model(source)
        model = model.with_graph(free_zero_axes(model.proto))
        with tempfile.TemporaryDirectory(prefix="repo-builder-") as folder:
            session = open_source(model, Path(folder), recorded.target)
        ranges = index_ranges(model.proto)
        reference = Reference.open(model.spec, session, Sampler(model.spec.inputs, samples, ranges))
        if (recorded.looked_for_batch or samples.has_shapes) and not recorded.batchable and reference.batch_axis:
            reference = reference.without_batch_axis()
        return cls(model.spec, reference, samples, ranges, tolerance or recorded.tolerance, recorded.batchable)

    @classmethod
    def open_function(
        cls,
        function: ReferenceFunction,
        name: str,
        recorded: _Recorded,
        samples: SampleOptions,
        tolerance: Tolerance | None,
    ) -> _Gate:
        artifact = recorded.artifact
        spec = ModelSpec(Path(name), artifact.inputs, artifact.outputs, (), 0, 0)
        session = FunctionSession(artifact.inputs, artifact.outputs, function)
        reference = Reference(spec, session, Sampler(spec.inputs, samples, {}), batch_axis=recorded.batchable)
        return cls(spec, reference, samples, {}, tolerance or recorded.tolerance, recorded.batchable)

    def check(self, artifact: Artifact, sizes: tuple[int, ...]) -> Verification:
        result = check_artifact(artifact, self.reference, self.spec, self.samples, self.ranges, sizes, self.tolerance)
        assert result is not None  # noqa: S101  (the artifact runs)
        return result


def _check_served(gate: _Gate, artifact: Artifact, server: ServedModel) -> tuple[Verification, int | None]:
    size = server.max_batch_size
    sizes = sizes_to_verify(size, batchable=gate.batchable)
    verification = gate.check(dataclasses.replace(artifact, run=server.run), sizes)
    if size < 2:
        return verification, None
    rows = dataclasses.replace(artifact, run=server.run_rows)
    for _ in range(ROUNDS):
        verification = verification.merged(gate.check(rows, (size,)))
        if server.joined > 1:
            break
    return verification, server.joined


def _load(folder: Path, recorded: _Recorded) -> Artifact:
    """The artifact as it is on disk, ready to run."""
    if recorded.target is Target.ONNXRUNTIME:
        return dataclasses.replace(recorded.artifact, run=open_session(folder / Target.ONNXRUNTIME.filename).run)
    from repo_builder.plans import load_plan
    from repo_builder.trt.cuda import find_gpu
    from repo_builder.trt.runner import EngineRunner

    gpu, files = find_gpu(), recorded.cc_filenames
    here = files.get(gpu.compute_capability) if gpu else next(iter(files.values()), None)
    if files and here is None:
        raise CompileError(
            f"{folder} has plans for compute capability {', '.join(files)} and none for this GPU",
            "repo-builder add --cc-plan here adds one; or verify on a machine with such a GPU",
        )
    if gpu is None:
        raise CompileError(
            f"{folder.parent.name}@{folder.name}: its files are the ones published, by their SHA-256, but its numbers "
            "were not compared: there is no GPU here that runs the plan",
            "verify it on a machine with a GPU, or through its server: --served URL",
        )
    plan = load_plan(folder / (here or recorded.target.filename))
    runner = EngineRunner(plan.library, plan.engine, plan.info, plan.errors)
    return dataclasses.replace(
        recorded.artifact,
        inputs=plan.info.inputs,
        outputs=plan.info.outputs,
        profiles=plan.info.profiles,
        shape_tensors=plan.info.shape_tensors,
        run=runner.run,
    )


def _find_source(what: str, folder: Path, manifest: Mapping[str, Any], given: Path | None) -> Path:
    """The file that a version was made from, by its hash.

    Raises:
        UsageError: it was not named, or is another one.
        ModelError: it can't be read.
    """
    with _as_written(folder):
        name, wanted, external = (manifest["source"][key] for key in ("file", "sha256", "external_data"))
    path = given or folder / Target.ONNXRUNTIME.filename
    if given is None and not (path.is_file() and _sha256(path) == wanted):
        raise UsageError(
            f"{what} was made from {name!r}, SHA-256 {wanted}, which the repository does not keep",
            f"name the file: --source PATH/TO/{name}",
        )
    files = {path.parent / file: digest for file, digest in external.items()}
    for file, digest in ({path: wanted} | files if given else files).items():
        found = _sha256(file)
        if found != digest:
            raise UsageError(
                f"{file} is not what {what} was made from: its SHA-256 is {found}, not {digest}",
                f"name the {name!r} that it was made from, or publish this one: repo-builder add",
            )
    return path


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """Raise RepositoryError where the body does not find in the manifest of ``folder`` what it looks for."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RepositoryError(
            f"{folder / 'manifest.json'} is not as this version of repo-builder writes it: {error!r}",
            "publish the model again with repo-builder add --force",
        ) from None


def _tolerance_of(target: Target, options: Mapping[str, Any], *, quantised: bool) -> Tolerance:
    if target is Target.ONNXRUNTIME:
        return Tolerance()
    from repo_builder.compilers.tensorrt import tolerance_of

    given = TensorRTOptions(fp16=options["fp16"], bf16=options["bf16"], tf32=options["tf32"])
    return tolerance_of(given, quantised=quantised)

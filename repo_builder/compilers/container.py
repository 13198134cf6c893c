"""Building inside the container that will serve, for hosts without TensorRT.

The host reads, configures, verifies and publishes a model as ever.  What needs TensorRT is done by a worker
(:mod:`repo_builder.compilers.worker`) in a container: this package is mounted read-only there, beside a folder of
packages that the image lacks, installed once an image (:mod:`repo_builder.compilers.container_setup`).  The worker has
no network, no rights, and the caller's user id; it writes into the staging folder, the caller's caches and the folder
of build logs.  The reference of the gate is ONNX Runtime on the host, and the engine answers from the container.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.compatibility import container_for, find_plans
from repo_builder.compilers.base import Artifact, Compiler, Maker, Progress, Target
from repo_builder.compilers.build_container import BuildContainer, Mounts, connect_for_build
from repo_builder.compilers.exchange import (
    PROGRESS,
    answer_path,
    load_arrays,
    read_artifact,
    read_error,
    read_maker,
    request_path,
    save_arrays,
    write_json,
)
from repo_builder.errors import CompileError, RepositoryError, UsageError
from repo_builder.folders import cache_folder, state_folder
from repo_builder.host import configured_image, installed_driver
from repo_builder.onnx_model import OnnxModel
from repo_builder.repository import Repository
from repo_builder.servers.docker import gpu_requests
from repo_builder.servers.engine import DEFAULT_IMAGE
from repo_builder.servers.images import ensure_image
from repo_builder.trt.options import TensorRTOptions

if TYPE_CHECKING:
    from repo_builder.runtime import Arrays

CODE, EXCHANGE, TIMING = "/opt/repo-builder", "/exchange", "/timing"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # the second is Windows' for Linux
POLL_S = 0.02
UNUSED_DAYS = 30
NEEDED = {"numpy", "ml-dtypes", "onnx", "onnxruntime", "cuda-python"}
HANDED_ON = re.compile(r"(?i)(https?|no)_proxy|PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)")


@dataclass(frozen=True)
class ContainerOptions:
    """Where to build; ``image`` None takes the one that ``serve`` would take."""

    image: str | None = None


@dataclass(frozen=True)
class _Place:
    """The engine, the image to build in, and the folder with the packages that it lacks."""

    client: Any
    image: str
    image_id: str
    digest: str | None
    packages: Path


class ContainerCompiler:
    """Compiles in a container; see :class:`repo_builder.compilers.base.Compiler`.

    Nothing is pulled, installed or started before it is asked for something.
    """

    def __init__(self, target: Target, options: TensorRTOptions, image: str, progress: Progress) -> None:
        self.target, self.options, self.image = target, options, image
        self._progress = progress

    @cached_property
    def _place(self) -> _Place:
        self._progress(f"looking for {self.image}")
        client = connect_for_build()
        # What follows ": " changes while the image comes.
        ensure_image(
            client, self.image, lambda line: self._progress(line.replace(": ", "\t", 1)), flag="--container-image"
        )
        attributes = client.images.get(self.image).attrs
        digests = attributes.get("RepoDigests") or [None]
        packages = _packages(client, self.image, attributes["Id"], self.target, self._progress)
        return _Place(client, self.image, attributes["Id"], digests[0], packages)

    def identity(self) -> Maker:
        if self.target is Target.TENSORRT and not any(Path(device).exists() for device in GPU_DEVICES):
            raise CompileError(
                "building for TensorRT needs an NVIDIA GPU, and this host has none that a container could use",
                "run it on a machine with a GPU and its driver; --target tensorrt-rtx builds without one",
            )
        place = self._place
        self._progress(f"starting {self.image}")
        with contextlib.closing(_Worker(place, self.target, {})) as worker:
            return read_maker(worker.ask(self._progress, "identify", self._request(self.options)))

    def compile(
        self, model: OnnxModel, folder: Path, *, batchable: bool, max_batch_size: int, progress: Progress
    ) -> Artifact:
        """Build in a container that sees ``folder``; it runs until the artifact is closed, for the engine runs in it.

        Raises:
            CompileError, UsageError: as with TensorRT here; or the container can't be had, or ends early.
        """
        import onnx

        # TensorRT's build times are remembered by the model's path: there it is unlike those of other models.
        inside = f"/build/{hashlib.sha256(os.fsencode(model.spec.path.resolve())).hexdigest()[:16]}"
        onnx.save(model.proto, folder / "source.onnx")
        options, mounts = _mount_options(self.options)
        request = {
            **self._request(options),
            "model": f"{inside}/source.onnx",
            "spec": asdict(model.spec),
            "batchable": batchable,
            "max_batch_size": max_batch_size,
        }
        place = self._place
        worker = _Worker(place, self.target, {**mounts, inside: (folder.resolve(), True)})
        try:
            artifact = read_artifact(worker.ask(progress, "compile", request), worker.run)
        except BaseException:
            worker.close()
            raise
        container = {"image": place.image, "digest": place.digest, "id": place.image_id}
        engine = {**artifact.details["engine"], "container": container}
        return replace(artifact, close=worker.close, details={**artifact.details, "engine": engine})

    def _request(self, options: TensorRTOptions) -> dict[str, Any]:
        return {"target": self.target.value, "options": asdict(options)}


def open_container(
    target: Target, options: TensorRTOptions, container: ContainerOptions, repository: Repository, progress: Progress
) -> tuple[Compiler, str]:
    """A compiler for models of ``repository``, and where it compiles; ``AUTO`` means TensorRT.

    Raises:
        UsageError: the target needs no container.
        RepositoryError: no one image loads the plans of ``repository``, and none was named.
    """
    if target is Target.ONNXRUNTIME:
        raise UsageError("--build-in-container: --target onnxruntime compiles nothing", "drop one of the two")
    target = Target.TENSORRT if target is Target.AUTO else target
    image = container.image or configured_image(Path()) or _image_for(repository)
    return ContainerCompiler(target, options, image, progress), f"built in {image}"


def _image_for(repository: Repository) -> str:
    try:
        served = container_for((plan for plan in find_plans(repository) if not plan.rtx), installed_driver())
    except RepositoryError as error:
        raise RepositoryError(error.message, "name the one to build in: --container-image") from None
    return served.release.image if served else DEFAULT_IMAGE


def _mount_options(options: TensorRTOptions) -> tuple[TensorRTOptions, Mounts]:
    """The options as the worker is to read them, and what has to be mounted for that."""
    mounts: Mounts = {str(path.resolve()): (path.resolve(), False) for path in options.plugins}
    plugins = tuple(path.resolve() for path in options.plugins)
    cache = options.timing_cache
    if cache:
        try:
            cache.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--timing-cache {cache}: {error.strerror}", "name a file that can be written") from None
        mounts[TIMING] = (cache.absolute().parent, True)
    return replace(options, plugins=plugins, timing_cache=Path(TIMING, cache.name) if cache else None), mounts


def _code_mount() -> Mounts:
    return {f"{CODE}/repo_builder": (Path(__file__).resolve().parents[1], False)}


class _Worker:
    """A worker in a container of its own."""

    def __init__(self, place: _Place, target: Target, mounts: Mounts) -> None:
        logs, caches = state_folder().resolve() / "builds", cache_folder().resolve()
        logs.mkdir(exist_ok=True)
        environment = {
            "PYTHONPATH": f"{CODE}:{place.packages}",
            # The same paths as here, so that what the worker says of them holds here too.
            "XDG_STATE_HOME": str(logs.parents[1]),
            "XDG_CACHE_HOME": str(caches.parent),
        }
        if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
            environment["CUDA_VISIBLE_DEVICES"] = devices
        self._folder = tempfile.TemporaryDirectory(prefix="repo-builder-build-")
        self._exchange = Path(self._folder.name).resolve()
        (self._exchange / PROGRESS).touch()
        self._numbers = itertools.count()
        self._told = 0
        both = {str(caches): (caches, True), str(logs): (logs, True), EXCHANGE: (self._exchange, True)}
        try:
            self._container = BuildContainer(
                place.client,
                place.image,
                ["python3", "-m", "repo_builder.compilers.worker", EXCHANGE],
                {**_code_mount(), **mounts, **both},
                environment,
                gpus=gpu_requests("all" if target is Target.TENSORRT else "auto"),
            )
        except BaseException:
            self._folder.cleanup()
            raise

    def ask(self, progress: Progress, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have something done and return the answer; raises what the worker raised, or CompileError if it ended."""
        number = next(self._numbers)
        write_json(request_path(self._exchange, number), {"do": what, **request})
        path = answer_path(self._exchange, number)
        while True:
            ended = self._container.poll()
            for line in self._new_lines():
                progress(line)
            if path.exists():
                break
            if ended is not None:
                raise self._container.ended_error(ended)
            time.sleep(POLL_S)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "error" in answer:
            raise read_error(answer)
        return answer

    def run(self, arrays: Arrays) -> Arrays:
        """Run the artifact once; raises RunError."""
        save_arrays(self._exchange / "inputs.npz", arrays)
        self.ask(lambda _: None, "run", {"inputs": f"{EXCHANGE}/inputs.npz", "outputs": f"{EXCHANGE}/outputs.npz"})
        return load_arrays(self._exchange / "outputs.npz")

    def _new_lines(self) -> list[str]:
        with (self._exchange / PROGRESS).open("rb") as file:
            file.seek(self._told)
            whole = file.read().rpartition(b"\n")[:2]
        self._told += sum(map(len, whole))
        return whole[0].decode("utf-8", "replace").splitlines() if whole[1] else []

    def close(self) -> None:
        self._container.close()
        self._folder.cleanup()


def needed_packages(target: Target) -> list[str]:
    """What of our own requirements the worker imports, and TensorRT-RTX where that is the target."""
    wanted = NEEDED | ({"tensorrt-rtx"} if target is Target.TENSORRT_RTX else set())
    lines = [line.partition(";")[0].strip() for line in requires("repo-builder") or ()]
    return sorted({line for line in lines if re.split(r"[^\w.-]", line)[0] in wanted})


def _packages(client: Any, image: str, image_id: str, target: Target, progress: Progress) -> Path:
    """The folder of packages for an image, made if it is not there; raises CompileError where it can't be."""
    requirements = needed_packages(target)
    key = hashlib.sha256("\n".join([image_id, target.value, *requirements]).encode()).hexdigest()[:16]
    cache = cache_folder().resolve()
    folder = cache / "containers" / key
    folder.parent.mkdir(exist_ok=True)
    if not folder.is_dir():
        _remove_unused(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=folder.parent) as new:
            _install(client, image, target, requirements, Path(new), progress)
            try:
                Path(new).rename(folder)
            except OSError:  # someone else was faster
                if not folder.is_dir():
                    raise
            Path(new).mkdir(exist_ok=True)  # for its removal
    folder.touch()
    return folder


def _install(
    client: Any, image: str, target: Target, requirements: list[str], folder: Path, progress: Progress
) -> None:
    label = f"installing what {image} lacks for building (once)"
    progress(label)
    cache = cache_folder().resolve()
    environment = {name: value for name, value in os.environ.items() if HANDED_ON.fullmatch(name)}
    container = BuildContainer(
        client,
        image,
        [
            "python3",
            "-I",
            f"{CODE}/repo_builder/compilers/container_setup.py",
            target.value,
            str(folder),
            *requirements,
        ],
        {**_code_mount(), str(cache): (cache, True)},
        {**environment, "PIP_CACHE_DIR": str(cache / "pip")},
        network=True,
    )
    with contextlib.closing(container):
        while (status := container.poll()) is None:
            time.sleep(POLL_S)
            progress(label)
        if status == 0:
            return
        try:
            failure = json.loads(container.said().rpartition("\n")[2])
        except ValueError:
            raise container.ended_error(status) from None
        raise CompileError(f"{image} {failure['message']}", failure["hint"])


def _remove_unused(folder: Path) -> None:
    """Packages of images that nobody built in for long; those of killed installations too."""
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(entry, ignore_errors=True)

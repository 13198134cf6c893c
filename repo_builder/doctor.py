"""``doctor``: would everything work here?  Every part that serving needs, and every model against all of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from repo_builder.compatibility import (
    Plan,
    Version,
    container_for,
    containers_for,
    find_plans,
    loads,
    newest_for_driver,
    parse_version,
    plugins_setting,
    version_text,
)
from repo_builder.config.problems import find_problems
from repo_builder.config.proto import ModelConfig, read_config
from repo_builder.errors import MissingExtraError, RepoBuilderError
from repo_builder.host import Host, configured, look
from repo_builder.repository import CONFIG, Model, Repository
from repo_builder.staging import abandoned

PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}
COMPOSE_SINCE = (2, 24, 4)  # `!reset` in compose.cpu.yaml
MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}  # by backend, unless the config names another
MODEL_SPACE, IMAGE_SPACE = 2 * 10**9, 25 * 10**9  # bytes; NVIDIA's image, unpacked, with room to unpack


class Level(str, Enum):
    """How a finding ends: WRONG is what would fail, WARNING what may, or what is missing but not needed by all."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``mend`` names the command or flag that helps."""

    subject: str
    level: Level
    text: str
    mend: str | None = None


def examine(
    repository: Path | str = "model_repository", folder: Path = Path(), image: str | None = None
) -> tuple[Finding, ...]:
    """Look at this machine and at every model of ``repository``; takes at most 3 s.

    ``folder`` is where compose.yaml and .env are; ``image`` is to serve, else the one that they name.
    """
    host = look(folder, image)
    return (
        _python(),
        *_extras(host),
        *_gpu(host),
        *_docker(host),
        *_ports(folder),
        *_disk(Path(repository), host),
        *_models(Path(repository), host),
    )


def _ok(subject: str, text: str) -> Finding:
    return Finding(subject, Level.OK, text)


def _python() -> Finding:
    text = f"Python {'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"
    if (3, 10) <= sys.version_info[:2] < (3, 13):
        return _ok("python", text)
    return Finding("python", Level.WRONG, f"{text} is not supported", "use Python 3.10, 3.11 or 3.12")


def _extras(host: Host) -> Iterator[Finding]:
    from repo_builder.servers.installation import find_installation

    try:
        find_installation()
        yield _ok("local server", "tritonserver from nvidia-pytriton, with onnxruntime")
    except MissingExtraError as error:
        yield Finding("local server", Level.WARNING, f"not usable: {error.message}", error.hint)
    except RepoBuilderError as error:
        yield Finding("local server", Level.WRONG, error.message, error.hint)
    if importlib.util.find_spec("docker"):
        yield _ok("docker SDK", "installed")
    else:
        yield Finding(
            "docker SDK", Level.WARNING, "not installed: no serve --engine docker", "pip install 'repo-builder[docker]'"
        )
    names = {"TensorRT": (host.tensorrt, "tensorrt"), "TensorRT-RTX": (host.tensorrt_rtx, "rtx")}
    for name, (answer, extra) in names.items():
        command = f"pip install 'repo-builder[{extra}]'"
        if answer.output:
            yield _ok(name, f"{answer.output}, its libraries load")
        elif answer.problem:
            yield Finding(name, Level.WRONG, f"installed, but does not load: {answer.problem}", command)
        elif extra == "tensorrt" and host.gpus:
            yield Finding(name, Level.WARNING, "not installed: no plans can be built here", command)
        else:
            yield _ok(name, f"not installed; --target {name.lower()} needs it")


def _gpu(host: Host) -> Iterator[Finding]:
    if not host.gpus:
        if host.programs["nvidia-smi"] is None:
            yield _ok(
                "GPU", "none: ONNX models are served on the CPU, by Compose with -f compose.yaml -f compose.cpu.yaml"
            )
        else:
            mend = "install or repair NVIDIA's driver, then reboot"
            yield Finding("GPU", Level.WRONG, f"nvidia-smi fails: {host.gpu_problem or 'it lists no GPU'}", mend)
        return
    for gpu in host.gpus:
        yield _ok("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}")
    driver = host.gpus[0].driver
    newest = newest_for_driver(driver)
    if newest:
        yield _ok("driver", f"{version_text(driver)}, which runs Triton containers up to {newest.name}")
    else:
        text = f"{version_text(driver)} is too old for every Triton container that is known"
        yield Finding("driver", Level.WRONG, text, "install a newer driver")


def _docker(host: Host) -> Iterator[Finding]:
    if host.programs["docker"] is None:
        mend = "install Docker, or use repo-builder serve, which needs none"
        yield Finding("docker", Level.WARNING, "not installed", mend)
        return
    info = host.docker.json()
    problem = host.docker.problem or " ".join((info or {}).get("ServerErrors") or [])
    if problem or not isinstance(info, dict):
        yield Finding("docker", Level.WARNING, problem or "docker info is not JSON", docker_mend(problem))
        return
    yield _ok("docker", f"engine {info.get('ServerVersion')}")
    yield _compose(host)
    if host.gpus:
        yield _toolkit(host, info.get("Runtimes") or {})
    yield from _image(host)


def docker_mend(problem: str) -> str:
    """What helps against ``problem``, in the words of Docker's client."""
    if "permission denied" in problem.lower():
        return "sudo usermod -aG docker $USER, then log in again"
    if os.environ.get("DOCKER_HOST"):
        return "DOCKER_HOST says where: correct it or unset it, or start that engine"
    return "start the engine: sudo systemctl start docker (or Docker Desktop)"


def _compose(host: Host) -> Finding:
    if host.compose.output is None:
        mend = "install Docker's compose plugin (docker-compose-plugin)"
        return Finding("compose", Level.WARNING, "docker compose is not installed", mend)
    if parse_version(host.compose.output.removeprefix("v")) < COMPOSE_SINCE:
        wanted = version_text(COMPOSE_SINCE)
        text = f"{host.compose.output} can't read compose.cpu.yaml"
        return Finding("compose", Level.WARNING, text, f"update Docker Compose to {wanted} or newer")
    return _ok("compose", host.compose.output)


def _toolkit(host: Host, runtimes: object) -> Finding:
    subject = "container toolkit"
    if host.programs["nvidia-container-runtime-hook"] or (isinstance(runtimes, dict) and "nvidia" in runtimes):
        return _ok(subject, "NVIDIA's, so containers can have GPUs")
    mend = "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart Docker"
    return Finding(subject, Level.WRONG, "no NVIDIA runtime: containers can't have GPUs", mend)


def _image(host: Host) -> Iterator[Finding]:
    release = host.release
    if release and host.gpus and release.driver > host.gpus[0].driver:
        newest = newest_for_driver(host.gpus[0].driver)
        text = f"{host.image} needs driver {version_text(release.driver)}, here is {version_text(host.gpus[0].driver)}"
        mend = f"TRITON_IMAGE={newest.image} in .env, or a newer driver" if newest else "install a newer driver"
        yield Finding("image", Level.WRONG, text, mend)
    elif host.image_present.output:
        yield _ok("image", f"{host.image} is here")
    else:
        yield Finding("image", Level.WARNING, f"{host.image} is not pulled yet", f"docker pull {host.image}")


def _ports(folder: Path) -> Iterator[Finding]:
    """The ports that ``serve`` takes unless told otherwise, or that Compose is told to take."""
    from repo_builder.servers.ports import process_on
    from repo_builder.servers.records import server_on

    for role, default in PORTS.items():
        variable = f"TRITON_{role.upper()}_PORT"
        text = configured(variable, folder) or str(default)
        if not text.isdecimal() or not 0 < int(text) < 2**16:
            yield Finding(f"port {text}", Level.WRONG, f"{variable} is no port", f"{variable}={default} in .env")
            continue
        port = int(text)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                subject = f"port {port}"
                if server_on(port):
                    yield _ok(subject, "taken by your own server; repo-builder status shows it")
                    continue
                flag = f"--{role.lower()}-port 0, or {variable} in .env"
                holder = process_on(port) or "another process"
                yield Finding(subject, Level.WRONG, f"{role} would need it, and {holder} has it", f"serve with {flag}")
            else:
                yield _ok(f"port {port}", f"free for {role}")


def _disk(repository: Path, host: Host) -> Iterator[Finding]:
    info = host.docker.json()
    places = {"disk": (_existing(repository.absolute()), MODEL_SPACE)}
    if isinstance(info, dict) and info.get("DockerRootDir") and not host.image_present.output:
        places["disk of Docker"] = (_existing(Path(info["DockerRootDir"])), IMAGE_SPACE)
    for subject, (place, wanted) in places.items():
        free = shutil.disk_usage(place).free
        text = f"{free / 1e9:.1f} GB free at {place}"
        if free < wanted:
            yield Finding(subject, Level.WARNING, f"only {text}", f"free {(wanted - free) / 1e9:.0f} GB")
        else:
            yield _ok(subject, text)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _models(root: Path, host: Host) -> Iterator[Finding]:
    for folder in abandoned(root):
        mend = "the next repo-builder add clears it away, and brings back what it may have moved there"
        yield Finding("repository", Level.WARNING, f"{folder} was left by an add that was killed", mend)
    if not root.is_dir():
        mend = "repo-builder add MODEL.onnx makes it; --repository names another"
        yield Finding("repository", Level.WARNING, f"{root} does not exist", mend)
        return
    repository = Repository(root)
    models = repository.models()
    if not models:
        yield Finding("repository", Level.WARNING, f"{root} has no models", "repo-builder add MODEL.onnx")
        return
    yield _unreadable(root) or _ok("repository", f"{root}: {len(models)} model{'s' * (len(models) > 1)}")
    plans = find_plans(repository)
    for model in models:
        yield from _model(model, [plan for plan in plans if plan.model == model.name], host)
    yield from _container([plan for plan in plans if not plan.rtx], host)


def _container(plans: list[Plan], host: Host) -> Iterator[Finding]:
    """The one container that loads all plans; an image that a person named may do so, whatever it is."""
    versions, release = {plan.tensorrt for plan in plans}, host.release
    if plans and host.image_named and release and all(loads(release, plan) for plan in plans):
        yield _ok("container", f"{host.image} loads every plan")
    elif len(versions) == 1 and host.image_named and release is None:
        yield _unknown_image(host.image, versions.pop())
    else:
        try:
            container = container_for(plans)
        except RepoBuilderError as error:
            yield Finding("container", Level.WRONG, error.message, error.hint)
            return
        if container:
            doubt = f" ({container.doubt})" if container.doubt else ""
            yield _ok("container", f"{container.release.image} loads every plan{doubt}")


def _unknown_image(image: str, tensorrt: Version) -> Finding:
    text = f"which TensorRT {image} has is not known here, and the plans are of {version_text(tensorrt)}"
    known = containers_for(tensorrt)
    mend = f"if it has another: TRITON_IMAGE={known[0].release.image} in .env" if known else ""
    return Finding("container", Level.WARNING, text, mend or "see that it has it: no container of NVIDIA's is known to")


def _unreadable(root: Path) -> Finding | None:
    """The first file that the container's user, who is not its owner, can't read."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            mode = path.lstat().st_mode
            if not mode & 0o004 or (path.is_dir() and not mode & 0o001):
                text = f"{path} is not readable by others, and Triton's container runs as user 1000"
                mend = f"chmod -R a+rX {root}, or TRITON_USER=$(id -u):$(id -g) in .env"
                return Finding("repository", Level.WARNING, text, mend)
    return None


def _model(model: Model, plans: list[Plan], host: Host) -> Iterator[Finding]:
    subject = f"model {model.name}"
    if model.config_text is None:
        mend = "move what is not a model out of the repository, or publish it again with repo-builder add"
        yield Finding(subject, Level.WRONG, f"has no readable {CONFIG}", mend)
        return
    try:
        config = read_config(model.folder / CONFIG)
    except RepoBuilderError as error:
        yield Finding(subject, Level.WRONG, error.message, error.hint)
        return
    if not model.versions and config.platform != "ensemble":
        yield Finding(subject, Level.WRONG, "has no version", "publish it again with repo-builder add")
        return
    problems = [*_damages(subject, model), *_configuration(subject, model, config, host)]
    problems += [*_missing_files(subject, model, config), *_missing_plans(subject, plans, host)]
    problems += [problem for plan in plans for problem in _plan(subject, plan, host)]
    if problems:
        yield from problems
    else:
        platform = config.platform or config.backend
        yield _ok(subject, f"{platform}, version{'s' * (len(model.versions) > 1)} {_numbers(model)}")


def _damages(subject: str, model: Model) -> Iterator[Finding]:
    for version in model.versions:
        if damage := model.damage(version):
            level = Level.WRONG if version == model.latest else Level.WARNING
            mend = f"publish it again with repo-builder add, or repo-builder remove {model.name}@{version}"
            yield Finding(subject, level, f"version {version} is damaged: {damage}", mend)


def _configuration(subject: str, model: Model, config: ModelConfig, host: Host) -> Iterator[Finding]:
    if config.name not in {"", model.name}:
        text = f"{CONFIG} is for a model named {config.name!r}"
        yield Finding(subject, Level.WRONG, text, "rename the folder, or set or leave out name in config.pbtxt")
    anywhere = find_problems(config, versions=model.versions)
    for problem in find_problems(config, versions=model.versions, gpus=len(host.gpus)):
        here = problem not in anywhere  # a GPU that this machine lacks
        yield Finding(subject, Level.WRONG if problem.fatal or here else Level.WARNING, problem.text, problem.hint)


def _missing_files(subject: str, model: Model, config: ModelConfig) -> Iterator[Finding]:
    """Files that Triton looks for; those of a version that has a manifest are :func:`_damages`'s."""
    labels = {output.label_filename for output in config.output if output.label_filename}
    samples = {tensor.input_data_file for sample in config.model_warmup for tensor in sample.inputs.values()}
    named = [*sorted(labels), *(f"warmup/{file}" for file in sorted(samples) if file)]
    for file in named:
        if not (model.folder / file).is_file():
            mend = f"put it there, or take its name out of {CONFIG}"
            yield Finding(subject, Level.WRONG, f"{file} is missing, which {CONFIG} names", mend)
    usual = MODEL_FILES.get(config.backend or config.platform.partition("_")[0])
    if model.latest and usual and not config.cc_model_filenames and not model.manifest(model.latest):
        file = f"{model.latest}/{config.default_model_filename or usual}"
        if not (model.folder / file).exists():
            yield Finding(subject, Level.WRONG, f"{file} is missing", "put it there, or publish the model again")


def _numbers(model: Model) -> str:
    return ", ".join(map(str, model.versions)) or "none"


def _missing_plans(subject: str, plans: list[Plan], host: Host) -> Iterator[Finding]:
    """GPUs here for which a version with a plan for each of several types has none."""
    for folder in dict.fromkeys(plan.path.parent for plan in plans if plan.by_capability):
        there = [plan.compute_capability or "?" for plan in plans if plan.path.parent == folder]
        there.sort(key=parse_version)
        if missing := {gpu.compute_capability for gpu in host.gpus}.difference(there):
            text = f"version {folder.name} has plans for compute capability {', '.join(there)}, none for "
            mend = "on this machine, with the options of its other plans: repo-builder add ... --cc-plan"
            yield Finding(subject, Level.WRONG, text + ", ".join(sorted(missing)), mend)


def _plan(subject: str, plan: Plan, host: Host) -> Iterator[Finding]:
    """What keeps a plan from being loaded here: no GPU, another GPU, another TensorRT in the image."""
    file = f"{plan.path.parent.name}/{plan.path.name}"
    again = f"publish it again on this machine: repo-builder add ... --name {plan.model}"
    if not host.gpus:
        mend = f"serve it where there is one, or as ONNX: repo-builder add ... --target onnxruntime --name {plan.model}"
        yield Finding(subject, Level.WRONG, f"{file} needs an NVIDIA GPU, and there is none here", mend)
        return
    here = {gpu.compute_capability for gpu in host.gpus}
    if plan.compute_capability and plan.compute_capability not in here:
        if plan.by_capability:
            return  # for the GPUs of another machine
        text = f"{file} was built for compute capability {plan.compute_capability}, here is {', '.join(sorted(here))}"
        yield Finding(subject, Level.WRONG, text, again)
    if plan.rtx:
        return
    release = host.release
    fitting = containers_for(plan.tensorrt, version_compatible=plan.version_compatible)
    if release and not loads(release, plan):
        text = (
            f"{file} is of TensorRT {version_text(plan.tensorrt) or '(unknown)'}, "
            f"and {host.image} has {version_text(release.tensorrt) or 'another'}"
        )
        mend = f"TRITON_IMAGE={fitting[0].release.image} in .env" if fitting else again
        yield Finding(subject, Level.WRONG, text, mend)
    if layers := plugins_setting([plan], "/models"):
        mend = f"add {layers!r} to the command of triton in compose.yaml; repo-builder serve does so by itself"
        yield Finding(subject, Level.WARNING, f"{file} has custom layers, which compose.yaml does not load", mend)

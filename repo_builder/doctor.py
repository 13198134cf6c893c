"""``doctor``: would everything work here?  Every part that serving needs, and every model against all of them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from repo_builder.compatibility import (
    Plan,
    newest_for_driver,
    parse_version,
    runs_under,
    version_text,
)
from repo_builder.doctor_models import examine_models, image_mend, readable_plans
from repo_builder.errors import MissingExtraError, RepoBuilderError, UsageError
from repo_builder.findings import Finding, Level, ok
from repo_builder.folders import state_folder
from repo_builder.host import Host, check_image_name, configured, engine_memlock, look

PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}
COMPOSE_SINCE = (2, 24, 4)  # `!reset` in compose.cpu.yaml
LOG_SPACE, MODEL_SPACE = 10**8, 2 * 10**9  # bytes
IMAGE_SPACE = 25 * 10**9  # bytes; NVIDIA's image, unpacked, with room to unpack


def examine(
    repository: Path | str = "model_repository", folder: Path = Path(), image: str | None = None
) -> tuple[Finding, ...]:
    """Look at this machine and at every model of ``repository``; takes at most 3 s.

    ``folder`` is where compose.yaml and .env are; ``image`` is to serve, else the one that they name.
    """
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look, folder, image)
        plans = readable_plans(Path(repository))
        host = looking.result()
    return (
        _python(),
        *_extras(host),
        *_gpu(host),
        *_docker(host, folder, plans),
        *_ports(folder, host.composed_ports(folder)),
        *_disk(Path(repository), host),
        *examine_models(Path(repository), host),
    )


def _python() -> Finding:
    text = f"Python {'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"
    if (3, 10) <= sys.version_info[:2] < (3, 13):
        return ok("python", text)
    return Finding("python", Level.WRONG, f"{text} is not supported", "use Python 3.10, 3.11 or 3.12")


def _extras(host: Host) -> Iterator[Finding]:
    from repo_builder.servers.installation import find_installation

    try:
        find_installation()
        yield ok("local server", "tritonserver from nvidia-pytriton, with onnxruntime")
    except MissingExtraError as error:
        yield Finding("local server", Level.WARNING, f"not usable: {error.message}", error.hint)
    except RepoBuilderError as error:
        yield Finding("local server", Level.WRONG, error.message, error.hint)
    if importlib.util.find_spec("docker"):
        yield ok("docker SDK", "installed")
    else:
        yield Finding(
            "docker SDK", Level.WARNING, "not installed: no serve --engine docker", "pip install 'repo-builder[docker]'"
        )
    names = {"TensorRT": (host.tensorrt, "tensorrt"), "TensorRT-RTX": (host.tensorrt_rtx, "rtx")}
    for name, (answer, extra) in names.items():
        command = f"pip install 'repo-builder[{extra}]'"
        if answer.output:
            yield ok(name, f"{answer.output}, its libraries load")
        elif answer.timed_out:
            text = "installed; whether it loads can't be told, for that takes long"
            yield Finding(name, Level.WARNING, text, f"python -c 'import {name.lower().replace('-', '_')}' tells")
        elif answer.problem:
            yield Finding(name, Level.WRONG, f"installed, but does not load: {answer.problem}", command)
        elif extra == "tensorrt" and host.gpus:
            yield Finding(name, Level.WARNING, "not installed: no plans can be built here", command)
        else:
            yield ok(name, f"not installed; --target {name.lower()} needs it")


def _gpu(host: Host) -> Iterator[Finding]:
    if not host.gpus:
        if host.programs["nvidia-smi"] is None:
            yield ok(
                "GPU", "none: ONNX models are served on the CPU, by Compose with -f compose.yaml -f compose.cpu.yaml"
            )
        else:
            mend = "install or repair NVIDIA's driver, then reboot"
            if host.gpu_answer.timed_out:
                mend = f"sudo nvidia-smi -pm 1, if it is only slow, keeps the driver loaded; else {mend}"
            yield Finding("GPU", Level.WRONG, f"nvidia-smi fails: {host.gpu_answer.problem or 'it lists no GPU'}", mend)
        return
    for gpu in host.gpus:
        yield ok("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}")
    driver = host.gpus[0].driver
    newest = newest_for_driver(driver)
    if newest:
        yield ok("driver", f"{version_text(driver)}, which runs Triton containers up to {newest.name}")
    else:
        text = f"{version_text(driver)} is too old for every Triton container that is known"
        yield Finding("driver", Level.WRONG, text, "install a newer driver")


def _docker(host: Host, folder: Path, plans: Sequence[Plan]) -> Iterator[Finding]:
    if host.programs["docker"] is None:
        mend = "install Docker, or use repo-builder serve, which needs none"
        yield Finding("docker", Level.WARNING, "not installed", mend)
        return
    info = host.docker.json()
    problem = host.docker.problem or " ".join((info or {}).get("ServerErrors") or [])
    if problem or not isinstance(info, dict):
        text = "this user may not use the engine" if "permission denied" in problem.lower() else problem
        yield Finding("docker", Level.WARNING, text or "docker info is not JSON", docker_mend(problem))
        yield _compose(host)
        yield from _image(host, plans)
        return
    yield ok("docker", f"engine {info.get('ServerVersion')}")
    yield _compose(host)
    yield from _memlock(host, folder)
    if host.gpus:
        yield _toolkit(host, info.get("Runtimes") or {})
    yield from _image(host, plans)


def docker_mend(problem: str) -> str:
    """What helps against ``problem``, in the words of Docker's client."""
    if "permission denied" in problem.lower():
        return "sudo usermod -aG docker $USER, then log in again"
    if os.environ.get("DOCKER_HOST"):
        return "DOCKER_HOST says where: correct it or unset it, or start that engine"
    return "start the engine: sudo systemctl start docker (or Docker Desktop)"


def _compose(host: Host) -> Finding:
    if host.compose.timed_out:
        return Finding("compose", Level.WARNING, host.compose.problem, "docker compose version")
    if host.compose.output is None:
        mend = "install Docker's compose plugin (docker-compose-plugin)"
        return Finding("compose", Level.WARNING, "docker compose is not installed", mend)
    if parse_version(host.compose.output.removeprefix("v")) < COMPOSE_SINCE:
        wanted = version_text(COMPOSE_SINCE)
        text = f"{host.compose.output} can't read compose.cpu.yaml"
        return Finding("compose", Level.WARNING, text, f"update Docker Compose to {wanted} or newer")
    return ok("compose", host.compose.output)


def _memlock(host: Host, folder: Path) -> Iterator[Finding]:
    """Whether the engine here can raise the limit that compose.yaml asks for; without, it does not start Triton."""
    here = (os.environ.get("DOCKER_HOST") or "unix://").startswith("unix://")
    most = engine_memlock(rootless=host.rootless) if here else None
    wanted = configured("TRITON_MEMLOCK", folder) or "-1"
    if most is not None and not (wanted.isdecimal() and int(wanted) <= most):
        asked = "no limit" if wanted == "-1" else wanted
        text = f"the engine lets containers lock {most} bytes at most, and compose.yaml asks for {asked}"
        yield Finding("locked memory", Level.WRONG, text, f"TRITON_MEMLOCK={most} in .env, or serve --engine docker")


def _toolkit(host: Host, runtimes: object) -> Finding:
    subject = "container toolkit"
    if host.programs["nvidia-container-runtime-hook"] or (isinstance(runtimes, dict) and "nvidia" in runtimes):
        return ok(subject, "NVIDIA's, so containers can have GPUs")
    mend = "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart Docker"
    return Finding(subject, Level.WRONG, "no NVIDIA runtime: containers can't have GPUs", mend)


def _image(host: Host, plans: Sequence[Plan]) -> Iterator[Finding]:
    release = host.release
    try:
        check_image_name(host.image)
    except UsageError as error:
        yield Finding("image", Level.WRONG, error.message, error.hint)
        return
    if release and not runs_under(release, host.driver):
        text = f"{host.image} needs driver {version_text(release.driver)}, here is {version_text(host.driver)}"
        yield Finding("image", Level.WRONG, text, image_mend(plans, host.driver))
    elif host.image_present.output:
        yield ok("image", f"{host.image} is here")
    elif not host.engine_answers:
        text = f"{host.image}; whether it is here can't be told without the engine"
        yield Finding("image", Level.WARNING, text, "start or mend Docker first: see its line")
    else:
        yield Finding("image", Level.WARNING, f"{host.image} is not pulled yet", f"docker pull {host.image}")


def _ports(folder: Path, composed: set[int]) -> Iterator[Finding]:
    """The ports that ``serve`` takes unless told otherwise, or that Compose is told to take or ``composed`` has."""
    from repo_builder.servers.ports import CONTAINER_PORTS, process_on
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
                if port in composed:
                    yield ok(subject, "taken by Compose's server of this folder; docker compose ps shows it")
                    continue
                if server_on(port):
                    yield ok(subject, "taken by your own server; repo-builder status shows it")
                    continue
                holder = process_on(port) or "another process"
                mend = f"serve with --{role.lower()}-port 0, or {variable} in .env"
                if holder.startswith(CONTAINER_PORTS):
                    mend = f"docker ps --filter publish={port} names the container: stop that, or {mend}"
                yield Finding(subject, Level.WRONG, f"{role} would need it, and {holder} has it", mend)
            else:
                yield ok(f"port {port}", f"free for {role}")


def _disk(repository: Path, host: Host) -> Iterator[Finding]:
    info = host.docker.json()
    places = {
        "disk": (_existing(repository.absolute()), MODEL_SPACE, ""),
        "disk of logs": (state_folder(), LOG_SPACE, ", or set XDG_STATE_HOME to a folder elsewhere"),
    }
    if isinstance(info, dict) and info.get("DockerRootDir") and not host.image_present.output:
        places["disk of Docker"] = (_existing(Path(info["DockerRootDir"])), IMAGE_SPACE, "")
    for subject, (place, wanted, otherwise) in places.items():
        free = shutil.disk_usage(place).free
        text = f"{free / 1e9:.1f} GB free at {place}"
        if free < wanted:
            level = Level.WARNING if free else Level.WRONG
            yield Finding(subject, level, f"only {text}", f"free {(wanted - free) / 1e9:.1f} GB{otherwise}")
        else:
            yield ok(subject, text)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())

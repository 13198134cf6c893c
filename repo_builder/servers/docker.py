"""NVIDIA's Triton container, by the Docker SDK: started, watched and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from repo_builder.compatibility import find_plans, plugins_setting
from repo_builder.errors import RepoBuilderError, ServerError, UsageError
from repo_builder.host import is_rootless
from repo_builder.repository import Repository
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.docker_client import ROOTLESS_USER, connect, engine_address
from repo_builder.servers.images import (
    Progress,
    check_plans,
    choose_image,
    ensure_image,
    explanation,
    image_environment,
)
from repo_builder.servers.mounted import check_mountable
from repo_builder.servers.ports import Ports, reserve, resolve_host
from repo_builder.servers.records import ServerRecord, has_ended, process_name, record_path
from repo_builder.servers.supervised import SupervisedServer, checked_repository, common_flags
from repo_builder.servers.supervisor import close_record

LABEL = "repo-builder.http-port"
STARTER = "repo-builder.starter"  # the process that makes the container and then starts it
NAME = "repo-builder-{port}"  # of a container, by its HTTP port
MODELS = "/models"
GRACE_S = 4  # a stop promises that everything is gone within 5 s
APPEAR_S = 5.0  # for the engine to make what it was asked for
APPEAR_WATCH_S = 0.05
_DEVICE = re.compile(r"[\w./:=-]+", re.ASCII)  # a number, a UUID of a GPU or of a part of one, CDI's name
_SIZE = re.compile(r"[1-9]\d*[bkmg]?", re.IGNORECASE)


@dataclass(frozen=True)
class DockerOptions:
    """What a container needs beside :class:`ServerOptions`.

    ``image`` None takes TRITON_IMAGE (of the environment or .env), else the one that loads the repository's plans, else
    compose.yaml's.  ``gpus`` is ``auto`` (all if there are any), ``all``, ``none``, a number of GPUs, or
    which: ``device=0``, ``device=0,2``, ``device=GPU-8c1b...`` as Docker's own ``--gpus`` has it, or ``0,2``.
    ``shm_size`` is Docker's notation: ``512m``, ``1g``.
    """

    image: str | None = None
    gpus: str = "auto"
    shm_size: str = "1g"


def start(
    repository: Path | str, options: ServerOptions, docker_options: DockerOptions, progress: Progress = lambda _: None
) -> DockerServer:
    """Serve ``repository`` from a container; return when every model is loaded or refused.

    ``progress`` is called with a line while an image is pulled.

    Raises:
        RepoBuilderError: see :func:`connect` and :func:`choose_image`; or a port is in use, the image can't be had, the
            container does not start or ends.
    """
    root = checked_repository(Path(repository), options)
    address = resolve_host(options.host)
    client = connect()
    user = _user(client)
    check_mountable(root, os.getuid() if user == ROOTLESS_USER else int(user.partition(":")[0]))
    plans = find_plans(Repository(root))
    image = choose_image(docker_options.image, plans, environment=partial(image_environment, client))
    requests = gpu_requests(docker_options.gpus)
    if not _SIZE.fullmatch(docker_options.shm_size):
        raise UsageError(f"--shm-size {docker_options.shm_size!r} is not a size", "as Docker writes them: 512m, 1g")
    ports = reserve(Ports(options.http_port, options.grpc_port, options.metrics_port), address)
    ensure_image(client, image, progress)
    check_plans(image, plans, image_environment(client, image))
    settings = {**_settings(root, options, docker_options, ports, address, requests), "user": user}
    if any(plan.version_compatible for plan in plans):
        settings["command"].append("--backend-config=tensorrt,version-compatible=true")
    if layers := plugins_setting(plans, MODELS):
        settings["command"].append(layers)
    _free_name(client, settings["name"])
    server = _run(
        client, image, settings, lambda container: DockerServer(client, container, image, root, options, ports, address)
    )
    try:
        server.wait_until_ready()
    except BaseException:
        server.stop()
        raise
    return server


def gpu_requests(gpus: str) -> list[Any]:
    """Docker's device requests for an ``--gpus`` value, as Compose makes them; raises UsageError."""
    from docker.types import DeviceRequest

    if gpus == "auto":
        gpus = "all" if Path("/dev/nvidiactl").exists() else "none"
    if gpus == "none":
        return []
    if gpus == "all" or (gpus.isdecimal() and int(gpus) > 0):
        count = -1 if gpus == "all" else int(gpus)
        return [DeviceRequest(driver="nvidia", count=count, capabilities=[["gpu"]])]
    listed = gpus.strip('"')  # which Docker's own command needs around a list
    ids = [part.strip() for part in listed.removeprefix("device=").split(",")]
    if all(map(_DEVICE.fullmatch, ids)) and (listed.startswith("device=") or len(ids) > 1):
        return [DeviceRequest(driver="nvidia", device_ids=ids, capabilities=[["gpu"]])]
    hint = "auto, all, none, how many (from 1), or which: device=0, device=0,2, device=GPU-8c1b..., of nvidia-smi -L"
    raise UsageError(f"--gpus {gpus!r} is nothing Docker knows", hint)


def _user(client: Any) -> str:
    """Who Triton runs as: the caller, who can read the repository; instead of root, who has nothing to do in there."""
    return ROOTLESS_USER if is_rootless(client.info()) else f"{os.getuid() or 1000}:{os.getgid() or 1000}"


def _settings(
    root: Path, options: ServerOptions, docker_options: DockerOptions, ports: Ports, address: str, gpus: list[Any]
) -> dict[str, Any]:
    """The container: what compose.yaml asks for, with these options."""
    from docker.types import Mount, Ulimit

    flags = [f"--model-repository={MODELS}", f"--exit-timeout-secs={GRACE_S - 1}", *common_flags(options)]
    if not gpus:
        flags.append("--allow-gpu-metrics=false")
    wanted = {8000: ports.http, 8001: ports.grpc, 8002: ports.metrics}
    return {
        "name": NAME.format(port=ports.http),
        "command": ["tritonserver", *flags],
        "ports": {f"{inside}/tcp": (address, outside) for inside, outside in wanted.items()},
        "mounts": [Mount(MODELS, str(root), type="bind", read_only=True)],  # a volume's notation takes no colon
        "device_requests": gpus,
        "shm_size": docker_options.shm_size,
        "ulimits": [Ulimit(name="memlock", soft=-1, hard=-1), Ulimit(name="stack", soft=67108864, hard=67108864)],
        "read_only": True,
        "tmpfs": {"/tmp": ""},  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "labels": {LABEL: str(ports.http), STARTER: process_name()},
    }


def _free_name(client: Any, name: str) -> None:
    """Remove a container of that name that a killed server left; raises ServerError where it isn't ours to remove."""
    import docker.errors

    try:
        there = client.containers.get(name)
    except docker.errors.NotFound:
        return
    never_started = there.status == "created" and has_ended(there.labels.get(STARTER, ""))
    if LABEL in there.labels and (never_started or there.status in {"exited", "dead"}):
        remove_container(there)
        return
    raise _taken_error(name, f", {there.status}")


def _taken_error(name: str, state: str = "") -> ServerError:
    hint = f"docker rm --force {name}, if nobody needs it; or another port with --http-port"
    return ServerError(f"a container named {name} is there already{state}", hint)


def left_container(record: ServerRecord) -> str | None:
    """What became of the container that a lost supervisor left: Docker's word, ``running`` say; None: it is gone.

    Raises:
        RepoBuilderError: the engine doesn't answer.
    """
    with _left(record) as container:
        return str(container.status) if container else None


def remove_left(record: ServerRecord) -> bool:
    """Remove the container that a lost supervisor left; whether it was running.

    Raises:
        RepoBuilderError: the engine doesn't answer, or doesn't remove it.
    """
    with _left(record) as container:
        if container is None:
            return False
        container.remove(force=True, v=True)
        return bool(container.status == "running")


@contextlib.contextmanager
def _left(record: ServerRecord) -> Iterator[Any]:
    client = connect("then repo-builder stop removes the container", record.docker_host)
    import docker.errors

    try:
        container = None
        with contextlib.suppress(docker.errors.NotFound):
            container = client.containers.get(record.container_id)
        yield container
    except (docker.errors.DockerException, OSError) as error:
        raise ServerError(
            f"the container {record.container_id} can't be removed: {explanation(error)}",
            f"docker rm --force {record.container_id}, then repo-builder stop again",
        ) from None
    finally:
        client.close()


def _run(client: Any, image: str, settings: dict[str, Any], supervised: Callable[[Any], DockerServer]) -> DockerServer:
    """Create the container and start it under a supervisor.

    The supervisor is there before anything runs in the container, so that nothing runs without one, even if this
    process is killed meanwhile; what was only created then is cleared away by the next server on the port.

    Raises:
        ServerError: it does not start; whatever is raised, nothing is left of it.
    """
    import docker.errors

    container = _create(client, image, settings)
    try:
        server = supervised(container)
    except BaseException:
        remove_container(container)
        raise
    try:
        container.start()
    except (docker.errors.DockerException, OSError) as error:
        server.stop()
        if "rlimit" in str(error) and settings["ulimits"]:  # a rootless engine can't raise limits: it keeps its own
            return _run(client, image, {**settings, "ulimits": []}, supervised)
        raise _container_error(error, image) from None
    except BaseException:
        server.stop()
        raise
    return server


def _create(client: Any, image: str, settings: dict[str, Any]) -> Any:
    import docker.errors

    try:
        return client.containers.create(image, **settings)
    except (docker.errors.DockerException, OSError) as error:
        if getattr(error, "status_code", None) == 409:  # made since we looked
            raise _taken_error(settings["name"]) from None
        raise _container_error(error, image) from None
    except BaseException:
        with contextlib.suppress(docker.errors.DockerException, OSError):
            _remove_once_made(client, settings)
        raise


def _remove_once_made(client: Any, settings: dict[str, Any]) -> None:
    """Remove a container that nobody waits for any more: the engine goes on to make it."""
    import docker.errors

    deadline = time.monotonic() + APPEAR_S
    while time.monotonic() < deadline:
        with contextlib.suppress(docker.errors.NotFound):
            there = client.containers.get(settings["name"])
            if there.labels.get(STARTER) == settings["labels"][STARTER]:
                remove_container(there)
            return
        time.sleep(APPEAR_WATCH_S)


def lacks_gpu(text: str) -> bool:
    """Whether an engine's explanation says that it can't give containers a GPU."""
    signs = ("could not select device driver", "nvidia-container-cli", "unresolvable CDI")
    return any(sign in text for sign in signs)


def _container_error(error: Exception, image: str) -> ServerError:
    """An engine's refusal in one line, with its mend."""
    text = explanation(error)
    if lacks_gpu(text):
        return ServerError(
            f"the Docker engine can't give containers a GPU: {text}",
            "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart Docker; or --gpus none",
        )
    if "executable file not found" in text:
        return ServerError(f"{image} has no tritonserver", "--image nvcr.io/nvidia/tritonserver:YY.MM-py3 has one")
    if "already allocated" in text or "address already in use" in text:
        return ServerError(
            f"a port was taken while the container started: {text}", "choose others with --http-port 0 and the like"
        )
    if "mounts denied" in text or "not shared" in text:
        return ServerError(f"the engine may not mount the repository: {text}", "share its folder in Docker Desktop")
    return ServerError(f"the container does not start: {text}", "repo-builder doctor looks at Docker and the image")


def remove_container(container: Any) -> bool:
    """Kill and remove a container that may be gone already; False: the engine doesn't do it, or doesn't answer."""
    import docker.errors

    try:
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        return error.status_code in {404, 409}  # not there, or being removed
    except (docker.errors.DockerException, OSError):
        return False
    return True


class DockerServer(SupervisedServer):
    """A Triton container that this process started."""

    def __init__(
        self,
        client: Any,
        container: Any,
        image: str,
        repository: Path,
        options: ServerOptions,
        ports: Ports,
        address: str,
    ) -> None:
        super().__init__(repository, options, ports, address)
        self._image = image
        self._client = client
        self._container = container
        self._record = record_path(ports.http)
        module = "repo_builder.servers.docker_supervisor"
        self._supervise([sys.executable, "-m", module, str(os.getpid()), container.id, str(self._record)])

    def record(self) -> ServerRecord:
        there = self._container
        return replace(
            super().record(),
            container=there.name,
            container_id=there.short_id,
            image=self._image,
            docker_host=engine_address(),
        )

    def end_error(self, status: int) -> ServerError:
        return self._lost_error() or super().end_error(status)

    def _start_error(self, status: int) -> ServerError:
        return self._lost_error() or super()._start_error(status)

    def _lost_error(self) -> ServerError | None:
        try:
            self._client.ping()
        except Exception:  # of the SDK, or of the libraries under it
            return ServerError(
                "tritonserver is lost: its Docker engine does not answer any more",
                "repo-builder stop removes the container once the engine answers again",
            )
        return None

    def _remove_left(self) -> None:
        if remove_container(self._container):
            close_record(self._record, self.pid, None)
        with contextlib.suppress(OSError):
            self._client.close()


def usable_engine(repository: Path | str) -> tuple[bool, str]:
    """Whether a container would serve ``repository`` right away, without a pull, and why or why not."""
    try:
        client = connect()
    except RepoBuilderError as error:
        return False, error.message
    import docker.errors

    chosen = ""
    try:
        chosen = choose_image(None, find_plans(Repository(repository)), environment=partial(image_environment, client))
        client.images.get(chosen)
    except RepoBuilderError as error:
        return False, error.message
    except docker.errors.ImageNotFound:
        return False, f"{chosen} is not pulled; --engine docker would pull it"
    except (docker.errors.DockerException, OSError) as error:
        return False, explanation(error)
    finally:
        client.close()
    return True, f"Docker is here and has {chosen}"

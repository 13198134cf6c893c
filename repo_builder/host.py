"""What this machine has: GPUs, Docker, TensorRT; asked of their own programs, all at once and never for long."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from repo_builder.compatibility import (
    Plan,
    Release,
    Version,
    container_for,
    parse_version,
    release_of_environment,
    release_of_image,
    serves,
)
from repo_builder.errors import RepositoryError, UsageError
from repo_builder.servers.engine import DEFAULT_IMAGE

TIMEOUT_S = 1.5  # with Python's start and hundreds of models the whole of doctor stays under 3 s
PROC = Path("/proc")
CAP_SYS_RESOURCE = 1 << 24  # <linux/capability.h>
_NAME = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:(?:(?=[^/]*[.:])[A-Za-z0-9][A-Za-z0-9.-]*|[a-z0-9][a-z0-9-]*|\[[0-9A-Fa-f:]+\])(?::\d+)?/)?"
    rf"{_NAME}(?:/{_NAME})*"
    r"(?::\w[\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,})?",
    re.ASCII,
)
"""A reference: host, path, tag, digest; https://github.com/distribution/reference, at the head of reference.go.

Capitals without a dot or a port are no host: engines refuse them, or look for such a host.
"""
_COMPOSE = "com.docker.compose"
_SERVERS = f'{{{{.Label "{_COMPOSE}.project.working_dir"}}}}\t{{{{.Ports}}}}'
_PUBLISHED = re.compile(r":(\d+)(?:-(\d+))?->")  # as in 127.0.0.1:8000-8002->8000-8002/tcp
MARK = "# TRITON_IMAGE is kept by repo-builder"
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>\w+)\s*[=:]\s*(?:(?P<mark>["'])(?P<quoted>.*?)(?P=mark)|(?P<bare>.*?))\s*(?:\s#.*)?$"""
)
"""A line of .env as Compose reads it, but for references to other variables."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; ``compute_capability`` is such as ``9.0``."""

    name: str
    driver: Version
    compute_capability: str


@dataclass(frozen=True)
class Answer:
    """What a program said: its output if it ended well, else why not."""

    output: str | None
    problem: str = ""
    timed_out: bool = False

    def json(self) -> Any:
        """The output as JSON data, None where it is none."""
        try:
            return json.loads(self.output or "")
        except ValueError:
            return None


@dataclass(frozen=True)
class Host:
    """Answers to everything that :func:`look` asks."""

    gpus: tuple[Gpu, ...]
    gpu_answer: Answer  # nvidia-smi's
    tensorrt: Answer  # its version, from an import in another process: that loads its libraries
    tensorrt_rtx: Answer
    docker: Answer  # `docker info` as JSON
    compose: Answer  # its version
    image: str
    image_named: bool  # by a person; else it is compose.yaml's
    image_present: Answer  # its environment as JSON
    composed: Answer  # folder and ports of Compose's servers: a line of each, with a tab between
    triton_user: str  # whom compose.yaml's container runs as
    programs: Mapping[str, str | None]

    @property
    def driver(self) -> Version:
        """The version of NVIDIA's driver, () without one."""
        return self.gpus[0].driver if self.gpus else ()

    @property
    def release(self) -> Release | None:
        """The release of the image: the one that it names itself, else that of its tag."""
        return release_of_environment(self.image_present.json() or ()) or release_of_image(self.image)

    @cached_property
    def _info(self) -> Mapping[str, Any]:
        """What Docker's client says of the engine, read once: doctor asks for every file; empty where it says none."""
        info = self.docker.json()
        return info if isinstance(info, dict) else {}

    @property
    def engine_answers(self) -> bool:
        """Whether there is a Docker engine that this user may ask."""
        return bool(self._info) and not self._info.get("ServerErrors")

    def composed_ports(self, folder: Path) -> set[int]:
        """The ports of the server that Compose runs for the compose.yaml of ``folder``."""
        ports: set[int] = set()
        for line in (self.composed.output or "").splitlines():
            project, _, published = line.partition("\t")
            if project and Path(project).resolve() == folder.resolve():
                for first, last in _PUBLISHED.findall(published):
                    ports.update(range(int(first), int(last or first) + 1))
        return ports

    @property
    def rootless(self) -> bool:
        """Whether the Docker engine runs as a user, who is root in its containers."""
        return is_rootless(self._info)

    @property
    def triton_uid(self) -> int | None:
        """The id that compose.yaml's container has on this machine; None: one that owns nothing here."""
        user = self.triton_user.partition(":")[0]
        if self.rootless:
            return os.getuid() if user in {"0", "root"} else None
        return int(user) if user.isdecimal() else None


def look(folder: Path = Path(), image: str | None = None) -> Host:
    """Ask this machine; takes as long as the slowest answer, at most TIMEOUT_S.

    ``folder`` is where compose.yaml and .env are; ``image`` goes before the one that they name.
    """
    named = configured_image(folder) if image is None else image
    image = named or DEFAULT_IMAGE
    with ThreadPoolExecutor(max_workers=7) as pool:
        gpus = pool.submit(_ask_for_gpus)
        tensorrt, rtx = (pool.submit(_import_version, name) for name in ("tensorrt", "tensorrt_rtx"))
        docker: Future[Answer] = pool.submit(ask, "docker", "info", "--format", "{{json .}}")
        compose = pool.submit(ask, "docker", "compose", "version", "--short")
        composed = pool.submit(
            ask, "docker", "ps", "--filter", f"label={_COMPOSE}.service=triton", "--format", _SERVERS
        )
        present = pool.submit(ask_for_image, image)
        return Host(
            gpus=_parse_gpus(gpus.result().output or ""),
            gpu_answer=gpus.result(),
            tensorrt=tensorrt.result(),
            tensorrt_rtx=rtx.result(),
            docker=docker.result(),
            compose=compose.result(),
            composed=composed.result(),
            image=image,
            image_named=named is not None,
            image_present=present.result(),
            triton_user=configured("TRITON_USER", folder) or "1000",
            programs={name: shutil.which(name) for name in ("docker", "nvidia-smi", "nvidia-container-runtime-hook")},
        )


def ask(*command: str) -> Answer:
    """Run a program for at most TIMEOUT_S."""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return Answer(None, f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return Answer(None, f"{command[0]} does not answer within {TIMEOUT_S:g} s", timed_out=True)
    except OSError as error:
        return Answer(None, f"{command[0]}: {error.strerror}")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return Answer(None, said[-1] if said else f"{command[0]} ended with exit status {done.returncode}")
    return Answer(done.stdout.strip())


def _ask_for_gpus() -> Answer:
    return ask("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")


def installed_driver() -> Version:
    """The version of NVIDIA's driver, () where it can't be told."""
    gpus = _parse_gpus(_ask_for_gpus().output or "")
    return gpus[0].driver if gpus else ()


def ask_for_image(image: str) -> Answer:
    """The environment of an image as JSON, of the engine that Docker's client asks."""
    return ask("docker", "image", "inspect", "--format", "{{json .Config.Env}}", image)


def engine_memlock(*, rootless: bool) -> int | None:
    """The most memory in bytes that the local engine lets a container lock; None: no limit, or it can't be told.

    Containers are started by containerd, dockerd's child or its neighbour, and can't be given more than it has itself
    unless it has CAP_SYS_RESOURCE, which it only has as the machine's root; a ``rootless`` one is this user's.
    """
    user = os.getuid() if rootless else 0
    for name in ("containerd", "dockerd"):
        for process in PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
                status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                if status["Name"].strip() != name or int(status["Uid"].split()[1]) != user:
                    continue
                if not rootless and int(status["CapEff"], 16) & CAP_SYS_RESOURCE:
                    return None
                (limit,) = re.findall(r"^Max locked memory +\S+ +(\S+)", (process / "limits").read_text(), re.MULTILINE)
                return None if limit == "unlimited" else int(limit)
    return None


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Whether an engine, by its ``docker info``, runs as a user; in its containers that one is root, others nobody."""
    return "name=rootless" in (info.get("SecurityOptions") or ())


def check_image_name(image: str, where: str = "--image, or TRITON_IMAGE in .env,") -> None:
    """Raise UsageError where ``image`` can't be the name of one; ``where`` it comes from."""
    if not _IMAGE.fullmatch(image):
        hint = f"{where} takes HOST/NAME:TAG, the name in small letters, such as {DEFAULT_IMAGE}"
        raise UsageError(f"{image!r} is not the name of an image", hint)


def configured_image(folder: Path) -> str | None:
    """TRITON_IMAGE of the environment or of ``folder``'s .env, None without one."""
    return configured("TRITON_IMAGE", folder)


def configured(variable: str, folder: Path) -> str | None:
    """What Compose takes for ``variable``: of the environment or of ``folder``'s .env, None without one."""
    return os.environ.get(variable) or in_dotenv(variable, folder)


def in_dotenv(variable: str, folder: Path) -> str | None:
    """What ``folder``'s .env sets ``variable`` to, None without it."""
    try:
        text = (folder / ".env").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    matches = [match for match in map(_LINE.match, text.splitlines()) if match and match["name"] == variable]
    values = [match["quoted"] or match["bare"] for match in matches]
    return (values and values[-1]) or None


def image_for_dotenv(plans: Sequence[Plan], folder: Path) -> tuple[str, str | None] | None:
    """The image for ``folder``'s .env, and what is in doubt about it; None without plans.

    The one that is there stays where it loads all plans and runs under this machine's driver.

    Raises:
        RepositoryError: see :func:`container_for`.
    """
    driver, there = installed_driver(), in_dotenv("TRITON_IMAGE", folder)
    if plans and there:
        release = release_of_environment(ask_for_image(there).json() or ()) or release_of_image(there)
        if release and serves(release, plans, driver):
            return there, None
    container = container_for(plans, driver)
    return (container.release.image, container.doubt) if container else None


def _sets_image(line: str) -> bool:
    match = _LINE.match(line)
    return match is not None and match["name"] == "TRITON_IMAGE"


def write_image(folder: Path, image: str, *, asked: bool) -> Path | None:
    """Set TRITON_IMAGE in ``folder``'s .env, for Docker Compose; None where the file isn't ours and nobody asked.

    Other lines stay as they are, and so do its permissions; one that is a link is written where it leads.

    Raises:
        RepositoryError: the file can't be read or written.
    """
    check_image_name(image)
    path = folder / ".env"
    written: Path | None = None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
        if not asked and MARK not in lines:
            return None
        kept = [line for line in lines if line != MARK and not _sets_image(line)]
        target = path.resolve()
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".env.")
        os.close(descriptor)
        written = Path(name)
        written.write_text("\n".join([*kept, MARK, f"TRITON_IMAGE={image}", ""]), encoding="utf-8")
        written.chmod(mode)
        written.replace(target)
    except (OSError, UnicodeDecodeError) as error:
        if written:
            written.unlink(missing_ok=True)
        raise RepositoryError(f"can't write {path}: {error}", f"write it by hand: TRITON_IMAGE={image}") from None
    return path


def _import_version(module: str) -> Answer:
    if importlib.util.find_spec(module) is None:
        return Answer(None)
    answer = ask(sys.executable, "-c", f"import {module}; print({module}.__version__)")
    return replace(answer, output=answer.output or None)


def _parse_gpus(listing: str) -> tuple[Gpu, ...]:
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    return tuple(Gpu(row[0], parse_version(row[1]), row[2]) for row in rows if len(row) == 3)

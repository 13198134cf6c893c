"""Which Triton container loads a TensorRT plan, and which a driver can run.

TensorRT loads a plan of its own exact version only ("expecting library version 8.6.1.2 got ..."); a version-compatible
plan also loads in newer minor versions of the same major.  What is known of NVIDIA's monthly releases is in
``data/triton_releases.csv``; where the TensorRT of a release isn't certain, every answer that rests on it says so.
"""

from __future__ import annotations

import bisect
import csv
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from repo_builder.errors import RepositoryError
from repo_builder.repository import Repository
from repo_builder.trt.messages import listed
from repo_builder.trt.plugins import FOLDER, published_plugins

REGISTRY = "nvcr.io/nvidia/tritonserver"
VERSION_COMPATIBLE_SINCE = "23.09"  # Triton takes --backend-config=tensorrt,version-compatible=true from there

_SHOWN = 3
"""Of plans of one version in a message, by name."""

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """``"10.14.1.48"`` and ``"10.14.1.48.post1"`` as (10, 14, 1, 48); () where no number comes first."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def version_text(version: Version) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Release:
    """A monthly release of NVIDIA's container; () for a version that isn't known.

    ``driver`` is the oldest that runs it without the forward compatibility that only data-centre GPUs have.
    """

    name: str
    server: str
    tensorrt: Version
    cuda: str
    driver: Version
    tensorrt_certain: bool

    @property
    def image(self) -> str:
        return f"{REGISTRY}:{self.name}-py3"


@dataclass(frozen=True)
class Container:
    """A release that should load a plan; ``doubt`` says why it may not, None where nothing speaks against it."""

    release: Release
    doubt: str | None


@dataclass(frozen=True)
class Plan:
    """A TensorRT plan in a repository.

    ``tensorrt`` is () where it can't be told; ``rtx`` marks TensorRT-RTX, whose engines no container of NVIDIA's loads.
    ``compute_capability`` is that of the GPU it was built on, such as ``8.6``, None where the manifest doesn't say;
    ``by_capability`` marks one of several in a version, of which Triton loads the one for the GPU it finds;
    ``plugins`` are the libraries of its custom layers, relative to the repository.
    """

    model: str
    path: Path
    tensorrt: Version
    rtx: bool
    compute_capability: str | None
    version_compatible: bool
    by_capability: bool = False
    plugins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}/{self.path.parent.name}" + (f"/{self.path.name}" if self.by_capability else "")

    def __str__(self) -> str:
        return f"{self.name}: TensorRT {version_text(self.tensorrt) or 'unknown'}"


@cache
def releases() -> tuple[Release, ...]:
    """Every release that is known, oldest first."""
    text = files("repo_builder").joinpath("data/triton_releases.csv").read_text(encoding="utf-8")
    return tuple(
        Release(
            row["release"],
            row["server"],
            parse_version(row["tensorrt"]),
            row["cuda"],
            parse_version(row["driver"]),
            row["tensorrt_certain"] == "yes",
        )
        for row in csv.DictReader(text.splitlines())
    )


def release_of_image(image: str) -> Release | None:
    """The release an image is tagged as, ``tritonserver:25.11-py3`` or ``:25.11-py3-min``.

    None for other tags, and for the ``-trtllm-`` and ``-vllm-`` images, which carry another TensorRT or none.
    """
    match = re.search(r"tritonserver:(\d\d\.\d\d)-py3(?:-min|-sdk|-igpu)?(?:@.*)?$", image)
    return next((release for release in releases() if match and release.name == match[1]), None)


def release_of_environment(variables: Iterable[str]) -> Release | None:
    """The release that an image's environment (``NAME=VALUE``) names, with the TensorRT that it names; None without.

    Images built from NVIDIA's keep these variables, whatever their tags are.
    """
    said = dict(variable.partition("=")[::2] for variable in variables)
    tensorrt = parse_version(said.get("TRT_VERSION", ""))
    named = [release for release in releases() if release.name == said.get("NVIDIA_TRITON_SERVER_VERSION")]
    return replace(named[0], tensorrt=tensorrt, tensorrt_certain=True) if named and tensorrt else None


def containers_for(tensorrt: Version, *, version_compatible: bool = False) -> tuple[Container, ...]:
    """The containers that load a plan of this TensorRT version: those without doubt first, then the newest."""
    found = (_container(release, tensorrt, version_compatible=version_compatible) for release in releases())
    return _best_first(container for container in found if container)


def loads(release: Release, plan: Plan) -> bool:
    """Whether the container of this release loads a plan, as far as is known."""
    return _container(release, plan.tensorrt, version_compatible=plan.version_compatible) is not None


def _container(release: Release, tensorrt: Version, *, version_compatible: bool) -> Container | None:
    """The container of ``release`` if it loads a plan of this TensorRT version."""
    known = min(len(release.tensorrt), len(tensorrt))
    if not known:
        return None
    same = release.tensorrt[:known] == tensorrt[:known]
    newer = (
        version_compatible
        and release.name >= VERSION_COMPATIBLE_SINCE
        and release.tensorrt[0] == tensorrt[0]
        and release.tensorrt > tensorrt
    )
    if not (same or newer):
        return None
    doubt = None
    if not release.tensorrt_certain:
        doubt = f"it is not certain that {release.name} has TensorRT {version_text(release.tensorrt)}"
    elif same and not newer and known < 4:
        doubt = f"only {version_text(tensorrt[:known])} of the TensorRT version could be compared"
    return Container(release, doubt)


def _best_first(containers: Iterable[Container]) -> tuple[Container, ...]:
    return tuple(sorted(containers, key=lambda entry: (entry.doubt is None, entry.release.name), reverse=True))


def runs_under(release: Release, driver: Version) -> bool:
    """Whether the container of this release runs under a driver, as far as both are known; () is one that isn't."""
    return not driver or release.driver <= driver


def serves(release: Release, plans: Iterable[Plan], driver: Version) -> bool:
    """Whether the container of this release loads all of these plans and runs under the driver, as far as is known."""
    return runs_under(release, driver) and all(loads(release, plan) for plan in plans)


def newest_for_driver(driver: Version) -> Release | None:
    """The newest release that runs under this driver on any GPU."""
    return next((entry for entry in reversed(releases()) if entry.driver and entry.driver <= driver), None)


def container_for(plans: Iterable[Plan], driver: Version = ()) -> Container | None:
    """The one container that loads all of these plans, the best where there are several; None without plans.

    With a ``driver`` it is one that runs under it.

    Raises:
        RepositoryError: they need different ones, or one that isn't known, or that needs a newer driver.
    """
    listed = sorted(plans, key=lambda plan: (plan.tensorrt, plan.name))
    for plan in listed:
        if plan.rtx:
            raise RepositoryError(
                f"{plan.model}/{plan.path.parent.name} is a TensorRT-RTX engine, which no container of NVIDIA's loads",
                "serve it with repo-builder serve --engine local, or build it with --target tensorrt",
            )
    if not listed:
        return None
    fitting = [
        {
            entry.release: entry.doubt
            for entry in containers_for(plan.tensorrt, version_compatible=plan.version_compatible)
        }
        for plan in listed
    ]
    common = set(fitting[0]).intersection(*fitting[1:])
    if not common:
        _refuse(listed, [plan for plan, containers in zip(listed, fitting, strict=True) if not containers])
    running = {release for release in common if runs_under(release, driver)}
    if not running:
        _refuse_driver(listed, common, driver)
    doubts = {release: next(filter(None, (plan[release] for plan in fitting)), None) for release in running}
    return _best_first(Container(release, doubt) for release, doubt in doubts.items())[0]


def check_together(plans: Iterable[Plan]) -> None:
    """Raise RepositoryError where no image can load all of these plans, whichever TensorRT it has.

    What can't be told is passed over: plans of an unknown version, and engines of TensorRT-RTX.
    """
    known = [plan for plan in plans if plan.tensorrt and not plan.rtx]
    newest = max((plan.tensorrt for plan in known), default=())
    latest = replace(releases()[-1], tensorrt=newest, tensorrt_certain=True)
    if not all(loads(latest, plan) for plan in known):
        listed = sorted(known, key=lambda plan: (plan.tensorrt, plan.name))
        _refuse(listed, [plan for plan in listed if not containers_for(plan.tensorrt)])


def image_hint(plans: Iterable[Plan], driver: Version = ()) -> str | None:
    """The flag with the image that loads all of these plans, or what can be done where there is none."""
    try:
        container = container_for(plans, driver)
    except RepositoryError as error:
        return error.hint
    return f"--image {container.release.image}" if container else None


def _refuse(plans: list[Plan], unknown: list[Plan]) -> NoReturn:
    """Say why no one container loads ``plans``; for those that are ``unknown`` there is none at all."""
    alike = len({plan.tensorrt for plan in plans}) == 1
    named = _named(plans, [] if alike else unknown)
    if alike:
        there = ", ".join(_nearest(plans[0].tensorrt))
        raise RepositoryError(
            f"no Triton container is known to have the TensorRT of {named}",
            "repo-builder serve --image NAME, or TRITON_IMAGE=NAME in .env, names an image of yours with it; or build "
            f"with a version that a container has{f', such as {there}' if there else ''}; or repo-builder serve "
            "--engine local, with the TensorRT that built it",
        )
    versions = dict.fromkeys(plan.tensorrt for plan in plans)
    homes = ", ".join(f"TensorRT {version_text(version) or 'unknown'} is in {_home(version)}" for version in versions)
    raise RepositoryError(
        f"no one container loads all of these plans: {named}",
        f"{homes}: keep the plans in a repository for each, or build all with one version",
    )


def _named(plans: Iterable[Plan], unknown: Collection[Plan] = ()) -> str:
    """``plans``, sorted by version: of each the first few; those of ``unknown`` are marked."""
    groups = []
    for (version, lost), group in groupby(plans, key=lambda plan: (plan.tensorrt, plan in unknown)):
        names = [plan.name for plan in group]
        mark = " (no container is known to have it)" if lost else ""
        groups.append(f"{listed(names, _SHOWN)}: TensorRT {version_text(version) or 'unknown'}{mark}")
    return "; ".join(groups)


def _refuse_driver(plans: list[Plan], loading: Iterable[Release], driver: Version) -> NoReturn:
    """Say that ``driver`` runs none of the releases ``loading`` these plans, and both ways out."""
    easiest = min(loading, key=lambda release: (release.driver, release.name))
    newest = newest_for_driver(driver)
    again = f"; or build with TensorRT {version_text(newest.tensorrt)}, as {newest.image} has" if newest else ""
    raise RepositoryError(
        f"no Triton container that driver {version_text(driver)} runs loads {_named(plans)}",
        f"install driver {version_text(easiest.driver)} or newer, for {easiest.image}, which forward compatibility may "
        f"run on a data-centre GPU as it is, where it is named{again}",
    )


def _home(tensorrt: Version) -> str:
    """The image that has this TensorRT version."""
    there = containers_for(tensorrt)
    return there[0].release.image if there else "no container that is known"


def _nearest(tensorrt: Version) -> list[str]:
    """The three versions of the same major that containers have and that are closest to ``tensorrt``."""
    first: dict[Version, str] = {}
    for release in releases():
        if release.tensorrt[:1] == tensorrt[:1] and release.tensorrt_certain:
            first.setdefault(release.tensorrt, release.name)
    ordered = sorted(first)
    place = bisect.bisect(ordered, tensorrt)
    return [f"{version_text(version)} ({first[version]})" for version in ordered[max(place - 1, 0) : place + 2]]


def find_plans(repository: Repository) -> tuple[Plan, ...]:
    """Every plan of every version of every model."""
    return tuple(
        _describe(model.name, path, model.manifest(version) or {})
        for model in repository.models()
        for version in model.versions
        for path in sorted((model.folder / str(version)).glob("*.plan"))
    )


def _describe(model: str, path: Path, manifest: dict[str, object]) -> Plan:
    several = [_mapping(plan) for plan in _mapping(manifest.get("plans")).values()]
    own = next((plan for plan in several if plan.get("file") == path.name), None)
    tools, engine = (_mapping((own or manifest).get(key)) for key in ("tools", "engine"))
    try:
        version, rtx = read_plan_version(path)
    except OSError:  # the manifest may tell all the same
        version, rtx = (), False
    recorded = parse_version(str(tools.get("TensorRT") or tools.get("TensorRT-RTX") or ""))
    capability = _mapping(engine.get("gpu")).get("compute_capability")
    tensorrt_options = _mapping(_mapping(_mapping(manifest.get("options")).get("build")).get("tensorrt"))
    return Plan(
        model,
        path,
        version or recorded,
        rtx or "TensorRT-RTX" in tools,
        str(capability) if capability else None,
        bool(tensorrt_options.get("version_compatible")),
        own is not None,
        tuple(f"{model}/{path.parent.name}/{FOLDER}/{file.name}" for file in published_plugins(path.parent, manifest)),
    )


def plugins_setting(plans: Iterable[Plan], folder: str) -> str | None:
    """The flag that makes Triton's tensorrt backend load the custom layers of ``plans``; None where there are none.

    ``folder`` is where the server has the repository.
    Source: https://github.com/triton-inference-server/tensorrt_backend#command-line-options
    """
    files = list(dict.fromkeys(f"{folder}/{file}" for plan in plans if not plan.rtx for file in plan.plugins))
    return f"--backend-config=tensorrt,plugins={';'.join(files)}" if files else None


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def read_plan_version(path: Path) -> tuple[Version, bool]:
    """The TensorRT version in a plan's head, () if it has none, and whether it is TensorRT-RTX's.

    ``trtexec --getPlanVersionOnly`` reads the same: a four-letter tag at byte 0, four numbers of a byte each at 24.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(28)
    tags = {b"ftrt": False, b"ptrt": False, b"vtrt": True}
    if len(head) < 28 or head[:4] not in tags:
        return (), False
    return tuple(head[24:28]), tags[head[:4]]

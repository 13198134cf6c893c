"""Images of Triton: which one serves a repository, and how an engine gets it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from repo_builder.compatibility import (
    Plan,
    check_together,
    container_for,
    image_hint,
    loads,
    release_of_environment,
    release_of_image,
    version_text,
)
from repo_builder.errors import ServerError
from repo_builder.host import check_image_name, configured_image, installed_driver
from repo_builder.servers.engine import DEFAULT_IMAGE

Progress = Callable[[str], None]

PULL_REPORT_S = 0.2


def choose_image(
    image: str | None,
    plans: Iterable[Plan],
    folder: Path = Path(),
    *,
    environment: Callable[[str], Sequence[str]] = lambda _: (),
) -> str:
    """The image to serve with: ``image``, the configured one, the one that loads ``plans`` here, or the default.

    ``environment`` tells the variables that an image sets, for it is judged by what it says of itself before its tag.

    Raises:
        UsageError: what a person chose is not the name of an image.
        ServerError: the image chosen by a person can't load one of the plans.
        RepositoryError: no one image loads all plans, or under this driver.
    """
    wanted, listed = configured_image(folder) if image is None else image, list(plans)
    if wanted is None:
        container = container_for(listed, installed_driver()) if listed else None
        return container.release.image if container else DEFAULT_IMAGE
    check_image_name(wanted)
    check_plans(wanted, listed, environment(wanted))
    return wanted


def check_plans(image: str, plans: Sequence[Plan], environment: Sequence[str]) -> None:
    """Raise ServerError where ``image``, which sets ``environment``, is known not to load one of ``plans``.

    Raises:
        RepositoryError: what it loads isn't known, but no image loads all of them.
    """
    release = release_of_environment(environment) or release_of_image(image)
    if release is None:
        check_together(plans)
    refused = [plan for plan in plans if release and plan.tensorrt and not loads(release, plan)]
    if release and refused:
        has = version_text(release.tensorrt) or "of an unknown version"
        raise ServerError(
            f"{image} has TensorRT {has} and can't load {refused[0]}", image_hint(plans, installed_driver())
        )


def image_environment(client: Any, image: str) -> Sequence[str]:
    """The variables that an image sets; none if the engine of ``client`` doesn't have it."""
    import docker.errors

    with contextlib.suppress(docker.errors.DockerException):
        return client.images.get(image).attrs["Config"]["Env"] or ()
    return ()


def ensure_image(client: Any, image: str, progress: Progress, *, flag: str = "--image") -> None:
    """Pull ``image``, which ``flag`` names, unless the engine has it.

    Raises:
        UsageError: it is not the name of an image.
        ServerError: it can't be had.
    """
    import docker.errors

    check_image_name(image, flag)
    repository, tag = _split_tag(image)
    layers: dict[str, tuple[int, int, bool]] = {}
    reported = time.monotonic()  # sizes are known a little later
    try:
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.get(image)
            return
        for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise docker.errors.APIError(event["error"])
            _note_layer(layers, event)
            if layers and time.monotonic() - reported > PULL_REPORT_S:
                reported = time.monotonic()
                progress(pull_line(image, layers))
        progress(pull_line(image, layers) if layers else f"pulled {image}")
    except (docker.errors.APIError, OSError) as error:
        why = explanation(error)
        raise ServerError(
            f"{image} is not here and can't be pulled: {why}",
            f"{flag} NAME takes another (docker images lists those here); docker load brings one without a network",
        ) from None


def _split_tag(image: str) -> tuple[str, str]:
    """A name and its tag or digest; ``latest`` without one, as Docker has it."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


def _note_layer(layers: dict[str, tuple[int, int, bool]], event: dict[str, Any]) -> None:
    status, layer = event.get("status", ""), event.get("id")
    if not layer or status.startswith(("Pulling from", "Digest")):
        return
    done, total, complete = layers.get(layer, (0, 0, False))
    detail = event.get("progressDetail") or {}
    if status == "Downloading":
        done, total = detail.get("current", done), detail.get("total", total)
    elif status in {"Download complete", "Pull complete", "Already exists", "Verifying Checksum"}:
        done, complete = total, complete or status in {"Pull complete", "Already exists"}
    layers[layer] = done, total, complete


def pull_line(image: str, layers: dict[str, tuple[int, int, bool]]) -> str:
    """A line on a pull's progress: layers that are whole and bytes that have come, each of all known yet.

    Of small layers engines don't tell the bytes.
    """
    done, total = (sum(entry[index] for entry in layers.values()) for index in (0, 1))
    whole = sum(entry[2] for entry in layers.values())
    unpacking = ", unpacking" if total and done == total and whole < len(layers) else ""
    size = f", {done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else ""
    return f"pulling {image}: {whole} of {len(layers)} layers{size}{unpacking}"


def explanation(error: Exception) -> str:
    """What the engine says, on one line."""
    text = " ".join(str(getattr(error, "explanation", None) or error).split())
    return text.removeprefix("Error response from daemon: ")

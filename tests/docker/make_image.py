"""Make the project's image on a Debian machine where no registry is reachable: ``python make_image.py``.

Needs root, a Docker engine and ``debootstrap``.  The base image, which takes minutes, is Debian 12 with Python and a
folder of wheels that pip in it takes everything from; it is kept in the engine and made again when the dependencies
change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "repo-builder-test:latest"
BASE = "repo-builder-test-base"
SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = ("ca-certificates", f"libpython{PYTHON}", "python3", "python3-venv")
PIP_CONFIG = "[global]\nno-index = true\nfind-links = /wheels\n"


class ImageError(Exception):
    """The image could not be made; the message says why."""


class CannotMakeError(ImageError):
    """This machine has not what is needed to make it."""


def make_image(engine: Any) -> str:
    """Build the Dockerfile upon the base image; return the image's name.

    Raises:
        ImageError: it can't be made.
    """
    import docker.errors

    base = make_base(engine)
    try:
        engine.images.build(path=str(ROOT), tag=IMAGE, buildargs={"BASE_IMAGE": base}, rm=True, forcerm=True)
    except docker.errors.BuildError as error:
        log = "".join(entry.get("stream", "") for entry in error.build_log)
        raise ImageError(f"the Dockerfile does not build: {error}\n{log[-3000:]}") from None
    return IMAGE


def make_base(engine: Any) -> str:
    """Return the name of the base image, made if the engine does not have it."""
    import docker.errors

    requirements = needed()
    facts = "\n".join([SUITE, *PACKAGES, PIP_CONFIG, *requirements])
    tag = f"{BASE}:{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        if os.getuid() or shutil.which("debootstrap") is None:
            raise CannotMakeError("making the test image needs root and debootstrap") from None
        with tempfile.TemporaryDirectory() as folder:
            import_debian(Path(folder), requirements, tag)
    return tag


def needed() -> list[str]:
    """What pip has to find in the image: dependencies, the server's extra and the build system's."""
    wanted = [entry.partition(";") for entry in requires("repo-builder") or ()]
    server = [
        name.strip() for name, _, marker in wanted if not marker or "extra == 'server'" in marker.replace('"', "'")
    ]
    return sorted([*server, "setuptools>=77"])


def import_debian(folder: Path, requirements: list[str], tag: str) -> None:
    """Install Debian in ``folder``, put the wheels there and hand it to the engine."""
    root = folder / "root"
    run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)])
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", f"--python-version={PYTHON}"]
    run([*pip, "--dest", str(root / "wheels"), *requirements])
    (root / "etc/pip.conf").write_text(PIP_CONFIG, encoding="utf-8")
    shutil.rmtree(root / "var/cache/apt/archives")
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        run(["docker", "import", "-", tag], stdin=archive.stdout)


def run(command: list[str], **options: Any) -> None:
    """Run a program; raises ImageError with the end of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise ImageError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


if __name__ == "__main__":
    import docker

    try:
        sys.stdout.write(make_image(docker.from_env()) + "\n")
    except ImageError as error:
        sys.exit(f"error: {error}")

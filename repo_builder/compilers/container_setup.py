"""What a container's own ``python3`` runs before anything of ours can be imported there: gets the packages it lacks.

    python3 -I container_setup.py TARGET FOLDER REQUIREMENT...

TensorRT's libraries are in NVIDIA's image, their Python bindings mostly are not: those come at the version of the
``libnvinfer`` that is found.  Why it can't be done is the last line on stdout, as JSON: ``message``, of which the image
is the subject, and ``hint``; a full disk would not take a file.  Only the standard library is imported, of Python 3.8
on, and ``-I`` keeps the modules beside this file from being taken for TensorRT's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 10)
OTHER_IMAGE = "name another with --container-image, such as nvcr.io/nvidia/tritonserver:YY.MM-py3"
NO_NETWORK = ("name resolution", "establish a new connection", "unreachable", "timed out", "CERTIFICATE_VERIFY_FAILED")


class SetupError(Exception):
    """Why the packages can't be had."""

    def __init__(self, message: str, hint: str = OTHER_IMAGE) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def nvinfer_version() -> tuple[int, int, int]:
    """The version of the libnvinfer that the loader finds; raises SetupError without one."""
    for soname in ("libnvinfer.so", *(f"libnvinfer.so.{major}" for major in range(15, 7, -1))):
        try:
            number = ctypes.CDLL(soname).getInferLibVersion()
        except (OSError, AttributeError):
            continue
        # NvInferRuntimeBase.h: major * 1000 + minor * 100 + patch until 9, major * 10000 + ... since 10
        major = number // 10000 or number // 1000
        return major, number // 100 % (100 if major >= 10 else 10), number % 100
    raise SetupError("has no TensorRT: there is no libnvinfer in it")


def bindings_requirement(version: tuple[int, int, int], cuda: str) -> str:
    """What pip is to install for this libnvinfer, whose build number the names on PyPI do not always have.

    The bindings of one TensorRT for several versions of CUDA link to the same library.
    """
    flavour = f"-cu{cuda.partition('.')[0] or 12}" if version[0] >= 10 else ""
    return f"tensorrt{flavour}-bindings=={'.'.join(map(str, version))}.*"


def import_error(module: str, folder: Path) -> str | None:
    """Why ``module`` can't be imported with ``folder`` on the path, None if it can."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def install(folder: Path, arguments: list[str]) -> None:
    """Let pip install into ``folder``; raises SetupError."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    # What is imported is compiled then: most of it never is.
    command = [*pip, "--retries=2", "--timeout=20", "--no-compile", "--target", str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = []
        for line in process.stdout or ():
            sys.stdout.write(line)  # the container's log
            said.append(line.strip())
    if process.returncode:
        raise pip_error(said)


def pip_error(said: list[str]) -> SetupError:
    """The reason in pip's words, with its mend."""
    text = "\n".join(said)
    errors = [line.split("ERROR: ", 1)[1] for line in said if "ERROR: " in line]
    why = errors[-1] if errors else said[-1] if said else "it said nothing"
    if "No space left on device" in text:
        return SetupError(
            "lacks packages, and the disk is full where they are kept",
            "free some space, or name a folder on another disk with XDG_CACHE_HOME",
        )
    missing = re.search(r"No matching distribution found for (.+)", text)
    if any(sign in text for sign in NO_NETWORK):
        what = missing.group(1) if missing else "packages"
        return SetupError(
            f"lacks {what}, and pip in it reaches no package index",
            "it needs the network once; https_proxy and PIP_INDEX_URL are handed on to it",
        )
    if missing:
        python = ".".join(map(str, sys.version_info[:2]))
        return SetupError(
            f"lacks {missing.group(1)}, and no package index has it for Python {python}",
            "PIP_EXTRA_INDEX_URL adds an index, such as https://pypi.nvidia.com; --container-image names another image",
        )
    return SetupError(f"lacks packages that pip in it can't install: {why}")


def prepare(target: str, folder: Path, requirements: list[str]) -> None:
    """Put everything that ``target`` needs into ``folder``; raises SetupError."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(f"has Python {sys.version_info[0]}.{sys.version_info[1]}, and 3.10 or newer is needed")
    module = target.replace("-", "_")
    has_module = importlib.util.find_spec(module) is not None
    version = nvinfer_version() if target == "tensorrt" else None
    if importlib.util.find_spec("pip") is None:
        raise SetupError("has no pip for its python3")
    if version and not has_module:
        install(folder, ["--no-deps", bindings_requirement(version, os.environ.get("CUDA_VERSION", ""))])
        # The package that gives them the name `tensorrt` would bring gigabytes of libraries.
        text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
        (folder / "tensorrt.py").write_text(text, encoding="utf-8")
    install(folder, requirements)
    problem = import_error(module, folder)
    if problem:
        raise SetupError(f"can't import {module}: {problem}")


def main() -> int:
    target, folder, *requirements = sys.argv[1:]
    try:
        prepare(target, Path(folder), requirements)
    except SetupError as error:
        sys.stdout.write("\n" + json.dumps({"message": error.message, "hint": error.hint}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

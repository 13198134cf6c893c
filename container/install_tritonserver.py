# ruff: noqa: INP001  (a script of the Dockerfile, no package)
"""Make a ``tritonserver`` command of the one in the nvidia-pytriton wheel; run once, while an image is built.

    python install_tritonserver.py FOLDER COMMAND

FOLDER gets the backend directory, COMMAND is the file to write.  An image's root is read-only where it runs and its
/tmp allows no programs, so what ``repo-builder serve`` lays out at each start is laid out here once.
"""

import shlex
import sys
import tempfile
from pathlib import Path

from repo_builder.servers.installation import find_installation, make_run_directory

SHM_PREFIX = "repo_builder_"  # a container has a /dev/shm of its own: no second server to be told from


def main() -> None:
    folder, command = map(Path, sys.argv[1:])
    tempfile.tempdir = str(folder)
    installation = find_installation()
    run_directory = make_run_directory(installation, SHM_PREFIX)
    for path in (run_directory.path, *run_directory.path.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" or path.suffix == "" else 0o644)
    flags = [
        f"--backend-directory={run_directory.backends}",
        f"--backend-config=python,shm-region-prefix-name={SHM_PREFIX}",
    ]
    environment = [f"{name}={run_directory.environment[name]}" for name in ("LD_LIBRARY_PATH", "PATH")]
    line = shlex.join(["env", *environment, str(installation.binary), *flags])
    command.write_text(f'#!/bin/sh\nexec {line} "$@"\n', encoding="utf-8")
    command.chmod(0o755)


if __name__ == "__main__":
    main()

"""Outputs saved as ``.npy`` files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.errors import ClientError
from client.tensors import Array


@dataclass
class OutputFolder:
    """A folder that outputs are saved in, each under a name that no other output of this run has."""

    path: Path
    _taken: set[str] = field(default_factory=set)

    def save(self, outputs: Mapping[str, Array], prefix: str = "") -> dict[str, Path]:
        """Write each output to ``[PREFIX.]NAME.npy`` and return the files by the outputs' names.

        Names are the model's, so what can't be part of a file name becomes ``_``.  BYTES are saved as NumPy
        byte strings and BF16 as float32 (a ``.npy`` file has neither objects nor bfloat16).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return {name: self._write(name, array, prefix) for name, array in outputs.items()}
        except OSError as error:
            raise ClientError(
                f"{error.filename or self.path}: {error.strerror or error}", "choose another folder with --output-dir"
            ) from error

    def _write(self, name: str, array: Array, prefix: str) -> Path:
        path = self.path / f"{self._file_name(f'{prefix}.{name}' if prefix else name)}.npy"
        # A name appears with all of its contents or not at all, also when the disk is full.
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".", delete=False) as file:
            try:
                np.save(file, storable(array), allow_pickle=False)
                file.flush()
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return path

    def _file_name(self, name: str) -> str:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "output"
        unique, number = safe, 1
        while unique.lower() in self._taken:  # lower: some file systems don't tell case
            number += 1
            unique = f"{safe}-{number}"
        self._taken.add(unique.lower())
        return unique


def storable(array: Array) -> Array:
    """``array`` in a dtype that a ``.npy`` file can hold without pickling."""
    if array.dtype.kind == "O":
        if any(element.endswith(b"\0") for element in array.flat):
            raise ClientError(
                "a text of the output ends in NUL bytes, which NumPy's byte strings lose",
                "leave out --output-dir; in Python, Client.infer returns it whole",
            )
        return array.astype(np.bytes_)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

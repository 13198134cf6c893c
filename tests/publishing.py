"""Publishing versions made of text, in a module light enough for processes that tests start."""

from __future__ import annotations

import json
from pathlib import Path

from repo_builder.repository import Repository


def publish(root: Path, name: str = "net", config: str = "one", **files: str) -> int:
    """Publish a version made of text files, as ``add`` would one of a model."""

    def finish(number: int, folder: Path) -> None:
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "version": number}))

    store = Repository(root)
    with store.staging() as staged:
        for part in ("version", "model"):
            (staged / part).mkdir()
            (staged / part / "config.pbtxt").write_text(config)
            for file, text in files.items():
                (staged / part / file).write_text(text)
        (staged / "version" / "model.onnx").write_text(f"weights of {config}")
        return store.publish(name, staged, finish)

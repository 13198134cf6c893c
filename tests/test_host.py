"""``.env`` as Compose reads it, and as it is when the image in it is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.host import configured_image, write_image

DOTENV = {
    "TRITON_IMAGE=a:1": "a:1",
    "TRITON_IMAGE = a:1": "a:1",
    " TRITON_IMAGE=a:1": "a:1",
    "export TRITON_IMAGE=a:1": "a:1",
    "TRITON_IMAGE: a:1": "a:1",
    'TRITON_IMAGE="a:1"': "a:1",
    "TRITON_IMAGE='a:1' # mine": "a:1",
    "TRITON_IMAGE=a:1 # mine": "a:1",
    "TRITON_IMAGE=a:1#2": "a:1#2",
    "TRITON_IMAGE=a:1\r": "a:1",
    "\ufeffTRITON_IMAGE=a:1": "a:1",
    "TRITON_IMAGE=a:1\nTRITON_IMAGE=b:2": "b:2",
    "TRITON_IMAGE=": None,
    "# TRITON_IMAGE=a:1": None,
    "MY_TRITON_IMAGE=a:1": None,
    "": None,
}
"""What Compose makes of a .env; tests/docker holds it to that."""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_IMAGE", raising=False)


@pytest.mark.parametrize("text", DOTENV)
def test_the_image_is_read_as_compose_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text(text + "\n", encoding="utf-8")
    assert configured_image(tmp_path) == DOTENV[text]


@pytest.mark.parametrize("text", [text for text, image in DOTENV.items() if image])
def test_a_new_image_takes_the_place_of_any_old_one(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text(f"GRAFANA_PORT=3001\n{text.removeprefix(chr(0xFEFF))}\n", encoding="utf-8")
    write_image(tmp_path, "c:3", asked=True)
    assert configured_image(tmp_path) == "c:3"
    kept = (tmp_path / ".env").read_text(encoding="utf-8").splitlines()
    assert kept == ["GRAFANA_PORT=3001", "# TRITON_IMAGE is kept by repo-builder", "TRITON_IMAGE=c:3"]

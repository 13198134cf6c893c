"""What the README shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from repo_builder.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shape(line: str) -> str:
    """A line without its numbers and its spacing, which differ from run to run."""
    return " ".join(re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line).split())


def test_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "REPOSITORY": str(tmp_path / "model_repository"),
    }
    done = subprocess.run(
        ["sh", ROOT / "examples/demo.sh"], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    printed = {
        shape(line.replace(f" --repository {environment['REPOSITORY']}", "")) for line in done.stdout.splitlines()
    }
    demo = (
        blocks("console")[0].removeprefix("$ make demo\n").replace("model_repository/", f"{environment['REPOSITORY']}/")
    )
    missing = [line for line in demo.splitlines() if shape(line) not in printed]
    assert not missing, done.stdout


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    table = README.split("## Commands")[1].split("##")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(?:repo-builder )?([a-z]+)", "".join(cells))) - {"python"}
    assert named == commands

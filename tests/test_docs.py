"""What the pages state as measured or as a limit, name and show is what the results and the code have."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

import repo_builder
from repo_builder.cli import app
from tests.client.command import MAINS, command
from tests.client.load.fake_server import MODEL, fake_server
from tests.conftest import Cli

ROOT = Path(repo_builder.__file__).parents[1]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    path = ROOT / "benchmarks" / "tensorrt_tables.py"
    spec = importlib.util.spec_from_file_location("tensorrt_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_tensorrt_page_are_those_of_the_results(tables: ModuleType) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page == tables.filled(page), "python benchmarks/tensorrt_tables.py"


def test_every_table_has_its_place(tables: ModuleType) -> None:
    assert all(text.count("\n") >= 3 for name, text in tables.tables().items() if name != "machine")
    with pytest.raises(ValueError, match="0 places for the table"):
        tables.filled("nothing")


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("[de]*s/*.md")])
OF_OTHERS = {"--backend-config", "--profile", "--rm"}  # of tritonserver and Docker Compose


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of every command."""
    ours = get_command(app).commands.values()  # type: ignore[attr-defined]
    of_ours = {name for one in ours for option in one.params for name in (*option.opts, *option.secondary_opts)}
    helps = "".join(command(name, "--help").stdout for name in MAINS)
    return of_ours | set(re.findall(r"--[a-z][\w-]*", helps))


@pytest.mark.parametrize("page", PAGES)
def test_options_and_links_lead_somewhere(page: str, options: set[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) <= options | OF_OTHERS
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def shown(page: str, pattern: str) -> list[str]:
    """The lines of a page that match."""
    return [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if re.match(pattern, line)]


def test_the_line_of_trtexec_is_taken(cli: Cli) -> None:
    (line,) = shown("README.md", "repo-builder add --onnx=")
    assert cli(*shlex.split(line)[1:], "--target", "tensorrt-rtx").error == "resnet50.onnx does not exist"


def test_client_bench_prints_the_table_that_is_shown() -> None:
    levels = ("--concurrency", "1,8", "--requests", 20, "--workers", 1, "--warmup", 0, "--no-floor", "--quiet")
    with fake_server() as url:
        printed = command("bench", MODEL, "--url", url, *levels).stdout.splitlines()
    table = shown("docs/measuring.md", r"  (load|concurrency \d)  ")
    assert len(table) == 3
    assert {_shape(line) for line in table} <= {_shape(line) for line in printed}


def _shape(line: str) -> str:
    """A line of a table without its numbers, their marks and its verdict."""
    return " ".join(re.sub(r"[\d.,]+\*?|(IN)?VALID", "#", line).split())

"""What the pages state as measured or as a limit is what the results and the code have."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import repo_builder

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

"""The rules that hold the house together, read from the source and seen from outside."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client
import repo_builder
from repo_builder import errors

ROOT = Path(repo_builder.__file__).parents[1]
HEAVY = (
    "onnx",
    "numpy",
    "onnxruntime",
    "jinja2",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "docker",
    "google.protobuf",
    "PIL",
)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Names of imported modules and whether importing ``path`` imports them."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_import = {id(node) for statement in tree.body for node in _outside_functions(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((f"{node.module}.{alias.name}", id(node) in at_import) for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import a\nfrom b import c\ndef f():\n    import d\nif TYPE_CHECKING:\n    import e\n")

    assert set(imports(module)) == {("a", True), ("b.c", True), ("d", False), ("e", False)}


@pytest.mark.parametrize("path", modules("client"), ids=lambda path: path.name)
def test_client_imports_nothing_of_the_builder(path: Path) -> None:
    assert [name for name, _ in imports(path) if name.split(".")[0] == "repo_builder"] == []


def test_stages_import_nothing_of_the_command_line() -> None:
    stages = [path for path in modules("repo_builder") if "cli" not in path.parts and path.name != "__main__.py"]

    guilty = [(path.name, name) for path in stages for name, _ in imports(path) if name.startswith("repo_builder.cli")]

    assert len(stages) > 20
    assert guilty == []


def test_only_what_talks_to_a_server_may_import_the_client() -> None:
    allowed = {"tune.py", "verify.py", "served.py"}
    guilty = {
        path.name
        for path in modules("repo_builder")
        for name, _ in imports(path)
        if name.split(".")[0] == "client" and path.name not in allowed and "cli" not in path.parts
    }

    assert guilty == set()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "docker", "matplotlib"])
def test_heavy_packages_are_imported_where_they_are_used(package: str) -> None:
    guilty = [
        str(path.relative_to(ROOT))
        for path in modules("repo_builder")
        if "backends" not in path.parts
        for name, at_import in imports(path)
        if at_import and name.split(".")[0] == package
    ]

    assert guilty == []


@pytest.mark.parametrize("arguments", [["--help"], ["add", "--help"], ["list"]], ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        f"sys.argv = ['repo-builder', *{arguments!r}]\n"
        "from repo_builder.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('LOADED', json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.rpartition("LOADED ")[2]) == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, repo_builder; print([name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_and_shows() -> None:
    for name in repo_builder.__all__:
        assert getattr(repo_builder, name).__name__ == name
    assert set(repo_builder.__all__) <= set(dir(repo_builder))
    assert repo_builder.__all__ == sorted(repo_builder.__all__)
    assert {"add_model", "serve", "Repository", "BuildOptions", "ServingOptions"} <= set(repo_builder.__all__)


def test_every_public_name_of_the_client_resolves() -> None:
    assert {"Client"} <= set(client.__all__)
    for name in client.__all__:
        assert getattr(client, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = repo_builder.nonsense


def test_errors_are_one_tree_and_drawn_in_full() -> None:
    base = errors.RepoBuilderError
    own = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__]
    classes = [cls for cls in own if issubclass(cls, base)]

    assert classes == own
    assert all(cls.__name__ in str(errors.__doc__) for cls in classes)
    assert errors.UsageError.exit_code == 2
    assert {cls.exit_code for cls in classes} == {1, 2}


@pytest.mark.parametrize("path", modules("repo_builder"), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_carries_a_hint(path: Path) -> None:
    names = {name for name, cls in vars(errors).items() if isinstance(cls, type)} - {"MissingExtraError"}
    without = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in names
        and len(node.args) + len(node.keywords) < 2
    ]

    assert without == []

"""Libraries of custom layers: really compiled, loaded, published and loaded again where the plan is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repo_builder import BuildOptions, Target, add_model
from repo_builder.compatibility import Plan, find_plans, plugins_setting
from repo_builder.errors import CompileError, UsageError
from repo_builder.plans import compile_plan
from repo_builder.repository import Repository
from repo_builder.trt.options import TensorRTOptions
from tests.conftest import Cli
from tests.models import FP32, linear, model, node, save
from tests.support import compile_library, rtx, untouched, was_loaded

pytestmark = pytest.mark.usefixtures("own_folders")


def publish(tmp_path: Path, *plugins: Path) -> Any:
    source = save(linear(), tmp_path / "net.onnx")
    build = BuildOptions(target=Target.TENSORRT_RTX, tensorrt=TensorRTOptions(plugins=plugins))
    return add_model(source, repository=tmp_path / "models", build=build)


@rtx
def test_is_loaded_for_the_build_and_published_with_the_plan(tmp_path: Path) -> None:
    path = compile_library(tmp_path / "libraries", "built")
    assert not was_loaded("built")
    published = publish(tmp_path, path)
    assert was_loaded("built")
    copy = published.folder / "1" / "plugins" / "built.so"
    assert copy.read_bytes() == path.read_bytes()
    assert published.manifest["engine"]["plugins"] == ["plugins/built.so"]
    assert published.manifest["files"]["plugins/built.so"] == path.stat().st_size
    assert any(
        "--backend-config=tensorrt,plugins='/models/NAME/VERSION/plugins/built.so'" in h for h in published.hints
    )
    assert publish(tmp_path, path).unchanged
    assert publish(tmp_path, compile_library(tmp_path / "libraries", "built", "int more;")).version == 2


@rtx
def test_a_plan_alone_says_that_its_layers_are_elsewhere(tmp_path: Path) -> None:
    options = TensorRTOptions(plugins=(compile_library(tmp_path / "libraries", "alone"),))
    source = save(linear(), tmp_path / "net.onnx")
    compiled = compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options)
    assert any("custom layers are not in the plan" in hint for hint in compiled.hints)
    assert not (tmp_path / "plugins").exists()


REGISTERS = r"""
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern int PyRun_SimpleString(const char*);
static void __attribute__((constructor)) add(void) {
    int state = PyGILState_Ensure();
    PyRun_SimpleString(
        "import tensorrt_rtx as trt\n"
        "class Creator(trt.IPluginCreatorV3One):\n"
        "    def __init__(self):\n"
        "        trt.IPluginCreatorV3One.__init__(self)\n"
        "        self.name, self.plugin_version, self.plugin_namespace = 'OfATest', '1', ''\n"
        "        self.field_names = trt.PluginFieldCollection([])\n"
        "trt.of_a_test = Creator()\n"
        "trt.get_plugin_registry().register_creator(trt.of_a_test, '')\n");
    PyGILState_Release(state);
}
"""
"""A library that registers a layer as it is loaded, as TensorRT's macro does in C++."""


@rtx
def test_a_library_that_brings_no_layers_is_told(tmp_path: Path) -> None:
    registers = compile_library(tmp_path / "libraries", "registers", REGISTERS)
    again = compile_library(tmp_path / "other", "again", REGISTERS)
    idle = compile_library(tmp_path / "libraries", "idle")
    published = publish(tmp_path, registers, idle)
    [told] = [hint for hint in published.hints if "brings no layers" in hint]
    assert told.startswith(f"--plugin {idle} brings no layers that TensorRT-RTX does not have without it: leave it out")
    source = save(
        model([node("Unique", ["x"], ["y"])], {"x": (FP32, [4])}, {"y": (FP32, [None])}), tmp_path / "no.onnx"
    )
    options = TensorRTOptions(plugins=(again, registers))
    with pytest.raises(CompileError, match="operator not supported") as caught:
        compile_plan(source, tmp_path / "no.plan", target=Target.TENSORRT_RTX, options=options)
    assert (caught.value.hint or "").startswith(f"--plugin {again} brings no layers that TensorRT-RTX does not have")
    assert f"--plugin {registers}" not in (caught.value.hint or "")


@rtx
def test_what_is_no_plugin_publishes_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    source = save(linear(), tmp_path / "source" / "net.onnx")
    exports = compile_library(tmp_path / "libraries", "exports", "void* getCreators(int* n) { *n = 0; return 0; }")
    twice = (compile_library(tmp_path / "libraries", "twice"), compile_library(tmp_path / "other", "twice"))
    cases = {
        (tmp_path / "missing.so",): "missing.so can't be read: No such file",
        (text,): "text.so can't be loaded: .*(invalid ELF header|file too short)",
        (exports,): "exports.so: TensorRT-RTX .* finds no layers in it",
        twice: "another of the libraries is called twice.so, too",
    }
    for plugins, message in cases.items():
        options = TensorRTOptions(plugins=plugins)
        build = BuildOptions(target=Target.TENSORRT_RTX, tensorrt=options)
        with untouched(tmp_path / "source"), pytest.raises(UsageError, match=message):
            add_model(source, repository=tmp_path / "models", build=build)
        assert not (tmp_path / "models").exists()


@rtx
def test_a_library_that_is_not_linked_to_what_it_calls(tmp_path: Path) -> None:
    calls = "extern int getPluginRegistry(void); int (*call)(void) = getPluginRegistry;"
    with pytest.raises(UsageError, match="undefined symbol: getPluginRegistry") as caught:
        publish(tmp_path, compile_library(tmp_path / "libraries", "unlinked", calls))
    assert "-ltensorrt_rtx" in (caught.value.hint or "")


def test_a_missing_plugin_on_the_command_line(tmp_path: Path, cli: Cli) -> None:
    save(linear(), tmp_path / "net.onnx")
    result = cli("add", "net.onnx", "--target", "tensorrt-rtx", "--plugin", "missing.so")
    assert "missing.so" in result.error
    assert not (tmp_path / "model_repository").exists()


@rtx
def test_the_container_is_told_where_they_are(tmp_path: Path) -> None:
    publish(
        tmp_path, compile_library(tmp_path / "libraries", "served"), compile_library(tmp_path / "libraries", "other")
    )
    [plan] = find_plans(Repository(tmp_path / "models"))
    assert plan.plugins == ("net/1/plugins/served.so", "net/1/plugins/other.so")
    assert plugins_setting([plan], "/models") is None  # no container loads an RTX engine
    theirs = Plan("net", plan.path, (10, 3), False, None, False, plugins=plan.plugins)
    flag = "--backend-config=tensorrt,plugins=/models/net/1/plugins/served.so;/models/net/1/plugins/other.so"
    assert plugins_setting([theirs, theirs], "/models") == flag

"""Ctrl-C while TensorRT builds: the library is out of our way, or left alone, before anything else goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import repo_builder
from repo_builder.compilers.base import Target
from repo_builder.trt.build import build
from repo_builder.trt.interrupts import held
from repo_builder.trt.library import Library
from tests.models import convolution, save
from tests.support import rtx

LONG_S = 30.0


class Builder:
    """A library that is interrupted as soon as it builds, and needs a while to stop when asked to."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.release = threading.Event()

    def build_serialized_network(self, _network: Any, config: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if hasattr(config, "progress_monitor"):
            while config.progress_monitor.step_complete("phase", 0):
                time.sleep(0.01)
            time.sleep(0.2)
        else:
            self.release.wait(LONG_S)
        self.left.set()


class Deaf(Builder):
    """A library that goes on although asked to stop, and is interrupted again."""

    def build_serialized_network(self, network: Any, config: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while config.progress_monitor.step_complete("phase", 0):
            time.sleep(0.01)
        super().build_serialized_network(network, SimpleNamespace())


def start(builder: Builder, config: Any, said: list[str]) -> None:
    module = SimpleNamespace(IProgressMonitor=object)
    with pytest.raises(KeyboardInterrupt):
        build(Library(module, Target.TENSORRT), builder, None, config, None, said.append)  # type: ignore[arg-type]


def test_the_library_has_stopped_before_the_interrupt_goes_on() -> None:
    builder = Builder()
    start(builder, SimpleNamespace(progress_monitor=None), [])
    assert builder.left.is_set()


@pytest.mark.parametrize(("kind", "config"), [
    (Builder, SimpleNamespace()),
    (Deaf, SimpleNamespace(progress_monitor=None)),
])  # fmt: skip
def test_what_can_not_be_stopped_or_is_interrupted_again_is_not_waited_for(
    kind: type[Builder], config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo_builder.trt.build.TICK_S", 0.01)
    builder = kind()
    try:
        start(builder, config, [])
        assert not builder.left.is_set()
    finally:
        builder.release.set()
    assert builder.left.wait(LONG_S)


def test_an_interrupt_waits_for_the_end_of_what_holds_it() -> None:
    seen = []

    def work() -> None:
        with held() as came:
            seen.append(list(came))
            signal.raise_signal(signal.SIGINT)
            seen.append(list(came))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [[], [signal.SIGINT]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_held_outside_the_main_thread() -> None:
    seen: list[object] = []

    def work() -> None:
        with held() as came:
            seen.extend((came, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[], signal.default_int_handler]


def run(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line with ``code`` before it, as Ctrl-C can be sent at a chosen place only from within."""
    script = f"import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}\n"
    script += "from repo_builder.__main__ import main\nmain()\n"
    root = str(Path(repo_builder.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


INTERRUPT_IN_LOGGER = """
from repo_builder.trt.log import BuildLog
plain, sent = BuildLog.write, []
def write(self, *message):
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
    plain(self, *message)
BuildLog.write = write
"""


@rtx
@pytest.mark.parametrize("command", [("compile", "-o", "net.plan"), ("add", "-r", "models")])
def test_interrupted_within_the_logger_that_the_library_calls(command: tuple[str, ...], tmp_path: Path) -> None:
    """With --verbose the parser is the first to say something, in the main thread."""
    source = save(convolution(), tmp_path / "net.onnx")
    options = ("--target", "tensorrt-rtx", "--verbose", *command[1:])
    done = run(INTERRUPT_IN_LOGGER, tmp_path, command[0], str(source), *options)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert not {"Traceback", "FATAL", "Exception"} & set(done.stderr.replace(":", " ").split())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "repo-builder"]


MISTAKEN = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError
def SessionOptions():
    time.sleep(9)
"""


def test_interrupted_while_a_package_is_imported(tmp_path: Path) -> None:
    """A module that takes the KeyboardInterrupt for a missing package, as NumPy and ONNX Runtime do."""
    (tmp_path / "onnxruntime.py").write_text(MISTAKEN, encoding="utf-8")
    source = save(convolution(), tmp_path / "net.onnx")
    done = run("", tmp_path, "add", str(source), "-r", "models", "--target", "onnxruntime")  # -c: "" leads the path
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert "not installed" not in done.stderr

"""The command line as a whole: help, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import repo_builder
from repo_builder import cli as module
from repo_builder.cli.output import human_size, printable
from repo_builder.errors import MissingExtraError, ModelError
from tests.conftest import Cli
from tests.models import linear, save
from tests.support import untouched

COMMANDS = ("add", "list", "show", "remove", "serve", "stop", "status")


def run(*arguments: str, cwd: Path, preexec_fn: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(repo_builder.__file__).parents[1])}
    command = [sys.executable, "-m", "repo_builder", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, preexec_fn=preexec_fn, capture_output=True, text=True, check=False
    )


def test_sigterm_ends_what_ctrl_c_ends() -> None:
    stop = (
        "import os, signal, time\nfrom repo_builder import __main__, cli\n"
        "cli.main = lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(9))\n__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", stop], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_interrupted_while_the_command_line_is_imported(tmp_path: Path) -> None:
    stop = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (tmp_path / "typer.py").write_text(stop, encoding="utf-8")

    done = run("list", cwd=tmp_path)  # -m puts the current folder first on the path

    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")

    assert result.code == 0
    assert result.err == ""
    for command in COMMANDS:
        assert f"  {command} " in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, cli: Cli) -> None:
    result = cli(command, "--help")

    assert result.code == 0
    assert result.out.startswith("Usage: ")


def test_version(cli: Cli) -> None:
    from importlib.metadata import version

    assert cli("--version").out == f"repo-builder {version('repo-builder')}\n"


def test_nothing_to_do_shows_help(cli: Cli) -> None:
    result = cli()

    assert result.err.startswith("Usage: ")
    assert "  add " in result.err
    assert result.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "no.onnx"],
        ["compile", "no.onnx"],
        ["inspect", "no.plan"],
        ["list", "-r", "file"],
        ["show", "nothing"],
        ["remove", "nothing"],
        ["verify", "nothing"],
        ["serve", "-r", "nowhere"],
        ["stop", "--http-port", "1"],
    ],
)
def test_errors_leave_stdout_empty_for_programs_too(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert cli(*arguments, "--json").error


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["nonsense"], ["add"], ["add", "a.onnx", "--batches"], ["serve", "--log-verbose", "-1"]],
)
def test_misuse_is_told_like_any_error(arguments: list[str], cli: Cli) -> None:
    result = cli(*arguments)

    assert result.code == 2
    assert result.error
    assert "--help" in result.hint


class TestProcess:
    """The same through a real process, since exit codes and streams are the shell's."""

    def test_success(self, tmp_path: Path) -> None:
        save(linear(), tmp_path / "net.onnx")

        done = run("add", "net.onnx", "--target", "onnxruntime", cwd=tmp_path)

        assert done.returncode == 0
        assert done.stdout == ""
        assert "published net version 1" in done.stderr

    def test_failure(self, tmp_path: Path) -> None:
        (tmp_path / "net.onnx").write_text("hello")

        with untouched(tmp_path):
            done = run("add", "net.onnx", cwd=tmp_path)

        assert done.returncode == 1
        assert done.stdout == ""
        assert "\nerror: net.onnx is not an ONNX file, or is cut short\n\nhint: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_misuse(self, tmp_path: Path) -> None:
        done = run("add", "net.onnx", "--max-batch-size", "-1", cwd=tmp_path)

        assert done.returncode == 2
        assert done.stderr.startswith("error: --max-batch-size -1 is not a batch size\n")

    def test_a_folder_that_was_removed_meanwhile(self, tmp_path: Path) -> None:
        folder = tmp_path / "gone"
        folder.mkdir()

        done = run("list", cwd=folder, preexec_fn=folder.rmdir)

        assert done.returncode == 1
        assert done.stderr == "error: the current folder was removed\n\nhint: cd to one that is there\n"

    def test_traceback_for_those_who_ask(self, tmp_path: Path) -> None:
        done = run("add", "net.onnx", "--debug", cwd=tmp_path)

        assert done.returncode == 1
        assert "Traceback (most recent call last)" in done.stderr
        assert "ModelError: net.onnx does not exist" in done.stderr

    def test_debug_keeps_the_exit_code_and_the_message(self, tmp_path: Path) -> None:
        done = run("show", "..", "--debug", cwd=tmp_path)

        assert done.returncode == 2
        assert "Traceback (most recent call last)" in done.stderr
        assert "\nerror: '..' is not a model name\n\nhint: " in done.stderr
        assert run("list", "--nonsense", "--debug", cwd=tmp_path).returncode == 2

    @pytest.mark.parametrize("buffered", [True, False])
    @pytest.mark.parametrize("arguments", [["list", "--json"], ["--help"], ["--version"]])
    def test_an_output_that_can_not_be_written(self, arguments: list[str], buffered: bool, tmp_path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(repo_builder.__file__).parents[1])}
        environment |= {"PYTHONUNBUFFERED": "" if buffered else "1"}
        command = [sys.executable, "-m", "repo_builder", *arguments]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 1
        assert done.stderr == (
            "error: can't write to standard output: No space left on device\n\n"
            "hint: free some space, or send the output elsewhere\n"
        )

    def test_a_reader_that_goes_away(self, tmp_path: Path) -> None:
        for number in range(40):
            (tmp_path / "model_repository" / f"model_{number}").mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(Path(repo_builder.__file__).parents[1])}
        command = [sys.executable, "-u", "-m", "repo_builder", "list"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""


class TestErrorBoundary:
    def answer(
        self, error: BaseException, cli: Cli, monkeypatch: pytest.MonkeyPatch, *arguments: str
    ) -> tuple[int, str]:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(module, "app", fail)
        result = cli(*arguments)
        assert result.out == ""
        return result.code, result.err

    def test_errors_on_purpose(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.answer(ModelError("what", "how"), cli, monkeypatch) == (1, "error: what\n\nhint: how\n")
        assert self.answer(ModelError("what"), cli, monkeypatch) == (1, "error: what\n")

    def test_a_missing_extra_names_the_pip_command(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = self.answer(MissingExtraError("server", "onnxruntime"), cli, monkeypatch)

        assert code == 1
        assert text == "error: onnxruntime is not installed\n\nhint: pip install 'repo-builder[server]'\n"

    def test_one_line_whatever_is_in_it(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        _, text = self.answer(ModelError("a\nb\x1b[31m\u2028\udcff", "c\rd"), cli, monkeypatch)

        assert text == "error: a\\nb\\x1b[31m\\u2028\\udcff\n\nhint: c\\rd\n"

    def test_our_own_mistakes(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = self.answer(KeyError("x"), cli, monkeypatch)

        assert code == 1
        assert text.startswith("error: unexpected KeyError: 'x'\n")
        assert "--debug" in text

    def test_too_little_memory_is_no_mistake_of_ours(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = self.answer(MemoryError("Unable to allocate 9 TiB"), cli, monkeypatch)

        assert code == 1
        assert text.startswith("error: not enough memory: Unable to allocate 9 TiB\n\nhint: ")

    def test_interrupted(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = self.answer(KeyboardInterrupt(), cli, monkeypatch)

        assert code == 130
        assert "interrupted" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5 * 10**9, "5.0 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes_for_a_person(count: int, text: str) -> None:
    assert human_size(count) == text


def test_text_for_a_terminal() -> None:
    assert printable('ä "画像" \\') == 'ä "画像" \\'
    assert printable("a\tb\0\x7f\u202e") == "a\\tb\\x00\\x7f\\u202e"

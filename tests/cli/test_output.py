"""What a person watching sees: progress on a terminal and in a log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Callable

import pytest

from repo_builder.cli.output import LiveLine, Steps

PATH = "reading /data/models/" + "deep/" * 20 + "model.onnx"


def shown_on_a_terminal(columns: int, talk: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``talk`` writes to stderr where that is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        talk()
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # which ends what was written
        while chunk := screen.read(4096):
            shown += chunk
    return shown.decode()


@pytest.mark.parametrize(
    ("error", "how"), [(None, ""), (KeyboardInterrupt(), "stopped after "), (ValueError(), "failed after ")]
)
def test_how_a_step_ended(error: BaseException | None, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), Steps() as progress:
        progress("building the engine (last time 100 s)")
        if error:
            raise error
    line = capsys.readouterr().err
    assert re.fullmatch(rf"  building the engine \(last time 100 s\) +{how}0\.0 s\n", line)
    assert len(line) == 80


@pytest.mark.parametrize("columns", [40, 80, 132])
def test_a_line_that_is_written_over_keeps_to_one_row(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal's ``\\r`` goes to the start of the last row only."""

    def talk() -> None:
        with Steps() as progress:
            progress(PATH)
            progress(f"{PATH}\tstopping (^C again: now)")
        with LiveLine() as line:
            line(PATH)

    written = shown_on_a_terminal(columns, talk, monkeypatch)
    begun, going, ended, live = written.split("\r\x1b[K")[1:]
    assert all(len(line.rstrip("\r\n")) < columns for line in (begun, going, live))
    assert begun.startswith("  reading ")
    assert begun.endswith(" ...")
    assert going.endswith(" ... 0 s")
    assert ended.startswith(f"  {PATH} 0.0 s")

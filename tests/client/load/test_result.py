"""Where results are written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client.errors import ClientError
from client.load.result import write_text


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text("before")
    write_text(file, "after \udcff", "--output")
    assert file.read_text() == "after \\udcff"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_pipe_or_device_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text", "--output")
    reader.join(10)
    assert got == ["text"]
    assert pipe.is_fifo()


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("first", "second"):
        write_text(link, text, "--output")
        assert link.is_symlink()
        assert file.read_text() == text


def test_stdout_stays_what_it_is_where_it_is_a_file(tmp_path: Path) -> None:
    code = "from client.load.result import *; write_text(Path('/dev/fd/1'), 'text', '--output')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        out.seek(0, os.SEEK_END)
        assert out.tell() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_takes_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="can't be written") as caught:
        write_text(tmp_path, "text", "--output")
    assert caught.value.hint == "another file with --output"

"""The timing cache's file; that TensorRT uses what is in it is tested on a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.compilers.base import Target
from repo_builder.errors import UsageError
from repo_builder.trt.build import TimingCache
from repo_builder.trt.library import Library
from tests.conftest import SmallDisk
from tests.support import fill


class FakeConfig:
    """A builder's configuration that takes any timing cache, as bytes."""

    def __init__(self) -> None:
        self.cache = b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:  # noqa: ARG002
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"more")


def open_cache(path: Path | None) -> TimingCache:
    library = Library(SimpleNamespace(__version__="10.0.0"), Target.TENSORRT)
    return TimingCache(library, FakeConfig(), None, path)


def test_it_is_kept_for_the_next_build(tmp_path: Path) -> None:
    path = tmp_path / "folder/t.cache"
    first = open_cache(path)
    first.save()
    second = open_cache(path)
    second.save()

    assert (first.hit, second.hit) == (False, True)
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("t.cache", b"moremore")]


def test_a_link_to_it_stays_one(tmp_path: Path) -> None:
    (tmp_path / "t.cache").symlink_to("real.cache")
    open_cache(tmp_path / "t.cache").save()

    assert (tmp_path / "t.cache").is_symlink()
    assert (tmp_path / "real.cache").read_bytes() == b"more"


@pytest.mark.parametrize("place", ["", "file/t.cache", "pipe"])
def test_one_that_can_not_be_used_is_told_before_the_build(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(UsageError, match=r"--timing-cache .* can't be used: ") as caught:
        open_cache(tmp_path / place)

    assert "leave the flag out" in str(caught.value.hint)


def test_nobody_hears_of_one_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "repo-builder").mkdir()
    (tmp_path / "repo-builder/timing").touch()
    cache = open_cache(None)
    cache.save()

    assert not cache.hit
    assert cache.path.parent == tmp_path / "repo-builder/timing"


def test_a_full_disk_costs_the_cache_and_not_the_build(small_disk: SmallDisk) -> None:
    disk = small_disk(16)
    cache = open_cache(disk / "t.cache")
    fill(disk)

    said = cache.save()

    assert said.startswith(f"the timing cache {disk / 't.cache'} can't be written: No space left on device")
    assert [file.name for file in disk.iterdir()] == ["full"]

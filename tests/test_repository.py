"""The repository on disk: read by anyone, changed by one step or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repo_builder import staging
from repo_builder.errors import RepositoryError, UsageError
from repo_builder.repository import Model, Repository, check_name, parse_reference
from tests.conftest import SmallDisk
from tests.publishing import publish
from tests.support import snapshot, untouched


def foreign(root: Path, name: str = "theirs", *versions: str) -> Path:
    """A model that another tool made: no manifest, no copies of the config."""
    folder = root / name
    for version in versions or ("1",):
        (folder / version).mkdir(parents=True)
        (folder / version / "model.plan").write_text(version)
    (folder / "config.pbtxt").write_text("theirs")
    return folder


def fails_with(number: int) -> Callable[..., None]:
    """A call of the system that fails with this errno."""

    def raise_it(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


@pytest.mark.parametrize("name", ["a", "resnet50", "a.b-c_d", "_x", "0", "a" * 200])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-flag",
        "a/b",
        "a\\b",
        "../a",
        "a b",
        'a"b',
        "a'b",
        "a\n",
        "ä",
        "a@1",
        "a\0",
        "a" * 201,
    ],
)
def test_names_fit_for_no_folder_url_or_config(name: str) -> None:
    with pytest.raises(UsageError, match="is not a model name") as caught:
        check_name(name)
    assert "--name" in str(caught.value.hint)


def test_references() -> None:
    assert parse_reference("net") == ("net", None)
    assert parse_reference("net@12") == ("net", 12)
    assert parse_reference("net@012") == ("net", 12)
    for wrong in ("net@", "net@0", "net@x", "net@-1", "net@1@2", "@1", "net@²", "net@" + "1" * 5000):
        with pytest.raises(UsageError):
            parse_reference(wrong)


class TestPublish:
    def test_first(self, repository: Path) -> None:
        assert publish(repository, **{"labels.txt": "a\nb\n"}) == 1

        assert {path: entry[2] for path, entry in snapshot(repository).items() if entry[0] == "file"} == {
            "net/config.pbtxt": b"one",
            "net/labels.txt": b"a\nb\n",
            "net/1/config.pbtxt": b"one",
            "net/1/labels.txt": b"a\nb\n",
            "net/1/model.onnx": b"weights of one",
            "net/1/manifest.json": b'{"schema": 1, "version": 1}',
        }

    def test_next_leaves_older_versions_as_they_were(self, repository: Path) -> None:
        publish(repository)
        before = snapshot(repository / "net/1")
        times = {path: path.stat().st_mtime_ns for path in (repository / "net/1").iterdir()}

        assert publish(repository, config="two") == 2

        assert snapshot(repository / "net/1") == before
        assert {path: path.stat().st_mtime_ns for path in (repository / "net/1").iterdir()} == times
        assert (repository / "net/config.pbtxt").read_text() == "two"

    def test_numbers_go_on_from_the_highest(self, repository: Path) -> None:
        foreign(repository, "net", "3", "7")

        assert publish(repository) == 8

    def test_takes_no_more_disk_for_older_versions(self, repository: Path) -> None:
        publish(repository)
        inode = (repository / "net/1/model.onnx").stat().st_ino
        publish(repository)

        assert (repository / "net/1/model.onnx").stat().st_ino == inode

    def test_on_a_filesystem_without_hard_links(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(repository)
        before = snapshot(repository / "net/1")
        monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
        publish(repository)

        assert snapshot(repository / "net/1") == before

    def test_on_a_filesystem_that_can_not_exchange_folders(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository)
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)

        assert publish(repository, config="two") == 2

        assert sorted(entry.name for entry in (repository / "net").iterdir()) == ["1", "2", "config.pbtxt"]
        assert sorted(entry.name for entry in repository.parent.iterdir()) == ["model_repository"]

    def test_that_fails_there_between_two_renames(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename

        def fail(old: Path, new: Path) -> Path:
            if old.name == "tree":
                raise OSError(errno.EIO, "Input/output error")
            return rename(old, new)

        publish(repository)
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", fail)

        with untouched(repository.parent), pytest.raises(RepositoryError, match="Input/output error"):
            publish(repository, config="two")

    def test_files_that_are_gone_from_the_model_go(self, repository: Path) -> None:
        publish(repository, **{"labels.txt": "a"})
        publish(repository)

        assert not (repository / "net/labels.txt").exists()
        assert (repository / "net/1/labels.txt").exists()

    def test_keeps_what_others_put_beside_the_versions(self, repository: Path) -> None:
        publish(repository)
        net = repository / "net"
        (net / "README.md").write_text("mine")
        (net / "notes").mkdir()
        (net / "notes/a.txt").write_text("mine too")
        (net / "link").symlink_to("notes/a.txt")
        (net / "folder_link").symlink_to("notes")
        (net / "01").mkdir()
        net.chmod(0o750)
        strays = {
            path: entry for path, entry in snapshot(net).items() if path.split("/")[0] not in {"1", "config.pbtxt"}
        }

        publish(repository, config="two")

        after = snapshot(net)
        assert {path: after.get(path) for path in strays} == strays
        assert net.stat().st_mode & 0o777 == 0o750

    def test_leaves_nothing_beside_the_repository(self, repository: Path) -> None:
        publish(repository)

        assert [entry.name for entry in repository.parent.iterdir()] == ["model_repository"]

    def test_makes_the_folders_above_too(self, tmp_path: Path) -> None:
        publish(tmp_path / "a/b/models")

        assert (tmp_path / "a/b/models/net/1").is_dir()

    @pytest.mark.parametrize("where", [".", "..", "../models", "models/../models"])
    def test_relative_paths(self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Staging is beside the repository, not in it, whatever it is called."""
        cwd = tmp_path / "models" / "net"
        cwd.mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "models" if where == "." else cwd if where.startswith("..") else tmp_path)
        root = (Path.cwd() / where).resolve()
        with Repository(where).staging() as staged:
            assert root not in staged.parents
            assert staged.parent == root.parent

    def test_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk/models").mkdir(parents=True)
        (tmp_path / "models").symlink_to("disk/models")

        publish(tmp_path / "models")

        assert (tmp_path / "models").is_symlink()
        assert (tmp_path / "disk/models/net/1").is_dir()

    def test_a_name_with_glob_characters(self, tmp_path: Path) -> None:
        other = tmp_path / ".models1.staging-x"
        other.mkdir()

        publish(tmp_path / "models[1]")

        assert other.is_dir()

    def test_a_file_in_the_models_place_is_not_replaced(self, repository: Path) -> None:
        repository.mkdir()
        (repository / "net").write_text("mine")

        with untouched(repository), pytest.raises(RepositoryError, match="in the way"):
            publish(repository)

    def test_what_fails_in_the_last_step_changes_nothing(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository)
        monkeypatch.setattr(staging, "_exchange", fails_with(errno.EIO))

        with untouched(repository.parent), pytest.raises(RepositoryError, match="Input/output error"):
            publish(repository, config="two")

    def test_what_was_replaced_there_is_never_brought_back(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository)
        with monkeypatch.context() as killed:
            killed.setattr(staging, "_exchange", lambda *_: False)
            killed.setattr(shutil, "rmtree", lambda *_, **__: None)
            publish(repository, config="two")
        (repository / "net").rename(repository.parent / "taken away")

        publish(repository, "other")

        assert [entry.name for entry in repository.iterdir()] == ["other"]

    def test_a_failure_before_the_first_file_leaves_no_folder(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = os.open

        def fail(path: str | Path, *arguments: int, **named: int) -> int:
            if Path(path).name == staging.LOCK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return make(path, *arguments, **named)

        publish(repository)
        monkeypatch.setattr(os, "open", fail)

        with untouched(repository.parent), pytest.raises(RepositoryError, match="is full; nothing was changed"):
            publish(repository, config="two")

    def test_a_failure_leaves_none_of_the_folders_it_made(self, tmp_path: Path) -> None:
        with untouched(tmp_path), pytest.raises(ZeroDivisionError), Repository(tmp_path / "a/b/models").staging():
            _ = 1 / 0

    def test_a_failure_leaves_folders_that_another_uses_by_now(self, tmp_path: Path) -> None:
        def fail() -> None:
            with Repository(tmp_path / "a/models").staging():
                publish(tmp_path / "a/others")
                raise RepositoryError("later")

        with pytest.raises(RepositoryError, match="later"):
            fail()

        assert [path.name for path in (tmp_path / "a").iterdir()] == ["others"]


class TestKilled:
    """A process that is gone from one moment to the next, at the worst of moments."""

    @pytest.mark.parametrize("moment", ["staging", "finish", "_keep", "put", "_exchange", "rmtree"])
    def test_leaves_the_repository_as_it_was_or_as_it_should_be(self, moment: str, repository: Path) -> None:
        publish(repository)
        before = snapshot(repository)

        killed = self.run(repository, moment)

        assert killed.returncode == -9
        if moment == "rmtree":
            assert (repository / "net/config.pbtxt").read_text() == "two"
        else:
            assert snapshot(repository) == before
        assert len(list(repository.parent.glob(".*.staging-*"))) == 1, "it cleared its staging folder away"
        publish(repository, config="three")
        assert [entry.name for entry in repository.parent.iterdir()] == ["model_repository"]

    def test_between_two_renames_the_model_comes_back(self, repository: Path) -> None:
        """Only where the filesystem can't exchange folders."""
        publish(repository)
        before = snapshot(repository)

        assert self.run(repository, "rename").returncode == -9
        assert not (repository / "net").exists()
        with Repository(repository).staging():
            assert snapshot(repository) == before

    def run(self, repository: Path, moment: str) -> subprocess.CompletedProcess[str]:
        code = f"""
import os, pathlib, shutil, signal, sys
from repo_builder import repository, staging
from tests import publishing
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
moment = {moment!r}
if moment == "staging":
    repository.Repository.publish = die
elif moment == "finish":
    publishing.json.dumps = die
elif moment == "rmtree":
    staging.shutil.rmtree = die
elif moment == "rename":
    staging._exchange = lambda *_: False
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda old, new: die() if old.name == "tree" else rename(old, new)
else:
    setattr(repository if hasattr(repository, moment) else staging, moment, die)
publishing.publish(pathlib.Path({str(repository)!r}), config="two")
"""
        root = Path(staging.__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )


def test_a_living_process_keeps_its_staging_folder(repository: Path) -> None:
    with Repository(repository).staging() as staged:
        publish(repository)
        assert staged.is_dir()


def test_processes_that_begin_together_get_a_version_each(repository: Path) -> None:
    code = f"import pathlib; from tests.publishing import publish; publish(pathlib.Path({str(repository)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(staging.__file__).parents[1])}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]

    assert [process.wait() for process in running] == [0] * 4
    assert Repository(repository).find("net").versions == (1, 2, 3, 4)
    assert [entry.name for entry in repository.parent.iterdir()] == ["model_repository"]


class TestRemove:
    def test_a_model(self, repository: Path) -> None:
        publish(repository, "net")
        publish(repository, "other")

        Repository(repository).remove("net")

        assert [model.name for model in Repository(repository).models()] == ["other"]
        assert [entry.name for entry in repository.parent.iterdir()] == ["model_repository"]

    @pytest.mark.parametrize("name", [staging.ASIDE, staging.LOCK])
    def test_a_model_called_like_something_staged(
        self, name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository, name)
        with monkeypatch.context() as killed:
            killed.setattr(shutil, "rmtree", lambda *_, **__: None)
            Repository(repository).remove(name)

        publish(repository, "other")

        assert [entry.name for entry in repository.iterdir()] == ["other"]

    def test_the_latest_version_brings_the_earlier_config_and_labels_back(self, repository: Path) -> None:
        publish(repository, **{"labels.txt": "first"})
        before = snapshot(repository)
        publish(repository, config="two", **{"labels.txt": "second", "README": "beside"})
        (repository / "net/README").unlink()

        Repository(repository).remove("net", 2)

        assert snapshot(repository) == before

    def test_the_config_of_another_tool_comes_back_too(self, repository: Path) -> None:
        folder = foreign(repository, "theirs", "1", "2")
        (folder / "labels.txt").write_text("of theirs")
        before = snapshot(folder)
        publish(repository, "theirs", config="ours")

        Repository(repository).remove("theirs", 3)

        kept = {"2/config.pbtxt", "2/labels.txt"}
        assert {path: data for path, data in snapshot(folder).items() if path not in kept} == before

    def test_labels_that_the_earlier_version_did_not_have_go(self, repository: Path) -> None:
        publish(repository)
        before = snapshot(repository)
        publish(repository, config="two", **{"labels.txt": "second"})

        Repository(repository).remove("net", 2)

        assert snapshot(repository) == before

    def test_an_older_version_leaves_the_config(self, repository: Path) -> None:
        publish(repository)
        publish(repository, config="two", **{"labels.txt": "second"})
        (repository / "net/README").write_text("mine")
        (repository / "net/config.pbtxt").write_text("edited")

        Repository(repository).remove("net", 1)

        assert sorted(entry.name for entry in (repository / "net").iterdir()) == [
            *("2", "README", "config.pbtxt", "labels.txt")
        ]
        assert (repository / "net/config.pbtxt").read_text() == "edited"

    def test_the_last_version_takes_the_model_with_it(self, repository: Path) -> None:
        publish(repository)

        Repository(repository).remove("net", 1)

        assert list(repository.iterdir()) == []

    def test_a_config_edited_by_hand_is_kept_without_force(self, repository: Path) -> None:
        publish(repository)
        publish(repository, config="two")
        (repository / "net/config.pbtxt").write_text("mine")

        with untouched(repository.parent), pytest.raises(RepositoryError, match="edited by hand") as caught:
            Repository(repository).remove("net", 2)
        assert "--force" in str(caught.value.hint)
        Repository(repository).remove("net", 2, force=True)
        assert (repository / "net/config.pbtxt").read_text() == "one"

    def test_a_version_of_another_tool(self, repository: Path) -> None:
        folder = foreign(repository, "theirs", "1", "2")

        Repository(repository).remove("theirs", 2)

        assert sorted(entry.name for entry in folder.iterdir()) == ["1", "config.pbtxt"]
        assert (folder / "config.pbtxt").read_text() == "theirs"

    @pytest.mark.parametrize(
        ("name", "version", "why", "hint"),
        [("other", None, "no model 'other'", "net"), ("net", 3, "no version 3", "1, 2")],
    )
    def test_what_is_not_there(self, name: str, version: int | None, why: str, hint: str, repository: Path) -> None:
        publish(repository)
        publish(repository)

        with untouched(repository.parent), pytest.raises(RepositoryError, match=why) as caught:
            Repository(repository).remove(name, version)
        assert hint in str(caught.value.hint)

    def test_from_a_repository_that_is_not_there(self, tmp_path: Path) -> None:
        with untouched(tmp_path), pytest.raises(RepositoryError, match="no model 'net'"):
            Repository(tmp_path / "nowhere/models").remove("net")


class TestRead:
    def test_nothing_yet(self, repository: Path) -> None:
        store = Repository(repository)

        assert store.models() == []
        assert store.get("net") is None
        assert not repository.exists()

    def test_models_of_another_tool(self, repository: Path) -> None:
        foreign(repository, "theirs", "1", "10")

        (model,) = Repository(repository).models()

        assert (model.name, model.versions, model.latest) == ("theirs", (1, 10), 10)
        assert model.manifest(10) is None
        assert model.config_text == "theirs"
        assert model.size(10) == 2
        assert model.edited_by_hand

    def test_versions_are_folders_with_a_number_that_triton_reads(self, repository: Path) -> None:
        folder = foreign(repository, "net", "2")
        for stray in ("0", "01", "x1", "-1", "1.5", "²", "9" * 30):
            (folder / stray).mkdir()
        (folder / "1").write_text("a file")

        assert Repository(repository).find("net").versions == (2,)

    def test_strays_are_no_models(self, repository: Path) -> None:
        publish(repository)
        (repository / ".git").mkdir()
        (repository / "lost+found").mkdir(mode=0)
        (repository / "README.md").write_text("hello")
        (repository / "circle").symlink_to("circle")

        assert [model.name for model in Repository(repository).models()] == ["net"]

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "theirs"}', '{"schema": 99}', "\ud800"])
    def test_manifests_that_are_not_ours(self, text: str, repository: Path) -> None:
        folder = foreign(repository)
        (folder / "1/manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))

        assert Repository(repository).find("theirs").manifest(1) is None

    def test_a_repository_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("")

        with pytest.raises(RepositoryError, match="is not a folder") as caught:
            Repository(tmp_path / "models")
        assert "--repository" in str(caught.value.hint)

    def test_a_model_that_is_removed_before_it_is_read(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(repository)
        publish(repository, "other")
        self.remove_at(monkeypatch, "iterdir", repository / "net")

        assert [model.name for model in Repository(repository).models()] == ["other"]

    @pytest.mark.parametrize(("ask", "answer"), [(Model.size, 0), (Model.damage, None)])
    def test_a_model_that_is_removed_while_it_is_read(
        self, ask: Callable[[Model, int], object], answer: object, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository)
        (repository / "net/1/manifest.json").write_text('{"schema": 1, "files": {"model.onnx": 14}}')
        model = Repository(repository).find("net")
        self.remove_at(monkeypatch, "stat", repository / "net")

        assert ask(model, 1) == answer

    def remove_at(self, monkeypatch: pytest.MonkeyPatch, call: str, model: Path) -> None:
        """As another process might: at the first ``call`` of a path in the model's folder, before it is made."""
        real = getattr(Path, call)

        def remove_first(path: Path, **named: bool) -> object:
            if path.is_relative_to(model):
                shutil.rmtree(model, ignore_errors=True)
            return real(path, **named)

        monkeypatch.setattr(Path, call, remove_first)

    @pytest.mark.usefixtures("file_modes_hold")
    @pytest.mark.parametrize("what", ["", "net"])
    def test_folders_that_can_not_be_read(self, what: str, repository: Path) -> None:
        publish(repository)
        (repository / what).chmod(0)
        try:
            with pytest.raises(RepositoryError, match="can't be read: Permission denied"):
                Repository(repository).models()
            with pytest.raises(RepositoryError, match="can't be read: Permission denied"):
                Repository(repository).find("net")
        finally:
            (repository / what).chmod(0o755)


class TestEditedByHand:
    def test_as_published(self, repository: Path) -> None:
        publish(repository)

        assert not Repository(repository).find("net").edited_by_hand

    @pytest.mark.parametrize("data", [b"one ", b"", b"\xff"])
    def test_any_other_byte(self, data: bytes, repository: Path) -> None:
        publish(repository)
        (repository / "net/config.pbtxt").write_bytes(data)

        assert Repository(repository).find("net").edited_by_hand

    def test_deleted(self, repository: Path) -> None:
        publish(repository)
        (repository / "net/config.pbtxt").unlink()

        assert not Repository(repository).find("net").edited_by_hand

    def test_written_before_there_is_a_version(self, repository: Path) -> None:
        (repository / "net").mkdir(parents=True)
        (repository / "net/config.pbtxt").write_text("mine")

        assert Repository(repository).find("net").edited_by_hand


class TestDisks:
    def test_full(self, small_disk: SmallDisk) -> None:
        disk = small_disk(256)
        publish(disk / "models")

        with untouched(disk), pytest.raises(RepositoryError, match=r"the disk of .* is full; nothing was changed"):
            publish(disk / "models", config="x" * 400_000)

    def test_full_when_the_first_model_is_added(self, small_disk: SmallDisk) -> None:
        disk = small_disk(256)

        with untouched(disk), pytest.raises(RepositoryError, match="is full"):
            publish(disk / "deep/models", config="x" * 400_000)

    @pytest.mark.parametrize(("version", "left"), [(1, ["2", "config.pbtxt"]), (None, None)])
    def test_full_and_something_is_removed(
        self, version: int | None, left: list[str] | None, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No folder is to be made, which takes a block: only space that is given back helps."""
        publish(repository)
        publish(repository, config="two")
        beside = set(repository.parent.iterdir())
        monkeypatch.setattr(os, "mkdir", fails_with(errno.ENOSPC))

        Repository(repository).remove("net", version)

        folder = repository / "net"
        assert (sorted(entry.name for entry in folder.iterdir()) if folder.exists() else None) == left
        assert set(repository.parent.iterdir()) == beside

    def test_a_killed_removal_is_finished_by_the_next_change(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(repository)
        (repository / "net/aside/mine").mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            Repository(repository).remove("net")
        beside = set(repository.parent.iterdir())

        assert publish(repository, "other") == 1

        assert [entry.name for entry in repository.iterdir()] == ["other"]
        assert len(beside - set(repository.parent.iterdir())) == 1

    def test_full_in_the_last_step(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What copies a folder gathers its errors into one of another kind."""
        publish(repository)
        monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
        monkeypatch.setattr(shutil, "copy2", fails_with(errno.ENOSPC))

        with untouched(repository.parent), pytest.raises(RepositoryError, match="is full; nothing was changed"):
            publish(repository, config="two")

    @pytest.mark.parametrize("bound", [False, True])
    def test_a_repository_that_is_a_mount_point(self, bound: bool, small_disk: SmallDisk) -> None:
        """Be it of a filesystem of its own, or of a folder of the same one: no rename goes into it."""
        disk = small_disk(256)
        repository = disk
        if bound:
            repository = disk / "mounted"
            repository.mkdir()
            (disk / "volume").mkdir()
            subprocess.run(["mount", "--bind", disk / "volume", repository], check=True)
        try:
            beside = set(repository.parent.iterdir())
            assert publish(repository) == 1
            assert publish(repository, config="two") == 2
            assert publish(repository, "other") == 1
            Repository(repository).remove("other")
            Repository(repository).remove("net", 1)

            assert [entry.name for entry in repository.iterdir()] == ["net"]
            assert sorted(entry.name for entry in (repository / "net").iterdir()) == ["2", "config.pbtxt"]
            assert (repository / "net/config.pbtxt").read_text() == "two"
            assert set(repository.parent.iterdir()) == beside
            with untouched(repository), pytest.raises(RepositoryError, match="is full; nothing was changed"):
                publish(repository, config="x" * 400_000)
        finally:
            if bound:
                subprocess.run(["umount", repository], check=True)

    def test_what_a_killed_process_left_in_a_mount_point_is_cleared(self, small_disk: SmallDisk) -> None:
        disk = small_disk(256)
        publish(disk)
        abandoned = disk / f".{disk.name}.staging-killed"
        (abandoned / "aside").mkdir(parents=True)
        (abandoned / "lock").touch()
        (disk / "net").rename(abandoned / "aside/net")

        assert Repository(disk).models() == []
        assert publish(disk, config="two") == 2

        assert [entry.name for entry in disk.iterdir()] == ["net"]
        assert sorted(entry.name for entry in (disk / "net").iterdir()) == ["1", "2", "config.pbtxt"]

    @pytest.mark.usefixtures("file_modes_hold")
    @pytest.mark.parametrize(("what", "hint"), [("repository", "check perm"), ("beside", "{}, which .* be writable")])
    def test_read_only(self, what: str, hint: str, repository: Path) -> None:
        publish(repository, "net")
        folder = repository if what == "repository" else repository.parent
        folder.chmod(0o555)
        try:
            with (
                untouched(repository.parent),
                pytest.raises(RepositoryError, match=r"can't write to .*Permission denied") as caught,
            ):
                publish(repository, "other")
        finally:
            folder.chmod(0o755)
        assert re.match(hint.format(folder), str(caught.value.hint))


def test_waiting_for_the_lock_is_no_failure(repository: Path) -> None:
    """Two that publish at once wait for each other."""
    store = Repository(repository)
    with store.staging(), staging.locked(repository):
        code = f"import pathlib; from tests.publishing import publish; publish(pathlib.Path({str(repository)!r}))"
        environment = {**os.environ, "PYTHONPATH": str(Path(staging.__file__).parents[1])}
        waiting = subprocess.Popen([sys.executable, "-c", code], env=environment)
        time.sleep(0.3)
        assert waiting.poll() is None
        assert not repository.exists()
    assert waiting.wait() == 0
    assert Repository(repository).find("net").versions == (1,)

"""``list``, ``show`` and ``remove``, for people and for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from repo_builder import BuildOptions, ServingOptions, Target, add_model
from repo_builder.repository import Repository
from tests.conftest import Cli, SmallDisk
from tests.models import linear, save
from tests.support import snapshot, untouched


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Two versions of ``net``, and ``theirs``, which another tool made."""
    source = save(linear(), tmp_path / "source/net.onnx")
    repository = tmp_path / "model_repository"
    for size in (2, 4):
        options = ServingOptions(max_batch_size=size)
        add_model(source, repository=repository, build=BuildOptions(target=Target.ONNXRUNTIME), serving=options)
    (repository / "theirs/1").mkdir(parents=True)
    (repository / "theirs/1/model.plan").write_bytes(bytes(1500))
    (repository / "theirs/config.pbtxt").write_text('platform: "tensorrt_plan"\n', encoding="utf-8")
    return repository


class TestList:
    @pytest.mark.usefixtures("published")
    def test_for_a_person(self, cli: Cli) -> None:
        result = cli("list")

        assert result.code == 0
        assert result.err == ""
        header, net, theirs = (line.split("  ") for line in result.out.splitlines())
        assert [cell.strip() for cell in header if cell] == [
            "NAME",
            "VERSIONS",
            "PLATFORM",
            "MAX BATCH",
            "SIZE",
            "VERIFIED",
        ]
        cells = [cell.strip() for cell in net if cell]
        assert [*cells[:4], cells[5]] == ["net", "1,2", "onnxruntime_onnx", "4", "yes"]
        assert [cell.strip() for cell in theirs if cell] == ["theirs", "1", "?", "?", "1.5 kB", "?"]

    def test_for_a_program(self, published: Path, cli: Cli) -> None:
        net, theirs = cli("list", "--json").json

        assert net["versions"] == [1, 2]
        assert (net["platform"], net["max_batch_size"], net["verified"]) == ("onnxruntime_onnx", 4, True)
        size = sum(path.stat().st_size for path in (published / "net").glob("*/*") if path.is_file())
        assert net["size"] == size
        assert theirs == {
            "name": "theirs",
            "versions": [1],
            "platform": None,
            "max_batch_size": None,
            "size": 1500,
            "verified": None,
            "damaged": {},
        }

    def test_damaged_versions_are_marked(self, published: Path, cli: Cli) -> None:
        (published / "net/1/model.onnx").unlink()
        (published / "net/2/model.onnx").write_bytes(b"cut short")
        size = json.loads((published / "net/2/manifest.json").read_text())["files"]["model.onnx"]

        result = cli("list")

        assert result.code == 0
        row = result.out.splitlines()[1]
        assert row.startswith("net     1,2 (1,2 DAMAGED)  onnxruntime_onnx ")
        assert row.endswith("  NO")
        again = "; repo-builder add publishes the model again"
        assert result.err.splitlines() == [
            f"warning: net@1 is damaged: model.onnx is missing{again}",
            f"warning: net@2 is damaged: model.onnx is 9 bytes long instead of {size}{again}",
        ]
        assert cli("list", "--json").json[0]["damaged"] == {
            "1": "model.onnx is missing",
            "2": f"model.onnx is 9 bytes long instead of {size}",
        }

    def test_what_a_killed_add_left_is_told(self, published: Path, cli: Cli) -> None:
        killed = published.with_name(f".{published.name}.staging-killed")
        killed.mkdir()
        (killed / "lock").touch()
        with untouched(published.parent):
            told = f"{killed} was left by an add that was killed"
            assert cli("list").err == f"note: {told}; the next one clears it away\n"
            found = {finding["text"]: finding["level"] for finding in cli("doctor", "--json").json["findings"]}
        assert found[told] == "warning"

        with Repository(published).staging() as alive:
            assert not killed.exists()
            assert alive.exists()
            assert cli("list").err == ""

    def test_a_link_that_leads_nowhere_is_told(self, published: Path, cli: Cli) -> None:
        (published / "lost").symlink_to("nowhere")
        told = f"{Path(published.name) / 'lost'} leads to nowhere, which is not there"
        assert told in cli("list").err
        found = {finding["text"]: finding["level"] for finding in cli("doctor", "--json").json["findings"]}
        assert [level for text, level in found.items() if text.startswith(told)] == ["wrong"]
        assert told in cli("serve", "--engine", "local").error

    @pytest.mark.parametrize("made", [True, False])
    def test_of_nothing(self, made: bool, cli: Cli, tmp_path: Path) -> None:
        if made:
            (tmp_path / "model_repository").mkdir()

        result = cli("list")

        assert (result.code, result.out) == (0, "")
        assert "add one: repo-builder add MODEL.onnx --repository model_repository\n" in result.err
        assert cli("list", "--json").json == []
        assert (tmp_path / "model_repository").exists() == made

    def test_of_another_repository(self, published: Path, cli: Cli, tmp_path: Path) -> None:
        published.rename(tmp_path / "elsewhere")

        assert len(cli("list", "--repository", "elsewhere", "--json").json) == 2

    def test_of_what_is_no_repository(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "model_repository").write_text("")

        assert "is not a folder" in cli("list").error

    def test_strange_names_stay_on_their_line(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "model_repository/a\nb\x1b[31m/1").mkdir(parents=True)

        assert cli("list").out.splitlines()[1].startswith(r"a\nb\x1b[31m  1 ")
        assert [line for line in cli("doctor").out.splitlines() if r"  model a\nb\x1b[31m  " in line]

    def test_strange_names_are_json(self, cli: Cli, tmp_path: Path) -> None:
        name = os.fsdecode(b"\xc3\xbc\n\xc2\x9b1m\xff")
        (tmp_path / "model_repository" / name).mkdir(parents=True)

        result = cli("list", "--json")

        assert r'"name": "ü\n\u009b1m\udcff"' in result.out
        assert result.json[0]["name"] == name

    def test_of_a_mount_point(self, cli: Cli, small_disk: SmallDisk, tmp_path: Path) -> None:
        disk = small_disk(512)
        save(linear(), tmp_path / "net.onnx")

        assert cli("add", "net.onnx", "--target", "onnxruntime", "-r", disk).code == 0
        assert [path.name for path in disk.iterdir()] == ["net"]
        assert cli("list", "-r", disk, "--json").json[0]["versions"] == [1]


class TestShow:
    def test_for_a_person(self, published: Path, cli: Cli) -> None:
        result = cli("show", "net")

        assert result.code == 0
        assert result.err == ""
        assert result.out.startswith("net: versions 1, 2\nversion 2, made ")
        assert "  source    net.onnx, SHA-256 " in result.out
        assert "  input     x  FP32 [-1, 4]\n" in result.out
        assert "  output    y  FP32 [-1, 3]\n" in result.out
        assert "  verified  y: largest relative error " in result.out
        text = (published / "net/config.pbtxt").read_text(encoding="utf-8")
        assert result.out.endswith(f"\n# model_repository/net/config.pbtxt\n{text}")

    @pytest.mark.usefixtures("published")
    def test_an_older_version(self, cli: Cli) -> None:
        assert "\nversion 1, made " in cli("show", "net@1").out
        assert "  batching  2: " in cli("show", "net@1").out

    def test_for_a_program(self, published: Path, cli: Cli) -> None:
        shown = cli("show", "net@1", "--json").json

        assert (shown["name"], shown["version"], shown["versions"]) == ("net", 1, [1, 2])
        assert shown["manifest"] == json.loads((published / "net/1/manifest.json").read_text(encoding="utf-8"))
        assert shown["config"] == (published / "net/config.pbtxt").read_text(encoding="utf-8")

    def test_a_config_edited_by_hand(self, published: Path, cli: Cli) -> None:
        (published / "net/config.pbtxt").write_text("# mine\n", encoding="utf-8")

        assert "config.pbtxt was edited by hand since the latest version was published" in cli("show", "net").out

    @pytest.mark.usefixtures("published")
    def test_a_model_of_another_tool(self, cli: Cli) -> None:
        result = cli("show", "theirs")

        assert "version 1 was not made by repo-builder: it has no manifest" in result.out
        assert 'platform: "tensorrt_plan"' in result.out
        assert "edited by hand" not in result.out
        assert cli("show", "theirs", "--json").json["manifest"] is None

    def test_a_model_of_another_tool_with_a_manifest_of_its_own(self, published: Path, cli: Cli) -> None:
        (published / "theirs/1/manifest.json").write_text('{"name": "theirs"}', encoding="utf-8")

        assert "was not made by repo-builder" in cli("show", "theirs").out

    def test_a_damaged_version(self, published: Path, cli: Cli) -> None:
        (published / "net/2/model.onnx").unlink()

        assert "\nDAMAGED: net@2 is damaged: model.onnx is missing; " in cli("show", "net").out
        assert "DAMAGED" not in cli("show", "net@1").out

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ('{"schema": 1, "na', "manifest.json can't be read"),
            ('{"schema": 1, "source": 3}', "manifest.json is not whole"),
            ('{"schema": 1, "files": {"\\u0000": 1}}', "\\x00 is missing"),
        ],
    )
    def test_a_damaged_manifest(self, text: str, why: str, published: Path, cli: Cli) -> None:
        (published / "net/2/manifest.json").write_text(text, encoding="utf-8")

        result = cli("show", "net")

        assert (result.code, result.err) == (0, "")
        assert f"DAMAGED: net@2 is damaged: {why}; " in result.out
        assert "not made by repo-builder" not in result.out
        assert "net     1,2 (2 DAMAGED)" in cli("list").out

    def test_a_model_without_anything(self, published: Path, cli: Cli) -> None:
        (published / "empty").mkdir()

        result = cli("show", "empty")

        assert result.code == 0
        assert "empty: versions none" in result.out
        assert "(none)" in result.out

    def test_a_config_that_a_terminal_would_obey(self, published: Path, cli: Cli) -> None:
        (published / "theirs/config.pbtxt").write_text('\tname: "\x1b[31m\x9b1m\u202e"\n', encoding="utf-8")

        assert cli("show", "theirs").out.endswith('\n\tname: "\\x1b[31m\\x9b1m\\u202e"\n')

    def test_a_config_that_is_not_text(self, published: Path, cli: Cli) -> None:
        (published / "theirs/config.pbtxt").write_bytes(b"\xff")

        assert "(none)" in cli("show", "theirs").out

    @pytest.mark.parametrize(
        ("reference", "why", "hint", "code"),
        [
            ("nothing", "there is no model 'nothing' in model_repository", "models there: net, theirs", 1),
            ("net@3", "model 'net' has no version 3", "its versions: 1, 2", 1),
            ("net@x", "'x' is not a version", "NAME@NUMBER", 2),
            ("../net", "'../net' is not a model name", "NAME or NAME@NUMBER; repo-builder list shows the names", 2),
            ("file", "there is no model 'file' in model_repository", "models there: net, theirs", 1),
        ],
    )
    @pytest.mark.parametrize("command", ["show", "remove"])
    def test_what_is_not_there(
        self, command: str, reference: str, why: str, hint: str, code: int, published: Path, cli: Cli
    ) -> None:
        (published / "file").write_text("")
        with untouched(published.parent):
            result = cli(command, reference)

        assert why in result.error
        assert hint in result.hint
        assert result.code == code


class TestRemove:
    def test_a_version(self, published: Path, cli: Cli) -> None:
        result = cli("remove", "net@2")

        assert (result.code, result.out) == (0, "")
        assert result.err == "removed net@2; versions left: 1\n"
        assert "max_batch_size: 2" in (published / "net/config.pbtxt").read_text(encoding="utf-8")

    def test_a_model(self, published: Path, cli: Cli) -> None:
        assert cli("remove", "net").err == "removed net; no version is left\n"
        assert [path.name for path in published.iterdir()] == ["theirs"]

    @pytest.mark.usefixtures("published")
    def test_for_a_program(self, cli: Cli) -> None:
        assert cli("remove", "net@1", "--json").json == {"removed": "net@1", "versions": [2]}
        assert cli("remove", "net", "--json").json == {"removed": "net", "versions": []}

    def test_keeps_a_config_edited_by_hand(self, published: Path, cli: Cli) -> None:
        (published / "net/config.pbtxt").write_text("# mine\n", encoding="utf-8")
        before = snapshot(published)

        result = cli("remove", "net@2")

        assert "edited by hand" in result.error
        assert "--force" in result.hint
        assert snapshot(published) == before
        assert cli("remove", "net@2", "--force").code == 0

    def test_from_nowhere(self, cli: Cli, tmp_path: Path) -> None:
        with untouched(tmp_path):
            result = cli("remove", "net", "--repository", "not/there")

        assert "there is no model 'net' in not/there" in result.error

"""``verify``: the gate again on what is published, and what must be there for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder import BuildOptions, SampleOptions, ServingOptions, Target, Tolerance, add_model, verify_model
from repo_builder.errors import ModelError, RepositoryError, UsageError, VerificationError
from repo_builder.repository import Repository
from tests.conftest import Cli
from tests.models import linear, lookup, mean_over_rows, save, two_outputs, weights, with_external_data
from tests.support import snapshot, untouched

BUILD = BuildOptions(target=Target.ONNXRUNTIME)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a fixed batch of 1, which ``add`` frees: the artifact is another file than the source."""
    return save(linear(batch=1), tmp_path / "source" / "net.onnx")


def damage(path: Path) -> None:
    """Change the weights of a published model, whose manifest is of the time before it had hashes."""
    proto = onnx.load(path)
    weight = proto.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(weights(*weight.dims, seed=5), weight.name))
    onnx.save(proto, path)
    forget_hashes(path.parent)


def forget_hashes(version: Path) -> None:
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    del manifest["sha256"]
    (version / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_reports_every_output_and_changes_nothing(tmp_path: Path, repository: Path) -> None:
    net = save(two_outputs(), tmp_path / "source" / "net.onnx")
    published = add_model(net, repository=repository, build=BUILD)
    with untouched(tmp_path):
        checked = verify_model("net", repository=repository, source=net)
    assert (checked.name, checked.version, checked.served, checked.joined) == ("net", 1, None, None)
    assert [report.name for report in checked.verification.outputs] == ["scores", "features"]
    assert checked.verification.batch_sizes == (1, 8)
    assert json.loads(json.dumps(published.manifest["verification"]["outputs"]))[0]["elements"] == 27
    assert checked.verification.outputs[0].elements == 27


def test_a_published_source_needs_no_name_and_says_so(tmp_path: Path, repository: Path) -> None:
    add_model(save(linear(), tmp_path / "net.onnx"), repository=repository, build=BUILD)
    checked = verify_model("net", repository=repository)
    assert checked.source == str(repository / "net/1/model.onnx")
    assert "byte for byte" in checked.hints[0]


def test_damage_after_publishing_is_found(source: Path, repository: Path) -> None:
    add_model(source, repository=repository, build=BUILD)
    damage(repository / "net/1/model.onnx")
    with pytest.raises(VerificationError, match="output 'y' is not what ONNX Runtime computes from the source"):
        verify_model("net", repository=repository, source=source)


@pytest.mark.parametrize("served", [None, "http://127.0.0.1:9"])
def test_one_flipped_bit_is_found_before_anything_runs(source: Path, repository: Path, served: str | None) -> None:
    add_model(source, repository=repository, build=BUILD)
    artifact = repository / "net/1/model.onnx"
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.write_bytes(data)

    steps: list[str] = []
    with pytest.raises(VerificationError, match=r"net@1: model\.onnx is another file than the one published") as caught:
        verify_model("net", repository=repository, source=source, served=served, progress=steps.append)
    assert "--force" in (caught.value.hint or "")
    assert not steps


@pytest.mark.usefixtures("file_modes_hold")
def test_every_file_of_a_version_is_held_to_its_hash(tmp_path: Path, repository: Path) -> None:
    net = with_external_data(tmp_path / "source", "weights.bin")
    add_model(net, repository=repository, build=BUILD)
    (repository / "net/1/weights.bin").write_bytes(weights(4, 3, seed=9).tobytes())
    with pytest.raises(VerificationError, match=r"weights\.bin is another file"):
        verify_model("net", repository=repository, source=net)
    (repository / "net/1/weights.bin").chmod(0)
    with pytest.raises(RepositoryError, match=r"weights\.bin can't be read: Permission") as caught:
        verify_model("net", repository=repository, source=net)
    assert caught.value.hint == "check its permissions"
    (repository / "net/1/weights.bin").unlink()
    with pytest.raises(VerificationError, match=r"net@1 is damaged: weights\.bin is missing"):
        verify_model("net", repository=repository, source=net)


def test_a_damaged_source_is_not_taken_for_the_source(tmp_path: Path, repository: Path) -> None:
    add_model(save(linear(), tmp_path / "net.onnx"), repository=repository, build=BUILD)
    damage(repository / "net/1/model.onnx")
    with pytest.raises(UsageError, match="which the repository does not keep"):
        verify_model("net", repository=repository)


def test_the_source_has_to_be_named_and_to_be_the_one(tmp_path: Path, source: Path, repository: Path) -> None:
    add_model(source, repository=repository, build=BUILD)
    with pytest.raises(UsageError, match=r"net@1 was made from 'net.onnx', SHA-256 [0-9a-f]{64}") as caught:
        verify_model("net", repository=repository)
    assert "--source" in (caught.value.hint or "")
    other = save(linear(classes=4), tmp_path / "other" / "net.onnx")
    with pytest.raises(UsageError, match="is not what net@1 was made from"):
        verify_model("net", repository=repository, source=other)
    with pytest.raises(ModelError, match="can't be read"):
        verify_model("net", repository=repository, source=tmp_path / "gone.onnx")


def test_external_data_is_part_of_the_source(tmp_path: Path, repository: Path) -> None:
    net = with_external_data(tmp_path / "source", "weights.bin")
    add_model(net, repository=repository, build=BUILD)
    assert verify_model("net", repository=repository).verification.outputs[0].mismatched == 0
    (net.parent / "weights.bin").write_bytes(weights(4, 3, seed=9).tobytes())
    with pytest.raises(UsageError, match=r"weights\.bin is not what net@1 was made from"):
        verify_model("net", repository=repository, source=net)


def test_every_version_is_held_to_its_own_source(tmp_path: Path, repository: Path) -> None:
    first, second = (save(linear(classes=n), tmp_path / f"{n}" / "net.onnx") for n in (3, 5))
    for net in (first, second):
        add_model(net, repository=repository, build=BUILD)
    assert verify_model("net", 1, repository=repository, source=first).version == 1
    assert verify_model("net", repository=repository, source=second).version == 2
    with pytest.raises(UsageError, match="net@2"):
        verify_model("net", 2, repository=repository, source=first)


def test_a_model_without_a_batch_axis(tmp_path: Path, repository: Path) -> None:
    net = save(mean_over_rows(), tmp_path / "net.onnx")
    add_model(net, repository=repository, build=BUILD)
    assert verify_model("net", repository=repository, source=net).verification.batch_sizes == (0,)


def test_a_batch_size_of_0_that_was_asked_for(source: Path, repository: Path) -> None:
    add_model(source, repository=repository, build=BUILD, serving=ServingOptions(max_batch_size=0))
    assert verify_model("net", repository=repository, source=source).verification.outputs[0].mismatched == 0


def test_ranges_are_remembered_and_files_asked_for_again(tmp_path: Path, repository: Path) -> None:
    net = save(lookup(1000), tmp_path / "net.onnx")
    ranged = BuildOptions(target=Target.ONNXRUNTIME, samples=SampleOptions(ranges={"ids": (0, 9)}))
    add_model(net, repository=repository, build=ranged)
    verify_model("net", repository=repository, source=net)
    np.save(tmp_path / "ids.npy", np.array([[1, 2], [3, 4]]))
    files = SampleOptions(files={"ids": tmp_path / "ids.npy"})
    add_model(net, repository=repository, build=BuildOptions(target=Target.ONNXRUNTIME, samples=files))
    with pytest.raises(UsageError, match="arrays of your own for ids") as caught:
        verify_model("net", repository=repository, source=net)
    assert caught.value.hint == "give them again: --input ids=FILE.npy"
    verify_model("net", repository=repository, source=net, samples=files)


def test_the_published_tolerance_holds_unless_another_is_given(source: Path, repository: Path) -> None:
    loose = BuildOptions(target=Target.ONNXRUNTIME, tolerance=Tolerance(rtol=10, atol=100))
    add_model(source, repository=repository, build=loose)
    damage(repository / "net/1/model.onnx")
    assert verify_model("net", repository=repository, source=source).verification.outputs[0].max_absolute_error > 0.1
    with pytest.raises(VerificationError):
        verify_model("net", repository=repository, source=source, tolerance=Tolerance(rtol=1e-3))


def test_a_model_of_another_tool_or_a_broken_manifest(tmp_path: Path, source: Path, repository: Path) -> None:
    (repository / "theirs/1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="'theirs' has no manifest"):
        verify_model("theirs", repository=repository, source=source)
    with pytest.raises(RepositoryError, match="no model 'nothing'"):
        verify_model("nothing", repository=repository)
    add_model(source, repository=repository, build=BUILD)
    manifest = repository / "net/1/manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["options"]["build"]["samples"]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(RepositoryError, match="not as this version of repo-builder writes it"):
        verify_model("net", repository=repository, source=source)


def test_what_list_calls_damaged_is_told_in_the_same_words(source: Path, repository: Path) -> None:
    add_model(source, repository=repository, build=BUILD)
    version = repository / "net/1"
    forget_hashes(version)
    for file, text in (("model.onnx", "cut short"), ("model.onnx", None), ("manifest.json", "{")):
        (version / file).unlink(missing_ok=True)
        if text is not None:
            (version / file).write_text(text)
        damage = Repository(repository).find("net").damage(1)
        assert damage
        with pytest.raises(VerificationError, match=f"net@1 is damaged: {re.escape(damage)}"):
            verify_model("net", repository=repository, source=source)


class TestCommand:
    def test_for_a_person(self, cli: Cli, source: Path) -> None:
        cli("add", source, "--target", "onnxruntime")
        result = cli("verify", "net", "--source", source)
        assert result.code == 0
        first, header, row = result.out.splitlines()
        assert first == f"net@1 (onnxruntime) agrees with ONNX Runtime on {source} at batch 1, 8"
        assert header.split("  ")[0] == "OUTPUT"
        assert row.split()[0] == "y"
        assert row.split()[-3:] == ["0", "of", "27"]

    def test_for_a_program(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        cli("add", source, "--target", "onnxruntime")
        before = snapshot(tmp_path)
        result = cli("verify", "net@1", "--source", source, "--json")
        assert snapshot(tmp_path) == before
        facts = result.json
        assert (facts["name"], facts["version"], facts["served"], facts["source"]) == ("net", 1, None, str(source))
        [output] = facts["verification"]["outputs"]
        assert {"max_absolute_error", "max_relative_error", "cosine_error", "top1_agreement"} <= set(output)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["net"], 2, "which the repository does not keep"),
            (["net@7"], 1, "has no version 7"),
            (["net@x"], 2, "'x' is not a version"),
            (["net", "--source", "{source}", "--served", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
            (["net", "--source", "{source}", "--served", "ftp://x"], 2, "'ftp://x' is no URL"),
            (["net", "--source", "{source}", "--input", "z=a.npy"], 2, "no input 'z'"),
            (["net", "--source", "{source}", "--rtol", "-1"], 2, "not a tolerance"),
        ],
    )
    def test_misuse(self, cli: Cli, source: Path, arguments: list[str], code: int, message: str) -> None:
        cli("add", source, "--target", "onnxruntime")
        result = cli("verify", *(argument.format(source=source) for argument in arguments))
        assert message in result.error
        assert result.code == code

    def test_damage_fails_with_exit_code_1(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        cli("add", source, "--target", "onnxruntime")
        damage(tmp_path / "model_repository/net/1/model.onnx")
        result = cli("verify", "net", "--source", source)
        assert result.code == 1
        assert "output 'y' is not what ONNX Runtime computes" in result.error

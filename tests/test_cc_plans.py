"""``--cc-plan``: one version that several machines add their plans to, and what must not be together in one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo_builder import BuildOptions, Published, Repository, ServingOptions, Target, add_model
from repo_builder.cc_plans import filename, plans_of
from repo_builder.compatibility import container_for, find_plans
from repo_builder.config.proto import read_config
from repo_builder.errors import ConfigError, RepositoryError, UsageError
from repo_builder.trt.options import TensorRTOptions
from tests.conftest import Cli
from tests.fake_compiler import A10, H100, RTX_3090, RTX_5090, FakeTensorRT
from tests.models import linear, save
from tests.support import snapshot, untouched

Add = Callable[..., Published]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    return save(linear(), tmp_path / "net.onnx")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTensorRT], FakeTensorRT]:
    """Be on a machine with this GPU and TensorRT from now on."""

    def machine(compiler: FakeTensorRT) -> FakeTensorRT:
        monkeypatch.setattr("repo_builder.add.choose_compiler", lambda *_: (compiler, "asked for"))
        return compiler

    return machine


@pytest.fixture
def add_on(net: Path, repository: Path, machine: Callable[[FakeTensorRT], FakeTensorRT]) -> Add:
    """Run ``add --cc-plan`` on a machine."""

    def add(
        compiler: FakeTensorRT, serving: ServingOptions | None = None, *, force: bool = False, **build: Any
    ) -> Published:
        machine(compiler)
        options = BuildOptions(**{"target": Target.TENSORRT, "cc_plan": True, **build})
        return add_model(net, repository=repository, build=options, serving=serving, force=force)

    return add


def cc_filenames(folder: Path) -> dict[str, str]:
    config = read_config(folder / "config.pbtxt")
    assert config.default_model_filename == ""
    return dict(config.cc_model_filenames)


@pytest.mark.parametrize(
    ("capability", "name"), [("9.0", "model_cc90.plan"), ("10.0", "model_cc100.plan"), ("12.1", "model_cc121.plan")]
)
def test_file_names(capability: str, name: str) -> None:
    assert filename(capability) == name


def test_the_first_plan(add_on: Add) -> None:
    published = add_on(FakeTensorRT(H100))
    folder = published.folder
    assert cc_filenames(folder) == cc_filenames(folder / "1") == {"9.0": "model_cc90.plan"}
    assert not (folder / "1" / "model.plan").exists()
    assert (folder / "1" / "model_cc90.plan").read_bytes().endswith(b"for NVIDIA H100 80GB HBM3")
    assert list(published.manifest["plans"]) == ["9.0"]


def test_a_manifest_that_was_tampered_with_lists_no_plans(add_on: Add) -> None:
    plan = add_on(FakeTensorRT(H100)).manifest["plans"]["9.0"]
    for plans in ({"nine": plan}, {"9.0": {**plan, "engine": None}}, {"9.0": "plan"}, [plan]):
        assert plans_of({"plans": plans}) == ()


def test_plans_of_other_gpus_come_into_the_same_version(add_on: Add, repository: Path) -> None:
    labels = ServingOptions(labels=repository.parent / "labels.txt")
    first = add_on(FakeTensorRT(H100), labels)
    alone = (first.folder / "1" / "model_cc90.plan").read_bytes()
    for gpu in (A10, RTX_5090):
        joined = add_on(FakeTensorRT(gpu), labels)
        assert (joined.version, joined.unchanged) == (1, False)
    names = {"9.0": "model_cc90.plan", "8.6": "model_cc86.plan", "12.0": "model_cc120.plan"}
    assert cc_filenames(first.folder) == cc_filenames(first.folder / "1") == names
    assert (first.folder / "1" / "model_cc90.plan").read_bytes() == alone
    assert (first.folder / "labels.txt").is_file()
    [model] = Repository(repository).models()
    assert model.versions == (1,)
    assert model.damage(1) is None
    assert not model.edited_by_hand


def test_the_manifest_tells_of_every_plan(add_on: Add) -> None:
    add_on(FakeTensorRT(H100))
    published = add_on(FakeTensorRT(A10))
    on_disk = json.loads((published.folder / "1" / "manifest.json").read_text())
    assert on_disk == published.manifest
    assert {plan.capability: (plan.gpu, plan.library, plan.file) for plan in plans_of(on_disk)} == {
        "8.6": ("NVIDIA A10", "TensorRT 10.8.0.43", "model_cc86.plan"),
        "9.0": ("NVIDIA H100 80GB HBM3", "TensorRT 10.8.0.43", "model_cc90.plan"),
    }
    for plan in on_disk["plans"].values():
        assert plan["verification"]["outputs"][0]["name"] == "y"
        assert plan["file"] in on_disk["files"]
    assert on_disk["engine"]["gpu"]["name"] == "NVIDIA A10"


def test_each_machine_recognises_its_own_plan(add_on: Add, repository: Path) -> None:
    add_on(FakeTensorRT(H100))
    add_on(FakeTensorRT(A10))
    before = snapshot(repository)
    for gpu in (H100, A10):
        compiler = FakeTensorRT(gpu)
        assert add_on(compiler).unchanged
        assert compiler.built == 0
    assert snapshot(repository) == before


def test_a_lost_plan_is_built_again_in_a_new_version(add_on: Add) -> None:
    folder = add_on(FakeTensorRT(H100)).folder
    add_on(FakeTensorRT(A10))
    (folder / "1" / "model_cc90.plan").unlink()
    assert add_on(FakeTensorRT(H100)).version == 2
    assert add_on(FakeTensorRT(A10)).version == 2
    assert cc_filenames(folder) == {"9.0": "model_cc90.plan", "8.6": "model_cc86.plan"}


@pytest.mark.parametrize(
    "other",
    [
        {"serving": ServingOptions(instance_count=2)},
        {"tensorrt": TensorRTOptions(fp16=True)},
        {"force": True},
    ],
    ids=["serving", "build", "force"],
)
def test_other_options_begin_a_new_version(add_on: Add, other: dict[str, Any]) -> None:
    add_on(FakeTensorRT(H100))
    published = add_on(FakeTensorRT(A10), **other)
    assert published.version == 2
    assert cc_filenames(published.folder) == {"8.6": "model_cc86.plan"}
    assert cc_filenames(published.folder / "1") == {"9.0": "model_cc90.plan"}


def test_another_source_begins_a_new_version(add_on: Add, net: Path) -> None:
    add_on(FakeTensorRT(H100))
    proto = linear()
    proto.doc_string = "trained again"
    save(proto, net)
    assert add_on(FakeTensorRT(A10)).version == 2


def test_a_source_of_another_file_name_is_the_same(add_on: Add, net: Path, repository: Path) -> None:
    add_on(FakeTensorRT(H100))
    copy = net.rename(net.with_name("copy.onnx"))
    build = BuildOptions(target=Target.TENSORRT, cc_plan=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repo_builder.add.choose_compiler", lambda *_: (FakeTensorRT(A10), ""))
        assert add_model(copy, name="net", repository=repository, build=build).version == 1


def test_an_engine_that_needs_another_config_begins_a_new_version(add_on: Add) -> None:
    add_on(FakeTensorRT(H100))
    assert add_on(FakeTensorRT(A10, largest=4)).version == 2


def test_a_version_without_cc_plan_is_not_joined(add_on: Add) -> None:
    add_on(FakeTensorRT(H100), cc_plan=False)
    assert add_on(FakeTensorRT(H100)).version == 2


def test_gpus_that_triton_can_t_tell_apart_are_refused_before_anything_is_built(add_on: Add, repository: Path) -> None:
    add_on(FakeTensorRT(A10))
    compiler = FakeTensorRT(RTX_3090)
    with untouched(repository.parent), pytest.raises(RepositoryError) as caught:
        add_on(compiler)
    assert compiler.built == 0
    assert str(caught.value) == (
        "net version 1 has a plan for NVIDIA A10, and Triton can't tell that GPU from NVIDIA GeForce RTX 3090: it "
        "chooses by compute capability, 8.6 for both"
    )
    assert "--name" in str(caught.value.hint)


def test_one_plan_for_a_whole_compute_capability_is_not_refused(add_on: Add) -> None:
    options = TensorRTOptions(hardware_compatibility="same_compute_capability")
    add_on(FakeTensorRT(A10), tensorrt=options)
    published = add_on(FakeTensorRT(RTX_3090), tensorrt=options)
    assert [plan.gpu for plan in plans_of(published.manifest)] == [RTX_3090.name]


def test_two_versions_of_tensorrt_are_refused_before_anything_is_built(add_on: Add, repository: Path) -> None:
    add_on(FakeTensorRT(H100))
    compiler = FakeTensorRT(A10, version=(10, 9, 0, 34))
    with untouched(repository.parent), pytest.raises(RepositoryError) as caught:
        add_on(compiler)
    assert compiler.built == 0
    assert "no one container loads both" in str(caught.value)
    assert str(caught.value.hint) == "install TensorRT 10.8.0.43 here, or begin a new version with --force"


def test_an_edited_config_is_not_written_over(add_on: Add, repository: Path) -> None:
    folder = add_on(FakeTensorRT(H100)).folder
    with (folder / "config.pbtxt").open("a") as config:
        config.write("# tuned\n")
    with untouched(repository.parent), pytest.raises(RepositoryError, match="edited by hand"):
        add_on(FakeTensorRT(A10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": Target.TENSORRT_RTX}, "the target is tensorrt-rtx"),
        ({"target": Target.ONNXRUNTIME}, "the target is onnxruntime"),
    ],
)
def test_targets_without_plans_for_a_gpu(add_on: Add, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        add_on(FakeTensorRT(H100, target=settings["target"]), **settings)


def test_a_plan_for_all_gpus_since_ampere_needs_no_other(add_on: Add) -> None:
    with pytest.raises(UsageError, match=r"ampere\+"):
        add_on(FakeTensorRT(H100), tensorrt=TensorRTOptions(hardware_compatibility="ampere_plus"))


@pytest.mark.parametrize(
    ("text", "cc_plan", "message"),
    [
        ('cc_model_filenames { key: "8.6" value: "mine.plan" }', True, "cc_model_filenames names other files"),
        ('cc_model_filenames { key: "8.6" value: "mine.plan" }', False, "cc_model_filenames names other files"),
        ('default_model_filename: "model_cc90.plan"', True, "every GPU that has no plan of its own"),
    ],
)
def test_file_names_of_the_user_are_refused(
    add_on: Add, tmp_path: Path, repository: Path, text: str, cc_plan: bool, message: str
) -> None:
    (tmp_path / "extra.pbtxt").write_text(text)
    with untouched(repository.parent), pytest.raises(ConfigError, match=message):
        add_on(FakeTensorRT(H100), ServingOptions(config=tmp_path / "extra.pbtxt"), cc_plan=cc_plan)


class Meanwhile(FakeTensorRT):
    """Something happens to the repository while it compiles."""

    happens: Callable[[], object]

    def compile(self, *arguments: Any, **options: Any) -> Any:
        self.happens()
        return super().compile(*arguments, **options)


def test_machines_that_build_at_the_same_time_end_up_in_one_version(
    add_on: Add, machine: Callable[[FakeTensorRT], FakeTensorRT]
) -> None:
    slow = Meanwhile(H100)
    slow.happens = lambda: add_on(FakeTensorRT(A10))
    published = add_on(slow)
    assert published.version == 1
    assert set(cc_filenames(published.folder)) == {"8.6", "9.0"}


def test_what_came_meanwhile_from_a_gpu_of_the_same_capability_is_kept(add_on: Add, repository: Path) -> None:
    slow = Meanwhile(RTX_3090)
    slow.happens = lambda: add_on(FakeTensorRT(A10))
    with pytest.raises(RepositoryError, match="can't tell that GPU"):
        add_on(slow)
    assert (repository / "net/1/model_cc86.plan").read_bytes().endswith(b"for NVIDIA A10")


def test_a_version_published_at_the_last_moment_is_not_bypassed(
    add_on: Add, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_on(FakeTensorRT(H100))
    extend = Repository.extend

    def late(*arguments: Any) -> None:
        add_on(FakeTensorRT(H100), force=True)
        extend(*arguments)

    monkeypatch.setattr(Repository, "extend", late)
    with pytest.raises(RepositoryError, match="net was changed while the plan was built"):
        add_on(FakeTensorRT(A10))
    assert sorted(path.name for path in repository.rglob("*.plan")) == ["model_cc90.plan"] * 2


def test_a_failure_at_the_last_moment_changes_nothing(
    add_on: Add, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_on(FakeTensorRT(H100))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repo_builder.repository.put", full)
    with untouched(repository.parent), pytest.raises(RepositoryError, match="disk"):
        add_on(FakeTensorRT(A10))


def test_older_versions_and_strays_stay(add_on: Add, repository: Path) -> None:
    add_on(FakeTensorRT(H100), ServingOptions(instance_count=3))
    folder = add_on(FakeTensorRT(H100)).folder
    (folder / "notes.md").write_text("mine")
    before = snapshot(folder / "1")
    assert add_on(FakeTensorRT(A10)).version == 2
    assert snapshot(folder / "1") == before
    assert (folder / "notes.md").read_text() == "mine"


def test_one_container_for_the_plans_of_a_version(add_on: Add, repository: Path) -> None:
    add_on(FakeTensorRT(H100))
    add_on(FakeTensorRT(A10))
    plans = find_plans(Repository(repository))
    assert [(plan.name, plan.tensorrt, plan.compute_capability) for plan in plans] == [
        ("net/1/model_cc86.plan", (10, 8, 0, 43), "8.6"),
        ("net/1/model_cc90.plan", (10, 8, 0, 43), "9.0"),
    ]
    container = container_for(plans)
    assert container is not None
    assert container.release.name == "25.02"


def test_on_the_command_line(
    net: Path,
    repository: Path,
    cli: Cli,
    machine: Callable[[FakeTensorRT], FakeTensorRT],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("add", "net.onnx", "--target", "tensorrt", "--cc-plan")
    machine(FakeTensorRT(H100))
    monkeypatch.setattr("repo_builder.compilers.container.GPU_DEVICES", (os.devnull,))
    first = cli(*command)
    assert "  plan      9.0  model_cc90.plan, TensorRT 10.8.0.43 on NVIDIA H100 80GB HBM3" in first.err
    assert first.err.endswith("\nnext: repo-builder serve\n")
    monkeypatch.setattr("repo_builder.compilers.container.GPU_DEVICES", ())
    assert cli(*command).err.endswith("\nnext: on a machine with a GPU: repo-builder serve\n")
    machine(FakeTensorRT(A10))
    added = cli(*command)
    assert added.code == 0
    assert "net version 1" in added.err
    assert "  container nvcr.io/nvidia/tritonserver:25.02-py3" in added.err
    shown = [line for line in cli("show", "net").out.splitlines() if line.startswith("  plan ")]
    assert shown == [
        "  plan      8.6  model_cc86.plan, TensorRT 10.8.0.43 on NVIDIA A10",
        "  plan      9.0  model_cc90.plan, TensorRT 10.8.0.43 on NVIDIA H100 80GB HBM3",
    ]
    machine(FakeTensorRT(RTX_3090))
    refused = cli(*command)
    assert refused.code == 1
    assert "can't tell that GPU from NVIDIA GeForce RTX 3090" in refused.error
    assert "--name" in refused.hint

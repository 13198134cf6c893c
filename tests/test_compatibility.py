"""Which container loads which plan, from the table of releases and the heads of plan files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repo_builder.compatibility import (
    container_for,
    containers_for,
    find_plans,
    newest_for_driver,
    parse_version,
    read_plan_version,
    release_of_environment,
    release_of_image,
    releases,
)
from repo_builder.errors import RepositoryError, ServerError
from repo_builder.repository import MANIFEST_SCHEMA, Repository
from repo_builder.servers.images import choose_image


def plan_head(version: tuple[int, ...], tag: bytes = b"ftrt") -> bytes:
    return tag + bytes(20) + bytes(version) + bytes(100)


def put_plan(root: Path, model: str, version: tuple[int, ...], tag: bytes = b"ftrt", **manifest: object) -> None:
    folder = root / model / "1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(plan_head(version, tag))
    (folder / "manifest.json").write_text(json.dumps({"schema": MANIFEST_SCHEMA, **manifest}))


def names(*args: int, version_compatible: bool = False) -> list[str]:
    return [entry.release.name for entry in containers_for(args, version_compatible=version_compatible)]


def test_table_is_in_order_and_complete() -> None:
    known = releases()
    assert [release.name for release in known] == sorted({release.name for release in known})
    assert len({release.server for release in known}) == len(known)
    for release in known:
        assert release.cuda, release
        assert release.tensorrt or not release.tensorrt_certain, release


def test_versions_never_go_back() -> None:
    for before, after in zip(releases(), releases()[1:], strict=False):
        assert parse_version(before.server) < parse_version(after.server)
        assert not after.tensorrt or before.tensorrt <= after.tensorrt, (before, after)
        assert not after.driver or before.driver[:1] <= after.driver[:1], (before, after)


def test_plan_of_an_exact_build_loads_only_where_that_build_is() -> None:
    assert names(10, 14, 1, 48) == ["26.01", "25.12", "25.11"]
    assert names(10, 14, 1, 47) == []
    assert names(9, 0, 0, 1) == []
    assert names() == []


def test_certain_containers_come_before_newer_doubtful_ones() -> None:
    found = containers_for((8, 6, 1, 6))
    assert (found[0].release.name, found[0].doubt) == ("23.06", None)
    assert found[1].release.name == "24.01"
    assert found[1].doubt == "it is not certain that 24.01 has TensorRT 8.6.1.6"


def test_a_version_without_its_build_is_doubtful() -> None:
    assert containers_for((8, 6, 1))[-1].doubt == "only 8.6.1 of the TensorRT version could be compared"


def test_version_compatible_plans_load_in_newer_versions_of_their_major() -> None:
    found = names(10, 13, 2, 6, version_compatible=True)
    assert {"25.08", "25.11", "26.05"} <= set(found)
    assert not {"25.07", "26.07"} & set(found)
    assert not {"23.06", "24.05"} & set(names(8, 6, 1, 2, version_compatible=True)) - {"23.06"}


@pytest.mark.parametrize(
    ("driver", "release"),
    [
        ("580.95.05", "25.11"),
        ("580.82.07", "25.09"),
        ("535.104.05", "23.10"),
        ("610.43", "26.07"),
        ("615.61", "26.09"),
        ("510.47", None),
    ],
)
def test_newest_release_for_a_driver(driver: str, release: str | None) -> None:
    found = newest_for_driver(parse_version(driver))
    assert (found.name if found else None) == release


@pytest.mark.parametrize(
    ("image", "release"),
    [
        ("nvcr.io/nvidia/tritonserver:25.11-py3", "25.11"),
        ("mirror.example/tritonserver:23.04-py3-min", "23.04"),
        ("nvcr.io/nvidia/tritonserver:25.11-trtllm-python-py3", None),
        ("nvcr.io/nvidia/tritonserver:99.99-py3", None),
        ("repo-builder:latest", None),
    ],
)
def test_release_of_an_image(image: str, release: str | None) -> None:
    found = release_of_image(image)
    assert (found.name if found else None) == release


def test_an_image_s_environment_tells_its_release_and_tensorrt() -> None:
    """Words of NVIDIA's images, which images built from them keep."""
    found = release_of_environment(
        ["PATH=/bin", "TRT_VERSION=8.6.1.6+cuda12.0.1.011", "NVIDIA_TRITON_SERVER_VERSION=23.08"]
    )
    assert found is not None
    assert (found.name, found.tensorrt, found.tensorrt_certain) == ("23.08", (8, 6, 1, 6), True)
    other = release_of_environment(["TRT_VERSION=10.9.0.34", "NVIDIA_TRITON_SERVER_VERSION=24.09"])  # an upgraded one
    assert other is not None
    assert other.tensorrt == (10, 9, 0, 34)
    for words in ([], ["TRT_VERSION=10.4.0.26"], ["NVIDIA_TRITON_SERVER_VERSION=24.09"], ["TRT_VERSION"]):
        assert release_of_environment(words) is None


def test_plan_version_is_read_from_the_head(tmp_path: Path) -> None:
    file = tmp_path / "model.plan"
    for content, expected in {
        plan_head((10, 14, 1, 48)): ((10, 14, 1, 48), False),
        plan_head((1, 7, 1, 116), b"vtrt"): ((1, 7, 1, 116), True),
        b"": ((), False),
        b"ftrt": ((), False),
        bytes(200): ((), False),
    }.items():
        file.write_bytes(content)
        assert read_plan_version(file) == expected
    with pytest.raises(FileNotFoundError):
        read_plan_version(tmp_path / "missing")


@pytest.mark.usefixtures("file_modes_hold")
def test_of_a_plan_that_can_not_be_read_the_manifest_tells(tmp_path: Path) -> None:
    folder = tmp_path / "net/1"
    folder.mkdir(parents=True)
    (folder / "model.plan").touch(mode=0)
    (folder / "manifest.json").write_text('{"schema": 1, "tools": {"TensorRT": "10.14.1.48"}}')
    (plan,) = find_plans(Repository(tmp_path))
    assert plan.tensorrt == (10, 14, 1, 48)


def test_one_container_for_all_plans(tmp_path: Path) -> None:
    put_plan(tmp_path, "a", (10, 14, 1, 48))
    put_plan(tmp_path, "b", (10, 14, 1, 48), engine={"gpu": {"compute_capability": "9.0"}})
    plans = find_plans(Repository(tmp_path))
    assert [(plan.model, plan.compute_capability) for plan in plans] == [("a", None), ("b", "9.0")]
    chosen = container_for(plans)
    assert chosen is not None
    assert chosen.release.image == "nvcr.io/nvidia/tritonserver:26.01-py3"
    assert container_for(()) is None


def test_version_compatible_plans_widen_the_choice(tmp_path: Path) -> None:
    options = {"build": {"tensorrt": {"version_compatible": True}}}
    put_plan(tmp_path, "old", (10, 13, 2, 6), options=options)
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    chosen = container_for(find_plans(Repository(tmp_path)))
    assert chosen is not None
    assert chosen.release.name == "26.01"


def test_doubt_about_one_plan_is_doubt_about_the_container(tmp_path: Path) -> None:
    put_plan(tmp_path, "exact", (8, 6, 1, 6))
    folder = tmp_path / "recorded" / "1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"no head")
    (folder / "manifest.json").write_text(json.dumps({"schema": MANIFEST_SCHEMA, "tools": {"TensorRT": "8.6.1"}}))
    chosen = container_for(find_plans(Repository(tmp_path)))
    assert chosen is not None
    assert chosen.doubt


def test_plans_of_two_versions_are_refused_with_the_list(tmp_path: Path) -> None:
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    put_plan(tmp_path, "old", (8, 6, 1, 2))
    with pytest.raises(RepositoryError, match=r"old/1: TensorRT 8\.6\.1\.2; new/1: TensorRT 10\.14\.1\.48") as caught:
        container_for(find_plans(Repository(tmp_path)))
    assert caught.value.hint == (
        "TensorRT 8.6.1.2 is in nvcr.io/nvidia/tritonserver:23.05-py3, TensorRT 10.14.1.48 is in "
        "nvcr.io/nvidia/tritonserver:26.01-py3: keep the plans in a repository for each, or build all with one version"
    )


def test_an_image_that_is_refused_has_a_mend_that_helps(tmp_path: Path) -> None:
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    put_plan(tmp_path, "late", (11, 0, 0, 114))
    image = "nvcr.io/nvidia/tritonserver:25.08-py3"
    with pytest.raises(ServerError, match=r"25\.08-py3 has TensorRT 10\.13\.2\.6 and can't load late/1") as caught:
        choose_image(image, find_plans(Repository(tmp_path)))
    assert str(caught.value.hint).startswith("TensorRT 10.14.1.48 is in nvcr.io/nvidia/tritonserver:26.01-py3, ")
    (tmp_path / "late/1/model.plan").write_bytes(plan_head((10, 14, 1, 48)))
    with pytest.raises(ServerError, match="can't load late/1") as caught:
        choose_image(image, find_plans(Repository(tmp_path)))
    assert caught.value.hint == "--image nvcr.io/nvidia/tritonserver:26.01-py3"


def test_an_unknown_image_can_t_load_plans_of_two_versions(tmp_path: Path) -> None:
    options = {"build": {"tensorrt": {"version_compatible": True}}}
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    put_plan(tmp_path, "compatible", (10, 13, 2, 6), options=options)
    put_plan(tmp_path, "rtx", (1, 7, 1, 116), b"vtrt")
    assert choose_image("mine:1", find_plans(Repository(tmp_path))) == "mine:1"
    put_plan(tmp_path, "old", (8, 6, 1, 6))
    with pytest.raises(RepositoryError, match=r"old/1: TensorRT 8\.6\.1\.6; compatible/1: .*; new/1"):
        choose_image("mine:1", find_plans(Repository(tmp_path)))


def test_plans_that_no_container_loads_are_in_the_list(tmp_path: Path) -> None:
    put_plan(tmp_path, "old", (8, 6, 0, 12))  # 8.6.0 of PyPI
    with pytest.raises(RepositoryError, match=r"known to have the TensorRT of old/1: TensorRT 8\.6\.0\.12") as caught:
        container_for(find_plans(Repository(tmp_path)))
    hint = str(caught.value.hint)
    assert hint.startswith(
        "repo-builder serve --image NAME, or TRITON_IMAGE=NAME in .env, names an image of yours with it"
    )
    assert "such as 8.5.3 (23.02), 8.6.1.2 (23.04), 8.6.1.6 (23.06)" in hint
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    with pytest.raises(RepositoryError) as caught:
        container_for(find_plans(Repository(tmp_path)))
    assert str(caught.value) == (
        "no one container loads all of these plans: old/1: TensorRT 8.6.0.12 (no container is known to have it); "
        "new/1: TensorRT 10.14.1.48"
    )
    assert "TensorRT 8.6.0.12 is in no container that is known, TensorRT 10.14.1.48 is in nvcr" in str(
        caught.value.hint
    )


def test_of_many_plans_the_first_are_named(tmp_path: Path) -> None:
    for letter in "abcde":
        put_plan(tmp_path, letter, (8, 6, 0, 12))
    with pytest.raises(RepositoryError, match=r"TensorRT of a/1, b/1, c/1 and 2 more: TensorRT 8\.6\.0\.12$"):
        container_for(find_plans(Repository(tmp_path)))
    put_plan(tmp_path, "new", (10, 14, 1, 48))
    with pytest.raises(RepositoryError, match=r"a/1, b/1, c/1 and 2 more: .* known to have it\); new/1: "):
        container_for(find_plans(Repository(tmp_path)))


def test_plans_of_two_versions_in_one_version_of_a_model(tmp_path: Path) -> None:
    put_plan(tmp_path, "net", (10, 14, 1, 48))
    (tmp_path / "net/1/model.plan").rename(tmp_path / "net/1/model_cc90.plan")
    (tmp_path / "net/1/model_cc86.plan").write_bytes(plan_head((10, 13, 2, 6)))
    plans = {
        capability: {"file": file, "engine": {"gpu": {"compute_capability": capability}}}
        for capability, file in (("9.0", "model_cc90.plan"), ("8.6", "model_cc86.plan"))
    }
    (tmp_path / "net/1/manifest.json").write_text(json.dumps({"schema": MANIFEST_SCHEMA, "plans": plans}))
    with pytest.raises(RepositoryError, match=r"net/1/model_cc86\.plan: TensorRT 10\.13\.2\.6; net/1/model_cc90\.plan"):
        container_for(find_plans(Repository(tmp_path)))


def test_engines_no_container_loads_are_refused(tmp_path: Path) -> None:
    put_plan(tmp_path, "rtx", (1, 7, 1, 116), b"vtrt")
    with pytest.raises(RepositoryError, match="TensorRT-RTX"):
        container_for(find_plans(Repository(tmp_path)))
    put_plan(tmp_path / "other", "future", (99, 0, 0, 1))
    with pytest.raises(RepositoryError, match=r"future/1: TensorRT 99\.0\.0\.1"):
        container_for(find_plans(Repository(tmp_path / "other")))

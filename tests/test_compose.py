"""compose.yaml and what it mounts, as files: no Docker needed; and the dashboard against a real server's metrics."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import repo_builder
from repo_builder.compatibility import release_of_image
from tests.servers.repositories import write_identity

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "monitoring"
DASHBOARD = MONITORING / "grafana/dashboards/triton.json"

# Exported only where there is a GPU; https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
GPU_METRICS = {
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_limit",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
}


class Loader(yaml.SafeLoader):
    """YAML with Compose's ``!reset``, which deletes what an earlier file says."""


Loader.add_constructor("!reset", lambda _, node: ("reset", node.value))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


SERVICES: dict[str, Any] = load(ROOT / "compose.yaml")["services"]


def default(text: str) -> str:
    """A value as it is when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_gpu_reservation_is_the_one_docker_documents() -> None:
    # https://docs.docker.com/compose/how-tos/gpu-support/: driver, count (or device_ids) and capabilities
    (device,) = SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert {**device, "count": default(device["count"])} == {
        "driver": "nvidia",
        "count": "all",
        "capabilities": ["gpu"],
    }


def test_the_cpu_file_takes_the_gpu_away_and_nothing_else() -> None:
    assert load(ROOT / "compose.cpu.yaml") == {"services": {"triton": {"deploy": ("reset", "null")}}}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(default(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    image = default(service["image"])
    assert "build" in service or re.search(r":v?\d+\.\d+[\w.-]*$", image), image


def test_the_default_image_is_a_known_release_without_doubt() -> None:
    release = release_of_image(default(SERVICES["triton"]["image"]))
    assert release is not None
    assert release.tensorrt_certain


def test_triton_is_asked_for_readiness_and_given_time_to_stop() -> None:
    triton = SERVICES["triton"]
    assert "http://127.0.0.1:8000/v2/health/ready" in triton["healthcheck"]["test"][-1]
    (exit_timeout,) = [int(flag.split("=")[1]) for flag in triton["command"] if "exit-timeout" in flag]
    assert exit_timeout < int(triton["stop_grace_period"].removesuffix("s"))
    (models,) = triton["volumes"]
    assert models["read_only"] is True
    assert f"--model-repository={models['target']}" in triton["command"]
    assert triton["user"] != "root"


def test_profiles() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {
        "triton": None,
        "client": ["client"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_prometheus_scrapes_the_metrics_port() -> None:
    (job,) = load(MONITORING / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["triton:8002"]}]
    assert default(SERVICES["triton"]["ports"][2]).endswith(":8002")


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    (source,) = load(MONITORING / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load(MONITORING / "grafana/provisioning/dashboards/triton.yaml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./monitoring/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": source["uid"]}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def read_when_open(url: str) -> Any:
    """Triton opens the port of its metrics a moment after the one that says it is ready."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return urllib.request.urlopen(url)
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """The names of the metrics of a running server."""
    root = tmp_path_factory.mktemp("metrics") / "models"
    write_identity(root, "identity")
    with repo_builder.serve(root) as server, read_when_open(server.metrics_url) as answer:
        yield set(re.findall(r"^(nv_\w+)[ {]", answer.read().decode(), re.MULTILINE))


def test_every_query_names_metrics_that_triton_exports(exported: set[str]) -> None:
    dashboard = DASHBOARD.read_text(encoding="utf-8")
    asked = set(re.findall(r"nv_\w+", dashboard))
    wanted = {"nv_inference_request_success", "nv_inference_queue_duration_us", "nv_inference_exec_count"}
    assert wanted <= asked
    if Path("/dev/nvidiactl").exists():
        assert asked <= exported
    else:
        assert asked - GPU_METRICS <= exported

"""What Triton's metrics say about its GPUs over a window: utilisation, memory, power.

Names and units are those of Triton's ``/metrics``, in Prometheus' text format; it renews them every two seconds
(``--metrics-interval-ms``).  What a server doesn't export is left out: None is not zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from client.errors import ClientError, UsageError
from client.protocol import Request
from client.transport import HttpTransport, Url

METRICS_PORT: Final = 8002
"""Triton's own default."""

_TIMEOUT_S: Final = 2.0
_LINE: Final = re.compile(r'(nv_gpu_\w+|nv_energy_consumption)\{[^}]*?\bgpu_uuid="([^"]*)"[^}]*\}\s+(\S+)')
_GPUs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class GpuUsage:
    """One GPU over a window: utilisation from 0 to 1, bytes of memory in use, watts, joules."""

    uuid: str
    readings: int
    utilization_mean: float | None
    utilization_peak: float | None
    memory_peak_bytes: int | None
    memory_total_bytes: int | None
    power_mean_w: float | None
    energy_j: float | None


def metrics_url(text: str) -> Url:
    """Read ``http://HOST:PORT``, with the path ``/metrics`` unless it has one."""
    url = Url.parse(text if "://" in text else f"http://{text}", "--metrics-url http://localhost:8002/metrics")
    if url.scheme != "http":
        raise UsageError("metrics are read over plain HTTP", "--metrics-url http://HOST:8002/metrics")
    return Url(url.scheme, url.host, url.port, url.prefix or "/metrics")


def read_gpus(text: str) -> dict[str, dict[str, float]]:
    """The metrics of each GPU by its UUID; lines that say nothing of a GPU, or no number, are passed over."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, uuid, value = match.groups()
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            found.setdefault(uuid, {})[name] = number
    return found


class GpuMeter:
    """Reads the metrics of one server again and again."""

    def __init__(self, url: Url) -> None:
        self._transport = HttpTransport(url, _TIMEOUT_S)
        self._readings: list[_GPUs] = []

    def fetch(self) -> dict[str, dict[str, float]]:
        """The GPUs' metrics now; :class:`ClientError` if there is no such page."""
        response = self._transport.send(Request("GET", ""))
        text = response.body.decode(errors="replace")
        if response.status != 200 or "nv_" not in text:
            raise ClientError("there are no metrics of Triton", "--metrics-url http://HOST:8002/metrics")
        return read_gpus(text)

    def read(self) -> None:
        """Take a reading; a server that doesn't answer adds none."""
        try:
            self._readings.append(self.fetch())
        except ClientError:
            return

    def usage(self) -> tuple[GpuUsage, ...]:
        """Each GPU over the readings."""
        uuids = sorted({uuid for reading in self._readings for uuid in reading})
        return tuple(
            _summarise(uuid, [reading[uuid] for reading in self._readings if uuid in reading]) for uuid in uuids
        )

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def _summarise(uuid: str, readings: Sequence[Mapping[str, float]]) -> GpuUsage:
    def values(name: str) -> list[float]:
        return [reading[name] for reading in readings if name in reading]

    utilization, memory, power = (
        values(f"nv_gpu_{name}") for name in ("utilization", "memory_used_bytes", "power_usage")
    )
    total, energy = values("nv_gpu_memory_total_bytes"), values("nv_energy_consumption")
    spent = energy[-1] - energy[0] if len(energy) > 1 else -1.0
    return GpuUsage(
        uuid=uuid,
        readings=len(readings),
        utilization_mean=_mean(utilization),
        utilization_peak=max(utilization, default=None),
        memory_peak_bytes=int(max(memory)) if memory else None,
        memory_total_bytes=int(total[-1]) if total else None,
        power_mean_w=_mean(power),
        energy_j=spent if spent >= 0 else None,  # it counts from the server's start, which may have been in between
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

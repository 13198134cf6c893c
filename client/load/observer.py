"""Who is told of a run while it goes on."""

from __future__ import annotations

from client.load.bodies import Bodies
from client.load.plan import Plan
from client.load.records import Records
from client.load.result import Level
from client.load.schedule import Load, Window
from client.metadata import ModelMetadata


class Observer:
    """Is told of a run while it goes on; does nothing by itself."""

    def run_started(self, model: ModelMetadata, url: str, plan: Plan, bodies: Bodies) -> None: ...

    def level_started(self, load: Load, window: Window) -> None: ...

    def records(self, records: Records) -> None: ...

    def waiting(self, requests: int) -> None: ...

    def level_ended(self, level: Level) -> None: ...

"""The server's account of a level beside the run's own: where the time went, and what doesn't fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from client.load.records import Outcome
from client.load.result import Part
from client.load.server_statistics import ServerWindow, StartedAnewError, difference
from client.load.statistics import Statistics
from client.load.workers import PhaseResult

STARTED_ANEW: Final = "the server was started anew during the run (or loaded the model anew): it has no figures of it"
SEND_AND_NETWORK: Final = "client send, network and server front end"
_NOT_THERE: Final = "the server gave no statistics of the whole window: it was not there, or they can't be read"
_NO_SPLIT: Final = "where the time goes can't be told"


@dataclass(frozen=True)
class Account:
    """What the server says of a level, where the mean response time went, and what is missing and why.

    ``others`` of the requests that the server counts are somebody else's.
    """

    server: ServerWindow | None = None
    split: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    others: int = 0


def reconcile(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    statistics: Statistics,
    phase: PhaseResult,
    abandoned: int = 0,
) -> Account:
    """Hold the server's counters before and after a level to the records of its ``phase``.

    ``abandoned`` requests timed out before the level: the server may have got to them in it.
    """
    answered = statistics.requests - statistics.errors
    try:
        server = difference(before, after) if before and after else None
    except StartedAnewError:
        return Account(notes=(STARTED_ANEW,))
    if server is None:
        return Account(notes=(_NOT_THERE,))
    if server.requests < answered:
        fewer = f"the server counts {server.requests:,} requests in the window and this run {answered:,} answers"
        anew = "the server was started anew during the run, or others answer in its place (a load balancer, a cache)"
        return Account(notes=(f"{fewer}: {anew}",))
    never_sent = sum(kind.count for kind in statistics.kinds if kind.kind == Outcome.NO_CONNECTION.text)
    sent = statistics.requests - never_sent + abandoned
    others = server.requests + server.failures - sent
    if others > 0:
        more = f"the server counts {sent + others:,} requests in the window and this run {sent:,}"
        if phase.broken_off:
            unheard = "it ended before it had heard of all of them, or somebody else uses the model"
            return Account(server, (), (f"{more}: {unheard}, so {_NO_SPLIT}",))
        return Account(server, (), (f"{more}: somebody else uses the model, so {_NO_SPLIT}",), others)
    if server.requests > answered:
        kinds = {kind.kind for kind in statistics.kinds} - {Outcome.NO_CONNECTION.text}
        became = "timed out" if kinds <= {Outcome.TIMEOUT.text} else "failed"
        done = f"the server executed {server.requests - answered:,} of the requests that {became} for this run"
        return Account(server, (), (f"{done}, and counts their times, so {_NO_SPLIT}",))
    parts = _split(statistics, phase, server)
    if not parts and statistics.service is not None:
        return Account(server, (), (f"the server's times are longer than those of the answers, so {_NO_SPLIT}",))
    return Account(server, parts)


def _split(statistics: Statistics, phase: PhaseResult, server: ServerWindow) -> tuple[Part, ...]:
    """Where the mean response time went; the parts sum to it."""
    if statistics.response is None or statistics.service is None:
        return ()
    answered = statistics.response.count
    response, service = statistics.response.mean_ms.value, statistics.service.mean_ms.value
    send = sum(end.send_ns for end in phase.ends) / max(1, statistics.requests) / 1e6
    receive = sum(end.receive_ns for end in phase.ends) / answered / 1e6
    core = server.queue_ms + server.compute_input_ms + server.compute_infer_ms + server.compute_output_ms
    outside = service - core - receive
    if outside < 0:  # the server's account is not of these requests alone
        return ()
    rest = min(max(server.total_ms - core, 0.0), outside)
    network = outside - rest - send
    # On a busy machine a send returns after the server has begun: what they share can't be told apart.
    way = (
        (Part("client send", send), Part("network and server front end", network))
        if network >= 0
        else (Part(SEND_AND_NETWORK, outside - rest),)
    )
    return (
        Part("waiting to be sent", response - service),
        *way,
        Part("server queue", server.queue_ms),
        Part("server compute input", server.compute_input_ms),
        Part("server compute infer", server.compute_infer_ms),
        Part("server compute output", server.compute_output_ms),
        Part("server, rest", rest),
        Part("client receive", receive),
    )

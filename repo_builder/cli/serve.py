"""``repo-builder serve``, ``status``, ``logs`` and ``stop``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repo_builder.cli.output import (
    DEFAULT_REPOSITORY,
    DebugOption,
    JsonOption,
    LiveLine,
    RepositoryOption,
    note,
    print_json,
    say,
)
from repo_builder.errors import RepoBuilderError
from repo_builder.servers.engine import DEFAULT_IMAGE, Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repo_builder.servers.base import ModelStatus
    from repo_builder.servers.records import ServerRecord
    from repo_builder.servers.supervised import SupervisedServer

ServerOption = Annotated[
    str,
    typer.Option(
        "--http-port", metavar="PORT|all", help="Which server; needed only where several run.", show_default=False
    ),
]


def serve(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    http_port: Annotated[int, typer.Option(help="Port of the HTTP API; 0 is any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC API; 0 is any free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the Prometheus metrics; 0 is any free one.")] = 8002,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Serve this model only; may be given again.")
    ] = None,
    poll: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Look for new and changed models every so often.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when ready, leave the server running.")
    ] = False,
    exit_on_error: Annotated[
        bool, typer.Option("--exit-on-error", help="End with exit code 1 when a model can't be loaded, as Triton does.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="What runs the server; auto: Docker if it is ready for it, else local.")
    ] = Engine.AUTO,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Docker: image of Triton; else TRITON_IMAGE, here or in .env, else the one that loads the plans, "
            f"or {DEFAULT_IMAGE}.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="Docker: auto, all, none; 1 is how many, device=1 or device=0,2 which.")
    ] = "auto",
    shm_size: Annotated[str, typer.Option(help="Docker: size of the container's /dev/shm.")] = "1g",
    log_verbose: Annotated[int, typer.Option(min=0, metavar="LEVEL", help="Triton's verbose log, from 1.")] = 0,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the server's log goes; else a new file, which is named.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Serve a repository with NVIDIA's tritonserver, here or in its container, until Ctrl-C.

    Models that can't be loaded are warnings, as long as there is another to serve.
    """
    from repo_builder.servers.base import ServerOptions
    from repo_builder.servers.docker import DockerOptions
    from repo_builder.servers.engine import choose_engine, start_server
    from repo_builder.servers.supervised import checked_repository, load_error

    options = ServerOptions(
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        host=host,
        models=tuple(model or ()),
        poll_seconds=poll,
        log_verbose=log_verbose,
        log_file=log_file,
    )
    docker_options = DockerOptions(image, gpus, shm_size)
    checked_repository(Path(repository), options)
    chosen, why = choose_engine(engine, repository, docker_options)
    note(f"starting tritonserver on {repository}, engine {chosen.value} ...")
    if engine is Engine.AUTO:
        note(f"  ({why})")
    with LiveLine() as line:
        server = start_server(chosen, repository, options, docker_options, line)
    with server:
        states = server.models
        ready = [status.ready for status in states]
        if not any(ready) or (exit_on_error and not all(ready)):
            note(f"log      {server.log_file}")
            if ready.count(False) > 1 and not json:
                _print_causes(states)
            raise load_error(states)
        _show(server, states, detached=detach, as_json=json)
        if detach:
            server.detach()
            note(f"running; repo-builder stop --http-port {server.http_port} stops it")
            return
        note("Ctrl-C stops it")
        _wait(server)


def stop(
    http_port: ServerOption = "",
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Stop a running server and wait until it is gone; clear away what one that ended left."""
    from repo_builder.servers.installation import clear_abandoned
    from repo_builder.servers.records import known_servers, select_servers, stop_server

    clear_abandoned()
    chosen = select_servers(known_servers(), http_port)
    failures: list[RepoBuilderError] = []
    for record in chosen:
        try:
            done = "stopped" if stop_server(record) else "had ended already:"
        except RepoBuilderError as error:
            done = "could not stop"
            failures.append(error)
        note(f"{done} {record.url} ({record.place})")
    if failures:
        *others, last = failures
        for other in others:
            note(f"warning: {other.message}")
            note(f"  hint: {other.hint}")
        raise last
    if json:
        print_json([_record_json(record, None) for record in chosen])


def status(json: JsonOption = False, debug: DebugOption = False) -> None:  # noqa: ARG001
    """List the running servers and the state of their models, and detached ones that ended without being stopped."""
    from repo_builder.servers.records import known_servers

    servers = [(record, _asked(record)) for record in known_servers()]
    if json:
        return print_json([_record_json(record, states) for record, states in servers])
    if not servers:
        return note("no server runs; repo-builder serve starts one")
    for record, states in servers:
        where = f"{record.engine.value}, {record.place}"
        say(f"{record.url}  tritonserver {record.version}, {where}, {record.repository}")
        if states is None:
            _show_ended(record)
        elif isinstance(states, RepoBuilderError):
            say(f"  {states.message}")
            note(f"  hint: {states.hint}")
        else:
            _print_models(states)
    return None


def _asked(record: ServerRecord) -> Sequence[ModelStatus] | RepoBuilderError | None:
    """A running server's models, or why it does not tell them; None of one that does not run."""
    from repo_builder.servers.records import is_running
    from repo_builder.servers.supervised import model_states

    if not is_running(record):
        return None
    try:
        return model_states(record.url, Path(record.log_file), Path(record.repository))
    except RepoBuilderError as error:
        return error


def _show_ended(record: ServerRecord) -> None:
    from repo_builder.servers.records import is_orphan

    say(f"  {_ending(record)}; log: {record.log_file}")
    away = "removes the container" if is_orphan(record) else "clears it away"
    note(f"  hint: repo-builder stop --http-port {record.http_port} {away}, logs shows its log")


def _ending(record: ServerRecord) -> str:
    """How and when a server ended, for a person."""
    from datetime import datetime

    from repo_builder.servers.supervised import ending

    if record.exit_status is None or record.ended_at is None:
        left = f"; {_left(record)}" if record.container_id else ""
        return f"its supervisor, pid {record.pid}, is gone{left}"
    when = datetime.fromisoformat(record.ended_at).astimezone()
    left = "; the container is removed" if record.container_id else ""
    return f"{ending(record.exit_status)} on {when:%Y-%m-%d at %H:%M:%S %Z}{left}"


def _left(record: ServerRecord) -> str:
    """What is known of a container that lost its supervisor, for a person."""
    state = _container_state(record)
    if state == "unknown":
        return "its Docker engine does not answer, so the container may still run"
    return "its container is removed" if state == "removed" else f"its container is there, {state}"


def _container_state(record: ServerRecord) -> str:
    """Docker's word for a container that lost its supervisor, or ``removed``, or ``unknown``: no engine answers."""
    from repo_builder.servers.docker import left_container

    try:
        return left_container(record) or "removed"
    except RepoBuilderError:
        return "unknown"


def logs(
    http_port: ServerOption = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines; 0: all.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Print the log of a server that runs, or that ended without being stopped; without any, of the last one."""
    from repo_builder.servers.records import follow_log, known_servers, select_servers
    from repo_builder.servers.supervised import last_log

    servers = known_servers()
    meant = http_port in {"", "all"} or http_port.isdecimal()
    known = any(http_port in {"", "all", str(record.http_port)} for record in servers)
    if meant and not known and (left := last_log(http_port)):
        note(f"no such server runs; the last one said, in {left}")
        written = left.read_text(encoding="utf-8", errors="replace").splitlines()
        for text in written[-lines:]:  # all for 0
            typer.echo(text)
        return
    for record in select_servers(servers, http_port):
        for text in follow_log(record, lines, follow=follow):
            typer.echo(text)


def _wait(server: SupervisedServer) -> None:
    try:
        code = server.wait()
    except KeyboardInterrupt:
        note("stopping")
        return
    if code:
        raise server.end_error(code)
    note("stopped")


def _show(server: SupervisedServer, states: Sequence[ModelStatus], *, detached: bool, as_json: bool) -> None:
    if as_json:
        return print_json({**_record_json(server.record(), states), "detached": detached})
    typer.echo(f"tritonserver {server.version}, {server.record().place}")
    typer.echo(f"HTTP     {server.url}\ngRPC     {server.grpc_url}\nmetrics  {server.metrics_url}")
    note(f"log      {server.log_file}")
    _print_models(states)
    return None


def _print_models(states: Sequence[ModelStatus]) -> None:
    width = max((len(status.name) for status in states), default=0)
    for status in states:
        version = "-" if status.version is None else str(status.version)
        say(f"  {status.name:<{width}}  {version:>3}  {status.state.value}")
    _print_causes(states)


def _print_causes(states: Sequence[ModelStatus]) -> None:
    for status in states:
        if status.cause:
            note(f"{'note' if status.ready else 'warning'}: {status.name}: {status.cause}")
        if status.hint:
            note(f"  hint: {status.hint}")


def _record_json(record: ServerRecord, states: Sequence[ModelStatus] | RepoBuilderError | None) -> dict[str, Any]:
    from dataclasses import asdict

    from repo_builder.servers.records import ServerState, server_state

    state = server_state(record)
    document = asdict(record) | {
        "engine": record.engine.value,
        "state": state.value,
        "container_state": _container_state(record) if state is ServerState.UNSUPERVISED else None,
    }
    del document["start_time"]
    if isinstance(states, RepoBuilderError):
        document["error"] = states.message
    elif states is not None:
        document["models"] = [{**asdict(status), "state": status.state.value} for status in states]
    return document

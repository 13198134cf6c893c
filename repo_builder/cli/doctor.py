"""``repo-builder doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repo_builder.cli.output import DEFAULT_REPOSITORY, DebugOption, JsonOption, RepositoryOption, note, print_json, say
from repo_builder.errors import RepoBuilderError, UsageError
from repo_builder.servers.engine import DEFAULT_IMAGE

COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repo_builder.findings import Finding


def doctor(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"The image of Triton that is to serve; else TRITON_IMAGE, here or in .env, or {DEFAULT_IMAGE}.",
            show_default=False,
        ),
    ] = None,
    write_env: Annotated[
        bool,
        typer.Option(
            "--write-env", help="Put --image, or the one that loads every plan, into .env for Docker Compose."
        ),
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Check this machine and every model; exit code 1 when something would fail."""
    from repo_builder.doctor import examine
    from repo_builder.findings import Level
    from repo_builder.host import check_image_name

    if image is not None:
        check_image_name(image)
    refusal = None
    if write_env:
        try:
            _write_env(repository, image)
        except RepoBuilderError as error:
            refusal = error
    findings = examine(repository, image=image)
    failed = any(finding.level is Level.WRONG for finding in findings)
    _show(findings, failed=failed, as_json=json)
    if refusal:
        raise refusal
    if failed:
        raise typer.Exit(1)


def _write_env(repository: str, image: str | None) -> None:
    from repo_builder.compatibility import find_plans
    from repo_builder.host import ask_for_image, image_for_dotenv, in_dotenv, write_image
    from repo_builder.repository import Repository
    from repo_builder.servers.images import choose_image

    plans = find_plans(Repository(repository))
    if image is None and not plans:
        raise UsageError(f"{repository} has no plans, so any image serves it", "leave out --write-env, or --image NAME")
    fitting = None if image else image_for_dotenv(plans, Path())
    chosen = (
        fitting[0] if fitting else choose_image(image, plans, environment=lambda name: ask_for_image(name).json() or ())
    )
    before = in_dotenv("TRITON_IMAGE", Path())
    instead = f", instead of {before}" if before not in {None, chosen} else ""
    note(f"wrote TRITON_IMAGE={chosen} to {write_image(Path(), chosen, asked=True)}{instead}")
    if not any(Path(name).exists() for name in COMPOSE_FILES):
        note("WARNING: there is no compose.yaml here to read it: docker compose reads the .env beside its compose.yaml")


def _show(findings: Sequence[Finding], *, failed: bool, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        return print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        say(f"{finding.level.value:<7}  {finding.subject:<{width}}  {finding.text}")
        if finding.mend:
            say(f"{'':<7}  {'':<{width}}  -> {finding.mend}")
    return None

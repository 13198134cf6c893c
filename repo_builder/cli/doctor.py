"""``repo-builder doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from repo_builder.cli.output import DEFAULT_REPOSITORY, DebugOption, JsonOption, RepositoryOption, note, print_json
from repo_builder.errors import UsageError


def doctor(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    write_env: Annotated[
        bool, typer.Option("--write-env", help="Put the image that loads every plan into .env, for Docker Compose.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Check this machine and every model; exit code 1 when something would fail."""
    from dataclasses import asdict
    from pathlib import Path

    from repo_builder.compatibility import container_for, find_plans
    from repo_builder.doctor import Level, examine
    from repo_builder.host import write_image
    from repo_builder.repository import Repository

    if write_env:
        container = container_for(find_plans(Repository(repository)))
        if container is None:
            raise UsageError(f"{repository} has no plans, so any image serves it", "leave out --write-env")
        image = container.release.image
        note(f"wrote TRITON_IMAGE={image} to {write_image(Path(), image, asked=True)}")
    findings = examine(repository)
    failed = any(finding.level is Level.WRONG for finding in findings)
    if json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.level.value:<7}  {finding.subject:<{width}}  {finding.text}")
            if finding.mend:
                typer.echo(f"{'':<7}  {'':<{width}}  -> {finding.mend}")
    if failed:
        raise typer.Exit(1)

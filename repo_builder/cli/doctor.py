"""``repo-builder doctor``."""

from __future__ import annotations

import typer

from repo_builder.cli.output import DEFAULT_REPOSITORY, DebugOption, JsonOption, RepositoryOption, print_json


def doctor(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Check this machine and every model; exit code 1 when something would fail."""
    from dataclasses import asdict

    from repo_builder.doctor import Level, examine

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

"""``repo-builder list``, ``show`` and ``remove``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repo_builder.cli.output import (
    DEFAULT_REPOSITORY,
    DebugOption,
    JsonOption,
    RepositoryOption,
    human_size,
    note,
    print_json,
    printable,
    say,
    table,
)
from repo_builder.cli.trt_options import describe_engine, describe_plans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from repo_builder.repository import Model

ModelArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", show_default=False)]


def list_models(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the models of a repository."""
    from repo_builder.repository import Repository
    from repo_builder.staging import abandoned

    store = Repository(repository)
    rows = [_row(model) for model in store.models()]
    for link in store.dangling():
        note(f"warning: {link} leads to {link.readlink()}, which is not there, and Triton then reads no model at all")
    for folder in abandoned(Path(repository)):
        note(f"note: {folder} was left by an add that was killed; the next one clears it away")
    if json:
        print_json(rows)
    elif not rows:
        note(f"no models in {repository}; add one: repo-builder add MODEL.onnx --repository {repository}")
    else:
        header = ("NAME", "VERSIONS", "PLATFORM", "MAX BATCH", "SIZE", "VERIFIED")
        table([_cells(row) for row in rows], header)
        for row in rows:
            for version, what in row["damaged"].items():
                note(f"warning: {_damage_note(row['name'], version, what)}")


def show(
    model: ModelArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show one model: where a version came from, what was verified, its configuration."""
    from repo_builder.repository import Repository, parse_reference

    name, version = parse_reference(model)
    found = Repository(repository).find(name, version)
    number = version or found.latest
    manifest = found.manifest(number) if number else None
    if json:
        print_json({**_row(found), "version": number, "config": found.config_text, "manifest": manifest})
        return
    typer.echo(f"{found.name}: versions {', '.join(map(str, found.versions)) or 'none'}")
    damage = found.damage(number) if number else None
    if manifest:
        _print_manifest(manifest)
    elif number and damage is None:
        typer.echo(f"version {number} was not made by repo-builder: it has no manifest")
    if damage:
        say(f"DAMAGED: {_damage_note(name, number, damage)}")
    if found.edited_by_hand and found.latest and found.manifest(found.latest):
        typer.echo("config.pbtxt was edited by hand since the latest version was published")
    typer.echo()
    say(f"# {found.folder / 'config.pbtxt'}")
    # Its lines and tabs as they are; a tensor's name may hold what a terminal would obey.
    typer.echo(re.sub(r"[^\n\t]+", lambda part: printable(part[0]), found.config_text or "(none)"), nl=False)


def remove(
    model: ModelArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    force: Annotated[bool, typer.Option("--force", help="Also when config.pbtxt was edited by hand.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Remove a model, or one version of it."""
    from repo_builder.repository import Repository, parse_reference

    name, version = parse_reference(model)
    store = Repository(repository)
    store.remove(name, version, force=force)
    left = store.get(name)
    versions = list(left.versions) if left else []
    if json:
        print_json({"removed": model, "versions": versions})
    else:
        note(
            f"removed {model}; "
            + (f"versions left: {', '.join(map(str, versions))}" if versions else "no version is left")
        )


def _row(model: Model) -> dict[str, Any]:
    """One model as plain data; what is unknown, because another tool made it, is None."""
    manifest = (model.manifest(model.latest) if model.latest else None) or {}
    return {
        "name": model.name,
        "versions": list(model.versions),
        "platform": manifest.get("platform"),
        "max_batch_size": manifest.get("max_batch_size"),
        "size": sum(model.size(version) for version in model.versions),
        "verified": bool(manifest.get("verification") and not manifest.get("unverified")) if manifest else None,
        "damaged": {version: what for version in model.versions if (what := model.damage(version))},
    }


def _damage_note(name: str, version: int | None, what: str) -> str:
    return f"{name}@{version} is damaged: {what}; repo-builder add publishes the model again"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    unknown = "?"
    batch = row["max_batch_size"]
    verified = {True: "yes", False: "NO", None: unknown}[row["verified"]]
    if row["versions"] and row["versions"][-1] in row["damaged"]:
        verified = "NO"
    damaged = ",".join(map(str, row["damaged"]))
    return (
        printable(row["name"]),
        (",".join(map(str, row["versions"])) or "none") + (f" ({damaged} DAMAGED)" if damaged else ""),
        printable(str(row["platform"] or unknown)),
        unknown if batch is None else str(batch),
        human_size(row["size"]),
        verified,
    )


def _print_manifest(manifest: dict[str, Any]) -> None:
    try:
        lines = list(_manifest_lines(manifest))
    except (AttributeError, KeyError, TypeError, ValueError):
        lines = ["its manifest.json is not whole, so where it came from can't be told"]
    for line in lines:
        say(line)


def _manifest_lines(manifest: dict[str, Any]) -> Iterator[str]:
    source = manifest["source"]
    yield f"version {manifest['version']}, made {manifest['created']} in {manifest['seconds']:.1f} s"
    if "definition" in source:
        yield f"  source    network definition {source['definition']} in {source['file'] or 'no file'}"
    else:
        yield f"  source    {source['file']}, SHA-256 {source['sha256']}, opset {source['opset']}"
    yield f"  target    {manifest['target']} ({manifest['target_reason']})"
    if manifest.get("engine"):
        yield f"  engine    {describe_engine(manifest['engine'])}"
    for line in describe_plans(manifest):
        yield f"  plan      {line}"
    for role in ("inputs", "outputs"):
        for tensor in manifest[role]:
            yield f"  {role[:-1]:<9} {tensor['name']}  {tensor['datatype']} {tensor['shape']}"
    yield f"  batching  {manifest['max_batch_size'] or 'none'}: {manifest['batching']['reason']}"
    verification = manifest["verification"]
    unverified = manifest.get("unverified") or ("" if verification else "--no-verify")
    if unverified:
        yield f"  verified  NO: {unverified}"
    word = "compared" if unverified else "verified"
    for output in verification["outputs"] if verification else ():
        yield (
            f"  {word}  {output['name']}: largest relative error {output['max_relative_error']:.1e}, "
            f"absolute {output['max_absolute_error']:.1e}"
        )
    tools = ", ".join(f"{tool} {number}" for tool, number in manifest["tools"].items())
    yield f"  tools     {tools}"

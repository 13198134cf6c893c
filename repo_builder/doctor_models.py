"""``doctor``'s look at every model of a repository, against this machine and the image that is to serve."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from repo_builder.compatibility import (
    Plan,
    Version,
    container_for,
    containers_for,
    find_plans,
    loads,
    newest_for_driver,
    parse_version,
    plugins_setting,
    serves,
    version_text,
)
from repo_builder.config.check import check_tensors
from repo_builder.config.problems import find_problems
from repo_builder.config.proto import ModelConfig, read_config
from repo_builder.errors import ConfigError, RepoBuilderError, RepositoryError
from repo_builder.findings import Finding, Level, ok
from repo_builder.host import Host
from repo_builder.repository import CONFIG, MANIFEST, Model, Repository, batch_limit, read_tensors
from repo_builder.servers.mounted import links_outside
from repo_builder.staging import abandoned

MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}  # by backend, unless the config names another


def examine_models(root: Path, host: Host) -> Iterator[Finding]:
    try:
        yield from _repository(root, host)
    except RepositoryError as error:
        yield Finding("repository", Level.WRONG, error.message, error.hint)
    except PermissionError as error:
        yield Finding(
            "repository", Level.WRONG, f"{error.filename} can't be read: {error.strerror}", "check its rights"
        )


def readable_plans(root: Path) -> tuple[Plan, ...]:
    """The plans that NVIDIA's containers may load; none where the repository can't be read."""
    try:
        return tuple(plan for plan in find_plans(Repository(root)) if not plan.rtx)
    except (RepositoryError, OSError):
        return ()


def image_mend(plans: Sequence[Plan], driver: Version) -> str:
    """What to do about an image that does not serve ``plans`` under ``driver``: the one that does, if there is one."""
    try:
        container = container_for(plans, driver)
    except RepositoryError:
        return "no other image does: see the line of the container"
    release = container.release if container else newest_for_driver(driver)
    return f"TRITON_IMAGE={release.image} in .env" if release else "install a newer driver"


def _repository(root: Path, host: Host) -> Iterator[Finding]:
    for folder in abandoned(root):
        mend = "the next repo-builder add clears it away, and brings back what it may have moved there"
        yield Finding("repository", Level.WARNING, f"{folder} was left by an add that was killed", mend)
    add = f"repo-builder add MODEL.onnx --repository {root}"
    if not root.is_dir():
        mend = f"{add} makes it; --repository names another"
        what = "is not a folder" if root.exists() else "does not exist"
        yield Finding("repository", Level.WARNING, f"{root} {what}", mend)
        return
    repository = Repository(root)
    for link in repository.dangling():
        text = f"{link} leads to {link.readlink()}, which is not there, and Triton then reads no model at all"
        yield Finding("repository", Level.WRONG, text, f"rm {link}, or put back what it leads to")
    for link in links_outside(root):
        text = f"{link} leads to {link.readlink()}, which a container does not have: only --engine local serves it"
        yield Finding("repository", Level.WARNING, text, "copy the model into the repository")
    models = repository.models()
    if not models:
        yield Finding("repository", Level.WARNING, f"{root} has no models", add)
        return
    yield _unreadable(root, host) or ok("repository", f"{root}: {len(models)} model{'s' * (len(models) > 1)}")
    plans = find_plans(repository)
    served = [plan for plan in plans if not plan.rtx]
    another = image_mend(served, host.driver)
    for model in models:
        yield from _model(model, [plan for plan in plans if plan.model == model.name], host, another)
    yield from _container(served, host)


def _container(plans: list[Plan], host: Host) -> Iterator[Finding]:
    """The one container that loads all plans; an image that a person named may do so, whatever it is."""
    versions, release = {plan.tensorrt for plan in plans}, host.release
    if plans and host.image_named and release and serves(release, plans, host.driver):
        yield ok("container", f"{host.image} loads every plan")
    elif len(versions) == 1 and host.image_named and release is None:
        yield _unknown_image(host, versions.pop(), plans)
    else:
        try:
            container = container_for(plans, host.driver)
        except RepositoryError as error:
            yield Finding("container", Level.WRONG, error.message, error.hint)
            return
        if container:
            doubt = f" ({container.doubt})" if container.doubt else ""
            yield ok("container", f"{container.release.image} loads every plan{doubt}")


def _unknown_image(host: Host, tensorrt: Version, plans: list[Plan]) -> Finding:
    text = f"which TensorRT {host.image} has is not known here, and the plans are of {version_text(tensorrt)}"
    mend = "see that it has it: no container of NVIDIA's that runs here is known to"
    with contextlib.suppress(RepositoryError):
        if container := container_for(plans, host.driver):
            mend = f"if it has another: TRITON_IMAGE={container.release.image} in .env"
    return Finding("container", Level.WARNING, text, mend)


def _unreadable(root: Path, host: Host) -> Finding | None:
    """The first file that Triton in a container of Compose's can't read, surely or, if none is so, perhaps."""
    doubtful = None
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            facts = path.lstat()
            wanted = 0o5 if stat.S_ISDIR(facts.st_mode) else 0o4
            owner, group, others = (facts.st_mode >> shift & wanted == wanted for shift in (6, 3, 0))
            if owner if facts.st_uid == host.triton_uid else others:
                continue
            known = host.rootless or host.triton_uid is not None
            lost = not os.access(path, os.R_OK) or (host.engine_answers and known and not group)
            text = f"{path} is not readable by user {host.triton_user}, whom Triton's container runs as"
            mends = [f"chmod -R a+rX {root}"]
            if owner and facts.st_uid == (os.getuid() if host.rootless else facts.st_uid):
                user = "0:0" if host.rootless else f"{facts.st_uid}:{facts.st_gid}"
                mends.append(f"TRITON_USER={user} in .env")
            finding = Finding("repository", Level.WRONG if lost else Level.WARNING, text, ", or ".join(mends))
            if lost:
                return finding
            doubtful = doubtful or finding
    return doubtful


def _model(model: Model, plans: list[Plan], host: Host, another: str) -> Iterator[Finding]:
    subject = f"model {model.name}"
    if model.config_text is None:
        mend = "move what is not a model out of the repository, or publish it again with repo-builder add"
        yield Finding(subject, Level.WRONG, f"has no readable {CONFIG}", mend)
        return
    try:
        config = read_config(model.folder / CONFIG)
    except RepoBuilderError as error:
        yield Finding(subject, Level.WRONG, error.message, error.hint)
        return
    if not model.versions and config.platform != "ensemble":
        mend = f"a version is a numbered folder, such as {model.name}/1; or publish it again with repo-builder add"
        yield Finding(subject, Level.WRONG, "has no version", mend)
        return
    gpus = len(host.gpus) or (None if plans else 0)  # of plans without a GPU there is a line of its own
    problems = [*_damages(subject, model), *_configuration(subject, model, config, gpus)]
    if model.edited_by_hand:
        problems += [Finding(subject, Level.WRONG, text, _CORRECT) for text in _contradictions(model, config)]
    problems += [*_missing_files(subject, model, config), *_missing_plans(subject, plans, host)]
    problems += [problem for plan in plans for problem in _plan(subject, plan, host, another)]
    if problems:
        yield from problems
    else:
        platform = config.platform or config.backend or "platform by its file"
        yield ok(subject, f"{platform}, version{'s' * (len(model.versions) > 1)} {_numbers(model)}")


def _damages(subject: str, model: Model) -> Iterator[Finding]:
    for version in model.versions:
        if damage := model.damage(version):
            level = Level.WRONG if version == model.latest else Level.WARNING
            mend = f"publish it again with repo-builder add, or repo-builder remove {model.name}@{version}"
            yield Finding(subject, level, f"version {version} is damaged: {damage}", mend)


def _configuration(subject: str, model: Model, config: ModelConfig, gpus: int | None) -> Iterator[Finding]:
    if config.name not in {"", model.name}:
        text = f"{CONFIG} is for a model named {config.name!r}"
        yield Finding(subject, Level.WRONG, text, "rename the folder, or set or leave out name in config.pbtxt")
    anywhere = find_problems(config, versions=model.versions)
    for problem in find_problems(config, versions=model.versions, gpus=gpus):
        here = problem not in anywhere  # a GPU that this machine lacks
        yield Finding(subject, Level.WRONG if problem.fatal or here else Level.WARNING, problem.text, problem.hint)


_CORRECT = f"correct {CONFIG}, or publish it again with repo-builder add --force"


def _contradictions(model: Model, config: ModelConfig) -> Iterator[str]:
    """What an edited config.pbtxt says of the latest version that its manifest says otherwise."""
    manifest = (model.manifest(model.latest) if model.latest else None) or {}
    try:
        for role in ("input", "output"):
            check_tensors(config, role, read_tensors(manifest.get(f"{role}s", ())))
        most = batch_limit(manifest)
    except ConfigError as error:
        yield error.message
    except (AttributeError, KeyError, TypeError, ValueError):
        yield f"the {MANIFEST} of version {model.latest} is not whole"
    else:
        if most is not None and most < config.max_batch_size:
            yield f"{CONFIG} has max_batch_size: {config.max_batch_size}, the plan takes {most} at most"


def _missing_files(subject: str, model: Model, config: ModelConfig) -> Iterator[Finding]:
    """Files that Triton looks for; those of a version that has a manifest are :func:`_damages`'s."""
    labels = {output.label_filename for output in config.output if output.label_filename}
    samples = {tensor.input_data_file for sample in config.model_warmup for tensor in sample.inputs.values()}
    named = [*sorted(labels), *(f"warmup/{file}" for file in sorted(samples) if file)]
    for file in named:
        if not (model.folder / file).is_file():
            mend = f"put it there, or take its name out of {CONFIG}"
            yield Finding(subject, Level.WRONG, f"{file} is missing, which {CONFIG} names", mend)
    usual = MODEL_FILES.get(config.backend or config.platform.partition("_")[0])
    if model.latest and usual and not config.cc_model_filenames and not model.manifest(model.latest):
        file = f"{model.latest}/{config.default_model_filename or usual}"
        if not (model.folder / file).exists():
            yield Finding(subject, Level.WRONG, f"{file} is missing", "put it there, or publish the model again")


def _numbers(model: Model) -> str:
    return ", ".join(map(str, model.versions)) or "none"


def _missing_plans(subject: str, plans: list[Plan], host: Host) -> Iterator[Finding]:
    """GPUs here for which a version with a plan for each of several types has none."""
    for folder in dict.fromkeys(plan.path.parent for plan in plans if plan.by_capability):
        there = [plan.compute_capability or "?" for plan in plans if plan.path.parent == folder]
        there.sort(key=parse_version)
        if missing := {gpu.compute_capability for gpu in host.gpus}.difference(there):
            text = f"version {folder.name} has plans for compute capability {', '.join(there)}, none for "
            mend = "on this machine, with the options of its other plans: repo-builder add ... --cc-plan"
            yield Finding(subject, Level.WRONG, text + ", ".join(sorted(missing)), mend)


def _plan(subject: str, plan: Plan, host: Host, another: str) -> Iterator[Finding]:
    """What keeps a plan from being loaded here: no GPU, another GPU, another TensorRT in the image."""
    file = f"{plan.path.parent.name}/{plan.path.name}"
    again = f"publish it again on this machine: repo-builder add ... --name {plan.model}"
    if not host.gpus:
        mend = f"serve it where there is one, or as ONNX: repo-builder add ... --target onnxruntime --name {plan.model}"
        yield Finding(subject, Level.WRONG, f"{file} needs an NVIDIA GPU, and there is none here", mend)
        return
    here = {gpu.compute_capability for gpu in host.gpus}
    if plan.compute_capability and plan.compute_capability not in here:
        if plan.by_capability:
            return  # for the GPUs of another machine
        text = f"{file} was built for compute capability {plan.compute_capability}, here is {', '.join(sorted(here))}"
        yield Finding(subject, Level.WRONG, text, again)
    if plan.rtx:
        return
    release = host.release
    if release and not loads(release, plan):
        text = (
            f"{file} is of TensorRT {version_text(plan.tensorrt) or '(unknown)'}, "
            f"and {host.image} has {version_text(release.tensorrt) or 'another'}"
        )
        yield Finding(subject, Level.WRONG, text, another if containers_for(plan.tensorrt) else again)
    if layers := plugins_setting([plan], "/models"):
        mend = f"add {layers!r} to the command of triton in compose.yaml; repo-builder serve does so by itself"
        yield Finding(subject, Level.WARNING, f"{file} has custom layers, which compose.yaml does not load", mend)

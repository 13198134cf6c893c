"""A ModelConfig message as config.pbtxt that a person can read."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from repo_builder.config.proto import ModelConfig, enum_name, parse_config
from repo_builder.errors import ConfigError

if TYPE_CHECKING:
    import jinja2


def render_config(config: ModelConfig) -> str:
    """Render ``config``; the text, parsed back, is ``config`` again or ConfigError is raised."""
    text = _environment().get_template("config.pbtxt.j2").render(config=config)
    if parse_config(text, "the rendered config.pbtxt") != config:
        raise ConfigError("the rendered config.pbtxt does not say what it should", "please report this with your files")
    return text


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repo_builder.config"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (pbtxt is no markup: every string goes through `quote`)
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = _quote
    environment.globals.update(enum=enum_name, rest=_rest, one_line=_one_line)
    return environment


def _quote(value: str) -> str:
    """A protobuf text string: backslashes, newlines and control characters escaped, UTF-8 as it is.

    JSON stays readable: a string with double quotes and no single ones goes between single quotes.
    """
    from google.protobuf import text_encoding

    escaped: str = text_encoding.CEscape(value, as_utf8=True)
    if '"' in value and "'" not in value:
        return "'" + escaped.replace('\\"', '"') + "'"
    return f'"{escaped}"'


def _one_line(message: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(message, as_utf8=True, as_one_line=True)).strip()


def _rest(message: Any, known: list[str]) -> list[str]:
    """The lines that protobuf's printer makes of all fields but ``known``."""
    from google.protobuf import text_format

    others = type(message)()
    others.CopyFrom(message)
    for name in known:
        if name in message.DESCRIPTOR.fields_by_name:
            others.ClearField(name)
    text: str = text_format.MessageToString(others, as_utf8=True, use_short_repeated_primitives=True)
    return text.rstrip("\n").split("\n") if text else []

"""``python -m client.compare``: what changed between measured runs, and what of that is noise."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in an import would show a traceback: see exit_code()

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.command import exit_code, run_app
from client.errors import ClientError, UsageError

if TYPE_CHECKING:
    from client.load.comparison import Comparison
    from client.report import Table

SLOWER_EXIT: Final = 99
_HEADER: Final = ("load", "", "before", "after", "change", "95% interval", "")
_BETWEEN_RUNS: Final = (
    "The intervals hold the variation within each run.  That between runs isn't in them and may be larger: "
    "measure one thing twice to see it."
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EPILOG = (
    "Confidence comes from the variation within each run.  Between runs there may be more: measure a baseline twice "
    "and compare the two.  A result is slower than --fail-if-slower allows if all of its change's 95% interval is.  "
    "Exit code: 0, 1 failed, 2 misuse, 99 a result is slower than --fail-if-slower.  What is "
    "INVALID is never called slower: if nothing else is, --fail-if-slower ends with 1, as it can't tell."
)


@app.command(epilog=_EPILOG)
def compare(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE.json", help="A run saved with client.bench --output.")],
    others: Annotated[list[Path], typer.Argument(metavar="OTHER.json", help="Runs to compare with it.")],
    fail_if_slower: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Exit 99 if any is worse by more: all of its interval, 5%.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Save the tables as a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare runs of client.bench with a baseline, load by load."""
    raise typer.Exit(exit_code(lambda: _run(baseline, others, fail_if_slower, html, as_json=as_json), debug=debug))


def _run(baseline: Path, others: Sequence[Path], limit: str | None, html: Path | None, *, as_json: bool) -> int:
    from client.load.comparison import compare as compare_runs
    from client.load.comparison import read_results
    from client.report import show

    most = None if limit is None else _percent(limit)
    before, *saved = read_results([baseline, *others])
    if html is not None and os.path.realpath(html) in map(os.path.realpath, (baseline, *others)):
        raise UsageError(f"--html {html} is one of the results", "another file for the page")
    results = [compare_runs(before, after) for after in saved]
    if as_json:
        document = {"baseline": str(baseline), "comparisons": [_entry(result) for result in results]}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        for result in results:
            show(_table(result))
            sys.stdout.writelines(f"note: {text}\n" for text in result.differences)
    if html is not None:
        _save_page(html, results)
    return 0 if most is None else _judge(results, most)


def _save_page(file: Path, results: Sequence[Comparison]) -> None:
    from client.load.html import tables_page
    from client.load.result import write_text

    # The names of files, which may be long, are in the title: a phone is narrow.
    tables = [
        replace(table, header=_HEADER, notes=(*table.notes, *result.differences))
        for result, table in zip(results, map(_table, results), strict=True)
    ]
    write_text(file, tables_page(f"{results[0].before.model}: runs compared", tables), "--html")


def _judge(results: Sequence[Comparison], most: float) -> int:
    from client.load.comparison import slower

    levels = [level for result in results for level in result.levels]
    found = slower(levels, most)
    for text in found:
        sys.stderr.write(f"slower: {text}\n")
    unsure = [level for level in levels if level.invalid]
    if unsure and not found:
        raise ClientError(
            f"--fail-if-slower can't tell of {unsure[0].load}: INVALID: {unsure[0].invalid[0]}",
            "measure again what is INVALID, for longer",
        )
    return SLOWER_EXIT if found else 0


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--fail-if-slower {text!r} is no percentage", "--fail-if-slower 5%")
    return value / 100


def _table(result: Comparison) -> Table:
    from client.load.report import count, milliseconds
    from client.report import Table

    rows = []
    for level in result.levels:
        for index, change in enumerate(level.changes):
            shown = milliseconds if change.unit == "ms" else count
            interval = "-" if change.low is None or change.high is None else f"{change.low:+.1%} .. {change.high:+.1%}"
            judged = "noise" if change.noise else "worse" if change.worse > 0 else "better"
            values = (shown(change.before), shown(change.after), f"{change.relative:+.1%}")
            rows.append((level.load if not index else "", f"{change.metric}, {change.unit}", *values, interval, judged))
    notes = tuple(f"{level.load}: INVALID: {reason}" for level in result.levels for reason in level.invalid)
    before, after = result.before.label, result.after.label
    header = (*_HEADER[:2], before, after, *_HEADER[4:])
    return Table(f"{after} against {before}", header, tuple(rows), "<<>>>><", (*notes, _BETWEEN_RUNS))


def _entry(result: Comparison) -> dict[str, Any]:
    return {
        "run": str(result.after.path),
        "differences": result.differences,
        "levels": [
            {
                "load": level.load,
                "invalid": level.invalid,
                "changes": [
                    {
                        **asdict(change),
                        "relative": change.relative,
                        "noise": change.noise,
                        "worse": change.worse,
                        "worse_at_least": change.worse_at_least,
                    }
                    for change in level.changes
                ],
            }
            for level in result.levels
        ],
    }


def main() -> None:
    """Run the command line."""
    run_app(app, "python -m client.compare")


if __name__ == "__main__":
    main()

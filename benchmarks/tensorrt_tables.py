"""The tables of docs/tensorrt.md, from results/tensorrt.json and from the gate's own tolerances.

    python benchmarks/tensorrt_tables.py

writes them into the file; tests/test_docs.py holds the file to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from repo_builder.compilers.tensorrt import TOLERANCES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tensorrt.md"
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt.json"
ROUNDOFF = {"FP32": -24, "TF32": -11, "FP16": -11, "BF16": -8}
"""log2 of the unit roundoff: half the distance of 1 to the next number (TF32 has FP16's 10 bits of fraction)."""

Rows = Iterable[Iterable[object]]


def markdown(header: Iterable[str], rows: Rows) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tolerances() -> str:
    rows = (
        (name, f"2^{ROUNDOFF[name]}", f"{limit.rtol:g}", f"{limit.scale:g}", f"{limit.scale / 2 ** ROUNDOFF[name]:.0f}")
        for name, limit in TOLERANCES.items()
    )
    return markdown(("precision", "unit roundoff u", "of the value", "of the largest value", "that is, in u"), rows)


def published(results: Mapping[str, Any]) -> str:
    rows = []
    for model, found in results["publish"].items():
        outputs, served = found["verification"]["outputs"], found["served"]
        cached = " (timing cache)" if found["engine"]["timing_cache_hit"] else ""
        rows.append(
            (
                model,
                f"{found['engine']['build_seconds']:.0f}{cached}",
                f"{max(output['cosine_error'] for output in outputs):.1e}",
                f"{served['max_error_of_largest']:.1e}",
                f"{served['top1_agreement']:.1%}",
                f"{served['median_request_ms']:.2f}",
            )
        )
    header = ("model, FP16", "build, s", "gate: cosine error", "served: error", "same top-1", "request, ms")
    return markdown(header, rows)


def beside_polygraphy(results: Mapping[str, Any]) -> str:
    rows = [
        (model, batch, f"{own:.3f}", f"{found['gpu_ms']['polygraphy'][batch]:.3f}", f"{found['ratio'][batch]:.3f}")
        for model, found in results["polygraphy"].items()
        for batch, own in found["gpu_ms"]["own"].items()
    ]
    return markdown(("model, FP16", "batch", "ours, ms", "Polygraphy's, ms", "ratio"), rows)


def served(results: Mapping[str, Any]) -> str:
    rows = []
    for model, found in results["serve"].items():
        for key, load in found.items():
            if not key.startswith("instances_"):
                continue
            for way in ("http", "shared_memory"):
                rate = load[way]["images_per_second"]
                rows.append(
                    (
                        model,
                        key.removeprefix("instances_"),
                        way.replace("_", " "),
                        f"{rate:.0f}",
                        load[way]["share_of_engine"],
                    )
                )
    return markdown(("model, FP16", "instances", "pictures by", "images/s", "of the engine alone"), rows)


def machine(results: Mapping[str, Any]) -> str:
    gpu = results["machine"]["gpu"]
    return f"{gpu['name']}, driver {gpu['driver']}, TensorRT {results['machine']['tensorrt']}."


def tables() -> dict[str, str]:
    """Every table by the name that its markers in the page have."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        "tolerances": tolerances(),
        "machine": machine(results),
        "published": published(results),
        "polygraphy": beside_polygraphy(results),
        "served": served(results),
    }


def filled(page: str) -> str:
    """``page`` with what stands between ``<!-- NAME -->`` and ``<!-- end -->`` replaced by the table of that name."""
    for name, table in tables().items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        page, count = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit()

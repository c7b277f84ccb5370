"""The JSON schema of run directories, made from the types: `python -m zipfmax_reference.records.schema`.

`schema.json` beside this file is its output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from zipfmax_reference.records import RECORDS
from zipfmax_reference.records.base import FORMAT
from zipfmax_reference.records.meta import RunMeta

FILE = Path(__file__).with_name("schema.json")


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every type, and which file of a run directory holds which."""
    models = [(model, "serialization") for model in (RunMeta, *RECORDS.values())]
    _, definitions = models_json_schema(models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Run directory of zipfmax, format {FORMAT}",
        "description": "run.json is a RunMeta. Each line of NAME.jsonl is an object of the type given in "
        '"files". NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".',
        "files": {"run.json": "#/$defs/RunMeta"}
        | {f"{name}.jsonl": f"#/$defs/{model.__name__}" for name, model in RECORDS.items()},
        "$defs": definitions["$defs"],
    }


def text() -> str:
    """Content of `schema.json`."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())

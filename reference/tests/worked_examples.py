"""Worked examples: small cases for every clause of arithmetic, answered by the naive form.

`python reference/tests/worked_examples.py` writes the vector set `worked_examples` of the kit. The
answers come from the modules `naive*` alone, which share no code with the reference, and from a copy
of the published configurations made by hand. `test_worked_examples.py` compares the stored set with
a new one: integers exactly, floating point within a bound, since exp and log may differ by an ulp.
Initialisation has no examples: its clauses are about distributions.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np
import worked_attention
import worked_audit
import worked_audit_inference
import worked_audit_measures
import worked_checkpoints
import worked_configuration
import worked_data
import worked_decoding
import worked_dialects
import worked_documents
import worked_layers
import worked_loss
import worked_meshes
import worked_model
import worked_moe
import worked_objectives
import worked_routing
import worked_training
from numpy import ndarray
from worked_example import FOLDER, Example, lending, stored

CHAPTERS = (
    worked_configuration,
    worked_layers,
    worked_attention,
    worked_routing,
    worked_moe,
    worked_model,
    worked_loss,
    worked_training,
    worked_decoding,
    worked_data,
    worked_objectives,
    worked_documents,
    worked_meshes,
    worked_checkpoints,
    worked_audit,
    worked_audit_measures,
    worked_audit_inference,
    worked_dialects,
)
"""The modules that hold the examples, in the order of SPEC.md."""


@cache
def examples() -> tuple[Example, ...]:
    """Return every example, in the order of SPEC.md."""
    return tuple(example for chapter in CHAPTERS for example in chapter.examples())


def index_and_arrays() -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return the content of `index.json` (without hashes) and of the npz file."""
    rows, arrays = [], dict[str, ndarray]()
    lent = worked_moe.models() | worked_model.models() | worked_meshes.models()
    for row, own in (
        *(stored(example, lent) for example in examples()),
        *(lending(name, model) for name, model in lent.items()),
    ):
        rows.append(row)
        arrays |= own
    index = {
        "schema": 1,
        "chapter": FOLDER.name,
        "provenance": {
            "program": "reference/tests/naive*.py, by reference/tests/worked_examples.py",
            "inputs": "seeded; most are multiples of 1/8, so that logits are exact",
        },
        "files": {},
        "cases": rows,
    }
    return index, arrays


def main() -> None:
    """Write the set."""
    index, arrays = index_and_arrays()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{FOLDER.name}.npz"
    np.savez_compressed(path, **arrays)
    data = path.read_bytes()
    index["files"] = {path.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "index.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The layouts that vectors of the original programs come in: no hashes, no clause ids.

The clause that each comparison decides is supplied by the readers of the three programs' layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmoe_conformance import upstream_t5x, upstream_torch_port, upstream_ul2
from openmoe_conformance.vector_cases import VectorCase


def upstream_cases(folder: Path, index: Mapping[str, Any]) -> list[VectorCase] | None:
    """Return the cases of an upstream folder, None when its index is of no such layout.

    What belongs to chapters that this version lacks is listed, to be reported as SKIPPED.
    """
    if isinstance(index.get("cases"), list):
        return upstream_t5x.cases(folder, index)
    if "conventions" in index:
        return upstream_torch_port.cases(folder)
    if isinstance(index.get("groups"), dict):
        return upstream_ul2.cases(folder, index)
    return None

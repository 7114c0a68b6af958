"""Probes of the data side: is a mode put in front, and how long is a prefix?"""

from __future__ import annotations

from typing import Any

import numpy as np

from openmoe_conformance.adapter import call
from openmoe_conformance.compare import fields_of
from openmoe_conformance.probes import Known, probe


@probe(
    "ul2_example",
    "mode_tokens",
    "prefix_split",
    what="lengths of inputs and targets of a PrefixLM example: 10 tokens, a draw of 2, a mode of 4",
    alone=True,
)
def _(adapter: Any, _: Known) -> Any:
    answer = call(
        adapter,
        "ul2_example",
        np.arange(10, 20),
        5,
        inputs_length=64,
        targets_length=64,
        vocabulary_size=1000,
        prompt=np.arange(40, 44),
        split=2,
    )
    found = fields_of(answer, ("inputs", "targets"))
    return np.array([len(found["inputs"]), len(found["targets"])])

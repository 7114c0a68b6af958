"""Comparisons of stored vocabularies and fine-tuning examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import FEATURES, fields, ids, same_example, same_numbers
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, VectorCase, once

# ---- vocabularies ------------------------------------------------------------------------------


def _vocabulary(s: Subject, case: VectorCase) -> object:
    given = {name: case.config[name] for name in ("num_sentinels", "reverse")}
    pieces = case.config["num_pieces"]
    return once(s, case, "vocabulary", lambda: s.call("vocabulary", pieces, **given))


def _size(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    same_numbers("vocabulary", _vocabulary(s, case), case.config["size"])


def _sentinels(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    answer = fields("vocabulary", _vocabulary(s, case), ("sentinels",))["sentinels"]
    got = ids("vocabulary.sentinels", answer)
    if len(got) != case.config["num_sentinels"]:
        raise Disagreement(
            f"vocabulary.sentinels: {len(got)}, expected {case.config['num_sentinels']}"
        )
    for number, wanted in case.config["sentinels"].items():
        same(f"vocabulary.sentinels[{number}]", got[int(number)], wanted)


# ---- fine-tuning -------------------------------------------------------------------------------


def _fine_tuning(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """Compare what the texts' ids are cut to; every step is the implementation's."""
    config = case.config
    texts = fields("sft_texts", s.call("sft_texts", config["task"], config["fields"]), FEATURES)
    if case.model is None:
        raise UnsupportedError("the case names no model")
    text_ids = {
        name: ids(
            "encode_text",
            s.call(
                "encode_text",
                text,
                model=str(case.model),
                num_sentinels=config["num_sentinels"],
                reverse=True,
            ),
        ).astype(np.int32)
        for name, text in texts.items()
    }
    answer = s.call(
        "finish_example",
        *(text_ids[name] for name in FEATURES),
        inputs_length=config["inputs_length"],
        targets_length=config["targets_length"],
        prompt=None,
        ends=tuple(config["ends"]),
    )
    same_example("finish_example", answer, {name: config[name] for name in FEATURES})


KINDS: Mapping[str, Kind] = {
    "vocabulary": Kind(
        {
            "size": Comparison(_size, config=("size",)),
            "sentinels": Comparison(_sentinels, config=("sentinels",)),
        },
        config=("num_pieces", "num_sentinels", "reverse"),
    ),
    "fine_tuning": Kind(
        {"ids": Comparison(_fine_tuning)},
        config=(
            *("task", "fields", "num_sentinels", "ends"),
            *("inputs_length", "targets_length", "inputs", "targets"),
        ),
    ),
}
"""Kinds of text."""

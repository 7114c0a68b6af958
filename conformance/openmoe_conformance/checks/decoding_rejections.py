"""Checks of SPEC.md "Decoding": what it must reject."""

from __future__ import annotations

from collections.abc import Iterator

from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.decoding import AMPLE, built
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject


def _illegal_prompts(_: Profile) -> Iterator[Case]:
    yield {"wrong": "no decoder_causal_attention"}
    yield {"wrong": "more steps than there is room for"}
    for token in (-1, model_cases.VOCABULARY, 2**20):
        yield {"wrong": "an unknown id in a prompt", "token": token}
        yield {"wrong": "an unknown id behind a prompt", "token": token}


def _with(case: Case, batch: dict[str, ndarray]) -> dict[str, ndarray]:
    if case["wrong"] == "no decoder_causal_attention":
        return {name: batch[name] for name in batch if name != "decoder_causal_attention"}
    if "token" not in case:
        return batch
    ids, row = batch["decoder_input_tokens"].copy(), 0
    last = int(batch["decoder_causal_attention"][row].sum()) - 1
    ids[row, last if case["wrong"] == "an unknown id in a prompt" else last + 1] = case["token"]
    return batch | {"decoder_input_tokens": ids}


@check("DEC-09", "rejects_invalid_input", "decode", cases=_illegal_prompts)
def illegal_prompts_are_not_decoded(subject: Subject, case: Case, _: Evidence) -> None:
    """Prompts of unknown extent, ids outside the vocabulary and steps beyond the cache raise."""
    fields, parameters, batch = built(AMPLE)
    wrong, prompt = _with(case, batch), batch["decoder_causal_attention"].sum(axis=1) - 1
    room = int(batch["decoder_input_tokens"].shape[1] - prompt.max())
    steps = room + 1 if case["wrong"] == "more steps than there is room for" else 2
    must_reject(
        f"decode with {case['wrong']}",
        lambda: subject.call("decode", parameters, wrong, configuration=fields, steps=steps),
    )


def _illegal_for_generation(_: Profile) -> Iterator[Case]:
    yield {"wrong": "no decoder_causal_attention"}
    yield {"wrong": "an unknown id in a prompt", "token": model_cases.VOCABULARY}


@check("DEC-09", "rejects_invalid_input", "generate", cases=_illegal_for_generation)
def nothing_is_generated_from_illegal_prompts(subject: Subject, case: Case, _: Evidence) -> None:
    """A prompt of unknown extent and one of unknown ids raise."""
    fields, parameters, batch = built(AMPLE)
    wrong = _with(case, batch)
    must_reject(
        f"generate with {case['wrong']}",
        lambda: subject.call("generate", parameters, wrong, configuration=fields),
    )

"""Checks of SPEC.md "Decoding": prefill, steps, generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers, model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.clear_models import CLEAR, Oracle, clear_cases
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject
from openmoe_reference import decoding, model
from openmoe_spec.config import Configuration

LOGIT_BOUND = {"relative": 0.0, "absolute": 3e-5}  # DEC-04
CACHE_BOUND = {"relative": 0.0, "absolute": 2e-5}
STEPS = 4

AMPLE = model_cases.fixed(rows=3, length=12) | {"eval_capacity_factor": 16.0}
"""Nothing is dropped, in prefill or elsewhere."""

TIGHT = AMPLE | {"eval_capacity_factor": 2.0}
"""Prefill drops choices, each row is alone in its group afterwards."""

CROWDED = TIGHT | {"rows": 9}
"""Steps have groups of three tokens, which drop choices too."""


def built(case: Case) -> tuple[dict[str, Any], dict[str, ndarray], dict[str, ndarray]]:
    """Return configuration, parameters and prompts of a case."""
    fields = model_cases.configuration(
        case, eval_capacity_factor=case["eval_capacity_factor"], min_expert_capacity=1
    )
    return fields, model_cases.weights(fields, case["seed"]), _prompts(case)


def _prompts(case: Case) -> dict[str, ndarray]:
    """Return prompts of 0 tokens and more, each with a continuation that prefill must not see.

    The first holds an id 1. With `zeros` the last one and every continuation hold ids of 0.
    """
    generator = np.random.default_rng((case["seed"], 3))
    rows, length = case["rows"], case["length"]
    targets = generator.integers(2, model_cases.VOCABULARY, (rows, length), dtype=np.int32)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    last = generator.integers(0, length - STEPS - 1, rows)
    last[0], last[-1] = 2, 5
    if case.get("one_length"):
        last[:] = 3
    inputs[0, 1] = decoding.END
    if case.get("zeros"):
        inputs[-1, 2] = 0
        inputs[np.arange(rows), last + 2], inputs[np.arange(rows), last + 3] = 0, 0
    prefix = (np.arange(length) <= last[:, None]).astype(np.int32)
    return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_causal_attention": prefix,
    }


def _options(case: Case) -> dict[str, Any]:
    return {"num_expert_replicas": case.get("replicas", 1)}


def _wanted(oracle: Oracle, case: Case) -> dict[str, Any]:
    fields, parameters, batch = built(case)
    return oracle.decode(
        parameters, batch, configuration=fields, steps=STEPS, dtype="float64", **_options(case)
    )


def _is_clear(case: Case) -> bool:
    oracle = Oracle()
    _wanted(oracle, case)
    return oracle.is_clear


@dataclass(frozen=True)
class Decoded:
    """An implementation's logits [B, STEPS, V], and its caches as mappings of their fields."""

    logits: ndarray
    prefill: Mapping[str, ndarray]
    cache: Mapping[str, ndarray]


def _decoded(subject: Subject, case: Case, batch: Mapping[str, ndarray] | None = None) -> Decoded:
    fields, parameters, own = built(case)
    c, rows, length = Configuration(**fields), case["rows"], case["length"]
    answer = subject.call(
        "decode",
        parameters,
        own if batch is None else batch,
        configuration=fields,
        steps=STEPS,
        **_options(case),
    )
    found = fields_of(answer, ("logits", "prefill", "cache"))
    heads = c.num_layers, rows, length, c.key_value_heads, c.head_dim
    shapes = {"keys": heads, "values": heads, "index": (rows,)}
    return Decoded(
        answers.numbers("decode: logits", found["logits"], (rows, STEPS, c.vocabulary_size)),
        answers.named("decode: prefill", found["prefill"], shapes),
        answers.named("decode: cache", found["cache"], shapes),
    )


def _compare_cache(name: str, got: Mapping[str, ndarray], wanted: Any, evidence: Evidence) -> None:
    same(f"{name}: index", got["index"], wanted.index)
    for field in ("keys", "values"):
        close(f"{name}: {field}", got[field], getattr(wanted, field), evidence, **CACHE_BOUND)


# ---- prompt and prefill ------------------------------------------------------------------------


@check("DEC-01", "decode", cases=clear_cases(TIGHT | {"zeros": True}, is_clear=_is_clear))
def a_prompt_is_what_may_be_attended(subject: Subject, case: Case, evidence: Evidence) -> None:
    """n_b counts the ids other than 0 behind the first place; what follows the prompt is not seen."""
    got = _decoded(subject, case)
    same("prefill: index", got.prefill["index"], _wanted(Oracle(), case)["prefill"].index)
    batch = built(case)[2]
    behind = batch["decoder_causal_attention"] == 0
    ids = batch["decoder_input_tokens"]
    other = batch | {"decoder_input_tokens": np.where(behind, ids.max() - ids, ids)}
    again = _decoded(subject, case, other).prefill
    same("prefill with another continuation: index", again["index"], got.prefill["index"])
    for field in ("keys", "values"):
        name = f"prefill with another continuation: {field}"
        close(name, again[field], got.prefill[field], evidence, **CACHE_BOUND)


@check(
    "DEC-02",
    "decode",
    cases=clear_cases(TIGHT, CROWDED, TIGHT | {"zeros": True}, is_clear=_is_clear),
)
def prefill_is_one_evaluation_pass(subject: Subject, case: Case, evidence: Evidence) -> None:
    """All L positions are routed at evaluation capacity and may drop; the start token is seen."""
    wanted = _wanted(Oracle(), case)["prefill"]
    _compare_cache("prefill", _decoded(subject, case).prefill, wanted, evidence)


@check("DEC-03", "decode", cases=clear_cases(AMPLE, AMPLE | {"zeros": True}, is_clear=_is_clear))
def the_cache_ends_before_the_last_token(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Keys as they are, not rotated, and values below n_b; zeros from there on."""
    wanted = _wanted(Oracle(), case)["prefill"]
    got = _decoded(subject, case).prefill
    empty = np.arange(case["length"]) >= wanted.index[:, None]
    for field in ("keys", "values"):
        rest = got[field][:, empty]
        same(f"prefill: {field} from n_b on", rest, np.zeros_like(rest))
    _compare_cache("prefill", got, wanted, evidence)


# ---- steps -------------------------------------------------------------------------------------


def _compare_steps(subject: Subject, case: Case, evidence: Evidence) -> None:
    wanted, got = _wanted(Oracle(), case), _decoded(subject, case)
    close("logits", got.logits, wanted["logits"], evidence, **LOGIT_BOUND)
    _compare_cache("cache", got.cache, wanted["cache"], evidence)


@check(
    "DEC-04",
    "decode",
    cases=clear_cases(AMPLE | {"zeros": True}, AMPLE, TIGHT | {"zeros": True}, is_clear=_is_clear),
)
def a_step_adds_one_slot(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits and caches after a few steps, ids of 0 among those that are fed."""
    _compare_steps(subject, case, evidence)


@check("DEC-05", "decode", cases=clear_cases(CROWDED, TIGHT, is_clear=_is_clear))
def a_step_routes_rows_of_length_one(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Nine rows make groups of three, which drop choices; each of three rows is alone."""
    _compare_steps(subject, case, evidence)


@check(
    "DEC-05",
    "decode(num_expert_replicas)",
    cases=clear_cases(CROWDED | {"replicas": 2}, is_clear=_is_clear),
)
def replicas_split_the_rows_further(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With two expert replicas nine rows make groups of two."""
    _compare_steps(subject, case, evidence)


def _full_pass(case: Case, first: ndarray) -> ndarray:
    """Return the logits of one evaluation pass over the whole rows where the steps stand."""
    fields, parameters, batch = built(case)
    whole = {name: batch[name] for name in ("decoder_input_tokens", "decoder_target_tokens")}
    passed = Oracle().forward(parameters, whole, configuration=fields, dtype="float64")
    places = first[:, None] + np.arange(STEPS)
    return np.take_along_axis(passed.logits, places[..., None], axis=1)


@check("DEC-06", "decode", cases=clear_cases(AMPLE, is_clear=_is_clear))
def steps_equal_one_pass_where_nothing_drops(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Step t gives the logits of place n_b + t of a pass over the whole rows."""
    first = built(case)[2]["decoder_causal_attention"].sum(axis=1) - 1
    got = _decoded(subject, case).logits
    close("logits", got, _full_pass(case, first), evidence, **LOGIT_BOUND)


def _is_clear_and_differs(case: Case) -> bool:
    oracle = Oracle()
    wanted = _wanted(oracle, case)
    full = _full_pass(case, wanted["prefill"].index)
    return oracle.is_clear and bool(np.abs(wanted["logits"] - full).max() > CLEAR)


@check("DEC-06", "decode", cases=clear_cases(TIGHT, is_clear=_is_clear_and_differs))
def steps_differ_from_one_pass_that_drops(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Prefill drops other choices than a pass over the whole rows, and steps drop none."""
    got = _decoded(subject, case).logits
    close("logits", got, _wanted(Oracle(), case)["logits"], evidence, **LOGIT_BOUND)


# ---- generation --------------------------------------------------------------------------------


def _generated(oracle: Oracle, case: Case, **options: Any) -> ndarray:
    fields, parameters, batch = built(case)
    return oracle.generate(
        parameters, batch, configuration=fields, dtype="float64", **_options(case), **options
    )


def _compare_generation(subject: Subject, case: Case, **options: Any) -> None:
    fields, parameters, batch = built(case)
    answer = subject.call(
        "generate", parameters, batch, configuration=fields, **_options(case), **options
    )
    got = answers.whole("generate", answer, (case["rows"], case["length"]))
    same("generated ids", got, _generated(Oracle(), case, **options))


def _ends_early_and_late(case: Case) -> bool:
    """Whether one row ends with id 1 soon, one never does, and no choice is close."""
    oracle = Oracle()
    ends = _generated(oracle, case) == decoding.END
    soon = ends[:, : case["length"] // 2].any()
    return oracle.is_clear and bool(soon and not ends.any(axis=1).all())


SHORT = AMPLE | {"length": 10}


@check("DEC-07", "generate", cases=clear_cases(SHORT, is_clear=_ends_early_and_late))
def generation_ends_row_by_row(subject: Subject, case: Case, _: Evidence) -> None:
    """New ids alone, up to an id 1 more than the prompt's or to L, and 0 afterwards."""
    _compare_generation(subject, case)


def _begins_otherwise_than_prefill(case: Case) -> bool:
    """Whether prefill drops so that its own logits would give another first id."""
    oracle, (fields, parameters, batch) = Oracle(), built(case)
    call = model.Call(dtype="float64")
    _, passed = decoding.prefill(parameters, batch, Configuration(**fields), call=call)
    places = decoding.prompt(batch)[1]
    of_prefill = passed.logits[np.arange(case["rows"]), places].argmax(axis=-1)
    first = _wanted(oracle, case)["logits"][:, 0].argmax(axis=-1)
    if (of_prefill == first).all():
        return False
    _generated(oracle, case)
    return oracle.is_clear


@check(
    "DEC-07",
    "generate",
    cases=clear_cases(
        TIGHT | {"length": 10, "eval_capacity_factor": 1.0},
        is_clear=_begins_otherwise_than_prefill,
    ),
)
def the_last_prompt_token_is_fed_first(subject: Subject, case: Case, _: Evidence) -> None:
    """The first new id comes from a step, which drops nothing, not from prefill, which does."""
    _compare_generation(subject, case)


@check(
    "DEC-05",
    "generate",
    cases=clear_cases(CROWDED | {"one_length": True}, is_clear=_ends_early_and_late),
)
def ended_rows_are_routed(subject: Subject, case: Case, _: Evidence) -> None:
    """A row that has ended still takes slots from the others."""
    _compare_generation(subject, case)


def _drawn(case: Case) -> dict[str, Any]:
    generator = np.random.default_rng((case["seed"], 4))
    shape = case["rows"], case["length"], model_cases.VOCABULARY
    return {"noise": generator.gumbel(size=shape).astype(np.float32), "temperature": 0.5}


def _is_drawn_clearly(case: Case) -> bool:
    oracle = Oracle()
    _generated(oracle, case, **_drawn(case))
    return oracle.is_clear


@check(
    "DEC-11",
    "generate(noise)",
    "generate(temperature)",
    cases=clear_cases(SHORT, is_clear=_is_drawn_clearly),
)
def each_step_draws_with_its_own_noise(subject: Subject, case: Case, _: Evidence) -> None:
    """Step t of every row chooses by logits / temperature + noise[:, t]."""
    _compare_generation(subject, case, **_drawn(case))

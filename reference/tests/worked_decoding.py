"""Worked examples of decoding and of choosing a token, answered by the naive form."""

from __future__ import annotations

from typing import Any

import naive_decoding
import naive_model
import numpy as np
from naive_model import Model
from numpy import ndarray
from worked_example import Example
from worked_model import batch, clear, fields, weights

from openmoe_spec.config import Configuration

LOGITS_BOUND = {"absolute": 3e-5}
CACHE_BOUND = {"absolute": 2e-5}

PROMPTS = batch(
    [[0, 3, 5, 2, 6, 4], [0, 4, 2, 0, 3, 0]],
    [[3, 5, 2, 6, 4, 1], [4, 2, 3, 0, 0, 0]],
    causal_attention=[[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
)
"""Two rows whose prompts have two tokens, and one, after the start token."""


class Decoded:
    """Some naive steps of a model on given ids, from the prompts on; every router decides clearly."""

    def __init__(self, model: Model, given: Any, steps: int) -> None:
        self.model = model
        fed = given["decoder_input_tokens"]
        first = naive_decoding.prefill(self.model, given)
        cached, logits = first, []
        for _ in range(steps):
            tokens = [int(row[len(one.keys)]) for row, one in zip(fed, cached[0], strict=True)]
            made, cached = naive_decoding.step(self.model, cached, tokens)
            logits.append(made)
        self.logits = np.array(logits).swapaxes(0, 1)
        self.prefill, self.cache = (self.shown(one, fed.shape[1]) for one in (first, cached))

    def shown(self, cached: naive_decoding.Cached, length: int) -> dict[str, ndarray]:
        """Return the arrays of a cache by name."""
        cache = naive_decoding.as_cache(self.model, cached, length)
        return {"keys": cache.keys, "values": cache.values, "index": cache.index}


def decoded() -> list[Example]:
    """Return prefills and steps, and those that must be rejected."""
    one, two = fields(), fields(num_layers=2, num_moe_layers=2)
    scarce = {"min_expert_capacity": 1, "eval_capacity_factor": 0.5}
    crowded = fields(num_selected_experts=2, **scarce)
    holes = PROMPTS | {"decoder_causal_attention": np.array([[1] * 4 + [0] * 2, [1] * 6], np.int32)}
    whole = PROMPTS | {"decoder_causal_attention": np.ones((2, 6), np.int32)}
    many = {name: np.repeat(value, 3, axis=0)[:5] for name, value in PROMPTS.items()}
    found = []
    for name, clause, what, configuration, given, steps, shown, more in (
        ("prompt", "DEC-01", "ids of 0 do not count", one, holes, 1, "index", {}),
        ("prefill", "DEC-02", "a pass that drops", two | scarce, whole, 1, "prefill", {}),
        ("cache", "DEC-03", "not rotated; zeros from n_b on", one, PROMPTS, 1, "prefill", {}),
        ("steps", "DEC-04", "id 0 among them", one, PROMPTS, 4, "steps", {}),
        ("five_rows", "DEC-05", "rows compete in a step", crowded, many, 1, "logits", {}),
        (
            "replicas_of_steps",
            "DEC-05",
            "two replicas",
            crowded,
            many,
            1,
            "logits",
            {"replicas": 2},
        ),
    ):
        parameters = weights(configuration, 9)
        made = Decoded(Model(parameters, Configuration(**configuration), **more), given, steps)
        answer = {
            "index": {"prefill": {"index": made.prefill["index"]}},
            "prefill": {"prefill": made.prefill},
            "steps": {"logits": made.logits, "cache": made.cache},
            "logits": {"logits": made.logits},
        }[shown]
        arguments = {"configuration": configuration, "parameters": parameters, "batch": given}
        arguments |= {"steps": steps} | ({"num_expert_replicas": 2} if more else {})
        bound = LOGITS_BOUND if shown == "logits" else CACHE_BOUND
        found.append(Example(name, clause, what, "decode", arguments, answer, bound))
    call = {"configuration": one, "parameters": weights(one, 9), "batch": PROMPTS, "steps": 1}
    without = {name: value for name, value in PROMPTS.items() if not name.endswith("attention")}
    unknown = PROMPTS["decoder_input_tokens"].copy()
    unknown[0, 2] = 7
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("no_room", "5 steps from slot 2 of 6", {"steps": 5}),
        ("no_prompt", "no causal attention", {"batch": without}),
        ("unknown_token", "an id of V", {"batch": PROMPTS | {"decoder_input_tokens": unknown}}),
    )
    return [
        *found,
        _as_a_pass(),
        *(Example(name, "DEC-09", what, "decode", call | change) for name, what, change in changes),
    ]


def _as_a_pass() -> Example:
    """Return steps of an ample capacity, answered by one full pass."""
    ample = fields(eval_capacity_factor=8.0)
    alone = {name: value[:1] for name, value in PROMPTS.items()}
    parameters = weights(ample, 9)
    passed = naive_model.forward(Model(parameters, Configuration(**ample)), alone)
    assert clear(passed, 1).decisions[0].kept.all()
    arguments = {"configuration": ample, "parameters": parameters, "batch": alone, "steps": 3}
    wanted = {"logits": passed.logits[:, 2:5]}
    what = "the logits of one full pass"
    return Example("as_a_pass", "DEC-06", what, "decode", arguments, wanted, LOGITS_BOUND)


def generated() -> list[Example]:
    """Return generated ids, greedy and drawn."""
    configuration = fields()
    parameters = weights(configuration, 9)
    # Id 1 is likely, so that rows end at different times; one prompt holds it, and an id behind 0.
    parameters["decoder/logits_dense/kernel"][:, 1] *= 3
    inputs = [[0, 3, 1, 0, 0, 0], [0, 4, 0, 5, 0, 0], [0, 2, 2, 4, 6, 0]]
    marks = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    given = batch(inputs, np.ones((3, 6)), causal_attention=marks)
    noise = np.random.default_rng(1).gumbel(size=(3, 6, 7)).round(2).astype(np.float32)
    model = Model(parameters, Configuration(**configuration))
    arguments = {"configuration": configuration, "parameters": parameters, "batch": given}
    return [
        Example(
            *(name, "DEC-07", what, "generate"),
            arguments | options,
            np.array(naive_decoding.generate(model, given, **options)),
        )
        for name, what, options in (
            ("generated", "rows of other prompts and ends", {}),
            ("drawn_ids", "a draw a step", {"noise": noise, "temperature": 1.0}),
        )
    ]


# ---- choosing a token ------------------------------------------------------------------------


def samples() -> list[Example]:
    """Return chosen tokens, and arguments that must be rejected."""
    logits = np.array([[1, 3, 3, 0, 2], [0, 0, 0, 0, 0], [4, 3, 2, 1, 0]], np.float32)
    noise = np.array([[9, 0, 1, 0, 8], [0, 0, 1, 0, 0], [0, 1.5, 0, 0, 2.5]], np.float32)
    cold, warm = {"temperature": 0.0}, {"temperature": 2.0}
    calls: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("best", "DEC-08", "temperature 0: the largest, the first of equals", cold),
        ("best_of_cut", "DEC-08", "whatever the cuts", cold | {"top_p": 0.001}),
        ("least_temperature", "DEC-08", "1e-4 is as good as 0", {"temperature": 1e-4}),
        ("above_it", "DEC-08", "2e-4 is not", {"temperature": 2e-4}),
        ("drawn", "DEC-11", "noise is added after the temperature", warm),
        ("drawn_cold", "DEC-11", "temperature 1/2", {"temperature": 0.5}),
        ("largest", "DEC-12", "the two largest", warm | {"top_k": 2}),
        ("equals", "DEC-12", "both of the largest stay", warm | {"top_k": 1}),
        ("mass", "DEC-13", "the fewest that hold half", warm | {"top_p": 0.5}),
        ("equals_of_mass", "DEC-13", "equals of the least stay", warm | {"top_p": 0.1}),
        ("most_of_mass", "DEC-13", "all but the least", warm | {"top_p": 0.9}),
    )
    found = []
    for name, clause, what, options in calls:
        rows = zip(logits.tolist(), noise.tolist(), strict=True)
        wanted = [naive_decoding.sample(row, noise=drawn, **options) for row, drawn in rows]
        arguments = {"logits": logits, "noise": noise, **options}
        found.append(Example(name, clause, what, "sample", arguments, np.array(wanted)))
    unknown = logits.copy()
    unknown[2, 4] = np.nan
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("unknown_logit", "not a number", {"logits": unknown, "temperature": 0.0}),
        ("negative_temperature", "temperature -1", {"temperature": -1.0}),
        ("six_largest", "top_k of V + 1", {"top_k": 6}),
        ("too_much_mass", "top_p of 1.5", {"top_p": 1.5}),
        ("two_cuts", "both cuts", {"top_k": 2, "top_p": 0.5}),
    )
    call = {"logits": logits, "noise": noise}
    return found + [
        Example(name, "DEC-10", what, "sample", call | change) for name, what, change in changes
    ]


def examples() -> list[Example]:
    """Return the examples of decoding, in the order of SPEC.md."""
    return [*decoded(), *generated(), *samples()]

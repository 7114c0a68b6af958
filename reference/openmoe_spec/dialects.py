"""The dialects: at each point where paper, training code and published port part, a named choice.

A dialect is a table from point to option. `t5x` is normative: the weights were trained with it.
`torch_port` is what most people run, its defects included. `paper` is `t5x` with what the equations
and tables of the paper say otherwise; where the paper is silent it is `t5x`.
Spec: DIAL-01..DIAL-04; every point stands in SPEC.md's appendix with an executed example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError


@dataclass(frozen=True)
class Point:
    """One point of difference: its name, what is asked, and the options with a sentence each."""

    name: str
    question: str
    options: Mapping[str, str]


POINTS: Mapping[str, Point] = {
    point.name: point
    for point in (
        Point(
            "capacity",
            "How many slots has an expert in one group?",
            {
                "half_even": "round(factor T / E) half to even, K left out, then the minimum",
                "even_slots": "floor(K factor T / E), one more when odd, then the minimum",
            },
        ),
        Point(
            "groups",
            "Which tokens compete for the slots?",
            {
                "by_experts": "G is a multiple of E x R; the batch is padded to fit",
                "whole_call": "all B x L tokens of a call are one group, nothing is padded",
            },
        ),
        Point(
            "one_choice",
            "What does a router with K = 1 rank experts by?",
            {"probabilities": "float32 probabilities", "logits": "logits"},
        ),
        Point(
            "router_kernel",
            "In which dtype are the router's weights held?",
            {"float32": "float32, whatever the activations", "activation": "the activations'"},
        ),
        Point(
            "combine",
            "In which dtype are expert outputs combined?",
            {
                "float32": "float32: the residual stream is float32 from the first sparse layer on",
                "activation": "the activations' dtype, to which gates are rounded",
            },
        ),
        Point(
            "token_mask",
            "What happens at positions whose token id and next id are 0?",
            {
                "by_ids": "normed activations and logits are multiplied by 0",
                "none": "nothing: id 0 is a token like any other",
            },
        ),
        Point(
            "attention_mask",
            "What decides which keys a query may see?",
            {
                "targets": "causal order, target ids > 0 and equal segments",
                "user": "causal order and the attention mask that the caller gives",
            },
        ),
        Point(
            "masked_keys",
            "What is added to the logits of keys that may not be seen?",
            {
                "minus_1e10": "-1e10: a row without any visible key attends to all equally",
                "first_key_open": "the least float, once for each reason; key 0 is always visible",
            },
        ),
        Point(
            "attention_scale",
            "What are the products of queries and keys multiplied by?",
            {"one": "1: they are not scaled", "head_dim": "1 / sqrt(head dim)"},
        ),
        Point(
            "softmax",
            "In which dtype is the softmax of attention computed?",
            {"activation": "the activations'", "float32": "float32"},
        ),
        Point(
            "extra_mlp",
            "How does a sparse layer's dense feed-forward join?",
            {
                "sequential": "after the experts were added, with a norm of its own",
                "parallel": "beside the experts, on the same normed input",
            },
        ),
        Point(
            "feed_forward",
            "What is the gate of a feed-forward?",
            {
                "cubic": "a silu(b) c of three projections, a and b from a matrix of width 2F",
                "swiglu": "silu(b) c of two projections",
            },
        ),
        Point(
            "logits",
            "In which dtype is the output projection computed?",
            {"float32": "float32", "activation": "the activations', then widened"},
        ),
        Point(
            "cross_entropy",
            "What does the language-model loss measure?",
            {
                "weighted_mean": "the targets' cross entropy, weighted, over the sum of weights",
                "all_ones": "-sum over the vocabulary of log p at all positions of a row but its last, "
                "whatever the targets, all added up",
                "all_ones_by_row": "the same, averaged over rows",
            },
        ),
        Point(
            "balance",
            "Over which tokens are f and P of the balance loss averaged?",
            {"group": "each routing group, then over groups", "batch": "all tokens of the call"},
        ),
        Point(
            "start_embedding",
            "Is the embedding of id 0 trained?",
            {"trained": "like any other", "frozen": "never: its gradient is 0"},
        ),
        Point(
            "decode_position",
            "At which position is the query of a cached step rotated?",
            {
                "cache_index": "at its slot in the cache",
                "position_ids": "one token: at its position id; more: from 0 again",
                "position_ids_plus_one": "one token: one beyond its position id; more: from 0",
            },
        ),
        Point(
            "prompt_end",
            "What is the first step after a prompt?",
            {
                "fed_again": "the last prompt token is left out of the cache and fed again",
                "cached": "the whole prompt is cached; its last logits give the first token",
            },
        ),
        Point(
            "warmup",
            "What is the learning rate before step 10,000?",
            {"flat": "0.01 from step 0 on", "linear": "rising linearly from 0 to 0.01"},
        ),
        Point(
            "mode_tokens",
            "Is the text of a mode put in front of the inputs?",
            {"prepended": "the ids of its text, as of any other", "none": "no"},
        ),
        Point(
            "prefix_split",
            "How long is the prefix of a PrefixLM example?",
            {
                "uniform": "uniform over all lengths that leave a token on each side",
                "half": "half of the tokens, rounded down",
            },
        ),
    )
}
"""Every point, by name, in the order of the forward pass."""

T5X: Mapping[str, str] = {name: next(iter(point.options)) for name, point in POINTS.items()}
"""The normative dialect: the first option of every point."""

DIALECTS: Mapping[str, Mapping[str, str]] = {
    "t5x": T5X,
    "torch_port": {
        **T5X,
        "capacity": "even_slots",
        "groups": "whole_call",
        "one_choice": "logits",
        "router_kernel": "activation",
        "combine": "activation",
        "token_mask": "none",
        "attention_mask": "user",
        "masked_keys": "first_key_open",
        "softmax": "float32",
        "logits": "activation",
        "cross_entropy": "all_ones",
        "start_embedding": "frozen",
        "decode_position": "position_ids",
        "prompt_end": "cached",
    },
    "paper": {
        **T5X,
        "attention_scale": "head_dim",
        "extra_mlp": "parallel",
        "feed_forward": "swiglu",
        "balance": "batch",
        "warmup": "linear",
        "mode_tokens": "none",
        "prefix_split": "half",
    },
}
"""The choices of each dialect, by its name."""

VALUES: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "t5x": {},
    "torch_port": {
        name: {"z_loss_factor": 0.01, "label_smoothing": 0.001, "router_z_loss_factor": 1e-4}
        for name in PUBLISHED
    },
    "paper": {
        "base": {"mlp_dim": 3072, "z_loss_factor": 1e-3},
        "8b": {"z_loss_factor": 1e-3},
        "34b": {"z_loss_factor": 1e-3, "router_z_loss_factor": 1e-4},
    },
}
"""Fields of the published configurations that a dialect sets otherwise than CFG-01 and CFG-04."""


def _clauses(area: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{area}-{number:02d}" for number in numbers)


_LAYER = (*_clauses("MOE", 7, 8, 14), *_clauses("LOSS", *range(1, 12)))
_ATTENTION = _clauses("ATTN", 7, 8, 9, 10, 11, 13)

SPEAKS_OF: Mapping[str, tuple[str, ...]] = {
    "capacity": (*_clauses("GROUP", 6, 7, 8), *_LAYER),
    "groups": (*_clauses("GROUP", 1, 2, 3, 4, 5, 9), *_LAYER),
    "one_choice": _clauses("ROUTE", 5),
    "combine": _clauses("MOE", 6),
    "token_mask": _clauses("LAYER", 5),
    "attention_mask": _clauses("ATTN", 1, 2, 3),
    "masked_keys": _ATTENTION,
    "attention_scale": _ATTENTION,
    "softmax": _clauses("ATTN", 10),
    "feed_forward": (
        *_clauses("MOE", 2, 3, 6, 9, 10, 11),
        *_clauses("MODEL", 4),
        *_clauses("PARAM", 1, 3, 5),
        # seen through a layer or a training step, which take other weights
        *_clauses("GROUP", 7, 8),
        *_clauses("OPT", 9, 11),
        *_LAYER,
    ),
    "balance": _clauses("LOSS", 1, 2, 3, 4),
    "extra_mlp": _clauses("MODEL", 3),
    "start_embedding": _clauses("LAYER", 9),
    "warmup": _clauses("OPT", 1),
    "mode_tokens": _clauses("OBJ", 1, 14),
    "prefix_split": _clauses("OBJ", 14, 17),
}
"""Clauses that say the normative option of a point: not those of a dialect with another one."""


def foreign(clause: str, dialect: str) -> str | None:
    """Return the point at which a clause speaks of `t5x` and a dialect chooses otherwise."""
    for point, spoken in SPEAKS_OF.items():
        if clause in spoken and DIALECTS[dialect][point] != T5X[point]:
            return point
    return None


def choices(dialect: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return a whole table of choices: that of a dialect, or `t5x` with the given options.

    Errors: RejectedError DIAL-01 on an unknown dialect, point or option.
    """
    if isinstance(dialect, str):
        if dialect not in DIALECTS:
            raise RejectedError(
                "dialect", "DIAL-01", f"must be one of {', '.join(DIALECTS)}, got {dialect!r}"
            )
        return DIALECTS[dialect]
    if not isinstance(dialect, Mapping):
        raise RejectedError("dialect", "DIAL-01", f"must be a name or a mapping, got {dialect!r}")
    for name, option in dialect.items():
        if name not in POINTS:
            raise RejectedError("dialect", "DIAL-01", f"there is no point {name!r}")
        if option not in POINTS[name].options:
            raise RejectedError(
                f"dialect[{name!r}]",
                "DIAL-01",
                f"must be one of {', '.join(POINTS[name].options)}, got {option!r}",
            )
    return {**T5X, **dialect}


def configuration(dialect: str, name: str) -> Configuration:
    """Return the published configuration `name` as the dialect has it. Errors: as `choices`."""
    choices(dialect)
    if name not in PUBLISHED:
        raise RejectedError("name", "CFG-01", f"must be one of {', '.join(PUBLISHED)}")
    return replace(PUBLISHED[name], **VALUES[dialect].get(name, {}))  # type: ignore[arg-type]

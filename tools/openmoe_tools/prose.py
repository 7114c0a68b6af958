"""Numbers and citations in SPEC.md's prose: each `expression` (= value) is computed again."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from openmoe_reference import audit, audit_measures, expectations, grouping, noise, vocabulary
from openmoe_spec import dialects, parameters
from openmoe_spec.config import PUBLISHED
from openmoe_spec.data import OBJECTIVES
from openmoe_tools.coverage import expand

_ANNOTATED = re.compile(r"`([^`]+)`\s+\(=\s*([^)]+)\)")
_POINT_ROW = re.compile(
    r"\| `(\w+)` \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| [^|\n]+ \|"
)
_TABLE_ROW = re.compile(r"\|\s*(\w+)\s*\|((?:[^|\n]+\|){3})")

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "round": round,
    "max": max,
    "min": min,
    "capacity": lambda tokens, experts, factor: grouping.expert_capacity(
        tokens, num_experts=experts, capacity_factor=factor
    ),
    "groups": lambda tokens, largest, experts, replicas: grouping.num_groups(
        tokens,
        max_group_size=largest,
        num_experts=experts,
        num_expert_replicas=replicas,
    ),
    "padded": lambda batch, length, multiple: grouping.padded_shape(
        batch, length, multiple=multiple
    ),
    "even_capacity": lambda tokens, experts, factor: grouping.even_capacity(
        tokens, num_experts=experts, capacity_factor=factor
    ),
    "parameters": lambda name: parameters.count(PUBLISHED[name]).total,
    "activated": lambda name: parameters.count(PUBLISHED[name]).activated,
    "rows": lambda pieces, sentinels: vocabulary.vocabulary(pieces, num_sentinels=sentinels)[
        "num_embeddings"
    ],
    "sentinel": lambda number, pieces, sentinels: vocabulary.vocabulary(
        pieces, num_sentinels=sentinels
    )["sentinels"][number],
    "noise_tokens": lambda length, density: noise.noise_counts(
        length, noise_density=density, mean_noise_span_length=3.0
    )["num_noise_tokens"],
    "segment": lambda objective, inputs: _longest(objective, inputs)["tokens_length"],
    "targets": lambda objective, inputs: _longest(objective, inputs)["targets_length"],
    "tokens": lambda objective, prompt: round(_expected(objective, prompt).tokens, 2),
    "loss": lambda objective, prompt: _expected(objective, prompt).loss_positions,
    "fill": lambda prompt: round(_fed(prompt)["fill"], 3),
    "loss_share": lambda prompt: round(_fed(prompt)["loss"], 3),
    "loss_of": lambda objective, prompt: round(
        OBJECTIVES[objective].rate
        * _expected(objective, prompt).loss_positions
        / (_fed(prompt)["loss"] * sum(_ROW.values())),
        3,
    ),
    "largest_spread": lambda k, experts: round(audit.largest_spread(k, experts), 5),
    "floor": lambda tokens, k, experts: round(
        float(audit.spread_floor(np.array([tokens]), k=k, num_experts=experts)[0]), 6
    ),
    "meeting_by_chance": lambda k, experts: round(
        audit_measures.repetition_by_chance(k, experts)[1], 5
    ),
    "paper_total": lambda name: _paper(name).total - _paper(name).vocabulary,
    "paper_activated": lambda name: _paper(name).activated,
}
"""What an annotated expression may call: arithmetic, and the reference's rules for shapes."""


_ROW: Mapping[str, int] = {"inputs_length": 1024, "targets_length": 1024}


def _longest(objective: int, inputs: int) -> Mapping[str, int]:
    """Return segment and targets of an objective; PrefixLM's segment is split in two."""
    made = OBJECTIVES[objective]
    if made.mean_noise_span_length is None:
        return {"tokens_length": inputs - 1}
    return noise.span_lengths(
        inputs,
        noise_density=made.noise_density,
        mean_noise_span_length=made.mean_noise_span_length,
    )


def _expected(objective: int, prompt: int) -> expectations.Expectation:
    return expectations.of_objective(objective, prompt_length=prompt, **_ROW)


def _fed(prompt: int) -> Mapping[str, float]:
    return expectations.of_mixture(prompt_length=prompt, **_ROW)


def _paper(name: str) -> parameters.Counts:
    return parameters.count(dialects.configuration("paper", name), doubled_gate=False)


def complaints(text: str, known: set[str]) -> list[str]:
    """Return what in the prose is wrong: numbers, cited clauses, the table of configurations."""
    found = []
    for expression, written in _ANNOTATED.findall(text):
        try:
            value = evaluate(expression)
        except (ValueError, SyntaxError, TypeError) as error:
            found.append(f"SPEC.md: `{expression}` cannot be computed ({error})")
            continue
        if value != ast.literal_eval(written.strip()):
            found.append(f"SPEC.md: `{expression}` is {value}, not {written}")
    found += [
        f"SPEC.md cites {identifier}, which it has not"
        for identifier in sorted(set(expand(text)) - known)
    ]
    return found + _table(text) + _dialects(text)


def _dialects(text: str) -> list[str]:
    """Compare SPEC.md's table of points with the choices of the dialects."""
    rows = {name: cells for name, *cells in _POINT_ROW.findall(text)}
    found = [
        f"SPEC.md: {name} is no point of the dialects"
        for name in rows
        if name not in dialects.POINTS
    ]
    for name, point in dialects.POINTS.items():
        options = [table[name] for table in dialects.DIALECTS.values()]
        first, *others = options
        wanted = [f"`{first}`", *("=" if one == first else f"`{one}`" for one in others)]
        if rows.get(name) != [point.question, *wanted]:
            found.append(f"SPEC.md: the row of point {name} is not {point.question} {wanted}")
    return found


def _table(text: str) -> list[str]:
    """Compare SPEC.md's table of configurations with the published ones, field by field."""
    found, seen = [], 0
    for field, cells in _TABLE_ROW.findall(text):
        if not hasattr(PUBLISHED["base"], field):
            continue
        seen += 1
        for configuration, cell in zip(PUBLISHED.values(), cells.split("|"), strict=False):
            written = cell.strip().replace("true", "True").replace("false", "False")
            written = written.replace("none", "None")
            value = getattr(configuration, field)
            if ast.literal_eval(written) != value:
                found.append(f"SPEC.md: {configuration.name}.{field} is {value}, not {written}")
    if seen != len(vars(PUBLISHED["base"])) - 1:  # every field but the name
        found.append(f"SPEC.md: the table of configurations has {seen} fields")
    return found


def evaluate(expression: str) -> Any:
    """Return the value of an arithmetic expression; only FUNCTIONS may be called."""
    return _value(ast.parse(expression, mode="eval").body)


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Pow: lambda a, b: a**b,
}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
            words = (ast.literal_eval(one) if _is_word(one) else _value(one) for one in arguments)
            return FUNCTIONS[name](*words)
        case ast.Subscript(value=value, slice=index):
            return _value(value)[_value(index)]
    raise ValueError(f"no arithmetic: {ast.unparse(node)}")


def _is_word(node: ast.expr) -> bool:
    """Return whether an argument is the name of a configuration."""
    return isinstance(node, ast.Constant) and node.value in PUBLISHED

"""From segments of text and their draws to inputs and targets, many segments at once.

Segments of one length and objective have as many tokens of noise and as many spans as one another, so
their inputs are a matrix, and so are their targets: a group is made by a few passes over both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from openmoe_production.data_arguments import (
    id_array,
    ids,
    integers,
    largest,
    one_of,
    require_sentinels,
    sequence,
    vocabulary,
    whole,
)
from openmoe_production.noise import noise_counts, prefix_bounds, segment_runs
from openmoe_spec.data import END, NUM_SENTINELS, OBJECTIVES, TRANSFORMS, Objective
from openmoe_spec.dialects import choices
from openmoe_spec.errors import RejectedError

Example = dict[str, np.ndarray]
"""Ids int32 of `inputs` and `targets`."""

_NO_MODE = np.zeros(0, np.int32)


def objectives(dialect: str | Mapping[str, str] = "t5x") -> tuple[Objective, ...]:
    """Return the training mixture. Errors: RejectedError DIAL-01. Spec: OBJ-01."""
    modes = choices(dialect)["mode_tokens"] == "prepended"
    return tuple(
        Objective(one.rate, one.mean_noise_span_length, one.noise_density, one.mode * modes)
        for one in OBJECTIVES
    )


# ---- parts -------------------------------------------------------------------------------------


def replace_noise(
    tokens: np.ndarray,
    noise_mask: np.ndarray,
    *,
    transform: str,
    vocabulary_size: int,
    num_sentinels: int = NUM_SENTINELS,
    overflow: str = "rejected",
) -> np.ndarray:
    """Return tokens [n] with their noise, or what is none, left out or put into sentinels.

    Errors: RejectedError OBJ-09. Spec: OBJ-07, OBJ-08, OBJ-10.
    """
    one_of("transform", transform, TRANSFORMS, "OBJ-09")
    size, sentinels = vocabulary(vocabulary_size, num_sentinels, overflow)
    tokens = ids("tokens", tokens, "OBJ-09", most=size - 1)
    mask = noise_mask
    if not isinstance(mask, np.ndarray) or mask.shape != tokens.shape:
        raise RejectedError("noise_mask", "OBJ-09", f"must be an array of {len(tokens)} booleans")
    if len(mask) and mask.dtype != np.bool_:
        raise RejectedError("noise_mask", "OBJ-09", f"must hold booleans, got {mask.dtype}")
    mask = mask.astype(bool, copy=False)
    if transform.startswith("drop"):
        return tokens[mask if transform == "drop_nonnoise_tokens" else ~mask]
    replaced = ~mask if transform.startswith("nonnoise") else mask
    begins = replaced.copy()
    if transform != "noise_token_to_sentinel":
        begins[1:] &= mask[1:] != mask[:-1]
    places = np.flatnonzero(begins)
    made = tokens.copy()
    made[places] = size - 1
    if "unique" in transform:
        require_sentinels(len(places), sentinels)
        made[places] -= np.arange(len(places), dtype=np.int32)
    return made[begins | ~replaced]


def split_prefix(tokens: np.ndarray, split: int) -> Example:
    """Return the first `split` of tokens [n] as inputs, the others as targets: views.

    Errors: RejectedError OBJ-12. Spec: OBJ-11.
    """
    tokens = ids("tokens", tokens, "OBJ-12")
    if not len(tokens):
        raise RejectedError("tokens", "OBJ-12", "must not be empty")
    split = whole("split", split, "OBJ-12", least=0, most=len(tokens))
    return {"inputs": tokens[:split], "targets": tokens[split:]}


def finish_example(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    inputs_length: int,
    targets_length: int,
    prompt: np.ndarray | None = None,
    ends: Collection[str] = ("inputs", "targets"),
) -> Example:
    """Return a mode's ids and inputs, and targets, cut so that an end id fits where `ends` names it.

    Errors: RejectedError OBJ-15. Spec: OBJ-13, DATA-10.
    """
    given = {"inputs": inputs, "targets": targets}
    lengths = _lengths(inputs_length, targets_length)
    named = isinstance(ends, Collection) and not isinstance(ends, str)
    if not named or any(one not in tuple(given) for one in ends):
        raise RejectedError("ends", "OBJ-15", f"must name features, got {ends!r}")
    modes = {"inputs": _prompt(() if prompt is None else prompt), "targets": _NO_MODE}
    return {
        name: _finished(modes[name], ids(name, one, "OBJ-15"), lengths[name], ended=name in ends)
        for name, one in given.items()
    }


def _finished(mode: np.ndarray, body: np.ndarray, length: int, *, ended: bool = True) -> np.ndarray:
    """Return a mode [P] before each row of a body [..., n], cut so that an end id fits."""
    room = length - ended
    begin = min(len(mode), room)
    end = min(begin + body.shape[-1], room)
    made = np.empty((*body.shape[:-1], end + ended), np.int32)
    made[..., :begin] = mode[:begin]
    made[..., begin:end] = body[..., : end - begin]
    made[..., end:] = END
    return made


# ---- the whole ---------------------------------------------------------------------------------


def ul2_example(
    segment: np.ndarray,
    objective: int,
    *,
    prompt: np.ndarray,
    noise_permutation: np.ndarray | None = None,
    nonnoise_permutation: np.ndarray | None = None,
    split: int | None = None,
    **options: Any,
) -> Example:
    """Return the example of one segment [n]; options, Errors, Spec: as `ul2_examples`."""
    draws: dict[str, Any] = {
        "noise_permutations": noise_permutation,
        "nonnoise_permutations": nonnoise_permutation,
        "splits": split,
    }
    given: Any = {name: [one] for name, one in draws.items() if one is not None}
    (made,) = ul2_examples([segment], objective, prompt=prompt, **given, **options)
    return made


def ul2_examples(
    segments: Sequence[np.ndarray],
    objective: int,
    *,
    inputs_length: int,
    targets_length: int,
    vocabulary_size: int,
    prompt: np.ndarray,
    noise_permutations: np.ndarray | Sequence[np.ndarray] | None = None,
    nonnoise_permutations: np.ndarray | Sequence[np.ndarray] | None = None,
    splits: np.ndarray | Sequence[int] | None = None,
    num_sentinels: int = NUM_SENTINELS,
    overflow: str = "rejected",
    dialect: str | Mapping[str, str] = "t5x",
) -> list[Example]:
    """Return the examples that an objective makes of segments; `prompt` is its mode's ids.

    Draws are one a segment: splits [N], or permutations of either kind, an array [N, n - 1] where all
    segments are equally long. Examples are views of few arrays, which last as long as one of them.
    Errors: RejectedError OBJ-15, OBJ-06, OBJ-09, OBJ-12, DIAL-01. Spec: OBJ-14.
    """
    index = whole("objective", objective, "OBJ-15", least=0, most=len(OBJECTIVES) - 1)
    tokens = [
        id_array(f"segments[{place}]", one, "OBJ-09")
        for place, one in enumerate(sequence("segments", segments, "OBJ-15"))
    ]
    size, sentinels = vocabulary(vocabulary_size, num_sentinels, overflow)
    rules, lengths = choices(dialect), _lengths(inputs_length, targets_length)
    mode = _prompt(prompt if rules["mode_tokens"] == "prepended" else ())
    made = OBJECTIVES[index]
    given: dict[str, Any]
    make: Callable[..., tuple[Iterable[np.ndarray], Iterable[np.ndarray]]]
    if made.is_prefix:
        half = rules["prefix_split"] == "half"
        given = {"split": [len(one) // 2 for one in tokens] if half else splits}
        make = _prefixes
    else:
        given = {
            "noise_permutation": noise_permutations,
            "nonnoise_permutation": nonnoise_permutations,
        }
        make = partial(_spans, made=made, vocabulary_size=size, num_sentinels=sentinels)
    for name, draws in given.items():
        if not isinstance(draws, np.ndarray | Sequence) or len(draws) != len(tokens):
            raise RejectedError(name, "OBJ-15", "must be given, one a segment")
    examples: list[Example] = [{}] * len(tokens)
    for places in _blocks(tokens):
        block = np.concatenate([tokens[place] for place in places]).reshape(len(places), -1)
        if (most := largest("segments", block, "OBJ-09")) >= size:
            raise RejectedError("segments", "OBJ-09", f"must lie in 0..{size - 1}, got {most}")
        here = (_at(draws, places) for draws in given.values())
        for place, inputs, targets in zip(places, *make(block, mode, lengths, *here), strict=True):
            examples[place] = {"inputs": inputs, "targets": targets}
    return examples


def _prefixes(
    tokens: np.ndarray, mode: np.ndarray, lengths: Mapping[str, int], splits: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return inputs and targets of tokens [N, L] that are split."""
    least, most = prefix_bounds(tokens.shape[1])
    cuts = integers("split", splits, "OBJ-15")
    if cuts.min() < least or cuts.max() > most:
        raise RejectedError("split", "OBJ-15", f"must be in {least}..{most}")
    pairs = list(zip(tokens, cuts.tolist(), strict=True))
    return (
        [_finished(mode, one[:cut], lengths["inputs"]) for one, cut in pairs],
        [_finished(_NO_MODE, one[cut:], lengths["targets"]) for one, cut in pairs],
    )


def _spans(
    tokens: np.ndarray,
    mode: np.ndarray,
    lengths: Mapping[str, int],
    *permutations: Any,
    made: Objective,
    vocabulary_size: int,
    num_sentinels: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, a matrix each, of tokens [N, L] whose noise is taken out."""
    count, length = tokens.shape
    assert made.mean_noise_span_length is not None
    counts = noise_counts(
        length,
        noise_density=made.noise_density,
        mean_noise_span_length=made.mean_noise_span_length,
    )
    runs = segment_runs(counts, *permutations)
    spans = counts["num_noise_spans"]
    require_sentinels(spans, num_sentinels)
    sentinels = np.tile(vocabulary_size - 1 - np.arange(spans), count)
    if length == 1:
        tokens = tokens.repeat(2, axis=1)  # counted as two, one of each kind: see below
    noise, other = runs["noise"], runs["nonnoise"]
    # The sentinel of some noise stands behind the other tokens, that of those before the noise.
    inputs = _with_sentinels(tokens, other, noise, (other + 1).cumsum() - 1, sentinels)
    targets = _with_sentinels(tokens, noise, other, (noise + 1).cumsum() - noise - 1, sentinels)
    if length == 1:
        inputs, targets = inputs[:, :1], targets[:, :1]  # what is behind the first token never was
    return (
        _finished(mode, inputs, lengths["inputs"]),
        _finished(_NO_MODE, targets, lengths["targets"]),
    )


def _with_sentinels(
    tokens: np.ndarray,
    kept: np.ndarray,
    left_out: np.ndarray,
    places: np.ndarray,
    sentinels: np.ndarray,
) -> np.ndarray:
    """Return [N, n], the runs of tokens [N, L] that are kept, with sentinels at `places` of all.

    A step of one token leads to a sentinel, one over what is left out behind it: so through the
    whole array, in which each row begins where the one before ends.
    """
    steps = np.ones(kept.sum() + len(kept) + 1, np.intp)
    steps[0] = 0
    steps[places + 1] = left_out
    made = tokens.reshape(-1)[steps[:-1].cumsum()]
    made[places] = sentinels
    return made.reshape(len(tokens), -1)


# ---- arguments ---------------------------------------------------------------------------------


_BLOCK = 16
"""Segments that are made together: few enough for their arrays to stay in a core's cache."""


def _blocks(tokens: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Yield the places of segments of one length, `_BLOCK` at most at a time."""
    places: dict[int, list[int]] = {}
    for place, one in enumerate(tokens):
        if not len(one):
            raise RejectedError("segments", "OBJ-15", "must not be empty")
        places.setdefault(len(one), []).append(place)
    for equals in places.values():
        yield from (equals[i : i + _BLOCK] for i in range(0, len(equals), _BLOCK))


def _at(draws: Any, places: Sequence[int]) -> Any:
    """Return the draws at some places, which go upwards; a view where they have no gap."""
    first, last = places[0], places[-1] + 1
    if last - first == len(places):
        return draws[first:last]
    return [draws[place] for place in places]


def _lengths(inputs_length: int, targets_length: int) -> dict[str, int]:
    return {
        "inputs": whole("inputs_length", inputs_length, "OBJ-15", least=2),
        "targets": whole("targets_length", targets_length, "OBJ-15", least=2),
    }


def _prompt(prompt: Any) -> np.ndarray:
    return ids("prompt", prompt, "OBJ-15")

"""Which segment and which choices make a stored example: they are read off the example itself.

An objective leaves every token and the ends of all runs in its example, but for what is cut off at
the end of the inputs. Whatever stood there makes the same example, so that anything may be taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmoe_conformance.vector_cases import VectorError
from openmoe_reference.noise import noise_counts, span_lengths
from openmoe_spec.data import END, OBJECTIVES

Choices = dict[str, Any]
"""The fields `segment`, `objective` and `split` or `noise_mask` of the kind `example`."""

_CUT_OFF = 2


def chosen(
    inputs: list[int],
    targets: list[int],
    *,
    objectives: Sequence[int],
    config: Mapping[str, Any],
) -> Choices:
    """Return choices with which one of some objectives makes an example.

    Errors: VectorError when there are none.
    """
    prompt, first = config["prompt"], config["vocabulary_size"] - 1
    if inputs[: len(prompt)] != prompt:
        raise VectorError("its inputs do not begin with the ids of their mode")
    if inputs[-1:] != [END] or targets[-1:] != [END]:
        raise VectorError("its inputs and targets do not both end in the end id")
    shown, hidden = inputs[len(prompt) : -1], targets[:-1]
    is_cut = len(inputs) == config["inputs_length"]
    is_prefix = hidden[:1] != [first]
    for objective in objectives:
        if OBJECTIVES[objective].is_prefix != is_prefix:
            continue
        if is_prefix:
            return {"objective": objective, "segment": shown + hidden, "split": len(shown)}
        others, noise = _runs(shown, first), _runs(hidden[1:], first - 1)
        runs = _cut(others, noise, objective, config["inputs_length"], is_cut=is_cut)
        if runs is not None:
            return {"objective": objective, **_interleaved(runs, noise)}
    raise VectorError("no choices of its objectives make this example")


def _runs(tokens: list[int], sentinel: int) -> list[list[int]]:
    """Return the runs between sentinels in their order; the last one is open."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if token == sentinel:
            runs.append([])
            sentinel -= 1
        else:
            runs[-1].append(token)
    return runs


def _cut(
    others: list[list[int]],
    noise: list[list[int]],
    objective: int,
    inputs_length: int,
    *,
    is_cut: bool,
) -> list[list[int]] | None:
    """Return whole runs of other tokens that begin as `others` do, None when there are none."""
    made = OBJECTIVES[objective]
    how = {
        "noise_density": made.noise_density,
        "mean_noise_span_length": made.mean_noise_span_length,
    }
    longest = span_lengths(inputs_length, **how)["tokens_length"]  # type: ignore[arg-type]
    seen, spans, hidden = sum(map(len, others)), len(noise), sum(map(len, noise))
    if hidden == 0 and spans == 1 and seen == 1:
        return others  # one token alone, of which none is noise
    for length in range(longest, 1, -1):
        counts = noise_counts(length, **how)  # type: ignore[arg-type]
        if (counts["num_noise_tokens"], counts["num_noise_spans"]) != (hidden, spans):
            continue
        lost = counts["num_nonnoise_tokens"] - seen
        if not is_cut and lost == 0 and others[-1] == [] and len(others) == spans + 1:
            return others[:-1]
        runs = _filled(others, spans, lost) if is_cut else None
        if runs is not None:
            return runs
    return None


def _filled(others: list[list[int]], spans: int, lost: int) -> list[list[int]] | None:
    """Return as many runs, with so many tokens more: one for each run not begun, the rest last."""
    open_, unseen = others[-1], spans - len(others)
    if unseen < 0:  # the last sentinel is there: nothing was cut
        return others[:-1] if lost == 0 and not open_ and unseen == -1 else None
    fewest = unseen + (not open_)
    if lost < fewest:
        return None
    more = [_CUT_OFF] * (lost - unseen)
    return [*others[:-1], open_ + more, *([_CUT_OFF] for _ in range(unseen))]


def _interleaved(others: list[list[int]], noise: list[list[int]]) -> Choices:
    segment: list[int] = []
    noise_mask: list[int] = []
    for other, run in zip(others, noise, strict=True):
        segment += other + run
        noise_mask += [0] * len(other) + [1] * len(run)
    return {"segment": segment, "noise_mask": noise_mask}

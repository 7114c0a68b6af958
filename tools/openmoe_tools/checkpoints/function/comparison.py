"""All passes of two models, and what they say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import choices
from openmoe_tools.checkpoints import digests
from openmoe_tools.checkpoints.function.choosing import Choices, Routing, unsettled
from openmoe_tools.checkpoints.function.measuring import (
    Apart,
    Floor,
    Meter,
    finite,
    logit_blocks,
    router_probabilities,
)
from openmoe_tools.checkpoints.function.probes import Probe, cover, real_tokens
from openmoe_tools.checkpoints.function.result import Activation, Functional
from openmoe_tools.checkpoints.function.sides import (
    EPSILON,
    Chosen,
    Model,
    Pass,
    Recorded,
    Side,
    recorded_pass,
    router_of,
    with_hidden,
)
from openmoe_tools.checkpoints.verification.findings import DIFFERS, HOLDS, INCOMPLETE

LOGITS = "logits"


class Comparison:
    """All passes of both models, and what they say together."""

    def __init__(
        self,
        a: Side,
        b: Side | Recorded,
        configuration: Configuration,
        asked: tuple[Probe, ...],
        cast: str | Mapping[str, str] | None,
    ) -> None:
        """Run the first model, and it again in other arithmetics."""
        for name, one in (("A", a), ("B", b)):
            if one.dtype not in EPSILON:
                raise UsageError(f"dtype of {name}: must be one of {', '.join(EPSILON)}")
        c, self.configuration, self.asked = configuration, configuration, asked
        self.a, self.b = Model.of("A", a, c), b
        self.other = None if isinstance(b, Recorded) else Model.of("B", b, c)
        self.forcible = self.other is not None and all(
            choices(a.dialect)[point] == choices(self.other.side.dialect)[point]
            for point in ("groups", "capacity")
        )
        self.longest = max(one.ids.shape[1] for one in asked)
        self.passes = [self.a.run(one.ids) for one in asked]
        self.order: list[str] = []
        self.floor = self._floor(cast)
        self.meter, self.free, self.apart = Meter(self.longest), Meter(self.longest), Apart()
        self.modes = Counter[str]()
        self.tokens = self.judged = self.at_the_end = 0
        self.layers = {
            layer: Choices(self.floor.margin(layer)) for layer in self.passes[0].decisions
        }

    def _floor(self, cast: str | Mapping[str, str] | None) -> Floor:
        """Return what other arithmetics do to A on its own decisions, and what the cast does."""
        c, (arithmetic, of_cast) = self.configuration, (Apart(), Apart())
        meters = Meter(self.longest), Meter(self.longest)
        # The reference's, whoever runs A: a defect of A's must not widen its own floor.
        reference = replace(self.a, side=replace(self.a.side, implementation="reference"))
        other = reference if cast is None else replace(reference, side=_cast(reference.side, cast))
        dtypes = dict.fromkeys((self.a.side.dtype, self.b.dtype))
        for probe, base in zip(self.asked, self.passes, strict=True):
            given: dict[str, Any] = {"decisions": base.decisions}
            wide = reference.run(probe.ids, dtype="float64", **given)
            narrow = [
                base
                if dtype == self.a.side.dtype and self.a.side.implementation == "reference"
                else reference.run(probe.ids, dtype=dtype, **given)
                for dtype in dtypes
            ]
            compared = [(wide, one, arithmetic, meters[0]) for one in narrow]
            if cast is not None:
                compared.append((narrow[0], other.run(probe.ids, **given), of_cast, meters[1]))
            real = real_tokens(probe.ids)
            self.order = list(with_hidden(wide, c))
            for one, another, apart, _ in compared:
                apart.add(with_hidden(one, c), with_hidden(another, c), real)
            for row, at in logit_blocks(probe.ids.shape, c.vocabulary_size):
                here, places = real[row, at], np.arange(at.start, at.stop)
                for one, another, _, meter in compared:
                    pair = one.logits(row, at)[here], another.logits(row, at)[here]
                    meter.add(*pair, places[here])
        epsilon = max(EPSILON[dtype] for dtype in dtypes)
        return Floor(arithmetic, of_cast, meters[0].close(), meters[1].close(), epsilon)

    def _ask(self, number: int) -> tuple[Pass, Pass | None, Chosen, str]:
        """Return B's pass to compare, its free one where that is another, its choices, the mode."""
        base, ids = self.passes[number], self.asked[number].ids
        if isinstance(self.b, Recorded):
            return recorded_pass(self.b.recordings[number]), None, {}, "recorded"
        assert self.other is not None
        free = self.other.run(ids)
        real = real_tokens(ids)
        parting = [
            layer
            for layer, (experts, _) in base.chosen.items()
            if (free.chosen[layer][0] != experts)[real].any()
        ]
        if not parting or not self.forcible:
            return free, None, free.chosen, "free"
        # What another choice changes behind it says nothing: B goes on from A's decisions, and is
        # asked what it would have chosen.
        forced = self.other.run(ids, decisions=base.decisions)
        chosen = {
            layer: free.chosen[layer]
            if layer <= parting[0]
            else self.other.decide(layer, forced, base)
            for layer in base.chosen
        }
        return forced, free, chosen, "forced"

    def _compare(self, number: int) -> None:
        """Run B on one batch and take in how far it is from A."""
        c, base, ids = self.configuration, self.passes[number], self.asked[number].ids
        found, free, chosen, mode = self._ask(number)
        self.modes[mode] += 1
        real = judged = real_tokens(ids)
        if not self.forcible:
            judged = real & ~unsettled(base, self.a.side, c, self.floor)
        self.tokens += int(real.sum())
        self.judged += int(judged.sum())
        self.at_the_end += int(judged[:, 3 * self.longest // 4 :].sum())
        self.apart.add(with_hidden(base, c), found.activations, judged)
        for layer, both in chosen.items():
            probabilities = router_probabilities(base.activations[router_of(layer)])
            self.layers[layer].add(base.chosen[layer], both, probabilities, judged)
        for row, at in logit_blocks(ids.shape, c.vocabulary_size):
            mine, theirs = base.logits(row, at), found.logits(row, at)
            places, here = np.arange(ids.shape[1]), judged[row, at]
            self.meter.not_finite += int((~finite(mine, theirs) & real[row, at]).sum())
            self.meter.add(mine[here], theirs[here], places[at][here])
            if free is not None:
                here = real[row, at]
                self.free.add(mine[here], free.logits(row, at)[here], places[at][here])

    def result(self, *, same_weights: bool) -> Functional:
        """Return what all passes say."""
        for number in range(len(self.asked)):
            self._compare(number)
        passes = ((x.ids, y.decisions) for x, y in zip(self.asked, self.passes, strict=True))
        coverage = cover(passes, self.configuration, self.a.side.dialect)
        logits, floor = self.meter.close(), self.floor
        activations = [self._activation(name) for name in self.order if name in self.apart.scales]
        routers = {layer: one.close(layer) for layer, one in self.layers.items() if one.choices}
        differences = _differences(activations, routers)
        if self.meter.not_finite:
            differences["not finite"] = (
                f"the logits of {self.meter.not_finite} of {self.tokens} tokens are no finite numbers"
            )
        if logits is not None and logits.maximum > floor.allowed_logits:
            differences[LOGITS] = (
                f"logits differ by up to {logits.maximum:.3g}, and {floor.allowed_logits:.3g} is "
                f"allowed; the best id is the same at {logits.top[1]:.1%} of {logits.tokens} tokens"
            )
        lacking = coverage.lacking()
        if self.judged < self.tokens and not self.at_the_end:
            lacking.append("no token of the last quarter of a row could be compared")
        first = next(iter(differences), None)
        first = LOGITS if first == "not finite" else first
        findings = [*differences.values(), *self._notes(), *lacking]
        if first is not None and same_weights:
            findings.insert(0, f"the weights are right and the forward differs, first at {first}")
        elif first is not None:
            findings.insert(0, f"the forward passes part first at {first}")
        return Functional(
            verdict=DIFFERS if differences else INCOMPLETE if lacking else HOLDS,
            findings=tuple(findings),
            first=first,
            modes=dict(self.modes),
            tokens=self.tokens,
            judged=self.judged,
            logits=logits,
            logits_free=self.free.close(),
            logits_floor=floor.logits,
            logits_allowed=floor.allowed_logits,
            activations=tuple(activations),
            routing=tuple(routers.values()),
            coverage=coverage,
            probes=tuple((one.what, len(one.ids), one.ids.shape[1]) for one in self.asked),
        )

    def _activation(self, name: str) -> Activation:
        scale = self.apart.scales[name] or 1.0
        numbers = self.apart.differences[name], self.floor.of(name), self.floor.allowed(name)
        return Activation(name, *(number / scale for number in numbers))

    def _notes(self) -> list[str]:
        """Return what a reader has to know of how it was compared."""
        notes = []
        if self.judged < self.tokens:
            notes.append(
                f"{self.judged} of {self.tokens} tokens are compared: behind near-ties of A's "
                "routers, where rounding may choose another expert, other numbers are right too"
            )
        if self.modes["forced"]:
            notes.append(
                f"on {self.modes['forced']} of {len(self.asked)} batches B chose other experts and "
                "was run again with A's decisions: activations and logits are those of that pass"
            )
        return notes


def _cast(side: Side, cast: str | Mapping[str, str]) -> Side:
    """Return a side whose weights went through a cast, and are float32 again."""
    to = cast if isinstance(cast, Mapping) else dict.fromkeys(side.weights, cast)
    weights = {
        name: digests.cast(value, to.get(name, "float32")).astype(np.float32)
        for name, value in side.weights.items()
    }
    return replace(side, weights=weights)


def _differences(activations: list[Activation], routers: Mapping[int, Routing]) -> dict[str, str]:
    """Return a line by operation that is over its tolerance, in the order of the forward pass.

    Of activations the first alone: what is behind it differs because of it, as a rule.
    """
    lines: dict[str, str] = {}
    over = [one for one in activations if one.over]
    by_name = {router_of(layer): router for layer, router in routers.items()}
    for one in activations:
        if over and one is over[0]:
            much = f"differs by {one.relative_error:.3g} of its largest value"
            much = much if math.isfinite(one.relative_error) else "holds values that are not finite"
            later = f"; {len(over) - 1} behind it do too" if over[1:] else ""
            lines[one.name] = f"{one.name} {much}, more than the {one.allowed:.3g} allowed{later}"
        router = by_name.get(one.name)
        if router is None:
            continue
        name = one.name.removesuffix("/router_weights")
        if router.forbidden:
            lines[name] = (
                f"layer {router.layer}: {router.forbidden} of {router.choices} choices are of "
                "another expert, and the two are further apart than rounding explains"
            )
        elif router.kept_apart:
            lines[name] = (
                f"layer {router.layer}: {router.kept_apart} of {router.choices} choices are kept "
                "by one model and dropped by the other"
            )
    return lines

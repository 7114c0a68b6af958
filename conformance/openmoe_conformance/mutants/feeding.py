"""Mutants of SPEC.md "Documents": a whole pipeline, and its parts exchanged inside it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import documents, draws, feeding
from openmoe_reference.batching import decoder_features
from openmoe_spec.data import OBJECTIVES


@mutant("DATA-12")
class TheStateIsForgotten(ReferenceAdapter):
    """A pipeline that goes on begins from the start."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        return super().feed(given, **options | {"state": None})


@mutant("DATA-12")
class TheOpenRowIsLost(ReferenceAdapter):
    """The row that is open when a pipeline stops is passed over when it goes on."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        right = super().feed(given, **options)
        return {**right, "state": right["state"] + 1}


@mutant("DATA-12")
class SeededByTheTime(ReferenceAdapter):
    """Every run has a seed of its own, as the training runs had."""

    def __init__(self) -> None:
        self.runs = 0

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        self.runs += options.get("state") is None
        return super().feed(given, **options | {"seed": options["seed"] + self.runs})


@mutant("DATA-13")
class EveryProcessSeesEveryDocument(ReferenceAdapter):
    """Processes differ in their draws alone."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        shifted = options["seed"] + 1000 * options.pop("process", 0)
        options.pop("num_processes", 1)
        return super().feed(given, **options | {"seed": shifted})


@mutant("DATA-13")
class ProcessesSeeNeighbours(ReferenceAdapter):
    """Each process gets a stretch of documents, not every n-th one."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        process, processes = options.pop("process", 0), options.pop("num_processes", 1)
        share = -(-len(given) // processes)
        return super().feed(given[process * share : (process + 1) * share], **options)


@mutant("DATA-14")
class ModesAreNotFed(ReferenceAdapter):
    """The pipeline has the modes and does not put them in front."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        bare = [np.zeros(0, np.int64)] * len(OBJECTIVES)
        return super().feed(given, **options | {"prompts": bare})


@mutant("DATA-14")
class GroupsAreFedToAll(ReferenceAdapter):
    """Every objective is fed from every group."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        def groups(num_groups: int, _: int) -> tuple[int, ...]:
            return tuple(range(num_groups))

        with patch.object(feeding, "objective_groups", groups):
            return super().feed(given, **options)


@mutant("DATA-14")
class WeightsAreOnInputsToo(ReferenceAdapter):
    """Fed rows have a weight at every token."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        def heavy(*arguments: Any, **more: Any) -> Mapping[str, ndarray]:
            return decoder_features(*arguments, **more, loss_on_targets_only=False)

        with patch.object(feeding, "decoder_features", heavy):
            return super().feed(given, **options)


class _OtherFeed(ReferenceAdapter):
    """A pipeline with one of its parts exchanged, which alone is right."""

    def exchanged(self) -> dict[str, Any]:
        raise NotImplementedError

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        with patch.multiple(feeding, **self.exchanged()):
            return super().feed(given, **options)


@mutant("DATA-14")
class NothingIsPackedInTheFeed(_OtherFeed):
    """Every fed example has a row of its own."""

    def exchanged(self) -> dict[str, Any]:
        def alone(examples: Sequence[Any], **options: Any) -> Mapping[str, ndarray]:
            made = [decoder_features([one], **options) for one in examples]
            return {name: np.concatenate([one[name] for one in made]) for name in made[0]}

        return {"decoder_features": alone}


@mutant("DATA-14")
class TargetsAreFedUnshifted(_OtherFeed):
    """Fed rows have their targets as inputs."""

    def exchanged(self) -> dict[str, Any]:
        def unshifted(*arguments: Any, **options: Any) -> Mapping[str, ndarray]:
            right = decoder_features(*arguments, **options)
            return {**right, "decoder_input_tokens": right["decoder_target_tokens"]}

        return {"decoder_features": unshifted}


@mutant("DATA-14")
class OnlyTheFirstGroupIsFed(_OtherFeed):
    """An objective begins anew with its first group, and never sees the others."""

    def exchanged(self) -> dict[str, Any]:
        def first(num_groups: int, objective: int) -> tuple[int, ...]:
            return documents.objective_groups(num_groups, objective)[:1]

        return {"objective_groups": first}


@mutant("DATA-14")
class GroupsAreOfHalfTheDocuments(_OtherFeed):
    """64 documents are a group."""

    def exchanged(self) -> dict[str, Any]:
        return {"GROUP_OF_DOCUMENTS": 64}


@mutant("DATA-14")
class EverySegmentIsOfPrefixLength(_OtherFeed):
    """Spans are cut into segments as long as those of PrefixLM."""

    def exchanged(self) -> dict[str, Any]:
        def alike(given: Any, _: int, **options: int) -> list[ndarray]:
            return documents.objective_segments(given, len(OBJECTIVES) - 1, **options)

        return {"objective_segments": alike}


@mutant("DATA-14")
class FedPrefixesAreHalf(_OtherFeed):
    """The prefix of a fed example is half of its text."""

    def exchanged(self) -> dict[str, Any]:
        return {"prefix_bounds": lambda length: (length // 2, length // 2)}


@mutant("DATA-14")
class FedMasksAreNotDrawn(_OtherFeed):
    """The permutations of fed examples leave everything where it is."""

    def exchanged(self) -> dict[str, Any]:
        def still(_: Any, counts: Mapping[str, int]) -> dict[str, ndarray]:
            kinds = ("noise", "nonnoise")
            return {f"{k}_permutation": np.arange(counts[f"num_{k}_tokens"] - 1) for k in kinds}

        return {"draws": _Draws(still)}


class _Draws:
    """The reference's draws with other permutations."""

    def __init__(self, permutations: Any) -> None:
        self.permutations = permutations
        self.draw_objectives = draws.draw_objectives


@mutant("DATA-14")
class LongDocumentsAreFedWhole(_OtherFeed):
    """No document is too long."""

    def exchanged(self) -> dict[str, Any]:
        return {"document_block": lambda tokens, _: tokens}


@mutant("DATA-12")
class ADifferentProcessGoesOn(ReferenceAdapter):
    """What goes on from a state is process 0, whichever stopped."""

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        if options.get("state") is not None and "process" in options:
            options["process"] = 0
        return super().feed(given, **options)

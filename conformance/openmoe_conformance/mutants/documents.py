"""Mutants of SPEC.md "Documents": blocks, groups, segments, streams, mixtures, fine-tuning, draws."""

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
from openmoe_spec.data import END, MAX_DOCUMENT_LENGTH, MIXTURES, OBJECTIVES
from openmoe_spec.errors import RejectedError

# ---- blocks and joining ------------------------------------------------------------------------


@mutant("DATA-01")
class ShortBlocksAreDropped(ReferenceAdapter):
    """A document has as many blocks as it fills."""

    def num_blocks(self, length: int, *, max_length: int = MAX_DOCUMENT_LENGTH) -> int:
        super().num_blocks(length, max_length=max_length)
        return length // max_length


@mutant("DATA-01")
class BlocksAreCountedExactly(ReferenceAdapter):
    """Blocks are counted in whole numbers, so that the last token beyond 2^24 has one too."""

    def num_blocks(self, length: int, *, max_length: int = MAX_DOCUMENT_LENGTH) -> int:
        super().num_blocks(length, max_length=max_length)
        return -(-length // max_length)


@mutant("DATA-01")
class TheLastBlockIsWhole(ReferenceAdapter):
    """A short last block reaches back into the one before it."""

    def document_block(
        self, tokens: ndarray, block: int, *, max_length: int = MAX_DOCUMENT_LENGTH
    ) -> ndarray:
        right = super().document_block(tokens, block, max_length=max_length)
        return right if len(right) == max_length else tokens[-max_length:]


@mutant("DATA-03")
class DocumentsAreSeparated(ReferenceAdapter):
    """An end stands between documents, though none was asked for."""

    def join_documents(self, given: Sequence[ndarray], *, end: int | None = None) -> ndarray:
        joined = super().join_documents(given, end=END if end is None else end)
        return joined[:-1] if end is None else joined


@mutant("DATA-03")
class PaddingIsJoinedToo(ReferenceAdapter):
    """Ids of 0 stay."""

    def join_documents(self, given: Sequence[ndarray], *, end: int | None = None) -> ndarray:
        super().join_documents(given, end=end)
        ends = np.zeros(0, np.int64) if end is None else np.array([end])
        parts = [np.concatenate([one, ends]) for one in given if len(one)]
        return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


@mutant("DATA-03")
class EmptyDocumentsHaveEnds(ReferenceAdapter):
    """An empty document is an end and nothing else."""

    def join_documents(self, given: Sequence[ndarray], *, end: int | None = None) -> ndarray:
        right = super().join_documents(given, end=end)
        empty = sum(not len(one) for one in given)
        return right if end is None else np.concatenate([right, np.full(empty, end)])


# ---- groups and segments -----------------------------------------------------------------------


@mutant("DATA-04")
class ObjectivesShareTheirGroups(ReferenceAdapter):
    """Every objective sees every group."""

    def objective_groups(self, num_groups: int, objective: int) -> tuple[int, ...]:
        super().objective_groups(num_groups, objective)
        return tuple(range(num_groups))


@mutant("DATA-04")
class GroupsAreDealtInBlocks(ReferenceAdapter):
    """The first sixth of the groups is objective 0's, and so on."""

    def objective_groups(self, num_groups: int, objective: int) -> tuple[int, ...]:
        super().objective_groups(num_groups, objective)
        return tuple(np.array_split(np.arange(num_groups), 6)[objective].tolist())


@mutant("DATA-05")
class ShortSegmentsAreDropped(ReferenceAdapter):
    """The last segment of a group is left out when it is short."""

    def objective_segments(
        self, given: Sequence[ndarray], objective: int, **options: int
    ) -> list[ndarray]:
        right = super().objective_segments(given, objective, **options)
        return [one for one in right if len(one) == len(right[0])]


@mutant("DATA-05")
class PrefixesFillTheInputs(ReferenceAdapter):
    """A segment of PrefixLM is as long as the inputs."""

    def objective_segments(
        self, given: Sequence[ndarray], objective: int, **options: int
    ) -> list[ndarray]:
        if OBJECTIVES[objective].is_prefix:
            options["inputs_length"] += 1
        return super().objective_segments(given, objective, **options)


@mutant("DATA-05")
class PrefixesSeeTheWholeGroup(ReferenceAdapter):
    """PrefixLM looks at all that was joined, as spans do."""

    def objective_segments(
        self, given: Sequence[ndarray], objective: int, **options: int
    ) -> list[ndarray]:
        super().objective_segments(given, objective, **options)
        wide = options | {"block": 0, "max_length": 2**20}
        return super().objective_segments(given, objective, **wide)


@mutant("DATA-05")
class SegmentsStayInTheirDocuments(ReferenceAdapter):
    """Documents are cut one by one."""

    def objective_segments(
        self, given: Sequence[ndarray], objective: int, **options: int
    ) -> list[ndarray]:
        found: list[ndarray] = []
        for one in given:
            found += super().objective_segments([one], objective, **options | {"block": 0})
        return found


@mutant("DATA-06")
class NoTokenIsLost(ReferenceAdapter):
    """Segments are one shorter, so that the end has room."""

    def full_lm_segments(self, given: Sequence[ndarray], *, length: int) -> list[ndarray]:
        super().full_lm_segments(given, length=length)
        joined = documents.join_documents(given, end=END)
        return [np.append(one, END) for one in documents.split_tokens(joined, length - 1)]


@mutant("DATA-06")
class AShortSegmentHasOneEnd(ReferenceAdapter):
    """A segment that ends in an end gets no other."""

    def full_lm_segments(self, given: Sequence[ndarray], *, length: int) -> list[ndarray]:
        right = super().full_lm_segments(given, length=length)
        return [one[:-1] if len(one) > 1 and one[-2] == END else one for one in right]


@mutant("DATA-06")
class SegmentsDoNotEnd(ReferenceAdapter):
    """Segments are cut, and that is all."""

    def full_lm_segments(self, given: Sequence[ndarray], *, length: int) -> list[ndarray]:
        super().full_lm_segments(given, length=length)
        return documents.split_tokens(documents.join_documents(given, end=END), length)


# ---- mixtures ----------------------------------------------------------------------------------


@mutant("DATA-07")
class AnEndedStreamEndsAll(ReferenceAdapter):
    """Mixing stops at the first choice of a stream that has ended."""

    def mix_streams(self, lengths: Sequence[int], choices: ndarray) -> ndarray:
        right = super().mix_streams(lengths, choices)
        taken = [0] * len(lengths)
        for place, stream in enumerate(np.asarray(choices).tolist()):
            if taken[stream] == lengths[stream]:
                return right[:place]
            taken[stream] += 1
        return right


@mutant("DATA-07")
class AnEndedStreamBeginsAnew(ReferenceAdapter):
    """A stream that has ended is repeated."""

    def mix_streams(self, lengths: Sequence[int], choices: ndarray) -> ndarray:
        super().mix_streams(lengths, choices)
        taken, order = [0] * len(lengths), []
        for stream in np.asarray(choices).tolist():
            if lengths[stream]:
                order.append((stream, taken[stream] % lengths[stream]))
                taken[stream] += 1
        return np.array(order, np.int64).reshape(-1, 2)


@mutant("DATA-08")
class RatesArePercent(ReferenceAdapter):
    """Rates are taken for percent, though the first mixtures add up to 200."""

    def mixture(self, name: str) -> Mapping[str, float]:
        super().mixture(name)
        return {task: rate / 100 for task, rate in MIXTURES[name].items()}


@mutant("DATA-08")
class NoPrefixMeansNoModes(ReferenceAdapter):
    """`mix_ul2_noprefix` lists tasks without modes, as its name says."""

    def mixture(self, name: str) -> Mapping[str, float]:
        right = super().mixture(name)
        if name != "mix_ul2_noprefix":
            return right
        return {f"{task}_noprefix": share for task, share in right.items()}


@mutant("DATA-10")
class NamesStandOnLinesOfTheirOwn(ReferenceAdapter):
    """A line begins before each of the two names."""

    def sft_texts(self, task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
        right = super().sft_texts(task, fields)
        if task != "orca_sft":
            return right
        asked = f"{fields['system_prompt']}\nUSER: {fields['question']}\nASSISTANT: "
        return {**right, "inputs": asked}


@mutant("DATA-10")
class TextsAreStripped(ReferenceAdapter):
    """Blanks at both ends are taken off."""

    def sft_texts(self, task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
        return {n: text.strip() for n, text in super().sft_texts(task, fields).items()}


# ---- draws -------------------------------------------------------------------------------------


@mutant("DATA-02")
class TheFirstBlockIsTaken(ReferenceAdapter):
    """Documents are cut behind their first block."""

    def draw_blocks(self, length: int, *, count: int, seed: int, **options: int) -> ndarray:
        return np.zeros_like(super().draw_blocks(length, count=count, seed=seed, **options))


@mutant("DATA-02")
class BlocksAreDrawnByLength(ReferenceAdapter):
    """A block is as likely as it is long."""

    def draw_blocks(self, length: int, *, count: int, seed: int, **options: int) -> ndarray:
        super().draw_blocks(length, count=count, seed=seed, **options)
        largest = options.get("max_length", MAX_DOCUMENT_LENGTH)
        return np.random.default_rng(seed).integers(length, size=count) // largest


@mutant("DATA-09")
class TasksAreEquallyLikely(ReferenceAdapter):
    """Every task has the same share."""

    def draw_tasks(self, mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
        tasks = list(documents.mixture(mixture))
        places = np.random.default_rng(seed).integers(len(tasks), size=count)
        return tuple(tasks[place] for place in places)


@mutant("DATA-09")
class TheStackIsAThird(ReferenceAdapter):
    """The Stack keeps 50 beside the other tasks' 100, as if halved rates were added up."""

    def draw_tasks(self, mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
        rates = dict(MIXTURES[mixture])
        rates = {t: rate / 2 if t.startswith("the_stack") else rate for t, rate in rates.items()}
        shares = np.array(list(rates.values())) / sum(rates.values())
        places = np.random.default_rng(seed).choice(len(shares), count, p=shares)
        return tuple(list(rates)[place] for place in places)


# ---- the pipeline ------------------------------------------------------------------------------


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


# ---- what must be rejected ---------------------------------------------------------------------


@mutant("DATA-11")
class NegativeIdsAreJoined(ReferenceAdapter):
    """Negative ids are ids."""

    def join_documents(self, given: Sequence[ndarray], *, end: int | None = None) -> ndarray:
        return super().join_documents([np.abs(one) for one in given], end=end)


@mutant("DATA-11")
class BlocksWrapAround(ReferenceAdapter):
    """Block -1 is the last one, and a block beyond it the first."""

    def document_block(
        self, tokens: ndarray, block: int, *, max_length: int = MAX_DOCUMENT_LENGTH
    ) -> ndarray:
        blocks = max(documents.num_blocks(len(tokens), max_length=max_length), 1)
        if not len(tokens):
            raise RejectedError("block", "DATA-11", "there is none")
        return super().document_block(tokens, block % blocks, max_length=max_length)


@mutant("DATA-11")
class MissingFieldsAreEmpty(ReferenceAdapter):
    """A field that is missing is an empty text."""

    def sft_texts(self, task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
        names = ("input", "output", "system_prompt", "question", "response")
        return super().sft_texts(task, dict.fromkeys(names, "") | dict(fields))

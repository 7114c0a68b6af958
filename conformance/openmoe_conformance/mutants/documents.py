"""Mutants of SPEC.md "Documents": blocks, groups, segments, streams, mixtures, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import documents
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

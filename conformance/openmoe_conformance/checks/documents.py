"""Checks of SPEC.md "Documents": blocks, groups, segments, streams, mixtures, fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.answers import array
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.objectives import tokens_of
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, same
from openmoe_conformance.data_answers import fields, same_ids, same_lists
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import documents
from openmoe_spec.data import GROUP_OF_DOCUMENTS, MAX_DOCUMENT_LENGTH, MIXTURES

# ---- blocks ------------------------------------------------------------------------------------


def _lengths(_: Profile) -> Iterator[Case]:
    whole = MAX_DOCUMENT_LENGTH
    for length in (0, 1, whole - 1, whole, whole + 1, 2 * whole, 10 * whole + 7):
        yield {"length": length}
    yield {"length": 2**24 + 1}  # float32 does not hold it: its last token lies in no block


@check("DATA-01", "num_blocks", cases=_lengths)
def documents_have_blocks(subject: Subject, case: Case, _: Evidence) -> None:
    """As many as begin in the document, counted in float32; an empty one has none."""
    wanted = documents.num_blocks(case["length"])
    same("num_blocks", subject.integer("num_blocks", case["length"]), wanted)


@check(
    "DATA-01",
    "document_block(max_length)",
    cases=st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 60)).map(
        lambda one: {
            "tokens": tokens_of(one[0], one[0]),
            "max_length": one[1],
            "block": one[2] % -(-one[0] // one[1]),
        }
    ),
)
def blocks_are_aligned(subject: Subject, case: Case, _: Evidence) -> None:
    """The tokens of one block, the last one shorter."""
    options = {"max_length": case["max_length"]}
    got = subject.call("document_block", case["tokens"], case["block"], **options)
    same_ids("block", got, documents.document_block(case["tokens"], case["block"], **options))


# ---- groups and segments -----------------------------------------------------------------------


@st.composite
def groups(draw: st.DrawFn, *, most: int = 12) -> Case:
    """Draw documents, some of them empty, some with an id 0; as lists, which a case can hold."""
    sizes = draw(st.lists(st.integers(0, 80), min_size=0, max_size=most))
    seed = draw(st.integers(0, 999))
    made = [tokens_of(seed + i, size) for i, size in enumerate(sizes)]
    for place in draw(st.lists(st.integers(0, 79), max_size=3)):
        for one in made[:2]:
            one[place:][:1] = 0
    return {"documents": [one.tolist() for one in made]}


def documents_of(case: Case) -> list[ndarray]:
    """Return a case's documents as arrays."""
    return [np.array(one, np.int32) for one in case["documents"]]


@check("DATA-03", "join_documents", cases=groups())
def documents_are_joined_without_a_seam(subject: Subject, case: Case, _: Evidence) -> None:
    """Nothing between them, and no id 0."""
    given = documents_of(case)
    got = subject.call("join_documents", given)
    same_ids("joined", got, documents.join_documents(given))


@check("DATA-03", "join_documents(end)", cases=groups())
def causal_documents_have_ends(subject: Subject, case: Case, _: Evidence) -> None:
    """Each document but an empty one is followed by the end."""
    given = documents_of(case)
    same_ids(
        "joined",
        subject.call("join_documents", given, end=1),
        documents.join_documents(given, end=1),
    )


@check(
    "DATA-04",
    "objective_groups",
    cases=st.fixed_dictionaries({"groups": st.integers(0, 40), "objective": st.integers(0, 5)}),
)
def objectives_see_every_sixth_group(subject: Subject, case: Case, _: Evidence) -> None:
    """From its own number on."""
    got = subject.call("objective_groups", case["groups"], case["objective"])
    same_ids("groups", got, documents.objective_groups(case["groups"], case["objective"]))


@check(
    "DATA-05",
    "objective_segments",
    cases=st.tuples(groups(most=20), st.integers(0, 5), st.sampled_from((16, 64, 100))).map(
        lambda one: one[0] | {"objective": one[1], "inputs": one[2]}
    ),
)
def groups_are_cut_into_segments(subject: Subject, case: Case, _: Evidence) -> None:
    """Of the objective's own length, the last one shorter."""
    given, options = documents_of(case), {"inputs_length": case["inputs"]}
    got = subject.call("objective_segments", given, case["objective"], **options)
    wanted = documents.objective_segments(given, case["objective"], **options)
    same_lists("segments", got, wanted)


def _long_groups(_: Profile) -> Iterator[Case]:
    for objective in (0, 4, 5):
        for block in (0, 1, 2):
            yield {"objective": objective, "block": block, "sizes": [90, 70, 95, 3]}


@check(
    "DATA-05",
    "objective_segments(block)",
    "objective_segments(max_length)",
    cases=_long_groups,
)
def prefixes_come_from_one_block_of_the_group(subject: Subject, case: Case, _: Evidence) -> None:
    """PrefixLM looks at one block of what was joined, spans at all of it."""
    given = [tokens_of(i, size) for i, size in enumerate(case["sizes"])]
    options = {"inputs_length": 20, "block": case["block"], "max_length": 100}
    got = subject.call("objective_segments", given, case["objective"], **options)
    wanted = documents.objective_segments(given, case["objective"], **options)
    same_lists("segments", got, wanted)


@check(
    "DATA-06",
    "full_lm_segments",
    cases=st.tuples(groups(most=20), st.integers(2, 70)).map(
        lambda one: one[0] | {"length": one[1]}
    ),
)
def causal_segments_lose_their_last_token(subject: Subject, case: Case, _: Evidence) -> None:
    """Cut to one less, and ended."""
    given = documents_of(case)
    got = subject.call("full_lm_segments", given, length=case["length"])
    same_lists("segments", got, documents.full_lm_segments(given, length=case["length"]))


# ---- mixtures ----------------------------------------------------------------------------------


@st.composite
def _streams(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    choices = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=40))
    return {"lengths": lengths, "choices": np.array(choices)}


@check("DATA-07", "mix_streams", cases=_streams())
def streams_that_ended_are_passed_over(subject: Subject, case: Case, _: Evidence) -> None:
    """Each choice takes the next example of its stream."""
    arrays = tuple(case["lengths"]), case["choices"]
    wanted = documents.mix_streams(*arrays)
    got = array("mix_streams", subject.call("mix_streams", *arrays))
    same("mix_streams", got.reshape(-1, 2), wanted)


@check("DATA-08", "mixture", cases=lambda _: iter([{"name": name} for name in MIXTURES]))
def shares_of_the_published_mixtures(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By task, rates over their sum."""
    wanted = documents.mixture(case["name"])
    found = dict(subject.call("mixture", case["name"]))
    if set(found) != set(wanted):
        odd = sorted(set(found) ^ set(wanted))
        raise Disagreement(f"mixture({case['name']}): tasks differ: {', '.join(map(str, odd))}")
    for task, share in wanted.items():
        close(f"share of {task}", found[task], share, evidence, relative=1e-12)


# ---- fine-tuning -------------------------------------------------------------------------------

_TEXTS = ("", "a", " b ", "You are an assistant.", "Two\nlines", "ASSISTANT: ")
_SFT = {
    "wildchat_gpt4_sft": ("input", "output"),
    "orca_sft": ("system_prompt", "question", "response"),
}


def _conversations(_: Profile) -> Iterator[Case]:
    for task, names in _SFT.items():
        for shift in range(len(_TEXTS)):
            texts = {n: _TEXTS[(i + shift) % len(_TEXTS)] for i, n in enumerate(names)}
            yield {"task": task, "fields": texts}


@check("DATA-10", "sft_texts", cases=_conversations)
def conversations_become_two_texts(subject: Subject, case: Case, _: Evidence) -> None:
    """As they are, or with the two names and nothing between."""
    answer = subject.call("sft_texts", case["task"], dict(case["fields"]))
    wanted = documents.sft_texts(case["task"], case["fields"])
    found = fields("sft_texts", answer, tuple(wanted))
    for name, text in wanted.items():
        same(f"sft_texts.{name}", found[name], text)


# ---- what must be rejected ---------------------------------------------------------------------


def _illegal(_: Profile) -> Iterator[Case]:
    yield from (
        {"function": "join_documents", "arguments": [[[4, -1]]]},
        {"function": "join_documents", "arguments": [[[4], [-2, 5]]]},
        {"function": "document_block", "arguments": [[4, 5], 1]},
        {"function": "document_block", "arguments": [[4, 5], -1]},
        {"function": "document_block", "arguments": [[], 0]},
        {"function": "num_blocks", "arguments": [-1]},
        {"function": "objective_groups", "arguments": [4, 6]},
        {"function": "objective_groups", "arguments": [4, -1]},
        {"function": "objective_groups", "arguments": [-1, 0]},
        {"function": "mix_streams", "arguments": [[2, 2], [0, 2]]},
        {"function": "mix_streams", "arguments": [[2, 2], [0, -1]]},
        {"function": "mix_streams", "arguments": [[2, -1], [0]]},
        {"function": "mixture", "arguments": ["mix_ul3"]},
        {"function": "sft_texts", "arguments": ["alpaca_sft", {"input": "a", "output": "b"}]},
        {"function": "sft_texts", "arguments": ["wildchat_gpt4_sft", {"input": "a"}]},
        {"function": "sft_texts", "arguments": ["orca_sft", {"question": "a", "response": "b"}]},
    )


def _arrays(function: str, given: Sequence[Any]) -> list[Any]:
    """Return arguments with lists of ids as arrays."""
    if function == "join_documents":
        return [[np.array(one, np.int32) for one in given[0]]]
    if function in ("document_block", "mix_streams"):
        place = 0 if function == "document_block" else 1
        return [np.array(one, np.int32) if i == place else one for i, one in enumerate(given)]
    return list(given)


@check(
    "DATA-11",
    "rejects_invalid_input",
    "join_documents",
    "document_block",
    "num_blocks",
    "objective_groups",
    "mix_streams",
    "mixture",
    "sft_texts",
    cases=_illegal,
)
def illegal_documents_and_choices_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Negative ids, blocks and streams that there are not, unknown names, missing fields."""
    arguments = _arrays(case["function"], case["arguments"])
    must_reject(
        f"{case['function']} of {case['arguments']}",
        lambda: subject.call(case["function"], *arguments),
    )


@check(
    "DATA-11",
    "rejects_invalid_input",
    "objective_segments",
    cases=lambda _: iter([{"documents": GROUP_OF_DOCUMENTS + 1}]),
)
def groups_are_of_128_at_most(subject: Subject, case: Case, _: Evidence) -> None:
    """A longer list is not one group."""
    given = [tokens_of(i, 3) for i in range(case["documents"])]
    must_reject(
        f"a group of {case['documents']} documents",
        lambda: subject.call("objective_segments", given, 0, inputs_length=16),
    )

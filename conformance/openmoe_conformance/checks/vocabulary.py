"""Checks of SPEC.md "Vocabulary"; text is cut by the small SentencePiece models that the kit ships."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import vector_sets
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import fields, ids, numbers, same_ids
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.reference_data_adapter import ReferenceDataAdapter
from openmoe_conformance.subject import Subject
from openmoe_reference import vocabulary
from openmoe_spec.data import NUM_PIECES, NUM_SENTINELS

REFERENCE = ReferenceDataAdapter()


def model(layout: str = "umt5") -> Path:
    """Return the path of a shipped SentencePiece model of 800 pieces."""
    return vector_sets.built_in() / "vocabulary" / f"bytefallback_{layout}layout.model"


_SIZES = st.fixed_dictionaries({"pieces": st.integers(1, 3000), "sentinels": st.integers(0, 300)})


def _sizes(_: Profile) -> Iterator[Case]:
    yield {"pieces": NUM_PIECES, "sentinels": NUM_SENTINELS}
    for pieces in (1, 127, 128, 129, 32_000):
        for sentinels in (0, 1, 100, 128, 300):
            yield {"pieces": pieces, "sentinels": sentinels}


@check("VOCAB-01", "vocabulary(num_sentinels)", cases=_sizes)
def sizes_of_a_vocabulary(subject: Subject, case: Case, _: Evidence) -> None:
    """Pieces and sentinels, rows in multiples of 128, padding and end."""
    answer = subject.call("vocabulary", case["pieces"], num_sentinels=case["sentinels"])
    wanted = vocabulary.vocabulary(case["pieces"], num_sentinels=case["sentinels"])
    names = ("vocabulary_size", "num_embeddings", "pad", "end")
    found = numbers("vocabulary", answer, names)
    same("vocabulary", [found[name] for name in names], [wanted[name] for name in names])


@check("VOCAB-02", "vocabulary(num_sentinels)", cases=_SIZES)
def sentinels_count_downwards(subject: Subject, case: Case, _: Evidence) -> None:
    """Sentinel 0 has the last id of all."""
    options = {"num_sentinels": case["sentinels"]}
    found = fields("vocabulary", subject.call("vocabulary", case["pieces"], **options), _LISTED)
    wanted = vocabulary.vocabulary(case["pieces"], **options)["sentinels"]
    same_ids("sentinels", found["sentinels"], wanted)


_LISTED = ("sentinels",)


@check("VOCAB-02", "vocabulary(num_sentinels)", "vocabulary(reverse)", cases=_SIZES)
def sentinels_may_count_upwards(subject: Subject, case: Case, _: Evidence) -> None:
    """Not `reverse`, sentinel 0 has the first id behind the pieces."""
    options: dict[str, Any] = {"num_sentinels": case["sentinels"], "reverse": False}
    found = fields("vocabulary", subject.call("vocabulary", case["pieces"], **options), _LISTED)
    wanted = np.arange(case["sentinels"]) + case["pieces"]
    same_ids("sentinels", found["sentinels"], wanted)


# ---- text --------------------------------------------------------------------------------------

_WORDS = (
    *("the", "Spans", "of", "noise", "[NLU]", "naïve", "日本", "1,024", "\t", "a"),
    *("<extra_id_0>", "<extra_id_1>", "<extra_id_299>", "<extra_id_300>", "x<extra_id_0>y"),
    *("<extra_id_2><extra_id_3>", "</s>", "<pad>", "a\0b"),
)
_TEXTS = st.fixed_dictionaries(
    {"text": st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join)}
)


@check("VOCAB-03", "encode_text", cases=_TEXTS)
def text_is_cut_with_sentinels_as_pieces(subject: Subject, case: Case, _: Evidence) -> None:
    """A sentinel is one at the beginning of a word, and no end is added."""
    got = subject.call("encode_text", case["text"], model=str(model()))
    wanted = REFERENCE.encode_text(case["text"], model=str(model()))
    same_ids(f"ids of {case['text']!r}", got, wanted)


def _sentinels(_: Profile) -> Iterator[Case]:
    for number in (0, 1, 7, 150, 298, 299):
        yield {"text": f"a <extra_id_{number}> b", "number": number}


@check("VOCAB-03", "encode_text", cases=_sentinels)
def a_sentinel_in_a_text_is_its_id(subject: Subject, case: Case, _: Evidence) -> None:
    """Sentinel j is 1,099 - j of 800 pieces and 300 sentinels."""
    got = ids("ids", subject.call("encode_text", case["text"], model=str(model())))
    same("sentinels", got[got >= 800], [1099 - case["number"]])


_IDS = st.lists(st.integers(0, 1400) | st.sampled_from((0, 1, 2, 3, 1099, 1100)), max_size=20)


@check(
    "VOCAB-04",
    "decoded_ids",
    cases=st.fixed_dictionaries({"ids": _IDS, "unknown": st.sampled_from((2, 3))}),
)
def ids_are_cut_behind_the_first_end(subject: Subject, case: Case, _: Evidence) -> None:
    """Ids beyond the vocabulary are unknown, and nothing behind an end is left."""
    given = np.array(case["ids"], np.int32)
    options = {"vocabulary_size": 1100, "unknown": case["unknown"]}
    got = subject.call("decoded_ids", given, **options)
    same_ids("ids", got, vocabulary.decoded_ids(given, **options))


@check("VOCAB-04", "decode_text", cases=st.fixed_dictionaries({"ids": _IDS}))
def text_of_ids(subject: Subject, case: Case, _: Evidence) -> None:
    """Ids that are cut so give SentencePiece's text."""
    given = np.array(case["ids"], np.int32)
    got = subject.call("decode_text", given, model=str(model()))
    same(f"text of {case['ids']}", got, REFERENCE.decode_text(given, model=str(model())))


# ---- what must be rejected ---------------------------------------------------------------------


@check(
    "VOCAB-05",
    "rejects_invalid_input",
    "vocabulary(num_sentinels)",
    cases=lambda _: iter([{"pieces": p, "sentinels": s} for p, s in ((0, 1), (-1, 1), (5, -1))]),
)
def counts_must_be_counts(subject: Subject, case: Case, _: Evidence) -> None:
    """No piece, or less than no sentinel."""
    must_reject(
        f"a vocabulary of {case}",
        lambda: subject.call("vocabulary", case["pieces"], num_sentinels=case["sentinels"]),
    )


@check(
    "VOCAB-05",
    "rejects_invalid_input",
    "decoded_ids",
    cases=lambda _: iter([{"ids": [4, -1]}, {"ids": [-5]}]),
)
def negative_ids_are_no_text(subject: Subject, case: Case, _: Evidence) -> None:
    """As the sentinels that ran on below 0 are."""
    given = np.array(case["ids"], np.int32)
    must_reject(
        f"ids {case['ids']}", lambda: subject.call("decoded_ids", given, vocabulary_size=1100)
    )


@check(
    "VOCAB-05",
    "rejects_invalid_input",
    "encode_text",
    cases=lambda _: iter([{"latin": "caf\xe9"}, {"latin": "\xff\xfe"}, {"latin": "a\xc3"}]),
)
def bytes_that_are_no_utf8_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Nothing is replaced in silence."""
    given = case["latin"].encode("latin-1")
    subject.call("encode_text", "a", model=str(model()))
    must_reject(f"text {given!r}", lambda: subject.call("encode_text", given, model=str(model())))


def _files(_: Profile) -> Iterator[Case]:
    for wrong in ("empty", "truncated", "text", "other special ids", "sentinels"):
        yield {"wrong": wrong}


@check("VOCAB-05", "rejects_invalid_input", "encode_text", cases=_files)
def files_that_are_no_vocabulary_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A truncated or foreign file, other special ids, sentinels that are there already."""
    right = model().read_bytes()
    subject.call("encode_text", "a", model=str(model()))
    content = {
        "empty": b"",
        "truncated": right[: len(right) // 2],
        "text": b"This is no model.\n" * 10,
        "other special ids": _exchanged(right),
        "sentinels": vocabulary.with_sentinels(right),
    }[case["wrong"]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wrong.model"
        path.write_bytes(content)
        must_reject(
            f"a model file: {case['wrong']}",
            lambda: subject.call("encode_text", "a", model=str(path)),
        )


def _exchanged(content: bytes) -> bytes:
    """Return a model whose padding and end have each other's ids: its first two pieces in turn."""
    first = 2 + content[1]
    second = first + 2 + content[first + 1]
    return content[first:second] + content[:first] + content[second:]

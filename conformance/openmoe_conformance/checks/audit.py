"""Checks of SPEC.md "Routing audits": which tokens are counted, and their choices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

SIZES = ((4, 2), (3, 1), (5, 3), (3, 3), (32, 2), (64, 3), (300, 2))
"""Experts E and choices K; not all experts fit a byte, and once every token takes every expert."""

_ID = st.sampled_from([0, 1, 2, 5, 63_999, 2**31 - 1])


@st.composite
def _rows(draw: st.DrawFn) -> Case:
    length = draw(st.integers(1, 12))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.lists(_ID, max_size=length))  # an id of padding within it is text
        rows.append((text + [0] * length)[:length])
    return {"ids": np.array(rows, np.int32)}


@check("AUDIT-01", "counted_tokens", cases=_rows())
def tokens_up_to_the_padding(subject: Subject, case: Case, _: Evidence) -> None:
    """All tokens up to a row's last id that is not padding count, the start among them."""
    wanted = []
    for row in case["ids"].tolist():
        last = -1
        for place, token in enumerate(row):
            last = place if token else last
        wanted.append([place <= last for place in range(len(row))])
    got = answers.array("counted_tokens", subject.call("counted_tokens", case["ids"]))
    same("counted_tokens", got, wanted)


@st.composite
def texts(draw: st.DrawFn, *, least: int = 1) -> Case:
    """Draw tokens with keys, -1 among them, and each with K different experts."""
    experts, k = draw(st.sampled_from(SIZES))
    num_keys = draw(st.integers(1, 5))
    chosen = st.lists(st.integers(0, experts - 1), min_size=k, max_size=k, unique=True)
    tokens = draw(
        st.lists(st.tuples(st.integers(-1, num_keys - 1), chosen), min_size=least, max_size=24)
    )
    return {
        "keys": np.array([key for key, _ in tokens], np.int32),
        "expert_index": np.array([one for _, one in tokens], np.int32),
        "num_keys": num_keys,
        "num_experts": experts,
    }


def counted(case: Case) -> ndarray:
    """Return the counts [keys, E, K] of a drawn text."""
    counts = np.zeros(
        (case["num_keys"], case["num_experts"], case["expert_index"].shape[1]), np.int64
    )
    for key, chosen in zip(case["keys"].tolist(), case["expert_index"].tolist(), strict=True):
        for rank, expert in enumerate(chosen):
            if key != -1:
                counts[key, expert, rank] += 1
    return counts


def _ask(subject: Subject, case: Case, keys: ndarray, expert_index: ndarray) -> ndarray:
    sizes = {name: case[name] for name in ("num_keys", "num_experts")}
    shape = (*sizes.values(), expert_index.shape[1])
    answer = subject.call("count_choices", keys, expert_index, **sizes)
    return answers.whole("count_choices", answer, shape)


@check("AUDIT-02", "count_choices", cases=texts())
def choices_by_key_expert_and_rank(subject: Subject, case: Case, _: Evidence) -> None:
    """Each token counts once for each rank, under its key; with a key of -1 not at all."""
    got = _ask(subject, case, case["keys"], case["expert_index"])
    same("count_choices", got, counted(case))


def _long_texts(_: Profile) -> Iterator[Case]:
    for experts, k in ((3, 1), (4, 2), (300, 2)):
        yield {"tokens": 70_000, "num_experts": experts, "k": k, "num_keys": 2, "seed": experts}


@check("AUDIT-02", "count_choices", cases=_long_texts)
def choices_of_a_long_text(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts are beyond 16 bits where most tokens take the same experts."""
    rng = np.random.default_rng(case["seed"])
    other = rng.integers(0, 100, case["tokens"]) == 0
    first = np.where(other, 0, case["num_experts"] - 1)
    text = case | {
        "keys": rng.integers(-1, 2, case["tokens"]).astype(np.int32) * other,
        "expert_index": np.stack([first, 1 + other][: case["k"]], axis=1).astype(np.int32),
    }
    same("count_choices", _ask(subject, case, text["keys"], text["expert_index"]), counted(text))


@st.composite
def _parts(draw: st.DrawFn) -> Case:
    text = draw(texts(least=2))
    tokens = len(text["keys"])
    cuts = draw(st.lists(st.integers(1, tokens - 1), min_size=1, max_size=5, unique=True))
    order = draw(st.permutations(range(tokens)))
    return text | {"cuts": np.array(sorted(cuts)), "order": np.array(order)}


@check("AUDIT-21", "count_choices", cases=_parts())
def counts_of_parts_add_up(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts of a text are the sum of those of its parts, wherever it is cut and in any order."""
    keys, chosen = case["keys"][case["order"]], case["expert_index"][case["order"]]
    total = np.zeros_like(counted(case))
    for part in np.split(np.arange(len(keys)), case["cuts"]):
        total += _ask(subject, case, keys[part], chosen[part])
    same("count_choices: sum of the parts", total, counted(case))
    whole = _ask(subject, case, case["keys"], case["expert_index"])
    same("count_choices: the whole after its parts", whole, counted(case))

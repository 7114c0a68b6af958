"""Checks of SPEC.md "Groups and capacity"."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import grouping, moe
from openmoe_spec.records import Decision

_SIZES = st.integers(1, 70)


@check(
    "GROUP-01",
    "num_expert_replicas",
    cases=st.fixed_dictionaries(
        {
            "devices": st.integers(1, 4096),
            "experts": st.sampled_from((1, 2, 8, 16, 32)),
            "model": st.sampled_from((1, 2, 8, 16)),
        }
    ),
)
def replicas_of_a_device_count(subject: Subject, case: Case, _: Evidence) -> None:
    """R = max(1, devices // (expert partitions x model partitions))."""
    options = {"num_expert_partitions": case["experts"], "num_model_partitions": case["model"]}
    same(
        "num_expert_replicas",
        subject.integer("num_expert_replicas", case["devices"], **options),
        grouping.num_expert_replicas(case["devices"], **options),
    )


@check(
    "GROUP-01",
    "padded_shape",
    cases=st.fixed_dictionaries(
        {"batch": _SIZES, "blocks": st.integers(1, 9), "multiple": st.integers(1, 64)}
    ),
)
def no_padding_when_it_fits(subject: Subject, case: Case, _: Evidence) -> None:
    """A token count that is a multiple of M stays as it is."""
    length = case["blocks"] * case["multiple"]
    answer = subject.call("padded_shape", case["batch"], length, multiple=case["multiple"])
    same("padded_shape", answer, (case["batch"], length))


@check(
    "GROUP-02",
    "padded_shape",
    cases=st.fixed_dictionaries(
        {"batch": _SIZES, "length": _SIZES, "multiple": st.integers(1, 64)}
    ),
)
def fewest_tokens_are_added(subject: Subject, case: Case, _: Evidence) -> None:
    """Rows or columns, whichever adds fewer tokens; a tie goes to columns."""
    sizes = case["batch"], case["length"]
    same(
        f"padded_shape{sizes}",
        subject.call("padded_shape", *sizes, multiple=case["multiple"]),
        grouping.padded_shape(*sizes, multiple=case["multiple"]),
    )


def _padding_ties(_: Profile) -> Iterator[Case]:
    for size in (2, 3, 5, 7, 9):
        for multiple in (4, 8, 16, 32):
            yield {"size": size, "multiple": multiple}


@check("GROUP-02", "padded_shape", cases=_padding_ties)
def square_batches_pad_columns(subject: Subject, case: Case, _: Evidence) -> None:
    """With B = L rows and columns cost the same, and columns are padded."""
    size = case["size"]
    answer = subject.call("padded_shape", size, size, multiple=case["multiple"])
    same("padded_shape", answer, grouping.padded_shape(size, size, multiple=case["multiple"]))


@st.composite
def _token_arrays(draw: st.DrawFn) -> Case:
    batch, length, multiple, group = draw(
        st.sampled_from(((2, 6, 4, 3), (1, 5, 4, 2), (3, 5, 8, 3), (3, 5, 8, 6), (4, 4, 1, 8)))
    )
    inputs = draw(strategies.small_integers((batch, length, 2), 1, 120)).astype(np.float32)
    return {"inputs": inputs, "multiple": multiple, "group_size": group}


@check("GROUP-03", "group_tokens", cases=_token_arrays())
def zeros_stand_at_the_ends_of_axes(subject: Subject, case: Case, _: Evidence) -> None:
    """Padded columns stand between rows, padded rows at the end, and all hold zeros."""
    wanted = _grouped(case)
    answer = subject.array("group_tokens", wanted.shape, case["inputs"], **_grouping(case))
    same("group_tokens: padding", answer == 0, wanted == 0)


@check("GROUP-05", "group_tokens", cases=_token_arrays())
def groups_are_runs_of_the_flat_batch(subject: Subject, case: Case, _: Evidence) -> None:
    """Group g holds tokens g T ... g T + T - 1 in row-major order."""
    wanted = _grouped(case)
    answer = subject.array("group_tokens", wanted.shape, case["inputs"], **_grouping(case))
    same("group_tokens", answer, wanted)


def _grouping(case: Case) -> dict[str, int]:
    return {"group_size": case["group_size"], "multiple": case["multiple"]}


def _grouped(case: Case) -> np.ndarray:
    batch, length, _ = case["inputs"].shape
    padded = grouping.padded_shape(batch, length, multiple=case["multiple"])
    groups = padded[0] * padded[1] // case["group_size"]
    return grouping.to_groups(case["inputs"], padded=padded, num_groups=groups)


@check(
    "GROUP-04",
    "num_groups",
    cases=st.fixed_dictionaries(
        {
            "blocks": st.integers(1, 5000),
            "experts": st.sampled_from((1, 2, 4, 16, 32)),
            "largest": st.sampled_from((1, 7, 64, 1000, 4096, 8192)),
        }
    ),
)
def least_number_of_groups(subject: Subject, case: Case, _: Evidence) -> None:
    """The least g >= max(n // m, M) that divides n and is a multiple of M (R = 1)."""
    tokens = case["blocks"] * case["experts"]
    options = {"max_group_size": case["largest"], "num_experts": case["experts"]}
    same(
        f"num_groups({tokens})",
        subject.integer("num_groups", tokens, **options),
        grouping.num_groups(tokens, **options),
    )


@check(
    "GROUP-04",
    "num_groups(num_expert_replicas)",
    cases=st.fixed_dictionaries(
        {
            "blocks": st.integers(1, 3000),
            "experts": st.sampled_from((2, 4, 16)),
            "replicas": st.sampled_from((1, 2, 3, 8)),
            "largest": st.sampled_from((64, 1000, 4096)),
        }
    ),
)
def groups_depend_on_replicas(subject: Subject, case: Case, _: Evidence) -> None:
    """M = E x R enters the number of groups."""
    tokens = case["blocks"] * case["experts"] * case["replicas"]
    options = {
        "max_group_size": case["largest"],
        "num_experts": case["experts"],
        "num_expert_replicas": case["replicas"],
    }
    same(
        f"num_groups({tokens})",
        subject.integer("num_groups", tokens, **options),
        grouping.num_groups(tokens, **options),
    )


@check(
    "GROUP-06",
    "expert_capacity",
    cases=st.fixed_dictionaries(
        {
            "tokens": st.integers(1, 9000),
            "experts": st.sampled_from((1, 2, 4, 8, 16, 32, 64)),
            "factor": st.sampled_from((1.0, 1.1, 1.25, 1.5, 2.0, 4.0)),
        }
    ),
)
def capacity_is_rounded_half_to_even(subject: Subject, case: Case, _: Evidence) -> None:
    """C = max(round-half-even(factor x T / E), 4)."""
    options = {"num_experts": case["experts"], "capacity_factor": case["factor"]}
    same(
        f"expert_capacity({case['tokens']}, {options})",
        subject.integer("expert_capacity", case["tokens"], **options),
        grouping.expert_capacity(case["tokens"], **options),
    )


def _halves(_: Profile) -> Iterator[Case]:
    # factor 1, E = 8: T / E ends in exactly one half for T = 8 j + 4
    yield from ({"tokens": 8 * j + 4} for j in range(12))


@check("GROUP-06", "expert_capacity", cases=_halves)
def exact_halves_go_to_even(subject: Subject, case: Case, _: Evidence) -> None:
    """4.5 -> 4, 5.5 -> 6, 6.5 -> 6, 7.5 -> 8."""
    answer = subject.integer("expert_capacity", case["tokens"], num_experts=8, capacity_factor=1.0)
    wanted = grouping.expert_capacity(case["tokens"], num_experts=8, capacity_factor=1.0)
    same(f"expert_capacity({case['tokens']}, E = 8, factor 1)", answer, wanted)


@check(
    "GROUP-06",
    "expert_capacity(min_expert_capacity)",
    cases=st.fixed_dictionaries({"tokens": st.integers(1, 40), "least": st.integers(1, 9)}),
)
def minimum_comes_after_rounding(subject: Subject, case: Case, _: Evidence) -> None:
    """The smallest capacity is applied to the rounded number, odd or even."""
    options = {"num_experts": 8, "capacity_factor": 1.25, "min_expert_capacity": case["least"]}
    same(
        f"expert_capacity({case['tokens']}, {options})",
        subject.integer("expert_capacity", case["tokens"], **options),
        grouping.expert_capacity(case["tokens"], **options),
    )


def _layer_capacities(_: Profile) -> Iterator[Case]:
    for k in (1, 2, 3):
        for training in (True, False):
            yield _crowded(k, training, seed=k)


def _crowded(k: int, training: bool, seed: int) -> Case:
    """One group of 64 identical-looking tokens for 4 experts: every queue overflows."""
    generator = np.random.default_rng(seed)
    inputs = generator.integers(1, 5, (4, 64, strategies.WIDTH)).astype(np.float32) / 8
    kernel = np.zeros((strategies.WIDTH, 4), np.float32)
    kernel[:, 0], kernel[:, 1], kernel[:, 2] = 1.0, 0.5, 0.25
    return {
        "inputs": inputs,
        "kernel": kernel,
        "k": k,
        "training": training,
    } | strategies.expert_weights(seed, 4)


@check("GROUP-07", "moe_layer(k)", cases=_layer_capacities)
def k_is_not_in_the_capacity(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Outputs of crowded groups equal those of a capacity without K, for K = 1, 2, 3."""
    _compare_layer(subject, case, evidence)


@check("GROUP-08", "moe_layer", cases=lambda _: iter([_crowded(2, t, 7) for t in (True, False)]))
def the_training_flag_picks_the_factor(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Training uses factor 1.25, anything else 2.0."""
    _compare_layer(subject, case, evidence)


def _compare_layer(subject: Subject, case: Case, evidence: Evidence) -> None:
    weights = strategies.parameters(case)
    options = {"k": case["k"], "training": case["training"]}
    wanted = moe.moe_layer(case["inputs"], weights, **options)
    assert isinstance(wanted.decision, Decision)
    groups, tokens, _ = wanted.decision.expert_index.shape
    got = subject.moe_layer(
        case["inputs"],
        weights,
        groups=(groups, tokens),
        capacity=wanted.decision.capacity,
        **options,
    )
    # Zero rows show the drops even where no record is offered.
    same(
        "moe_layer: tokens without output", (got.output == 0).all(-1), (wanted.output == 0).all(-1)
    )
    evidence.examples += 1


def _illegal_groups(_: Profile) -> Iterator[Case]:
    good = {"num_tokens": 64, "max_group_size": 16, "num_experts": 4, "num_expert_replicas": 1}
    for name, value in (
        ("num_tokens", 0),
        ("num_tokens", 63),
        ("num_tokens", 64.0),
        ("max_group_size", 0),
        ("num_experts", 0),
        ("num_experts", -4),
    ):
        yield good | {name: value, "wrong": name}


@check("GROUP-09", "rejects_invalid_input", "num_groups", cases=_illegal_groups)
def illegal_group_sizes_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 1, fractions, and a token count that is no multiple of M raise."""
    options = {name: case[name] for name in ("max_group_size", "num_experts")}
    must_reject(
        f"num_groups with {case['wrong']} = {case[case['wrong']]}",
        lambda: subject.call("num_groups", case["num_tokens"], **options),
    )


def _illegal_capacities(_: Profile) -> Iterator[Case]:
    good: Case = {"tokens": 64, "num_experts": 4, "capacity_factor": 1.25}
    for name, value in (
        ("tokens", 0),
        ("num_experts", 0),
        ("capacity_factor", 0.0),
        ("capacity_factor", -1.0),
        ("capacity_factor", float("nan")),
    ):
        yield good | {name: value, "wrong": name}


@check("GROUP-09", "rejects_invalid_input", "expert_capacity", cases=_illegal_capacities)
def illegal_capacities_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 1 and factors that are not finite and above 0 raise."""
    options = {name: case[name] for name in ("num_experts", "capacity_factor")}
    must_reject(
        f"expert_capacity with {case['wrong']} = {case[case['wrong']]}",
        lambda: subject.call("expert_capacity", case["tokens"], **options),
    )


@check(
    "GROUP-09",
    "rejects_invalid_input",
    "group_tokens",
    cases=lambda _: iter([{"group_size": size} for size in (5, 7, 0)]),
)
def a_group_size_that_does_not_divide_is_rejected(
    subject: Subject, case: Case, _: Evidence
) -> None:
    """Twelve tokens are never regrouped to make a group size of 5 or 7 fit."""
    inputs = np.ones((2, 6, 2), np.float32)
    must_reject(
        f"group_tokens with group_size = {case['group_size']}",
        lambda: subject.call("group_tokens", inputs, group_size=case["group_size"], multiple=1),
    )

"""`--identify` names dialects and mixtures by what an implementation answers, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from openmoe_conformance.dialect_adapter import DialectAdapter, PaperAdapter, TorchPortAdapter
from openmoe_conformance.identify import as_json, identify
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import dialects, moe
from openmoe_spec.dialects import DIALECTS, POINTS, T5X

SPEAKERS = {"t5x": ReferenceAdapter, "torch_port": TorchPortAdapter, "paper": PaperAdapter}

# Under a table that has no such steps or gradients, these points are told by other functions alone.
EXCHANGES = [
    (point, option)
    for point in POINTS
    for option in list(POINTS[point].options)[1:]
    if (point, option) != ("decode_position", "position_ids_plus_one")
]


@pytest.mark.parametrize("dialect", SPEAKERS)
def test_every_point_of_a_dialect_is_told(dialect):
    identity = identify(SPEAKERS[dialect]())
    assert identity.known == DIALECTS[dialect]
    assert identity.fitting == (dialect,)
    assert identity.nearest == dialect
    assert identity.against(dialect) == ()


@pytest.mark.parametrize(("point", "option"), EXCHANGES)
def test_a_single_exchanged_choice_is_told(point, option):
    identity = identify(DialectAdapter({point: option}))
    assert identity.known == {**T5X, point: option}
    assert "t5x" not in identity.fitting
    assert identity.against("t5x") == (point,)


def test_the_earlier_port_file_is_told():
    table = {**DIALECTS["torch_port"], "decode_position": "position_ids_plus_one"}
    identity = identify(DialectAdapter(table))
    assert identity.known["decode_position"] == "position_ids_plus_one"
    assert identity.fitting == ()
    assert identity.against("torch_port")[0] == "decode_position"


def test_a_mixture_is_a_mixture_and_each_choice_is_listed():
    table = {"capacity": "even_slots", "extra_mlp": "parallel", "logits": "activation"}
    identity = identify(DialectAdapter(table))
    assert identity.fitting == ()
    assert identity.nearest == "t5x"
    assert set(identity.against("t5x")) == set(table)
    assert identity.known == {**T5X, **table}


class _Black:
    """A black box: logits of token ids, and nothing else."""

    def __init__(self, dialect):
        self._model = DialectAdapter(dialect)

    def forward(self, parameters, batch, *, configuration, dtype="float32"):
        options = {"configuration": configuration, "dtype": dtype}
        return self._model.forward(parameters, batch, **options).logits


@pytest.mark.parametrize("dialect", DIALECTS)
def test_logits_alone_are_enough(dialect):
    identity = identify(_Black(dialect))
    assert identity.fitting == (dialect,)
    assert {"capacity", "groups", "token_mask", "attention_scale"} <= set(identity.known)
    assert all(DIALECTS[dialect][point] == choice for point, choice in identity.known.items())


class _Capacity:
    """One function, of which two dialects make the same choice."""

    def expert_capacity(self, tokens_per_group, *, num_experts, capacity_factor):
        return max(round(capacity_factor * tokens_per_group / num_experts), 4)


def test_what_cannot_be_told_apart_is_undecided():
    identity = identify(_Capacity())
    assert identity.fitting == ("t5x", "paper")
    assert identity.known == {"capacity": "half_even"}
    assert identity.answers[1].state == "not shown"


def test_nothing_offered_fits_nothing():
    identity = identify(object())
    assert identity.fitting == ()
    assert identity.known == {}


class _Other(ReferenceAdapter):
    """A rule that no dialect has."""

    def expert_capacity(self, tokens_per_group, **options):
        return 7


class _Torn(ReferenceAdapter):
    """A capacity function that the layers do not use."""

    def expert_capacity(self, tokens_per_group, **options):
        return 32

    def moe_layer(self, inputs, parameters, **options):
        return DialectAdapter("t5x").moe_layer(inputs, parameters, **options)


def test_a_rule_of_no_dialect_is_said_to_be_none():
    class Alone:
        expert_capacity = _Other.expert_capacity

    identity = identify(Alone())
    assert identity.answers[0].state == "none of the known"
    assert identity.fitting == ()


class _Scaled(ReferenceAdapter):
    def forward(self, parameters, batch, **options):
        passed = super().forward(parameters, batch, **options)
        return replace(passed, logits=passed.logits * np.float32(1.02))


class _Ceiling(DialectAdapter):
    def __init__(self):
        super().__init__("t5x")

    def rules(self, dialect=None):
        steps = replace(dialects.steps("t5x"), capacity=_rounded_up)
        return replace(super().rules(dialect), moe=partial(moe.moe_layer, steps=steps))


def _rounded_up(tokens, *, num_experts, capacity_factor, min_expert_capacity, k):
    del k
    return max(-int(-capacity_factor * tokens // num_experts), min_expert_capacity)


class _FourSlots(DialectAdapter):
    def __init__(self):
        super().__init__("t5x")

    def forward(self, parameters, batch, *, configuration, **options):
        fields = {**configuration, "min_expert_capacity": 4}
        return super().forward(parameters, batch, configuration=fields, **options)


class _ByForward:
    def __init__(self, model):
        self._model = model

    def forward(self, parameters, batch, *, configuration):
        return self._model.forward(parameters, batch, configuration=configuration).logits


@pytest.mark.parametrize("model", [_Ceiling, _FourSlots])
def test_other_capacities_are_of_no_dialect(model):
    identity = identify(_ByForward(model()))
    assert identity.answers[0].state == "none of the known"
    assert identity.fitting == ()


def test_logits_that_are_a_little_off_are_no_dialects():
    identity = identify(_ByForward(_Scaled()))
    assert identity.fitting == ()
    assert "attention_scale" not in identity.known


class _Tolerant:
    """The paper's feed-forward, taking the second half of kernels that are too wide."""

    def forward(self, parameters, batch, *, configuration):
        narrow = {
            name: value[..., value.shape[-1] // 2 :]
            if name.endswith("wi_0/kernel")
            and value.shape[-1] == 2 * parameters[name.replace("wi_0", "wi_1")].shape[-1]
            else value
            for name, value in parameters.items()
        }
        return PaperAdapter().forward(narrow, batch, configuration=configuration).logits


def test_a_tolerant_paper_implementation_is_the_papers():
    identity = identify(_Tolerant())
    assert identity.known["feed_forward"] == "swiglu"
    assert identity.fitting == ("paper",)


class _Shapeless:
    def forward(self, parameters, batch, *, configuration):
        return np.zeros(3)


def test_answers_of_another_shape_tell_nothing():
    identity = identify(_Shapeless())
    assert identity.known == {}
    assert all("forward: shape [3], expected" in one.evidence for one in identity.raised)


def test_functions_that_disagree_are_contradicting():
    identity = identify(_Torn())
    assert identity.answers[0].state == "contradicting"
    assert identity.against("t5x") == ("capacity",)


class _Raising(ReferenceAdapter):
    def forward(self, parameters, batch, **options):
        raise RuntimeError("no device")


def test_a_function_that_raises_tells_nothing_and_is_listed():
    identity = identify(_Raising())
    assert any("no device" in one.evidence for one in identity.raised)
    assert identity.fitting == ("t5x",)


def test_not_a_number_is_no_choice():
    class Broken:
        def forward(self, parameters, batch, *, configuration):
            shape = (*batch["decoder_input_tokens"].shape, configuration["vocabulary_size"])
            return np.full(shape, np.nan)

    identity = identify(Broken())
    assert identity.fitting == ()
    assert all(one.choice is None for one in identity.answers)


def test_the_json_form():
    made = as_json(identify(ReferenceAdapter()), "reference")
    again = json.loads(json.dumps(made, allow_nan=False))
    assert again["schema"] == "openmoe-identity/1"
    assert [one["point"] for one in again["points"]] == list(POINTS)
    assert again["fitting"] == ["t5x"]
    assert all(one["findings"] for one in again["points"])

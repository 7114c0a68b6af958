"""Vectors of kind `call`: how arguments and answers of whole models are stored."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from openmoe_conformance import model_cases, vector_calls
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import VectorCase

REFERENCE = ReferenceAdapter()
FIELDS, WEIGHTS, BATCH = model_cases.build(model_cases.fixed(kind="prefix"))
BOUNDS = {"relative": 1e-5, "absolute": 1e-6}


def below(prefix: str, tree) -> dict[str, np.ndarray]:
    """Return a tree, as deep as it is, by names with slashes."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= below(f"{prefix}/{name}", value)
        else:
            found[f"{prefix}/{name}"] = np.asarray(value)
    return found


GIVEN = below("arguments/parameters", WEIGHTS) | below("arguments/batch", BATCH)


def compare(function: str, arrays, implementation=REFERENCE, *, rejected=False, **arguments):
    config = {"function": function, "arguments": arguments, "bounds": BOUNDS}
    if rejected:
        config["rejected"] = True
    case = VectorCase("set", "x", "call", "", config, {"answer": "MODEL-01"}, tuple(arrays), None)
    assert not vector_calls.malformed(case)
    evidence = Evidence()
    vector_calls.compare_call(Subject(implementation), case, arrays, evidence)
    return evidence


def changed(arrays, name: str) -> dict[str, np.ndarray]:
    return arrays | {name: arrays[name] + 1}


def shown(result) -> dict[str, np.ndarray]:
    """Return a whole result of `forward` as a vector stores it."""
    decisions = {layer: asdict(one) for layer, one in result.decisions.items()}
    return (
        {"expected/logits": result.logits}
        | below("expected/decisions", decisions)
        | below("expected/metrics", result.metrics)
        | below("expected/activations", result.activations)
    )


def test_a_pass_with_all_that_it_shows():
    call = {"configuration": FIELDS, "training": True}
    stored = shown(REFERENCE.forward(WEIGHTS, BATCH, **call))
    assert compare("forward", GIVEN | stored, **call).error is not None
    for name in (
        "expected/logits",
        "expected/decisions/1/position",
        "expected/decisions/3/capacity",
        "expected/metrics/1/expert_usage",
        "expected/activations/decoder/layers_1/mlp/router/router_weights",
    ):
        with pytest.raises(Disagreement):
            compare("forward", GIVEN | changed(stored, name), **call)


def test_forced_decisions_are_arguments_by_layer():
    call = {"configuration": FIELDS, "training": True}
    free = REFERENCE.forward(WEIGHTS, BATCH, **call)
    other = {
        layer: asdict(one) | {"expert_index": (one.expert_index + 1) % FIELDS["num_experts"]}
        for layer, one in free.decisions.items()
    }
    forced = below("arguments/decisions", other)
    with pytest.raises(Disagreement):
        compare("forward", GIVEN | forced | {"expected/logits": free.logits}, **call)
    forced = below("arguments/decisions", {i: asdict(one) for i, one in free.decisions.items()})
    compare("forward", GIVEN | forced | {"expected/logits": free.logits}, **call)


class ShowsLogits:
    def forward(self, parameters, batch, *, configuration):
        return REFERENCE.forward(parameters, batch, configuration=configuration).logits


@pytest.mark.parametrize("part", ["decisions", "metrics", "activations"])
def test_what_a_pass_does_not_show_is_unsupported(part):
    stored = shown(REFERENCE.forward(WEIGHTS, BATCH, configuration=FIELDS))
    stored = {name: array for name, array in stored.items() if name.startswith(f"expected/{part}")}
    with pytest.raises(UnsupportedError, match=f"forward shows no {part}"):
        compare("forward", GIVEN | stored, ShowsLogits(), configuration=FIELDS)


def test_names_of_trees_keep_their_slashes():
    call = {"configuration": FIELDS, "training": True}
    gradients = below("expected", REFERENCE.model_gradients(WEIGHTS, BATCH, **call))
    compare("model_gradients", GIVEN | gradients, **call)
    wrong = changed(gradients, "expected/decoder/decoder_norm/scale")
    with pytest.raises(Disagreement, match="decoder/decoder_norm/scale"):
        compare("model_gradients", GIVEN | wrong, **call)
    compare("loss", GIVEN | below("expected", REFERENCE.loss(WEIGHTS, BATCH, **call)), **call)
    scaled = REFERENCE.scaled_gradients(WEIGHTS, num_expert_partitions=4)
    arrays = below("arguments/gradients", WEIGHTS) | below("expected", scaled)
    compare("scaled_gradients", arrays, num_expert_partitions=4)
    arrays = below("arguments/parameters", WEIGHTS)
    compare("port_parameters", arrays | below("expected", REFERENCE.port_parameters(WEIGHTS)))


def test_steps_of_decoding_and_generated_ids():
    answer = REFERENCE.decode(WEIGHTS, BATCH, configuration=FIELDS, steps=2)
    stored = {"expected/logits": answer["logits"]} | below("expected/cache", vars(answer["cache"]))
    compare("decode", GIVEN | stored, configuration=FIELDS, steps=2)
    wrong = changed(stored, "expected/cache/index")
    with pytest.raises(Disagreement, match=r"decode\.cache\.index"):
        compare("decode", GIVEN | wrong, configuration=FIELDS, steps=2)
    ids = REFERENCE.generate(WEIGHTS, BATCH, configuration=FIELDS)
    compare("generate", GIVEN | {"expected": ids}, configuration=FIELDS)


def test_decisions_of_calls_one_after_another():
    fed = {"decoder_input_tokens": BATCH["decoder_input_tokens"]}
    options = {"configuration": FIELDS, "prefill": 2}
    answer = REFERENCE.cached_calls(WEIGHTS, fed, dialect="torch_port", **options)
    calls = {
        number: {layer: {"expert_index": one.expert_index} for layer, one in decisions.items()}
        for number, decisions in enumerate(answer["decisions"])
    }
    arrays = below("arguments/parameters", WEIGHTS) | below("arguments/batch", fed)
    stored = {"expected/logits": answer["logits"]} | below("expected/decisions", calls)
    compare("cached_calls", arrays | stored, **options)
    wrong = changed(stored, "expected/decisions/1/3/expert_index")
    with pytest.raises(Disagreement, match=r"decisions\.1\.3\.expert_index"):
        compare("cached_calls", arrays | wrong, **options)


def test_a_training_step_with_the_state_of_every_tensor():
    axes = REFERENCE.parameters(FIELDS)
    state = {
        name: REFERENCE.optimizer_state(array.shape, axes[name]["axes"])
        for name, array in WEIGHTS.items()
    }
    call = {"configuration": FIELDS, "step": 0}
    answer = REFERENCE.train_step(WEIGHTS, state, BATCH, **call)
    given = GIVEN | below("arguments/state", state)
    stored = below("expected/parameters", answer["parameters"])
    stored |= below("expected/state", answer["state"])
    stored["expected/loss/total"] = np.asarray(answer["loss"]["total"])
    compare("train_step", given | stored, **call)
    name = "expected/state/decoder/decoder_norm/scale/v"
    with pytest.raises(Disagreement, match=r"decoder_norm/scale\.v"):
        compare("train_step", given | changed(stored, name), **call)
    added = REFERENCE.accumulated_gradients(
        WEIGHTS, BATCH, configuration=FIELDS, num_microbatches=1
    )
    stored = below("expected/gradients", added["gradients"])
    compare("accumulated_gradients", GIVEN | stored, configuration=FIELDS, num_microbatches=1)


def test_the_state_of_one_tensor_is_a_mapping_of_its_slots():
    array, axes = WEIGHTS["decoder/decoder_norm/scale"], ("embed",)
    state = REFERENCE.optimizer_state(array.shape, axes)
    call = {"axes": list(axes), "step": 0, "rate": 0.1}
    answer = REFERENCE.adafactor(array, array, state, **call)
    arrays = {"arguments/parameter": array, "arguments/gradient": array}
    arrays |= below("arguments/state", state) | below("expected", answer)
    compare("adafactor", arrays, **call)


def test_a_tree_that_must_be_rejected():
    lacking = {name: a for name, a in GIVEN.items() if "embedding" not in name}
    compare("forward", lacking, rejected=True, configuration=FIELDS)
    with pytest.raises(Disagreement, match="was accepted"):
        compare("forward", GIVEN, rejected=True, configuration=FIELDS)


def test_masks_are_booleans():
    class Sees:
        def output_logits(self, inputs, kernel, *, mask=None):
            assert mask.dtype == bool
            return REFERENCE.output_logits(inputs, kernel, mask=mask)

    inputs, kernel = np.ones((1, 2, 3), np.float32), np.ones((3, 4), np.float32)
    mask = np.array([[1, 0]], np.uint8)
    expected = REFERENCE.output_logits(inputs, kernel, mask=mask.astype(bool))
    arrays = {"arguments/inputs": inputs, "arguments/kernel": kernel, "arguments/mask": mask}
    compare("output_logits", arrays | {"expected": expected}, Sees())

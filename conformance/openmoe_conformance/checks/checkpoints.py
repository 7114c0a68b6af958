"""Checks of SPEC.md "Checkpoints"."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

_DTYPES = ("float32", "bfloat16", "float16", "float64", "int32", "uint8")
_ORDERS = ("C", "transposed", "strided", "big-endian")


def _tensors(_: Profile) -> Iterator[Case]:
    seed = 0
    for shape in ((), (1,), (0, 3), (5,), (4, 6), (6, 4), (2, 3, 4)):
        for dtype in _DTYPES:
            for order in _ORDERS:
                seed += 1
                yield {"shape": list(shape), "dtype": dtype, "order": order, "seed": seed}


def _tensor(case: Case) -> tuple[ndarray, bytes]:
    """Return a tensor laid out in memory as the case says, and its values, C order, little-endian."""
    drawn = np.random.default_rng(case["seed"]).integers(0, 99, case["shape"])
    plain = np.asarray(drawn, ml_dtypes.bfloat16 if case["dtype"] == "bfloat16" else case["dtype"])
    bits = plain.view(np.uint16) if case["dtype"] == "bfloat16" else plain
    values = bits.astype(bits.dtype.newbyteorder("<")).tobytes()
    order = case["order"]
    if order == "transposed" and plain.ndim:
        return np.asfortranarray(plain), values
    if order == "strided" and plain.ndim:
        return np.repeat(plain, 2, axis=-1)[..., ::2], values
    if order == "big-endian" and case["dtype"] != "bfloat16":
        return plain.astype(plain.dtype.newbyteorder(">")), values
    return plain, values


@check("CKPT-01", "tensor_digest", cases=_tensors)
def digest_of_a_tensor(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The digest is that of dtype, shape and values, wherever they lie in memory."""
    tensor, values = _tensor(case)
    line = f"{case['dtype']}[{','.join(map(str, case['shape']))}]\n"
    wanted = hashlib.sha256(line.encode() + values).hexdigest()
    same("tensor_digest", subject.call("tensor_digest", tensor), wanted)
    evidence.examples += 1


def _models(_: Profile) -> Iterator[Case]:
    names = [f"decoder/layers_{i}/mlp/wi_0/kernel" for i in range(11)]
    names += ["decoder/decoder_norm/scale", "token_embedder/embedding", "Z", "a", "ä"]
    for number in (1, 2, 3, 4, 5, 7, 8, 9, 16):
        yield {"names": names[:number], "seed": number}
        yield {"names": names[:number][::-1], "seed": number}


def _root(leaves: list[bytes]) -> bytes:
    """Return the root level by level, from the leaves up: another way than the clause's."""
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [
            hashlib.sha256(b"\x01" + pair[0] + pair[1]).digest() if len(pair) == 2 else pair[0]
            for pair in pairs
        ]
    return level[0]


@check("CKPT-02", "model_digest", cases=_models)
def digest_of_a_model(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The digest is the Merkle root over sorted names, in whatever order they are given."""
    digests = {
        name: hashlib.sha256(f"{case['seed']} {name}".encode()).hexdigest()
        for name in case["names"]
    }
    ordered = sorted(digests, key=lambda name: name.encode())
    wanted = _root([f"{name} {digests[name]}\n".encode() for name in ordered]).hex()
    same("model_digest", subject.call("model_digest", digests), wanted)
    evidence.examples += 1


_BITS = st.lists(
    st.one_of(
        st.integers(0, 2**32 - 1),
        # Zeros, the smallest, the largest, what rounds beyond it, infinity, numbers that are none.
        st.sampled_from([0, 1, 0x7F7FFFFF, 0x7F7F8000, 0x7F800000, 0x7F800001, 0x7FFFFFFF]).flatmap(
            lambda bits: st.sampled_from([bits, bits | 1 << 31])
        ),
        # Around ties: the cut-off half is one half, or next to it.
        st.builds(
            lambda high, low: high << 16 | low,
            st.integers(0, 2**16 - 1),
            st.sampled_from([0x7FFF, 0x8000, 0x8001, 0, 0xFFFF]),
        ),
    ),
    min_size=1,
    max_size=16,
)


def _rounded(bits: int) -> float:
    """Return a float32's nearest bfloat16, found among its neighbours by their distance."""
    value = float(np.uint32(bits).view(np.float32))
    below, above = bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000
    low = float(np.uint32(below).view(np.float32))
    if bits == below or not np.isfinite(value):
        return value
    beyond = (
        above & 0x7FFFFFFF == 0x7F800000
    )  # the next one is infinite: as far as if it were finite
    high = np.copysign(2.0**128, value) if beyond else float(np.uint32(above).view(np.float32))
    to_low, to_high = abs(value - low), abs(high - value)
    nearer = low if to_low < to_high else high
    if to_low == to_high:
        nearer = low if not below >> 16 & 1 else high
    return float(np.copysign(np.inf, value)) if abs(nearer) == 2.0**128 else nearer


@check("CKPT-03", "round_to_bfloat16", cases=st.fixed_dictionaries({"bits": _BITS}))
def cast_to_bfloat16(subject: Subject, case: Case, _: Evidence) -> None:
    """Each value goes to its nearest neighbour, a tie to the even one."""
    values = np.array(case["bits"], np.uint32).view(np.float32)
    answer = np.asarray(subject.call("round_to_bfloat16", values)).astype(np.float32)
    if answer.shape != values.shape:
        raise Disagreement(f"round_to_bfloat16: must have shape {values.shape}, got {answer.shape}")
    nothing = np.isnan(values)
    same("round_to_bfloat16: not a number", np.isnan(answer), nothing)
    wanted = np.array(
        [_rounded(int(bits)) for bits in np.array(case["bits"])[~nothing]], np.float32
    )
    same("round_to_bfloat16", answer[~nothing].view(np.uint32), wanted.view(np.uint32))


def _second_port(_: Profile) -> Iterator[Case]:
    yield model_cases.fixed()
    sizes = {"width": 8, "hidden": 8, "expert_hidden": 8, "experts": 8}
    yield model_cases.fixed(heads=2, head_dim=4, **sizes)


def _expected(ours: Mapping[str, ndarray]) -> dict[str, Any]:
    """Return the second port's tensors, written out by hand."""
    kinds = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    attention = {"query": "q", "key": "k", "value": "v", "out": "o"}
    norms = {
        "pre_self_attention_layer_norm": "input_layernorm",
        "pre_mlp_layer_norm": "post_attention_layernorm",
        "pre_extra_mlp_layer_norm": "pre_extra_mlp_layernorm",
    }
    wanted = {
        "model.embed_tokens.weight": ours["token_embedder/embedding"],
        "model.norm.weight": ours["decoder/decoder_norm/scale"],
        "lm_head.weight": ours["decoder/logits_dense/kernel"].T,
    }
    for name, value in ours.items():
        _, _, inner = name.partition("decoder/layers_")
        layer, _, kind = inner.partition("/")
        path, parts = f"model.layers.{layer}", kind.split("/")
        if not inner:
            continue
        if parts[0] in norms:
            wanted[f"{path}.{norms[parts[0]]}.weight"] = value
        elif parts[0] == "self_attention":
            wanted[f"{path}.self_attn.{attention[parts[1]]}_proj.weight"] = value.T
        elif "router" in parts:
            wanted[f"{path}.mlp.gate.weight"] = value.T
        elif "expert" in parts:
            for e, matrix in enumerate(value):
                wanted[f"{path}.mlp.experts.{e}.{kinds[parts[2]]}_proj.weight"] = matrix.T
        else:
            wanted[f"{path}.{parts[0]}.{kinds[parts[1]]}_proj.weight"] = value.T
    return wanted


@check("CKPT-04", "per_expert_parameters", cases=_second_port)
def tensors_of_the_second_port(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every tensor has the second port's name, each expert's matrices apart and transposed."""
    ours = model_cases.weights(model_cases.configuration(case), case["seed"])
    wanted = _expected(ours)
    answer = subject.call("per_expert_parameters", ours)
    if not isinstance(answer, Mapping):
        raise Disagreement(
            f"per_expert_parameters: must return a mapping, got {type(answer).__name__}"
        )
    missing, extra = sorted(set(wanted) - set(answer)), sorted(set(answer) - set(wanted))
    if missing or extra:
        raise Disagreement(f"per_expert_parameters: missing {missing}, not known {extra}")
    for name, value in wanted.items():
        same(f"per_expert_parameters[{name}]", answer[name], value)
    evidence.examples += 1


def _unknown(_: Profile) -> Iterator[Case]:
    for name in ("decoder/relpos_bias/rel_embedding", "decoder/layers_0/mlp/wi_2/kernel"):
        yield {"name": name}


@check("CKPT-04", "rejects_invalid_input", "per_expert_parameters", cases=_unknown)
def unknown_tensors_of_the_second_port(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A tensor that has no counterpart raises instead of being left out."""
    known = model_cases.fixed()
    ours = model_cases.weights(model_cases.configuration(known), known["seed"])
    extra = ours | {case["name"]: np.ones((2, 2), np.float32)}
    must_reject(
        f"per_expert_parameters with {case['name']}",
        lambda: subject.call("per_expert_parameters", extra),
    )
    evidence.examples += 1

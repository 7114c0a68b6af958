"""Worked examples of SPEC.md "Checkpoints", answered by hand and by the standard library alone."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from worked_example import Example, grid


def _digest(dtype, shape, form, values):
    line = f"{dtype}[{','.join(map(str, shape))}]\n".encode()
    return hashlib.sha256(line + struct.pack(f"<{len(values)}{form}", *values)).hexdigest()


def digests() -> list[Example]:
    """Return tensors of three ranks, and the roots of one, two, three and six of them."""
    found = []
    for seed, shape in enumerate(((3,), (2, 3), (2, 2, 3))):
        tensor = grid(seed, *shape)
        answer = _digest("float32", shape, "f", tensor.reshape(-1).tolist())
        name, what = f"digest_{len(shape)}", f"a tensor of rank {len(shape)}"
        found.append(Example(name, "CKPT-01", what, "tensor_digest", {"tensor": tensor}, answer))
    names = [f"decoder/layers_{i}/mlp/wo/kernel" for i in (10, 2, 0, 1)]
    names += ["token_embedder/embedding", "decoder/decoder_norm/scale"]
    for number in (1, 2, 3, 6):
        given = {name: hashlib.sha256(name.encode()).hexdigest() for name in names[:number]}
        leaves = [
            hashlib.sha256(b"\0" + f"{name} {given[name]}\n".encode()).digest()
            for name in sorted(given)
        ]
        what = f"the root of {number} tensors"
        answer = _root(leaves).hex()
        found.append(
            Example(f"root_{number}", "CKPT-02", what, "model_digest", {"digests": given}, answer)
        )
    return found


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def casts() -> list[Example]:
    """Return values below, at and above ties, with the last kept bit 0 and 1."""
    given = [1.0, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, 1 + 2**-7, -(1 + 2**-8), 0.0, -0.0]
    answer = [1.0, 1.0, 1 + 2**-7, 1 + 2**-6, 1 + 2**-7, -1.0, 0.0, -0.0]
    return [
        Example(
            "cast_ties", "CKPT-03", "ties go to the even neighbour", "round_to_bfloat16",
            {"tensor": np.array(given, np.float32)}, np.array(answer, np.float32),
        ),
        Example(
            "cast_beyond", "CKPT-03", "what is beyond the largest is infinite", "round_to_bfloat16",
            {"tensor": np.array([3.3895314e38, 3.4028235e38, -3.4028235e38], np.float32)},
            np.array([3.3895314e38, np.inf, -np.inf], np.float32),
        ),
    ]  # fmt: skip


def names() -> list[Example]:
    """Return one tensor of each kind under its name in the second port, and one that it lacks."""
    layer, there = "decoder/layers_1", "model.layers.1"
    tensors = {
        "token_embedder/embedding": grid(0, 7, 4),
        f"{layer}/self_attention/query/kernel": grid(1, 4, 6),
        f"{layer}/mlp/router/router_weights/w/kernel": grid(2, 4, 2),
        f"{layer}/mlp/expert/wi_0/kernel": grid(3, 2, 4, 6),
        f"{layer}/mlp/expert/wo/kernel": grid(4, 2, 3, 4),
        f"{layer}/pre_extra_mlp_layer_norm/scale": grid(5, 4),
    }
    gate, down = (
        tensors[f"{layer}/mlp/expert/wi_0/kernel"],
        tensors[f"{layer}/mlp/expert/wo/kernel"],
    )
    answer = {
        "model.embed_tokens.weight": tensors["token_embedder/embedding"],
        f"{there}.self_attn.q_proj.weight": tensors[f"{layer}/self_attention/query/kernel"].T,
        f"{there}.mlp.gate.weight": tensors[f"{layer}/mlp/router/router_weights/w/kernel"].T,
        **{f"{there}.mlp.experts.{e}.gate_proj.weight": gate[e].T for e in range(2)},
        **{f"{there}.mlp.experts.{e}.down_proj.weight": down[e].T for e in range(2)},
        f"{there}.pre_extra_mlp_layernorm.weight": tensors[
            f"{layer}/pre_extra_mlp_layer_norm/scale"
        ],
    }
    wanted = {name: np.ascontiguousarray(value) for name, value in answer.items()}
    call = "per_expert_parameters"
    unknown = {"parameters": {"decoder/relpos_bias/rel_embedding": grid(0, 2, 3)}}
    what = "a tensor of each kind under its name in the second port"
    return [
        Example("second_port", "CKPT-04", what, call, {"parameters": tensors}, wanted),
        Example("no_place", "CKPT-04", "a tensor that it does not have", call, unknown),
    ]


def examples() -> list[Example]:
    """Return the examples in the order of SPEC.md."""
    return [*digests(), *casts(), *names()]

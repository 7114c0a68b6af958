"""From prompts to new ids, by the production port, the reference, or the published port's loop.

Spec: DEC-01..DEC-13, DIAL-02.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_reference import decoding, port_decoding, sampling
from openmoe_reference.model import Call
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

START = 0
"""The id in front of every prompt; it is padding too."""

Prompts = Sequence[Sequence[int]]
Tree = Mapping[str, ndarray]


@dataclass(frozen=True)
class Choice:
    """How a token is chosen: names and meanings of DEC-08 to DEC-13, and the seed of the draws."""

    temperature: float
    top_k: int
    top_p: float
    seed: int

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken each time."""
        return self.temperature <= sampling.LEAST_TEMPERATURE


def row_length(prompts: Prompts, new_tokens: int) -> int:
    """Return L, the slots of a row: the start token has one, the last new token needs none."""
    # Generation asks for room for two new tokens (DEC-09), also where one is wanted.
    return max(map(len, prompts)) + max(new_tokens, 2)


def batch_of(prompts: Prompts, new_tokens: int) -> dict[str, ndarray]:
    """Return rows [B, L]: the start token, the prompt, zeros; and which of them are the prompt."""
    shape = (len(prompts), row_length(prompts, new_tokens))
    inputs, attention = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, prompt in enumerate(prompts):
        inputs[row, 1 : 1 + len(prompt)] = prompt
        attention[row, : 1 + len(prompt)] = 1
    return {"decoder_input_tokens": inputs, "decoder_causal_attention": attention}


def with_port(prompts: Prompts, model: Configuration, weights: Tree, *, new_tokens: int) -> ndarray:
    """Return new ids [B, M] of the published port's greedy loop. Errors: RejectedError."""
    longest = max(map(len, prompts))
    # Its users pad on the left, and give no mask: 0 is then hidden, the start token too.
    rows = [[START] * (1 + longest - len(prompt)) + list(prompt) for prompt in prompts]
    ids = np.array(rows, np.int32)
    return port_decoding.greedy(weights, ids, model, new_tokens=new_tokens)[:, ids.shape[1] :]


def with_reference(
    prompts: Prompts,
    model: Configuration,
    weights: Tree,
    *,
    new_tokens: int,
    choice: Choice,
    dtype: str,
) -> ndarray:
    """Return new ids [B, L], zeros behind each row's end. Errors: RejectedError."""
    generator = np.random.default_rng(choice.seed)

    def choose(logits: ndarray, _: int) -> ndarray:
        return sampling.sample(
            logits,
            noise=generator.gumbel(size=logits.shape).astype(np.float32),
            temperature=choice.temperature,
            top_k=choice.top_k,
            top_p=choice.top_p,
        )

    batch = batch_of(prompts, new_tokens)
    return decoding.generate(weights, batch, model, choose, call=Call(dtype=dtype))


def with_production(
    prompts: Prompts,
    model: Configuration,
    weights: Tree,
    *,
    new_tokens: int,
    choice: Choice,
    dtype: str,
    mesh: tuple[int, int, int] | None = None,
) -> ndarray:
    """Return new ids [B, M], M at most `new_tokens`; on a mesh of data x expert x model devices.

    Rows of which a mesh cannot split whole groups are filled up with prompts again, from the first one
    on: like any row of a batch they take slots of experts.
    Errors: RejectedError, of meshes MESH-06.
    """
    import jax  # noqa: PLC0415 - an optional extra, as what imports it
    import jax.numpy as jnp  # noqa: PLC0415

    from openmoe_production import decoding as production  # noqa: PLC0415
    from openmoe_production import sharding  # noqa: PLC0415
    from openmoe_production.model import stack  # noqa: PLC0415
    from openmoe_production.sampling import chooser  # noqa: PLC0415

    draw = chooser(
        None if choice.greedy else jax.random.key(choice.seed),
        temperature=choice.temperature,
        top_k=choice.top_k,
        top_p=choice.top_p,
    )

    def choose(logits: jax.Array, number: jax.Array) -> jax.Array:
        # A compiled program cannot refuse: it answers with a token that is none.
        return jnp.where(jnp.isfinite(logits).all(axis=-1), draw(logits, number), -1)

    tensors = stack(weights, model)
    options: dict[str, Any] = {"dtype": dtype}
    rows = len(prompts)
    if mesh is not None:
        layout = sharding.Layout(sharding.make_mesh(*mesh))
        tensors, options["layout"] = layout.place(tensors, model), layout
        length = row_length(prompts, new_tokens)
        rows = _whole_rows(rows, length, layout.size("batch"), model)
    filled = [prompts[row % len(prompts)] for row in range(rows)]
    batch = {name: jnp.asarray(one) for name, one in batch_of(filled, new_tokens).items()}
    steps = production.stream(tensors, batch, model, choose, **options)
    made = []
    for tokens in islice(steps, new_tokens):
        if (tokens < 0).any():
            raise RejectedError("logits", "DEC-10", "must be finite, got infinity or not-a-number")
        made.append(tokens)
    return np.stack(made, axis=1)[: len(prompts)]


def _whole_rows(rows: int, length: int, shares: int, model: Configuration) -> int:
    """Return the next number of rows of which each share has whole groups, in prefill and in steps.

    Errors: RejectedError MESH-06.
    """
    from openmoe_production.grouping import share_of_groups  # noqa: PLC0415 - an optional extra

    sizes = {"max_group_size": model.max_group_size, "num_experts": model.num_experts}
    last = math.lcm(shares, model.num_experts) * -(-rows // math.lcm(shares, model.num_experts))
    for number in range(rows + -rows % shares, last + 1, shares):
        try:
            for one in (length, 1):
                share_of_groups(number // shares, one, shares=shares, **sizes)
        except RejectedError:
            if number == last:
                raise
        else:
            return number
    return last

"""The three published configurations and the ranges a configuration must lie in.

Spec: CFG-01, CFG-02, CFG-04, CFG-05. Source: t5x openmoe_{base,large,xl}.gin@3234135 over flaxformer
tokens_choose_decoder_only_{base,large,xl}.gin@c5bdc41.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from openmoe_spec.errors import RejectedError


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Shape and routing rules of one OpenMoE model; defaults are those all three share.

    Raises RejectedError naming the field and CFG-02 (CFG-05 for a field of MODEL_FIELDS) when a
    value is outside its legal range.
    """

    name: str
    num_layers: int
    num_moe_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_experts: int
    num_selected_experts: int = 2
    vocabulary_size: int = 256_384
    max_group_size: int = 4096
    train_capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    min_expert_capacity: int = 4
    auxiliary_loss_factor: float = 0.01
    router_z_loss_factor: float = 1e-4
    jitter_noise: float = 0.0
    batch_prioritized_routing: bool = False
    ignore_padding_tokens: bool = False
    expert_mlp_dim: int | None = None
    num_kv_heads: int | None = None
    max_length: int = 2048
    inputs_bidirectional_attention: bool = False
    z_loss_factor: float = 1e-4
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name))
        if self.num_selected_experts > self.num_experts:
            raise RejectedError(
                "num_selected_experts",
                "CFG-02",
                f"must be at most num_experts ({self.num_experts}), "
                f"got {self.num_selected_experts}",
            )
        if self.num_moe_layers > self.num_layers:
            raise RejectedError(
                "num_moe_layers",
                "CFG-02",
                f"must be at most num_layers ({self.num_layers}), got {self.num_moe_layers}",
            )
        if self.num_layers % self.num_moe_layers:
            raise RejectedError(
                "num_moe_layers",
                "CFG-02",
                f"must divide num_layers ({self.num_layers}), got {self.num_moe_layers}",
            )
        if self.num_heads % self.key_value_heads:
            raise RejectedError(
                "num_kv_heads",
                "CFG-05",
                f"must divide num_heads ({self.num_heads}), got {self.key_value_heads}",
            )
        if self.head_dim % 2:
            raise RejectedError("head_dim", "CFG-05", f"must be even, got {self.head_dim}")

    @property
    def expert_width(self) -> int:
        """Feed-forward width of an expert: that of the dense layers unless it is given."""
        return self.mlp_dim if self.expert_mlp_dim is None else self.expert_mlp_dim

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values: those of the queries unless they are given."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


MODEL_FIELDS = (
    "expert_mlp_dim",
    "num_kv_heads",
    "max_length",
    "inputs_bidirectional_attention",
    "z_loss_factor",
    "label_smoothing",
)
"""The fields that a layer does not need: those of the whole model (CFG-04)."""

_FLAGS = (
    "batch_prioritized_routing",
    "ignore_padding_tokens",
    "inputs_bidirectional_attention",
)
_POSITIVE_FACTORS = ("train_capacity_factor", "eval_capacity_factor")
_NON_NEGATIVE_FACTORS = ("auxiliary_loss_factor", "router_z_loss_factor", "z_loss_factor")
_SHARES = ("jitter_noise", "label_smoothing")
_MAY_BE_ABSENT = ("expert_mlp_dim", "num_kv_heads")


def _check_field(name: str, value: object) -> None:
    if value is None and name in _MAY_BE_ABSENT:
        return
    if name == "name":
        legal, wanted = isinstance(value, str) and bool(value), "a non-empty string"
    elif name in _FLAGS:
        legal, wanted = isinstance(value, bool), "true or false"
    elif name in _POSITIVE_FACTORS:
        legal, wanted = _is_finite_number(value) and value > 0, "a finite number above 0"  # type: ignore[operator]
    elif name in _NON_NEGATIVE_FACTORS:
        legal, wanted = _is_finite_number(value) and value >= 0, "a finite number, 0 or more"  # type: ignore[operator]
    elif name in _SHARES:
        legal, wanted = _is_finite_number(value) and 0 <= value < 1, "a number in [0, 1)"  # type: ignore[operator]
    else:
        legal = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        wanted = "a whole number, 1 or more"
    if not legal:
        clause = "CFG-05" if name in MODEL_FIELDS else "CFG-02"
        raise RejectedError(name, clause, f"must be {wanted}, got {value!r}")


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # False for not-a-number too


BASE = Configuration(
    name="base",
    num_layers=12,
    num_moe_layers=3,
    embed_dim=768,
    num_heads=12,
    head_dim=64,
    mlp_dim=2048,  # the paper's Table 11 says 3072
    num_experts=16,
)

LARGE = Configuration(
    name="8b",
    num_layers=24,
    num_moe_layers=4,
    embed_dim=2048,
    num_heads=24,
    head_dim=128,  # 24 x 128 = 3072: the attention's inner width is not embed_dim
    mlp_dim=8192,
    num_experts=32,
)

XL = Configuration(
    name="34b",
    num_layers=32,
    num_moe_layers=8,
    embed_dim=3072,
    num_heads=24,
    head_dim=128,
    mlp_dim=12_288,
    num_experts=32,
    max_group_size=8192,  # never attained: see GROUP-10
    router_z_loss_factor=1e-3,  # the paper says 1e-4 for all three
)

PUBLISHED = {configuration.name: configuration for configuration in (BASE, LARGE, XL)}
"""The published configurations by name: `base`, `8b`, `34b`."""

"""Mutants of SPEC.md "Dialects"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmoe_conformance.dialect_adapter import DialectAdapter
from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference.model import Rules
from openmoe_spec.dialects import choices


@mutant("DIAL-01")
class MixtureThatSaysT5x(DialectAdapter):
    """An implementation of the training code takes over the port's capacity and its open key 0."""

    def __init__(self) -> None:
        super().__init__({"capacity": "even_slots", "masked_keys": "first_key_open"})


@mutant("DIAL-01")
class PortThatSaysT5x(DialectAdapter):
    """The published port calls itself the training code."""

    def __init__(self) -> None:
        super().__init__(choices("torch_port"))


@mutant("DIAL-01")
class ChoicesAreIgnored(ReferenceAdapter):
    """Single choices are accepted and not made: everything is `t5x`."""

    def rules(self, dialect: str | Mapping[str, str] | None = None) -> Rules:
        return super().rules(dialect if isinstance(dialect, str) else None)


class _Exchanged(ReferenceAdapter):
    """The reference with one choice of one dialect wrong."""

    spoken: str
    wrong: Mapping[str, str]

    def rules(self, dialect: str | Mapping[str, str] | None = None) -> Rules:
        if dialect == self.spoken:
            return super().rules({**choices(dialect), **self.wrong})
        return super().rules(dialect)


@mutant("DIAL-02")
class PortWithTokenMask(_Exchanged):
    """Under `torch_port` positions of id 0 are zeroed as in training."""

    spoken, wrong = "torch_port", {"token_mask": "by_ids"}


@mutant("DIAL-02")
class PortWithItsPaddingHidden(_Exchanged):
    """Under `torch_port` key 0 is hidden where the caller's mask hides it."""

    spoken, wrong = "torch_port", {"masked_keys": "minus_1e10"}


@mutant("DIAL-02")
class PortInGroups(_Exchanged):
    """Under `torch_port` the batch is cut into groups."""

    spoken, wrong = "torch_port", {"groups": "by_experts"}


@mutant("DIAL-02")
class PortLossLooksAtTargets(ReferenceAdapter):
    """Under `torch_port` the loss is the mended one."""

    def loss(self, parameters: Any, batch: Any, **options: Any) -> dict[str, Any]:
        if options.get("dialect") == "torch_port":
            options["dialect"] = {**choices("torch_port"), "cross_entropy": "weighted_mean"}
        return super().loss(parameters, batch, **options)


@mutant("DIAL-02")
class PortDecodesAtItsSlots(ReferenceAdapter):
    """Under `torch_port` a lone query is rotated at its slot, not at its position id."""

    def cached_calls(self, parameters: Any, batch: Any, **options: Any) -> dict[str, Any]:
        table = {**choices("torch_port"), "decode_position": "cache_index"}
        return super().cached_calls(parameters, batch, **options | {"dialect": table})


@mutant("DIAL-03")
class PaperInSequence(_Exchanged):
    """Under `paper` the extra feed-forward follows the experts."""

    spoken, wrong = "paper", {"extra_mlp": "sequential"}


@mutant("DIAL-03")
class PaperUnscaled(_Exchanged):
    """Under `paper` attention logits are not divided by sqrt(N)."""

    spoken, wrong = "paper", {"attention_scale": "one"}


@mutant("DIAL-03")
class PaperWithoutRamp(ReferenceAdapter):
    """Under `paper` the learning rate is flat from the first step."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        del options
        return super().learning_rate(step)


@mutant("DIAL-04")
class PortWithTrainedLossFactor(ReferenceAdapter):
    """The port's configurations have the z-loss factor of the training run."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        found = super().configuration(name, **options)
        if options.get("dialect") == "torch_port":
            found["z_loss_factor"] = 1e-4
        return found


@mutant("DIAL-04")
class PaperWithBuiltWidth(ReferenceAdapter):
    """The paper's Base has the width that was built, not the printed one."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        found = super().configuration(name, **options)
        return found | {"mlp_dim": super().configuration(name)["mlp_dim"]}

"""How much a run does: quick for a minute, standard for CI, exhaustive for a release."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Sizes of one run.

    examples            Hypothesis examples per drawn check
    random_tokens       tokens of the random routing checks
    ladder_rows         rows on each rung of the resolution ladder
    real_tokens         tokens of real text
    gradient_directions random directions per gradient check
    models              whole models per drawn check of the model
    heavy_stride        of stored gradients, routes and passes of whole models, every which is run
    """

    name: str
    examples: int
    random_tokens: int
    ladder_rows: int
    real_tokens: int
    gradient_directions: int
    models: int
    heavy_stride: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 25, 2048, 256, 4096, 2, 3, 6),
        Profile("standard", 100, 8192, 2000, 204_800, 4, 16, 1),
        Profile("exhaustive", 1000, 65_536, 4000, 1_048_576, 16, 200, 1),
    )
}
"""The profiles by name."""

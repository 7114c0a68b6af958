"""The one error that every public function raises for an argument it must reject."""


class RejectedError(ValueError):
    """An argument that SPEC.md says MUST be rejected.

    The message names the argument and the clause: `k: must be in 1..8, got 9 [ROUTE-20]`.
    """

    def __init__(self, argument: str, clause: str, reason: str) -> None:
        super().__init__(f"{argument}: {reason} [{clause}]")
        self.argument = argument
        self.clause = clause
        self.reason = reason

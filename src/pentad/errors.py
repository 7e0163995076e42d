"""The one exception that a user is meant to read.

Invariant: a `UserError` names a cause and the smallest fix, survives pickling, and never wraps a bug of ours.
"""


class UserError(Exception):
    """Something the user can put right: a setting, a file, a model, a reward, a machine.

    Args:
        cause: what is wrong, in one or a few lines, naming the setting, file or tensor.
        fix: the smallest change that would put it right.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(cause, fix)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause}\n  fix: {self.fix}" if self.fix else self.cause

"""How a run can end before its last step.

Invariant: this module imports no package, so that the command line can import it at once.
"""

from collections.abc import Mapping


class RunFailedError(Exception):
    """A process of the run failed. The message names it, the phase and the cause.

    Attributes:
        facts: what else helps, as name -> value: log, step, report.
        died: the process that the failure came from, if that has died.
    """

    def __init__(self, message: str, facts: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})
        self.died: str | None = None


class RunInterruptedError(KeyboardInterrupt):
    """The run was stopped by a signal. The message says when; `facts` as those of `RunFailedError`.

    Attributes:
        exit_code: of the command: 128 and the signal's number.
    """

    def __init__(self, message: str, facts: Mapping[str, str] | None = None, exit_code: int = 130) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})
        self.exit_code = exit_code


class Status:
    """How far a run has come; kept up to date by the loops.

    Attributes:
        phase: what is being done.
        step: the one that is being worked on; 0 before the first.
        total: steps of the whole run.
    """

    def __init__(self, total: int) -> None:
        self.phase = "start-up"
        self.step = 0
        self.total = total

    def __str__(self) -> str:
        return f"{self.phase} of step {self.step} of {self.total}" if self.step else self.phase

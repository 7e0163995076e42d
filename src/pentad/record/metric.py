"""What is known of a metric beside its values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of a step.

    Attributes:
        name: `group/name`; `<name>` stands for the name of an evaluation, `<k>` for a number.
        meaning: what it is.
        unit: of its values; empty for a number without unit.
        average: how the value of a step comes from its parts.
        heading: of its column on the terminal; empty for none.
        form: format of its values on the terminal.
        wide: shown only on a terminal of at least 100 columns.
        only_if_set: shown only where it is not 0.
        title: of its curve in the report; metrics of one title share a curve; empty for the name itself.
        caption: of the curve; empty for the meaning.
        smooth: whether the curve is smoothed.
        lower: lower values are better (`trainer.keep_best`).
    """

    name: str
    meaning: str
    unit: str
    average: str
    heading: str = ""
    form: str = ""
    wide: bool = False
    only_if_set: bool = False
    title: str = ""
    caption: str = ""
    smooth: bool = True
    lower: bool = False

    @property
    def percent(self) -> bool:
        """Whether values are shown in percent."""
        return self.unit == "fraction"


OVER_STEPS = "mean over the step's optimizer steps"
OVER_TOKENS = "mean over trained tokens, then over optimizer steps"
OVER_SAMPLES = "mean over the step's samples"
SUM = "sum over the step"

"""Settings of one evaluation.

Invariant: the short form, a source alone, and a mapping with nothing but `source` are the same settings, and are
written in the short form.
"""

import re
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pentad.config.schema.base import Settings

# What may stand in the name of a metric, eval/<name>/accuracy.
_EVAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def is_eval_name(name: str) -> bool:
    """Whether a key of `data.eval` can be part of a metric's name."""
    return _EVAL_NAME.fullmatch(name) is not None


class EvalSettings(Settings):
    """`data.eval.NAME`: a source, or a mapping."""

    source: str = Field(description="as data.train names one")
    measure: Literal["answers", "loss"] = Field(
        "answers", description="answers: generated and scored; loss: of the given responses (algorithms sft and dpo)"
    )
    n: int | None = Field(None, ge=1, description="samples a question; null: rollout.eval_n")
    temperature: float | None = Field(None, ge=0, description="0 is greedy; null: rollout.eval_temperature")
    max_response_tokens: int | None = Field(
        None, ge=1, description="longest response; null: rollout.max_response_tokens"
    )
    limit: int | None = Field(None, ge=1, description="use only the first so many rows; null: data.eval_limit")
    reward: str | None = Field(None, description="as reward.name; null: what reward.* says")
    reward_options: dict[str, Any] = Field(default_factory=dict, description="as reward.options, of the own reward")

    @model_validator(mode="before")
    @classmethod
    def _source_alone(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        given = {name: value for name, value in handler(self).items() if value != _DEFAULTS[name]}
        return self.source if given.keys() == {"source"} else given

    @property
    def generates(self) -> bool:
        """Whether its questions are answered by engines."""
        return self.measure == "answers"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Last parts of the names of its metrics, `eval/<name>/...`; `n` is set."""
        if not self.generates:
            return ("loss", "preference_accuracy")
        several = (f"mean_at_{self.n}", *(f"pass_at_{k}" for k in pass_ks(self.n or 1))) if (self.n or 1) > 1 else ()
        return ("accuracy", "reward", "response_length_mean", *several)


_DEFAULTS: dict[str, Any] = {
    name: None if field.is_required() else field.get_default(call_default_factory=True)
    for name, field in EvalSettings.model_fields.items()
}


def pass_ks(n: int) -> tuple[int, ...]:
    """The k of which pass@k is measured with n samples: powers of 2 above 1, and n; none with one sample."""
    return tuple(k for k in range(2, n + 1) if k == n or k & (k - 1) == 0)

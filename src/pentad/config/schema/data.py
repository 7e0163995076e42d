"""Settings that say which prompts are trained and evaluated on."""

from typing import Any, Literal

from pydantic import Field, field_validator

from pentad.config.schema.base import Settings
from pentad.config.schema.evaluation import EvalSettings


class DataSettings(Settings):
    """`data.*`"""

    train: str | list[str] = Field(
        description="a .jsonl, .json, .csv, .tsv or .parquet file (also .gz), a directory of them, "
        "hf:NAME[:CONFIG][:SPLIT], ms:NAME[:CONFIG][:SPLIT] (ModelScope), or reasoning_gym:TASK; or a list of these"
    )
    mix: Literal["together", "sequence"] = Field(
        "together", description="several sources of data.train: as one set, or one after the other in each epoch"
    )
    weights: list[float] | None = Field(
        None, description="shares of the sources of data.train among the prompts; each source has epochs of its own"
    )
    eval: dict[str, EvalSettings] = Field(
        default_factory=dict,
        description="name -> source, or {source, n, temperature, max_response_tokens, limit, reward, reward_options, "
        "measure}; each gives eval/<name>/accuracy, the part of responses with a reward of 1, or (measure: loss) "
        "eval/<name>/loss",
    )
    eval_limit: int | None = Field(None, ge=1, description="use only the first so many rows of each eval source")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of a reasoning_gym task")
    prompt_column: str | None = Field(
        None, description="column with a string or a list of {role, content}; null: found by its name, and said"
    )
    messages_column: str | None = Field(
        None, description="column with whole conversations, OpenAI's or ShareGPT's; null: found by its name, and said"
    )
    response_column: str | None = Field(
        None, description="column with the wanted response (algorithm sft); null: found by its name, and said"
    )
    chosen_column: str = Field("chosen", description="column with the preferred response (algorithm dpo)")
    rejected_column: str = Field("rejected", description="column with the other response (algorithm dpo)")
    ground_truth_column: str | None = Field(
        None, description="column that rewards compare with, such as answer or info.answer; null: found by its name"
    )
    loss_on: Literal["all", "last"] = Field(
        "all", description="assistant turns of a conversation that are trained on (algorithm sft)"
    )
    template: Literal["chat", "text"] = Field("chat", description="apply the chat template, or use prompts as they are")
    system_prompt: str | None = Field(None, description="put before each conversation (template chat)")
    max_prompt_tokens: int = Field(1024, ge=1, description="longest prompt")
    max_tokens: int | None = Field(None, ge=1, description="longest example, prompt and response (algorithm sft)")
    too_long: Literal["error", "drop"] = Field("error", description="what to do with a longer prompt or example")
    shuffle: bool = Field(True, description="shuffle the training rows at each epoch")

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """One fault for a wrong type, not one for each of the right types."""
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise ValueError("neither text nor a list of texts")
        return value

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of `data.train`, one or several."""
        return (self.train,) if isinstance(self.train, str) else tuple(self.train)

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The sources of `data.train` and of all evaluations."""
        return (*self.sources, *(one.source for one in self.eval.values()))

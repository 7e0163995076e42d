"""Settings that say which prompts are trained and evaluated on."""

import re
from typing import Any, Literal

from pydantic import Field

from pentad.config.schema.base import Settings

# What may stand in the name of a metric, eval/<name>/accuracy.
_EVAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def is_eval_name(name: str) -> bool:
    """Whether a key of `data.eval` can be part of a metric's name."""
    return _EVAL_NAME.fullmatch(name) is not None


class DataSettings(Settings):
    """`data.*`"""

    train: str = Field(
        description="a .jsonl or .parquet file, a directory of them, hf:NAME[:CONFIG][:SPLIT], or reasoning_gym:TASK"
    )
    eval: dict[str, str] = Field(
        default_factory=dict,
        description="name -> source; each gives eval/<name>/accuracy, the part of responses with a reward of 1",
    )
    eval_limit: int | None = Field(None, ge=1, description="use only the first so many rows of each eval source")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of a reasoning_gym task")
    prompt_column: str = Field("prompt", description="column with a string or a list of {role, content}")
    response_column: str = Field("response", description="column with the wanted response (algorithm sft)")
    chosen_column: str = Field("chosen", description="column with the preferred response (algorithm dpo)")
    rejected_column: str = Field("rejected", description="column with the other response (algorithm dpo)")
    template: Literal["chat", "text"] = Field("chat", description="apply the chat template, or use prompts as they are")
    system_prompt: str | None = Field(None, description="put before each conversation (template chat)")
    max_prompt_tokens: int = Field(1024, ge=1, description="longest prompt")
    too_long: Literal["error", "drop"] = Field("error", description="what to do with a longer prompt")
    shuffle: bool = Field(True, description="shuffle the training rows at each epoch")

"""The critic of a run before its processes: where it comes from, and whether it suits the policy.

Invariant: a critic that could not compute the policy's samples is refused before a process is started.
"""

import json
from pathlib import Path

from transformers import PreTrainedConfig

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.weights.critic import CriticReader, critic_config
from pentad.weights.source import load_config


def check_critic_model(settings: RunSettings, policy: Path, critic: Path, longest: int) -> None:
    """Refuse a critic that does not suit the policy.

    Args:
        policy: directory of the policy's model.
        critic: directory that the critic begins with.
        longest: tokens of the longest sequence that is trained on.

    Raises:
        UserError: tensors, vocabulary, positions or tokenizer do not fit.
    """
    config = critic_config(load_config(critic))
    CriticReader(critic).check(config)
    if settings.critic.model is None:
        return
    own: PreTrainedConfig = load_config(policy)
    if config.vocab_size < own.vocab_size:
        raise UserError(
            f"critic.model: {critic} has {config.vocab_size} token ids, and the policy samples from {own.vocab_size}",
            "take a critic with the tokenizer of the policy",
        )
    if longest > config.max_position_embeddings:
        raise UserError(
            f"critic.model: {critic} has {config.max_position_embeddings} positions, and a sample may take {longest} "
            "tokens",
            "take a critic of more positions, or shorten prompts and responses",
        )
    words = [_words(directory) for directory in (policy, critic)]
    if None not in words and words[0] != words[1]:
        raise UserError(
            f"critic.model: {critic} has another tokenizer than the policy, so its values would be of other tokens",
            "take a critic with the tokenizer of the policy",
        )


def _words(directory: Path) -> dict[str, int] | None:
    """Token ids of a model's tokenizer.json by token; None where there is no such file that can be read."""
    try:
        found = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None

"""Everything that can be known to be wrong before a process is started or a GPU is taken.

Invariant: what this returns is complete: model, tokenizer, data and rewards have been read and fit each other, the
allocation and the settings.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pentad.config.model import ModelSettings
from pentad.config.run import RunSettings
from pentad.data.dataset import load_eval_rows, load_train_rows
from pentad.data.prompts import EncodedExamples, EncodedPrompts, encode_examples, encode_prompts
from pentad.errors import UserError
from pentad.layout import Allocation, parse_allocation
from pentad.layout.validate import check_layout, check_supported, refuse
from pentad.models.checkpoint import CheckpointReader
from pentad.models.facts import model_facts
from pentad.models.mapping import expected_shapes
from pentad.models.source import load_config, load_tokenizer, resolve_model
from pentad.runtime.metrics import accuracy_name


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    Attributes:
        directory: the model as a Hugging Face directory.
        tokenizer_path: where engines load the tokenizer from.
        model_bytes: size of the checkpoint.
        train: prompts (grpo) or examples (sft).
        eval: prompts of each evaluation.
    """

    settings: RunSettings
    allocation: Allocation
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    tokenizer_path: str
    model_bytes: int
    train: EncodedPrompts | EncodedExamples
    eval: dict[str, EncodedPrompts]


def prepare(settings: RunSettings) -> Prepared:
    """Read model, tokenizer and data.

    Raises:
        UserError: something is missing, unreadable, or does not fit.
    """
    allocation = parse_allocation(settings.allocation)
    refuse(check_supported(allocation), "allocation")
    _check_roles(settings, allocation)
    for name in settings.data.eval:
        accuracy_name(name)
    directory = resolve_model(settings.model.path, Path("~/.cache/pentad/gguf").expanduser() / _key(settings.model.path))
    config = load_config(directory)
    facts = model_facts(config)
    refuse(check_layout(facts, allocation.trainer.layout), f"allocation {allocation}")
    CheckpointReader(directory).check(expected_shapes(config), tied=facts.tied)
    tokenizer_path = settings.model.tokenizer or str(directory)
    tokenizer = _tokenizer(tokenizer_path, settings.model)
    train_rows = load_train_rows(settings.data, with_response=settings.algorithm.name == "sft")
    encode = encode_examples if settings.algorithm.name == "sft" else encode_prompts
    train = encode(train_rows.rows, tokenizer, settings.data)
    evals = {
        name: encode_prompts(rows.rows, tokenizer, settings.data) for name, rows in load_eval_rows(settings.data).items()
    }
    if isinstance(train, EncodedPrompts):
        _check_lengths(settings, train, config.max_position_embeddings)
    model_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return Prepared(settings, allocation, directory, tokenizer, tokenizer_path, model_bytes, train, evals)


def _key(path: str) -> str:
    """A directory name for what a GGUF file turns into; changes with the file."""
    file = Path(path).expanduser()
    stat = f"{file.resolve()}:{file.stat().st_size}:{file.stat().st_mtime_ns}" if file.is_file() else path
    return hashlib.sha256(stat.encode()).hexdigest()[:16]


def _check_roles(settings: RunSettings, allocation: Allocation) -> None:
    if settings.algorithm.name == "grpo" and allocation.rollout is None:
        raise UserError(
            f"allocation {allocation} has no rollout engines, which grpo needs",
            f"write hf:d{allocation.trainer.layout.world}|{allocation} to share the devices",
        )
    if settings.algorithm.name == "sft" and allocation.rollout is not None and not settings.data.eval:
        raise UserError(
            f"allocation {allocation} has rollout engines, which sft uses only to evaluate, and data.eval is empty",
            f"write allocation: {allocation.trainer}",
        )
    if settings.algorithm.name == "sft" and allocation.rollout is None and settings.data.eval:
        raise UserError(
            f"data.eval needs rollout engines, and allocation {allocation} has none",
            f"write allocation: hf:d{allocation.trainer.layout.world}|{allocation}, or leave data.eval out",
        )


def _check_lengths(settings: RunSettings, prompts: EncodedPrompts, positions: int) -> None:
    prompt, response = max(map(len, prompts.tokens)), settings.rollout.max_response_tokens
    what = f"a sample may take {prompt} + {response} = {prompt + response} tokens (longest prompt, longest response)"
    if prompt + response > settings.trainer.tokens_per_microbatch:
        raise UserError(
            f"{what}, more than trainer.tokens_per_microbatch = {settings.trainer.tokens_per_microbatch}",
            f"set trainer.tokens_per_microbatch to {prompt + response} or more, or lower rollout.max_response_tokens",
        )
    if prompt + response > positions:
        raise UserError(
            f"{what}, more than the {positions} positions of the model",
            f"lower rollout.max_response_tokens to {max(1, positions - prompt)}",
        )


def _tokenizer(path: str, settings: ModelSettings) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(path)
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = settings.chat_template.read_text()
        except OSError as error:
            raise UserError(f"model.chat_template: cannot read {settings.chat_template}: {error.strerror}") from None
    return tokenizer

"""Everything else that can be known to be wrong before a process is started or a GPU is taken.

Invariant: what this returns is complete: model, tokenizer, data and settings have been read and fit each other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from pentad.algorithms.make import make_algorithm
from pentad.algorithms.protocol import Algorithm
from pentad.config.schema.run import RunSettings
from pentad.data.mixture import make_order
from pentad.data.preferences import encode_preferences
from pentad.data.prompts import EncodedExamples, EncodedPrompts, encode_examples, encode_prompts
from pentad.data.rows import Rows
from pentad.errors import UserError
from pentad.families.hf_config import facts_from_config
from pentad.layout import Allocation, Component
from pentad.layout.cluster_checks import check_projections
from pentad.layout.validate import check_layout, refuse
from pentad.run.critic import check_critic_model
from pentad.run.sources import Sources, critic_facts
from pentad.run.tokenizer import tokenizer_path
from pentad.weights.checkpoint_model import open_weights
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config, load_tokenizer

_ENCODE: dict[str, Callable[..., EncodedPrompts | EncodedExamples]] = {
    "rollouts": encode_prompts,
    "examples": encode_examples,
    "preferences": encode_preferences,
}


_RESPONSE = "rollout.max_response_tokens"


@dataclass(frozen=True)
class Prepared:
    """What a run works with.

    Attributes:
        directory: the model as a Hugging Face directory.
        tokenizer_path: where engines load the tokenizer from.
        train: prompts (grpo), examples (sft) or pairs of examples (dpo).
        eval: prompts of each evaluation that is answered.
        held_out: examples of each evaluation whose loss is measured.
        algorithm: made from its settings.
        critic: what the critic begins with, as a directory; None where there is no critic.
    """

    settings: RunSettings
    allocation: Allocation
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    tokenizer_path: str
    train: EncodedPrompts | EncodedExamples
    eval: dict[str, EncodedPrompts]
    algorithm: Algorithm
    critic: Path | None = None
    held_out: dict[str, EncodedExamples] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Most tokens of a sequence that an engine samples or scores."""
        lengths = list(longest_evaluated(self.settings, self.eval).values())
        if isinstance(self.train, EncodedPrompts):
            response = self.settings.rollout.max_response_tokens
            return max([*lengths, max(len(tokens) for tokens in self.train.tokens) + response])
        return max([*lengths, *(len(prompt) + len(answer) for prompt, answer in self.train.examples)])

    @property
    def notices(self) -> list[str]:
        """How many rows `data.too_long=drop` has dropped, of each source."""
        evals: dict[str, EncodedPrompts | EncodedExamples] = {**self.eval, **self.held_out}
        sources = {"data.train": self.train, **{f"data.eval.{name}": prompts for name, prompts in evals.items()}}
        settings = self.settings.data
        limits = {name: f"data.max_prompt_tokens = {settings.max_prompt_tokens}" for name in sources}
        noun = dict.fromkeys(sources, "prompts")
        if settings.max_tokens is not None:
            limits["data.train"] += f" or data.max_tokens = {settings.max_tokens}"
            noun["data.train"] = "examples"
        return [
            f"{name}: {data.dropped} of {len(data) + data.dropped} {noun[name]} are longer than {limits[name]}; they "
            "are left out"
            for name, data in sources.items()
            if data.dropped
        ]


def longest_evaluated(settings: RunSettings, evals: Mapping[str, EncodedPrompts]) -> dict[str, int]:
    """Tokens of the longest prompt and response of each evaluation."""
    return {name: max(map(len, prompts.tokens)) + response_limit(settings, name) for name, prompts in evals.items()}


def response_limit(settings: RunSettings, name: str) -> int:
    """Tokens of the longest response of an evaluation."""
    return settings.evals[name].max_response_tokens or settings.rollout.max_response_tokens


def prepare(sources: Sources) -> Prepared:
    """Read model and tokenizer, and encode the data.

    Raises:
        UserError: something is missing, unreadable, or does not fit.
    """
    # What is wrong is raised; transformers would say the rest in between.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings, allocation = sources.settings, sources.allocation
    # Other processes, on other machines too, have working directories of their own.
    directory = sources.directory.absolute()
    config = load_config(directory)
    facts = facts_from_config(config.to_dict())
    for component in allocation.homes(settings.algorithm.roles - {"critic"}):
        layout = component.layout
        refuse([*check_layout(facts, layout), *check_projections(facts, layout)], f"allocation {allocation}")
    if sources.critic is not None:
        component = allocation.home("critic")
        refuse(check_projections(critic_facts(sources.critic), component.layout), f"the critic on {component}")
    open_weights(directory).check(expected_shapes(config), tied=facts.tied)
    if any(overrides for _, overrides in settings.megatron):
        _check_passthrough(config, settings, allocation)
    tokenizer_from = tokenizer_path(settings.model.tokenizer, directory)
    tokenizer = load_tokenizer(tokenizer_from)
    if sources.chat_template is not None:
        tokenizer.chat_template = sources.chat_template
    train = _ENCODE[settings.algorithm.trains_on](sources.train.rows, tokenizer, settings.data)
    make_order(train.rows, settings.experiment.seed, settings.data)  # what is wrong with the mixture is said now
    evals, held_out = encode_evaluations(settings, sources.eval, tokenizer)
    longest = _check_lengths(settings, train, config.max_position_embeddings)
    check_evaluated(settings, evals, held_out, config.max_position_embeddings)
    for component in allocation.homes(settings.algorithm.roles):
        _check_occupied(settings, component, longest)
    algorithm = make_algorithm(settings.algorithm, settings.rollout.max_response_tokens)
    critic = None if sources.critic is None else sources.critic.absolute()
    if critic is not None:
        check_critic_model(settings, directory, critic, longest)
    return Prepared(
        settings, allocation, directory, tokenizer, tokenizer_from, train, evals, algorithm, critic, held_out
    )


def encode_evaluations(
    settings: RunSettings, rows: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, EncodedPrompts], dict[str, EncodedExamples]]:
    """The prompts of evaluations that are answered, and the examples of those whose loss is measured."""
    answered = {name for name, one in settings.data.eval.items() if one.generates}
    prompts = {name: encode_prompts(rows[name].rows, tokenizer, settings.data) for name in rows if name in answered}
    encode = encode_preferences if settings.algorithm.trains_on == "preferences" else encode_examples
    examples = {name: encode(rows[name].rows, tokenizer, settings.data) for name in rows if name not in answered}
    return prompts, examples


def _check_passthrough(config: PreTrainedConfig, settings: RunSettings, allocation: Allocation) -> None:
    """Have Megatron's own fields checked now, at the price of importing Megatron here."""
    from pentad.platform.device import enter_platform

    platform = enter_platform()
    from pentad.trainers.megatron.build import transformer_config
    from pentad.trainers.megatron.optimizer import ddp_config, optimizer_config

    megatron, trainer = settings.megatron, settings.trainer
    dtype = platform.dtype(trainer.dtype)
    for component in allocation.homes(settings.algorithm.roles):
        transformer_config(config, component.layout, dtype, megatron)
    distributed = ddp_config(megatron.ddp).use_distributed_optimizer
    optimizer_config(trainer.optimizer, trainer.schedule, dtype, megatron.optimizer, distributed=distributed)


def _check_lengths(settings: RunSettings, train: EncodedPrompts | EncodedExamples, positions: int) -> int:
    """Whether microbatches and the model hold every sequence; returns the tokens of the longest that is trained on.

    The two of a pair are in one microbatch, so there it is the tokens of the longest pair.
    """
    budget, response = settings.trainer.tokens_per_microbatch, settings.rollout.max_response_tokens
    if isinstance(train, EncodedExamples):
        longest = _check_examples(settings, "data.train", train, positions)
    else:
        prompt = max(map(len, train.tokens))
        longest = prompt + response
        what = f"a sample may take {prompt} + {response} = {longest} tokens (longest prompt, longest response)"
        _check_positions("data.train", train, response, positions)
    if longest > budget:
        raise _too_long(what, longest, budget)
    return longest


def check_evaluated(
    settings: RunSettings,
    evals: Mapping[str, EncodedPrompts],
    held_out: Mapping[str, EncodedExamples],
    positions: int,
) -> None:
    """Whether the model, and microbatches, hold every sequence of evaluations.

    Raises:
        UserError: one is too long.
    """
    for name, prompts in evals.items():
        setting = f"data.eval.{name}"
        named = f"{setting}.max_response_tokens" if settings.data.eval[name].max_response_tokens else _RESPONSE
        _check_positions(setting, prompts, response_limit(settings, name), positions, named)
    for name, examples in held_out.items():
        _check_examples(settings, f"data.eval.{name}", examples, positions)


def _too_long(what: str, longest: int, budget: int) -> UserError:
    return UserError(
        f"{what}, more than trainer.tokens_per_microbatch = {budget}",
        f"set trainer.tokens_per_microbatch to {longest} or more, or make them shorter",
    )


def _check_examples(settings: RunSettings, setting: str, examples: EncodedExamples, positions: int) -> int:
    """Whether microbatches and the model hold every example; returns the tokens of the longest, or longest pair."""
    budget, each = settings.trainer.tokens_per_microbatch, examples.per_row
    lengths = [len(prompt) + len(answer) for prompt, answer in examples.examples]
    longest = max(lengths)
    what = f"{examples.rows[lengths.index(longest) // each].id} takes {longest} tokens (prompt and response)"
    if longest > positions:
        raise UserError(f"{what}, more than the {positions} positions of the model", f"shorten the row of {setting}")
    if each > 1:
        lengths = [sum(lengths[first : first + each]) for first in range(0, len(lengths), each)]
        longest = max(lengths)
        what = f"{examples.rows[lengths.index(longest)].id} takes {longest} tokens (prompt and response, twice)"
    if longest > budget:
        raise _too_long(what, longest, budget)
    return longest


def _check_positions(
    setting: str, prompts: EncodedPrompts, response: int, positions: int, named: str = _RESPONSE
) -> None:
    lengths = [len(tokens) for tokens in prompts.tokens]
    longest = max(lengths)
    if longest + response <= positions:
        return
    cause = (
        f"{setting}: a sample may take {longest} + {response} = {longest + response} tokens (longest prompt, "
        f"{prompts.rows[lengths.index(longest)].id}, and longest response), more than the {positions} positions of the "
        "model"
    )
    room = positions - response
    if longest < positions:
        fix = f"lower {named} to {positions - longest}"
    elif min(lengths) <= room:
        fix = f"set data.max_prompt_tokens={room} and data.too_long=drop, or shorten the row"
    elif min(lengths) < positions:
        shortest = min(lengths)
        fix = (
            f"set {named}={positions - shortest}, data.max_prompt_tokens={shortest} and "
            "data.too_long=drop, or shorten the rows"
        )
    else:
        fix = "shorten the prompts, or take a model of more positions"
    raise UserError(cause, fix)


def _check_occupied(settings: RunSettings, component: Component, longest: int) -> None:
    """Every data-parallel rank needs equally many microbatches in each optimizer step, and none may be empty.

    That works for a number of sequences that the ranks divide, and for any number of sequences of which two always
    fit into a microbatch.
    """
    layout, rows = component.layout, settings.trainer.prompts_per_step
    needed = layout.data * (layout.pipeline if layout.virtual > 1 else 1)
    # Minibatches are rounded to whole groups.
    parts = settings.algorithm.updates
    samples = settings.rollout.n if settings.algorithm.trains_on == "rollouts" else 1
    sizes = [rows // parts * samples, -(-rows // parts) * samples]
    if sizes[0] < needed:
        raise UserError(
            f"an optimizer step may have only {sizes[0]} sequences, and allocation {component} needs {needed}",
            "raise trainer.prompts_per_step, or take fewer data-parallel ranks",
        )
    uneven = [size for size in sizes if size % needed]
    if uneven and 2 * longest > settings.trainer.tokens_per_microbatch:
        raise UserError(
            f"an optimizer step has {uneven[0]} sequences, which {component} cannot always share out: its "
            f"{layout.data} data-parallel ranks take them in multiples of {needed}",
            f"change trainer.prompts_per_step, or set trainer.tokens_per_microbatch to {2 * longest} (any two fit)",
        )

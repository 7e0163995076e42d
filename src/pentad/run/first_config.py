"""A first configuration for a model, a dataset and the GPUs that are here: `pentad init`.

Invariant: what is written loads, and says of each choice where it comes from. What the user has set is kept, and the
rest is chosen to go with it. Nothing is written here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from pentad.config.loading.load import LoadedSettings, load_settings
from pentad.config.loading.overrides import apply_overrides
from pentad.config.loading.yaml_io import read_document, write_value
from pentad.config.schema.data import DataSettings
from pentad.config.schema.run import RunSettings
from pentad.data.columns import PAIRS, choose_columns
from pentad.data.dataset import load_eval_rows, load_rows
from pentad.data.procedural import PREFIX as PROCEDURAL
from pentad.data.prompts import encode_prompts
from pentad.data.rows import PromptRow, Rows
from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.families.model_files import facts_of
from pentad.run.first_layout import choose_layout, gpu_of_machine
from pentad.run.first_reward import Choice, choose_reward
from pentad.run.tokenizer import run_tokenizer
from pentad.weights.source import gguf_cache, resolve_model

# Of a machine without and with GPUs.
_RESPONSE = (256, 1024)
_PROMPTS = (8, 64)
_SAMPLES = (4, 8)
_STEPS = (20, 200)
_MICROBATCH = (2048, 8192)
_ORDER = ("experiment", "allocation", "model", "algorithm", "data", "reward", "rollout", "trainer", "megatron")


@dataclass
class Draft:
    """A configuration that is being made.

    Attributes:
        values: nested settings.
        comments: dotted key -> why it has its value.
    """

    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def propose(self, key: str, value: Any, comment: str = "") -> Any:
        """Set a key that the user has not set; returns its value."""
        *above, last = key.split(".")
        target = self.values
        for part in above:
            target = target.setdefault(part, {})
        if last not in target:
            target[last] = value
            if comment:
                self.comments[key] = comment
        return target[last]

    def settings(self, path: Path) -> RunSettings:
        """As a run would load them.

        Raises:
            UserError: something that the user has set is wrong.
        """
        return self.loaded(path).settings

    def loaded(self, path: Path) -> LoadedSettings:
        """The same with their origins."""
        return load_settings(path, document=read_document(self.text(), path))

    def text(self) -> str:
        """As YAML, with comments."""
        rest = [name for name in self.values if name not in _ORDER]
        lines: list[str] = []
        for name in (*_ORDER, *rest):
            if name in self.values:
                lines += self._lines(name, self.values[name], name, 0)
        return "\n".join(lines) + "\n"

    def _lines(self, name: str, value: Any, key: str, depth: int) -> list[str]:
        indent, comment = "  " * depth, self.comments.get(key)
        end = f"  # {comment}" if comment else ""
        if not isinstance(value, dict) or not value or depth > 1:
            return [f"{indent}{name}: {write_value(value)}{end}"]
        inner = [line for part, item in value.items() for line in self._lines(part, item, f"{key}.{part}", depth + 1)]
        return [f"{indent}{name}:{end}", *inner]


@dataclass(frozen=True)
class First:
    """What is to be written.

    Attributes:
        text: of the configuration.
        reward: what was chosen, with a file to be filled where nothing could be.
        said: what was found, in lines.
    """

    text: str
    reward: Choice | None
    said: tuple[str, ...]


def first_config(
    out: Path,
    model: str,
    train: str,
    evaluation: tuple[str, str] | None,
    gpus: list[tuple[str, float]],
    overrides: Sequence[str] = (),
) -> First:
    """Make a configuration.

    Args:
        out: where it will stand.
        evaluation: name and source of an evaluation; None for none.
        gpus: names and memory in GiB; empty: a CPU.
        overrides: `section.key=value`, which go before what is chosen.

    Raises:
        UserError: model or data cannot be read, or nothing fits.
    """
    logging.set_verbosity_error()
    draft, big = Draft(), bool(gpus)
    if problems := apply_overrides(draft.values, {}, overrides):
        raise problems[0]
    draft.propose("experiment.name", _free_name(model, train))
    draft.propose("model.path", model)
    draft.propose("data.train", train)
    if evaluation is not None:
        draft.propose("data.eval", dict([evaluation]))
    steps_asked = "total_steps" in draft.values.get("trainer", {})
    draft.propose("trainer.total_steps", 1)
    settings = draft.settings(out)
    rows = load_rows(settings.data.sources[0], settings.data)
    facts = facts_of(str(resolve_model(settings.model.path, gguf_cache(settings.model.path))))
    _columns(draft, rows, settings.data)
    asked = [*rows, *(row for others in load_eval_rows(settings.data).values() for row in others)]
    longest = _lengths(draft, draft.settings(out), asked, facts, big)
    reward = choose_reward(rows, out, settings.data) if settings.reward == type(settings.reward)() else None
    if reward is not None:
        draft.propose("reward.name", reward.name, reward.why)
    said = [*rows.said, *([f"reward.name: {reward.name}, as {reward.why}"] if reward else [])]
    _amounts(draft, len(rows), longest, big, steps_asked=steps_asked)
    if not big:
        draft.propose("allocation", "hf:d1|megatron:d1", "no GPU was found here")
        said.append("allocation: one process of the CPU, as no GPU was found here")
    elif "allocation" not in draft.values:
        said.append(_layout(draft, out, facts, gpus, longest))
    draft.settings(out)
    head = f"# Written by `pentad init`; `pentad train {out} --dry-run` checks it, `pentad config --keys` lists keys.\n"
    return First(head + draft.text(), reward, tuple(said))


def _free_name(model: str, train: str) -> str:
    """A name for the run, of which there is no directory yet."""
    parts = (Path(model).stem if model.endswith(".gguf") else model.rstrip("/").rpartition("/")[2], _stem(train))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-._") or "run"
    number, free = 1, name
    while (Path("runs") / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _stem(train: str) -> str:
    """A short name of a source."""
    if train.startswith(("hf:", "ms:", PROCEDURAL)):
        return train.split(":")[1].rpartition("/")[2]
    path = Path(train)
    # Of data/gsm8k/train.parquet, the directory says more.
    stem = path.name.partition(".")[0]
    return path.parent.name if stem in ("train", "data") and path.parent.name else stem


def _columns(draft: Draft, rows: Rows, data: DataSettings) -> None:
    """Write down the columns that were found."""
    if rows.source.startswith(PROCEDURAL):
        return
    first = rows[0].extra
    if set(PAIRS) <= set(first):
        raise UserError(
            f"{rows.source} has pairs of preferences ({', '.join(PAIRS)}); `pentad init` writes runs with rewards",
            "start from examples/quickstart/dpo.yaml",
        )
    columns = choose_columns([(rows[0].id, first)], data, "data.train", with_response=False)
    comment = "found by its name"
    if columns.conversation:
        draft.propose("data.messages_column", columns.conversation, comment)
    elif columns.prompt:
        draft.propose("data.prompt_column", columns.prompt, comment)
    if columns.truth and not columns.spec:
        draft.propose("data.ground_truth_column", columns.truth, comment)


def _lengths(draft: Draft, settings: RunSettings, rows: Sequence[PromptRow], facts: ModelFacts, big: bool) -> int:
    """Settle the template and how long prompts and responses may be; returns tokens of the longest sample."""
    tokenizer = run_tokenizer(settings)
    if not tokenizer.chat_template:
        draft.propose("data.template", "text", "the tokenizer has no chat template")
    template = draft.values["data"].get("template", settings.data.template)
    limits = {"template": template, "max_prompt_tokens": 1 << 40, "max_tokens": None}
    data = settings.data.model_copy(update=limits)
    longest = max(map(len, encode_prompts(rows, tokenizer, data).tokens))
    positions = facts.max_positions or 1 << 40
    wanted = min(_RESPONSE[big], max(positions // 2, positions - longest))
    response = draft.propose("rollout.max_response_tokens", wanted)
    room = positions - response
    bound = draft.propose("data.max_prompt_tokens", min(longest, room), f"the longest of the data has {longest}")
    if longest > bound:
        draft.propose("data.too_long", "drop", f"the model has {positions} positions")
    return min(longest, bound) + response


def _amounts(draft: Draft, rows: int, longest: int, big: bool, *, steps_asked: bool) -> None:
    """How much is sampled and trained on in a step, and for how long."""
    draft.propose("rollout.n", _SAMPLES[big])
    prompts = draft.propose("trainer.prompts_per_step", min(_PROMPTS[big], rows))
    epoch = -(-rows // prompts)
    if not steps_asked:
        draft.values["trainer"]["total_steps"] = max(1, min(_STEPS[big], epoch))
        draft.comments["trainer.total_steps"] = f"{epoch} are an epoch"
    # Any two samples fit, so that ranks can share any number of them.
    draft.propose("trainer.tokens_per_microbatch", max(_MICROBATCH[big], 2 * longest))


def _layout(draft: Draft, out: Path, facts: ModelFacts, gpus: list[tuple[str, float]], longest: int) -> str:
    """Settle the allocation and what makes it fit; returns what was chosen, in words."""
    gpu = gpu_of_machine(gpus)
    kept = [".".join(key) for key in _paths(draft.values)]
    allocation, changes, plan = choose_layout(draft.settings(out), facts, gpu, len(gpus), longest, kept)
    needed = f"{plan.peak.total / 2**30:.1f} of {gpu.memory_gib:.1f} GiB"
    draft.propose("allocation", allocation, f"predicted: {needed} on each of {len(gpus)} x {gpu.name}")
    for key, value in changes.items():
        draft.propose(key, value, "needed for the memory")
    return f"allocation: {allocation}, predicted to take {needed} on each of {len(gpus)} x {gpu.name}"


def _paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all values that are set."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))
        else:
            yield (*above, name)

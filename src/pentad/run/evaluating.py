"""The evaluations of a configuration on one model, without training.

Invariant: where only answers are asked for, only engines are started, and they get the weights from the model's files;
a trainer is started for losses alone. When `evaluate` is left, none of its processes is.
"""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.file_weights import FileWeights
from pentad.cluster.mailbox import Mailbox
from pentad.cluster.object_store import ObjectStore
from pentad.cluster.trainers import Trainers
from pentad.config.schema.run import RunSettings
from pentad.data.dataset import load_eval_rows
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.data.rows import Rows
from pentad.errors import UserError
from pentad.families.hf_config import facts_from_config
from pentad.layout import Allocation, parse_allocation
from pentad.layout.validate import check_layout, refuse
from pentad.loops.evaluation import answer_all, measure
from pentad.loops.group import Group
from pentad.loops.held_out import HeldOut
from pentad.record.outcome import RunInterruptedError
from pentad.rewards.builtin import truth_text
from pentad.run.evaluations import Scorers, evaluation_sets, shared_evenly
from pentad.run.prepare import check_evaluated, encode_evaluations, longest_evaluated
from pentad.run.rewards import open_rewards
from pentad.run.signals import StopSignals
from pentad.run.sources import read_template
from pentad.run.tokenizer import tokenizer_path
from pentad.weights.checkpoint_model import open_weights
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config, load_tokenizer


@dataclass(frozen=True)
class Evaluated:
    """What came of it.

    Attributes:
        metrics: `eval/<name>/*` of every set.
        answers: to each set that was answered, as plain values.
    """

    metrics: dict[str, float]
    answers: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class _Prepared:
    settings: RunSettings
    allocation: Allocation
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    tokenizer_path: str
    evals: dict[str, EncodedPrompts]
    held_out: dict[str, EncodedExamples]


def evaluate(settings: RunSettings, directory: Path) -> Evaluated:
    """Evaluate the model in a directory.

    Raises:
        UserError: something the user can put right.
        RunFailedError: a process failed.
        RunInterruptedError: a signal ended it.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(lambda: "evaluation"))
        try:
            rows = load_eval_rows(settings.data, with_response=settings.algorithm.trains_on == "examples")
            for line in (line for each in rows.values() for line in each.said):
                print(line, flush=True)
            prepared = _prepare(settings, directory.absolute(), rows)
            common = [rows[name] for name in prepared.evals if settings.data.eval[name].reward is None]
            pools = open_rewards(settings, common, rows, stack)
            scorers = Scorers(pools, prepared.tokenizer, _tell, stack)
            print(f"starting {prepared.allocation}", flush=True)
            cluster = stack.enter_context(Cluster(settings.ray, prepared.allocation))
            signals.install()
            return signals.run(_evaluate(prepared, scorers, cluster))
        except KeyboardInterrupt:
            if signals.received is None:
                raise
            raise RunInterruptedError(
                f"by {signals.received.name} during {signals.during}", {}, signals.exit_code
            ) from None


def _prepare(settings: RunSettings, directory: Path, rows: dict[str, Rows]) -> _Prepared:
    allocation = parse_allocation(settings.allocation)
    config = load_config(directory)
    facts = facts_from_config(config.to_dict())
    open_weights(directory).check(expected_shapes(config), tied=facts.tied)
    tokenizer_from = tokenizer_path(settings.model.tokenizer, directory)
    tokenizer = load_tokenizer(tokenizer_from)
    if (template := read_template(settings.model.chat_template)) is not None:
        tokenizer.chat_template = template
    evals, held_out = encode_evaluations(settings, rows, tokenizer)
    check_evaluated(settings, evals, held_out, config.max_position_embeddings)
    if held_out:
        refuse(check_layout(facts, allocation.trainer.layout), f"allocation {allocation}")
    elif allocation.rollout is None:
        raise UserError(f"allocation {allocation} has no rollout engines to answer with", "set allocation, as hf:d1")
    else:
        allocation = allocation.engines_alone()
    return _Prepared(settings, allocation, directory, tokenizer, tokenizer_from, evals, held_out)


async def _evaluate(prepared: _Prepared, scorers: Scorers, cluster: Cluster) -> Evaluated:
    settings = prepared.settings
    deadline_s = settings.trainer.deadline_s
    store = ObjectStore(cluster.spawn_one(Mailbox, "weight mailbox", deadline_s).actors[0], deadline_s)
    trainers = engines = None
    if prepared.held_out:
        # No adapters: the directory has them merged.
        model = settings.model.model_copy(update={"lora": type(settings.model.lora)()})
        plain = settings.model_copy(update={"model": model})
        trainers = Trainers(plain, prepared.directory, cluster, {"policy": None}, store)
    if prepared.evals:
        longest = max(longest_evaluated(settings, prepared.evals).values())
        model = settings.model.model_copy(update={"lora": type(settings.model.lora)()})
        plain = settings.model_copy(update={"model": model})
        engines = Engines(plain, prepared.directory, prepared.tokenizer_path, longest, cluster)
    await cluster.processes.started(deadline_s)
    await asyncio.gather(*(part.build() for part in (trainers, engines) if part is not None))
    metrics: dict[str, float] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    if trainers is not None:
        evenly = shared_evenly(prepared.allocation.trainer.layout)
        metrics |= await HeldOut(prepared.held_out, {"policy": trainers.role("policy")}, evenly).run(_progress)
    if engines is not None:
        await FileWeights(prepared.directory, engines, store, cluster.processes, deadline_s).bring()
        for name, one in evaluation_sets(prepared.evals, settings, scorers).items():
            groups = await answer_all(name, one, engines, _progress)
            one.scorer.check([result for group in groups for result in group.results])
            metrics |= measure(name, groups)
            answers[name] = [_plain(group, prepared.tokenizer) for group in groups]
    return Evaluated(metrics, answers)


def _plain(group: Group, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A question and its answers, for JSON."""
    truth = group.row.ground_truth
    samples = []
    for trajectory, result, reason in zip(group.trajectories, group.results, group.finish_reasons, strict=True):
        response = trajectory.tokens[trajectory.sampled].tolist()
        sample = {
            "response": str(tokenizer.decode(response, skip_special_tokens=True)),
            "tokens": len(response),
            "finish_reason": reason,
            "reward": result.score,
        }
        if parts := {**result.metrics, **result.components}:
            sample["parts"] = parts
        if result.failure is not None:
            sample["failure"] = f"{result.failure}: {result.line}"
        samples.append(sample)
    return {
        "id": group.row.id,
        "prompt": str(tokenizer.decode(group.prompt.tolist())),
        "answer": None if truth is None else truth_text(truth),
        "samples": samples,
    }


def _progress(name: str, total: int) -> Any:
    print(name.replace("eval ", "data.eval.", 1) + f": {total:,}", flush=True)
    return lambda done: None


def _tell(failure: str, message: str) -> None:
    print(f"reward failed ({failure}): {message}; further ones are only counted", flush=True)

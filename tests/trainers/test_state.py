"""What is saved under one layout goes on under another: equal state, and the next step of the run that did not stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Rank, run_on
from rollout_models import SHAPE, reference_model
from tiny import MIXTURE, ragged_batch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Config

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, ScheduleSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches
from pentad.weights.block_files import BlockReader

LOSS = SFTLoss(SFTSettings())
# Biases, a tied embedding, and layers enough for two stages of two chunks each.
DENSE = Qwen2Config(**{**SHAPE, "num_hidden_layers": 4}, tie_word_embeddings=True)
CONFIGS: dict[str, PreTrainedConfig] = {"dense": DENSE, "mixture": MIXTURE["qwen2_moe_dense"]}
STEPS = 6


@dataclass(frozen=True)
class Way:
    """How a model is trained."""

    family: str
    layout: Layout
    distributed: bool = True
    dtype: str = "fp32"
    ddp: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.layout}{'' if self.distributed else '-copies'}-{self.dtype}"

    def trainer(self, rank: Rank, directory: Path) -> Any:
        settings = TrainerSettings(
            total_steps=STEPS,
            dtype=self.dtype,
            optimizer=OptimizerSettings(lr=1e-2, weight_decay=0.1, grad_clip=1.0),
            schedule=ScheduleSettings(name="cosine", warmup_steps=2),
        )
        ddp = {"use_distributed_optimizer": self.distributed, **self.ddp}
        return rank.trainer(directory, settings, MegatronSettings(ddp=ddp), STEPS)


# Where a trainer stands: `state` by kind and Hugging Face name and `counters` at the end of a step, `metrics` and
# `weights` of the next. A dictionary, since classes of this file are others on the ranks.
Stand = dict[str, Any]


def step(trainer: Any, rank: Rank, batch: Batch) -> dict[str, float]:
    multiple = rank.layout.pipeline if rank.layout.virtual > 1 else 1
    plan = plan_microbatches(batch.lengths, rank.layout.data, 64, multiple=multiple)
    metrics = trainer.forward_backward(batch, plan, LOSS)
    return metrics | trainer.step()


def whole_state(trainer: Any) -> dict[str, Tensor]:
    """Masters and moments as Megatron's own accessors give them, put together by collectives."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    names = {parameter: name for name, parameter in trainer.parameters()}
    parts = getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])
    held: dict[str, dict[str, Tensor]] = {"weight": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for part in parts:
        if getattr(part, "is_stub_optimizer", False):
            continue
        for parameter, name in names.items():
            is_expert = not getattr(parameter, "allreduce", True)
            if part.param_groups[0]["is_expert_parallel"] != is_expert:
                continue
            tensors = dict.fromkeys(held)
            start = 0
            if not isinstance(part, DistributedOptimizer):
                main = getattr(parameter, "main_param", parameter)
                tensors = {"weight": main, **part.optimizer.state[main]}
            elif parameter in part.model_param_group_index_map:
                tensors = part._get_main_param_and_optimizer_states(parameter)
                tensors["weight"] = tensors.pop("param")
                start = part._get_model_param_range_map(parameter)["param"].start
            for kind, by_name in held.items():
                whole = torch.zeros(parameter.numel())
                if tensors[kind] is not None:
                    flat = tensors[kind].detach().view(-1)
                    whole[start : start + len(flat)] = flat
                if isinstance(part, DistributedOptimizer):
                    group = trainer.groups.expt_dp if is_expert else trainer.groups.dp_cp
                    torch.distributed.all_reduce(whole, group=group)
                by_name[name] = whole.view(parameter.shape)
    return {
        f"{kind} {name}": value.clone()
        for kind, by_name in held.items()
        for name, value in trainer.mapping.export((name, by_name[name]) for _, name in names.items())
    }


def stand(trainer: Any, rank: Rank, batches: list[Batch]) -> Stand:
    """Where a trainer stands; it makes a step."""
    from pentad.trainers.megatron.state import RankState

    state, counters = whole_state(trainer), RankState(trainer).counters()
    metrics = step(trainer, rank, batches[2])
    weights = {name: value.clone() for name, value in trainer.weights()}
    return {"state": state, "counters": counters, "metrics": metrics, "weights": weights}


def save(rank: Rank, way: Way, directory: Path, target: Path, batches: list[Batch]) -> Stand:
    """Two steps; the state is copied, a third step is made, then the copy is written."""
    from pentad.trainers.megatron.state import RankState

    trainer = way.trainer(rank, directory)
    for batch in batches[:2]:
        step(trainer, rank, batch)
    staged = RankState(trainer).stage()
    result = stand(trainer, rank, batches)
    staged.write(target, rank.number)
    return result


def load(rank: Rank, way: Way, directory: Path, sources: list[tuple[Path, Any]], batches: list[Batch]) -> list[Stand]:
    """Where trainers stand that take the state of each source."""
    from pentad.trainers.megatron.state import RankState

    answers = []
    for source, counters in sources:
        trainer = way.trainer(rank, directory)
        # The state of another run must not shine through.
        step(trainer, rank, batches[1])
        RankState(trainer).load(BlockReader(source), counters)
        answers.append(stand(trainer, rank, batches))
    return answers


def merged(stands: list[Stand]) -> Stand:
    """One of all ranks: tensors of all stages."""
    return {key: {name: value for one in stands for name, value in one[key].items()} for key in stands[0]}


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(family: str) -> Path:
        directory = tmp_path_factory.mktemp("model") / family
        reference_model(CONFIGS[family]).save_pretrained(directory)
        return directory

    return make


BATCHES = [ragged_batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def saved(directory_of, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Way], tuple[Path, Stand]]:
    """A directory of files that were saved in some way, and where that run stood."""

    @cache
    def make(way: Way) -> tuple[Path, Stand]:
        target = tmp_path_factory.mktemp("saved")
        return target, merged(run_on(way.layout, save, way, directory_of(way.family), target, BATCHES))

    return make


D1, D2, T2, P2, C2 = Layout(), Layout(data=2), Layout(tensor=2), Layout(pipeline=2), Layout(context=2)
T2P2, P2V2, T4, D3 = Layout(tensor=2, pipeline=2), Layout(pipeline=2, virtual=2), Layout(tensor=4), Layout(data=3)
E1, E2, X2 = Layout(), Layout(data=2, expert=2), Layout(tensor=2, expert_tensor=2)
T2E2, D4E2 = Layout(tensor=2, expert=2), Layout(data=4, expert=2)

# Where to, and from where.
CASES = [
    (Way("dense", D1), [Way("dense", layout) for layout in (T2P2, P2V2, T4)]),
    (Way("dense", D2), [Way("dense", T2), Way("dense", D2, distributed=False), Way("dense", D2)]),
    (Way("dense", T2), [Way("dense", P2), Way("dense", C2), Way("dense", T2)]),
    (Way("dense", P2), [Way("dense", D2), Way("dense", P2)]),
    (Way("dense", T2P2), [Way("dense", D1)]),
    (Way("dense", P2V2), [Way("dense", T2)]),
    (Way("dense", D3), [Way("dense", D1)]),
    (Way("dense", D2, distributed=False), [Way("dense", P2), Way("dense", D2, distributed=False)]),
    (Way("dense", D2, dtype="bf16"), [Way("dense", D2, dtype="bf16"), Way("dense", D2, False, "bf16")]),
    (Way("dense", D2, False, "bf16"), [Way("dense", D2, dtype="bf16"), Way("dense", D2, False, "bf16")]),
    (Way("mixture", E1), [Way("mixture", E2), Way("mixture", X2)]),
    (Way("mixture", X2), [Way("mixture", E2)]),
    (Way("mixture", T2E2), [Way("mixture", E2), Way("mixture", E1)]),
    (Way("mixture", E2), [Way("mixture", T2E2), Way("mixture", E2)]),
    (Way("mixture", D4E2), [Way("mixture", E2, distributed=False)]),
    (Way("mixture", E2, distributed=False), [Way("mixture", D4E2)]),
]


@pytest.mark.parametrize("way, sources", CASES, ids=[f"{case[0].family}-{case[0]}" for case in CASES])
def test_a_run_goes_on(way, sources, saved, directory_of):
    held = [saved(source) for source in sources]
    asked = [(folder, before["counters"]) for folder, before in held]
    answers = run_on(way.layout, load, way, directory_of(way.family), asked, BATCHES)
    for number, (source, (_, before)) in enumerate(zip(sources, held, strict=True)):
        after = merged([answer[number] for answer in answers])
        assert after["counters"] == before["counters"] == {"updates": 2, "schedule": 2}
        assert after["state"].keys() == before["state"].keys()
        for name, value in before["state"].items():
            assert torch.equal(after["state"][name], value), f"{name} from {source}"
        if source == way:
            assert after["metrics"] == before["metrics"]
            for name, value in before["weights"].items():
                assert torch.equal(after["weights"][name], value), f"{name} after the next step from {source}"
        elif way.dtype == "fp32":
            assert after["metrics"]["train/loss"] == pytest.approx(before["metrics"]["train/loss"], rel=1e-6)
            assert after["metrics"]["train/grad_norm"] == pytest.approx(before["metrics"]["train/grad_norm"], rel=1e-4)
        assert after["metrics"]["train/lr"] == before["metrics"]["train/lr"]

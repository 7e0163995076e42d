"""What is saved under one layout goes on under another: equal state, and the next step of the run that did not stop."""

from collections.abc import Callable, Sequence
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
from transformers import AutoModelForTokenClassification, PreTrainedConfig, Qwen2Config

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, ScheduleSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches
from pentad.weights.block_files import BlockReader
from pentad.weights.critic import critic_config

LOSS = SFTLoss(SFTSettings())
# Biases, a tied embedding, and layers enough for two stages of two chunks each.
DENSE = Qwen2Config(**{**SHAPE, "num_hidden_layers": 4}, tie_word_embeddings=True)
CONFIGS: dict[str, PreTrainedConfig] = {"dense": DENSE, "mixture": MIXTURE["qwen2_moe_dense"]}
CRITICS = {"critic": critic_config(DENSE), "critic mixture": critic_config(MIXTURE["qwen2_moe_dense"])}
STEPS = 6
# Some of query, key and value; gate and up; the router; what is split by its inputs.
LORA_TARGETS = r".*\.(q_proj|v_proj|o_proj|gate|gate_proj|up_proj|down_proj)"


class SquaredError:
    """What a critic learns here."""

    reads = frozenset({"returns"})
    differentiates_entropy = False

    def denominator(self, minibatch: Batch) -> float:
        return float(minibatch.loss_mask.sum())

    def __call__(self, outputs: Any, microbatch: Batch) -> tuple[Tensor, dict[str, Any]]:
        error = (outputs.values - microbatch.per_token["returns"]).square()
        return (error * microbatch.loss_mask).sum(), {}


@dataclass(frozen=True)
class Way:
    """How a model is trained."""

    family: str
    layout: Layout
    distributed: bool = True
    dtype: str = "fp32"
    ddp: dict[str, Any] = field(default_factory=dict, compare=False)
    rank: int = 0

    def __str__(self) -> str:
        lora = f"-lora{self.rank}" if self.rank else ""
        return f"{self.layout}{'' if self.distributed else '-copies'}-{self.dtype}{lora}"

    def trainer(self, rank: Rank, directory: Path) -> Any:
        settings = TrainerSettings(
            total_steps=STEPS,
            dtype=self.dtype,
            optimizer=OptimizerSettings(lr=1e-2, weight_decay=0.1, grad_clip=1.0),
            schedule=ScheduleSettings(name="cosine", warmup_steps=2),
        )
        ddp = {"use_distributed_optimizer": self.distributed, **self.ddp}
        lora = LoraSettings(rank=self.rank, targets=LORA_TARGETS) if self.rank else None
        return rank.trainer(directory, settings, MegatronSettings(ddp=ddp), STEPS, lora)


# Where a trainer stands: `state` by kind and Hugging Face name and `counters` at the end of a step, `metrics` and
# `weights` of the next. A dictionary, since classes of this file are others on the ranks.
Stand = dict[str, Any]


def step(trainer: Any, rank: Rank, batch: Batch) -> dict[str, float]:
    multiple = rank.layout.pipeline if rank.layout.virtual > 1 else 1
    plan = plan_microbatches(batch.lengths, rank.layout.data, 64, multiple=multiple)
    metrics = trainer.forward_backward(batch, plan, SquaredError() if trainer.is_critic else LOSS)
    return metrics | trainer.step()


def whole_state(trainer: Any) -> dict[str, Tensor]:
    """Masters and moments as Megatron's own accessors give them, put together by collectives."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    names = {parameter: name for name, parameter in trainer.parameters() if parameter.requires_grad}
    parts = getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])
    if len({parameter.dtype for parameter in names}) > 1:
        # Megatron's accessors mistake the places of masters where a group has both; the next step shows what they are.
        return {}
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


def work(
    rank: Rank, way: Way, directory: Path, target: Path, sources: list[tuple[Path, Any]], batches: list[Batch]
) -> list[Stand]:
    """Save to `target` and go on; then take the state of that, and of each source, and go on from there."""
    from pentad.trainers.megatron.state import RankState

    trainer = way.trainer(rank, directory)
    for batch in batches[:2]:
        step(trainer, rank, batch)
    staged, counters = RankState(trainer).stage(), RankState(trainer).counters()
    # What is written is what was staged, not what the next step makes of it.
    answers = [stand(trainer, rank, batches)]
    staged.write(target, rank.number)
    torch.distributed.barrier()
    for source, counted in [(target, {"updates": 2, **counters}), *sources]:
        trainer = way.trainer(rank, directory)
        # The state of another run must not shine through.
        step(trainer, rank, batches[1])
        RankState(trainer).load(BlockReader(source), counted)
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
        if family in CRITICS:
            torch.manual_seed(0)
            AutoModelForTokenClassification.from_config(CRITICS[family]).save_pretrained(directory)
        else:
            reference_model(CONFIGS[family]).save_pretrained(directory)
        return directory

    return make


def batch_of(seed: int) -> Batch:
    batch = ragged_batch(seed)
    return batch.with_per_token("returns", torch.linspace(-1, 1, batch.num_tokens) * batch.loss_mask)


BATCHES = [batch_of(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def run(directory_of, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Stand, list[Stand]]]:
    """Trains and saves in some way, and goes on from there and from each of some other ways.

    Returns where the run stood that saved, and where those stand that went on.
    """
    done: dict[Way, tuple[Path, Stand]] = {}

    def make(way: Way, sources: Sequence[Way] = ()) -> tuple[Stand, list[Stand]]:
        for source in sources:
            if source not in done:
                make(source)
        target = tmp_path_factory.mktemp("saved")
        asked = [(folder, stood["counters"]) for folder, stood in map(done.get, sources)]
        answers = run_on(way.layout, work, way, directory_of(way.family), target, asked, BATCHES)
        saved, *others = (merged([answer[number] for answer in answers]) for number in range(2 + len(asked)))
        done[way] = target, saved
        return [saved, *(done[source][1] for source in sources)], others

    return make


D1, D2, T2, P2, C2 = Layout(), Layout(data=2), Layout(tensor=2), Layout(pipeline=2), Layout(context=2)
T2P2, P2V2, T4, D3 = Layout(tensor=2, pipeline=2), Layout(pipeline=2, virtual=2), Layout(tensor=4), Layout(data=3)
E1, E2, X2 = Layout(), Layout(data=2, expert=2), Layout(tensor=2, expert_tensor=2)
T2E2, D4E2 = Layout(tensor=2, expert=2), Layout(data=4, expert=2)
COPIES = Way("dense", D2, distributed=False)
BF16, BF16_COPIES = Way("dense", D2, dtype="bf16"), Way("dense", D2, False, "bf16")
EXPERT_COPIES = Way("mixture", E2, distributed=False)


def lora(family: str, layout: Layout) -> Way:
    return Way(family, layout, rank=4)


# Where to, and from where beside itself. The order has most sources saved before they are asked for.
CASES = [
    (Way("dense", T2P2), [Way("dense", D1)]),
    (Way("dense", D1), [Way("dense", layout) for layout in (T2P2, P2V2, T4)]),
    (Way("dense", T2), [Way("dense", P2), Way("dense", C2)]),
    (Way("dense", D2), [Way("dense", T2), COPIES]),
    (Way("dense", P2), [Way("dense", D2)]),
    (Way("dense", P2V2), [Way("dense", T2)]),
    (Way("dense", D3), [Way("dense", D1)]),
    (COPIES, [Way("dense", P2)]),
    (BF16, [BF16_COPIES]),
    (BF16_COPIES, [BF16]),
    (Way("mixture", X2), [Way("mixture", E2)]),
    (Way("mixture", E1), [Way("mixture", E2), Way("mixture", X2)]),
    (Way("mixture", T2E2), [Way("mixture", E2), Way("mixture", E1)]),
    (Way("mixture", E2), [Way("mixture", T2E2)]),
    (Way("mixture", D4E2), [EXPERT_COPIES]),
    (EXPERT_COPIES, [Way("mixture", D4E2)]),
    (lora("dense", P2), [lora("dense", T2)]),
    (lora("dense", D2), [lora("dense", T2), lora("dense", P2)]),
    (lora("mixture", E1), [lora("mixture", E2), lora("mixture", X2)]),
    (lora("mixture", T2E2), [lora("mixture", E1)]),
    (Way("critic", D2), [Way("critic", T2)]),
    (Way("critic", D1), [Way("critic", P2)]),
    (Way("critic", T2, dtype="bf16"), []),
    (Way("critic mixture", E1), [Way("critic mixture", E2)]),
]


@pytest.mark.parametrize("way, sources", CASES, ids=[f"{case[0].family}-{case[0]}" for case in CASES])
def test_a_run_goes_on(way, sources, run):
    stood, others = run(way, sources)
    for source, before, after in zip([way, *sources], stood, others, strict=True):
        assert after["counters"] == before["counters"] == {"updates": 2, "schedule": 2}
        assert after["state"].keys() == before["state"].keys()
        for name, value in before["state"].items():
            assert torch.equal(after["state"][name], value), f"{name} from {source}"
        assert after["metrics"]["train/lr"] == before["metrics"]["train/lr"]
        if source == way:
            assert after["metrics"] == before["metrics"]
            for name, value in before["weights"].items():
                assert torch.equal(after["weights"][name], value), f"{name} after the next step from {source}"
        elif way.dtype == "fp32":
            assert after["metrics"]["train/loss"] == pytest.approx(before["metrics"]["train/loss"], rel=1e-6)
            assert after["metrics"]["train/grad_norm"] == pytest.approx(before["metrics"]["train/grad_norm"], rel=1e-4)


def begin(rank: Rank, directory: Path, folder: Path, batch: Batch, optimizer: str) -> list[tuple[Any, ...]]:
    """Of saves before the first and the second update: kinds in the file, counters, whether the next step is the same,
    and the dtype of Adam's counts.
    """
    from pentad.kernels.selection import Kernels
    from pentad.trainers.megatron import trainer as trainer_module
    from pentad.trainers.megatron.state import RankState

    trainer_module.select_kernels = lambda *_, **__: Kernels(optimizer=optimizer)
    trainer = Way("dense", rank.layout).trainer(rank, directory)
    state, found = RankState(trainer), []
    state.reserve()
    for updates in range(2):
        target = folder / str(updates)
        target.mkdir()
        counters = state.counters()
        state.stage().write(target, 0)
        metrics = step(trainer, rank, batch)
        weights = {key: value.clone() for key, value in trainer.weights()}
        reader = BlockReader(target)
        state.load(reader, counters)
        same = step(trainer, rank, batch) == metrics
        same = same and all(torch.equal(weights[key], value) for key, value in trainer.weights())
        held = [kind for kind in ("weight", "exp_avg", "exp_avg_sq") if reader.names(kind)]
        steps = {
            one["step"].dtype for part in trainer.optimizer.chained_optimizers for one in part.optimizer.state.values()
        }
        found.append((held, counters, same, steps))
    return found


@pytest.mark.parametrize("optimizer", ["plain", "fused"])
def test_moments_are_there_from_the_first_update_on(optimizer, directory_of, tmp_path):
    ((first, second),) = run_on(D1, begin, directory_of("dense"), tmp_path, BATCHES[0], optimizer)
    assert first == (["weight"], {"updates": 0, "schedule": 0}, True, {torch.float32})
    assert second == (["weight", "exp_avg", "exp_avg_sq"], {"updates": 1, "schedule": 1}, True, {torch.float32})


def refusals(rank: Rank, directories: list[Path], folder: Path, batch: Batch) -> list[str]:
    """What is said of files that do not serve, and of optimizers that cannot be saved."""
    from pentad.errors import UserError
    from pentad.trainers.megatron.state import RankState

    dense, mixture = (
        Way(family, rank.layout).trainer(rank, one) for family, one in zip(CONFIGS, directories, strict=True)
    )
    state, said = RankState(dense), []
    target = folder / "dense"
    if rank.number == 0:
        target.mkdir()
    torch.distributed.barrier()
    state.stage().write(target, rank.number)
    torch.distributed.barrier()

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
            said.append("nothing")
        except (UserError, ValueError) as error:
            said.append(str(error))

    updates = {"updates": 3, "schedule": 3}
    attempt(lambda: state.load(BlockReader(target), updates))
    attempt(lambda: RankState(mixture).load(BlockReader(target), updates))
    torch.distributed.barrier()
    if rank.number == 0:
        (target / "rank-00000.safetensors").unlink()
    torch.distributed.barrier()
    attempt(lambda: state.load(BlockReader(target), {"updates": 0, "schedule": 0}))
    attempt(lambda: RankState(rank.trainer(directories[0], optimizer_steps=None)))
    part = dense.optimizer.chained_optimizers[0]
    part.config.use_precision_aware_optimizer = True
    attempt(lambda: RankState(dense))
    part.config.use_precision_aware_optimizer = False
    part.optimizer.param_groups[0]["amsgrad"] = True
    attempt(lambda: RankState(dense))
    return said


def test_what_cannot_be_taken_or_saved_is_refused(directory_of, tmp_path):
    directories = [directory_of(family) for family in CONFIGS]
    # The first rank lacks its half of the embedding; the second has its own, and lacks norms, which the first wrote.
    missing = ("are missing", "has no weight of model.layers.0.input_layernorm.weight")
    for said, lost in zip(run_on(T2, refusals, directories, tmp_path, BATCHES[0]), missing, strict=True):
        for text, part in zip(
            said,
            (
                "has no exp_avg of model.",
                "has no weight of model.",
                lost,
                "a model that is never trained has no state",
                "cannot hold the state of a precision-aware optimizer",
                "cannot hold the state of the optimizer AdamW",
            ),
            strict=True,
        ):
            assert part in text

"""All layouts that a model permits on a number of GPUs, in the order of their predicted speed.

Invariant: every listed layout is legal for the model and uses all GPUs; each does the same work in a step, so that
their times can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pentad.families.facts import ModelFacts
from pentad.layout.cluster_checks import check_cluster, check_microbatches, check_projections
from pentad.layout.layout import Layout
from pentad.layout.validate import check_layout
from pentad.planning.coefficients import GIB
from pentad.planning.cost import StepTime, predict_time
from pentad.planning.gpus import Gpu
from pentad.planning.memory import RankMemory, Workload, predict_peak

# Larger sizes are seldom useful, and would slow the search.
_VIRTUAL = (1, 2, 4)
_MOST_CONTEXT = 16

_BLAME = {
    "tensor": "gathering and scattering of t{0.tensor}",
    "context": "exchanges of c{0.context}",
    "expert": "moving tokens to experts over e{0.expert}",
    "pipeline": "waiting in p{0.pipeline}",
    "data": "reducing gradients over {1} replicas",
    "optimizer": "the optimizer's step",
    "critic": "scoring and training of the critic",
}


@dataclass(frozen=True)
class Candidate:
    """A legal layout and what is predicted for it.

    Attributes:
        microbatches: of one step on one data-parallel rank.
        peak: the rank that needs most memory.
        excess: bytes by which it passes the GPU's memory; 0 or less where it fits.
    """

    layout: Layout
    microbatches: int
    time: StepTime
    peak: RankMemory
    excess: int

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the GPU's memory."""
        return self.excess <= 0

    def reason(self, best: "Candidate | None" = None) -> str:
        """The reason for its place in the ranking, in a few words. `best` is the fastest that fits."""
        if not self.fits:
            part, size = max(self.peak.components.items(), key=lambda item: item[1])
            return f"{size_text(self.excess)} too much; most is {part}, {size / GIB:.1f} GiB"
        times = self.time.parts
        if best is None or best is self:
            shares = [(times["compute"], "computing"), self._blame(times)]
            (most, what), (less, other) = sorted(shares, reverse=True)
            return f"fastest: {self._share(most)} of the step is {what}; next is {other}, {self._share(less)}"
        slower = self.time.total / best.time.total - 1
        grown = {name: seconds - best.time.parts[name] for name, seconds in times.items()}
        if max(grown, key=lambda name: grown[name]) == "compute":
            return f"+{slower:.1%}: the slowest stage computes more ({self._slowest()})"
        seconds, what = self._blame(grown)
        return f"+{slower:.1%}: {what}, {self._share(seconds)} of the step"

    def _blame(self, times: dict[str, float]) -> tuple[float, str]:
        """Of the parts besides computing the one with the largest time in `times`: its seconds, and it in words."""
        part = max((name for name in times if name != "compute"), key=lambda name: times[name])
        return self.time.parts[part], _BLAME[part].format(self.layout, self.layout.data * self.layout.context)

    def _share(self, seconds: float) -> str:
        return f"{seconds / self.time.total:.1%}"

    def _slowest(self) -> str:
        layout = self.layout
        if layout.pipeline > 1:
            return f"p{layout.pipeline} divides the layers and the output layer less evenly"
        return "microbatches do not come out even, or kernels are too small for the GPU"


def size_text(size: int) -> str:
    """Bytes in GiB, or in MiB where that would read as 0.0."""
    return f"{size / GIB:.1f} GiB" if size >= 0.05 * GIB else f"{size / 2**20:.1f} MiB"


def rank_layouts(facts: ModelFacts, gpus: int, gpu: Gpu, work: Workload, step_tokens: int) -> list[Candidate]:
    """Every legal layout on that many GPUs: those that fit, fastest first, then the others, the nearest first.

    Args:
        work: all but the number of microbatches, which follows from the layout.
        step_tokens: tokens of one optimizer step over all GPUs.
    """
    candidates = [_candidate(facts, layout, gpu, work, step_tokens) for layout in legal_layouts(facts, gpus, gpu)]
    return sorted(candidates, key=lambda item: (not item.fits, item.time.total if item.fits else item.excess))


def legal_layouts(facts: ModelFacts, gpus: int, gpu: Gpu) -> Iterator[Layout]:
    """Layouts of that many GPUs that the model permits and whose tensor-parallel groups stay inside a machine."""
    for tensor in _divisors(gpus):
        for context in _divisors(gpus // tensor):
            # Neither depends on the other dimensions.
            narrow = Layout(tensor=tensor, context=context)
            if tensor > gpu.per_node or context > _MOST_CONTEXT or not _legal(facts, narrow):
                continue
            for pipeline in _divisors(gpus // tensor // context):
                if pipeline > facts.num_layers:
                    continue
                data = gpus // tensor // context // pipeline
                for expert, expert_tensor in _expert_sizes(facts, gpus // pipeline, tensor):
                    for virtual in _VIRTUAL if pipeline > 1 else (1,):
                        layout = Layout(data, tensor, pipeline, context, expert, expert_tensor, virtual)
                        if _legal(facts, layout) and not check_cluster(layout, gpu.per_node):
                            yield layout


def _legal(facts: ModelFacts, layout: Layout) -> bool:
    return not check_layout(facts, layout) and not check_projections(facts, layout)


def _expert_sizes(facts: ModelFacts, ranks: int, tensor: int) -> Iterator[tuple[int, int]]:
    """Expert and expert-tensor sizes worth looking at: experts are whole, or split as dense layers are."""
    if facts.num_experts is None:
        yield 1, 1
        return
    for expert_tensor in sorted({1, tensor}):
        for expert in _divisors(ranks // expert_tensor):
            if facts.num_experts % expert == 0:
                yield expert, expert_tensor


def _candidate(facts: ModelFacts, layout: Layout, gpu: Gpu, work: Workload, step_tokens: int) -> Candidate:
    microbatches = max(1, -(-step_tokens // (work.tokens * layout.data)))
    if check_microbatches(layout, microbatches):
        microbatches = -(-microbatches // layout.pipeline) * layout.pipeline
    own = replace(work, microbatches=microbatches)
    peak = predict_peak(facts, layout, own)
    excess = peak.total - int(gpu.memory_gib * GIB)
    time = predict_time(facts, layout, own, gpu, step_tokens=step_tokens)
    return Candidate(layout, microbatches, time, peak, excess)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]

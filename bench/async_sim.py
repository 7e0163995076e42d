"""How long a step takes when engines generate while the trainer trains: a simulation of N GPUs in virtual time.

    python bench/async_sim.py                                   # 64 GPUs, max_staleness 0, 1, 2 and 4
    python bench/async_sim.py --gpus 16 --engine-gpus 4 8 12 --publish-s 1.5
    python bench/async_sim.py --run runs/quickstart             # lengths and times of a run; --html FILE for pictures

The slots are Pentad's own (`pentad.loops.experience.Experience`); engines, trainer and publications are waits. An
engine makes a token of each of its k requests in `--decode-ms` + k * `--decode-ms-per-request`, at most `--capacity` at
once. Training takes `--train-us` a token and GPU, and `--train-fixed-s` a step. A publication pauses the engines for
`--publish-s`. Lengths of responses are log-normal, cut off at `--max-length`; samples of a prompt go to the engine with
the least to do. Of the shares of GPUs in `--engine-gpus` the fastest is told. `shared` is a run whose engines and
trainer take turns on all GPUs.

Measured (docs/benchmarks.md, H200, Qwen2.5-3B, `trainer.kernels=torch`): the default of `--train-us`, a pass with
gradient (35 us a token) and one forward pass for log-probs (11 us), at any number of GPUs. All other defaults are
assumptions.
"""

import argparse
import asyncio
import heapq
import json
import random
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean, median

import torch
import yaml
from virtual_time import VirtualTimeLoop

from pentad.data.rows import PromptRow
from pentad.loops.experience import Experience
from pentad.loops.group import Group
from pentad.record.occupancy import lanes_of, utilisation
from pentad.record.phases import SYNC
from pentad.record.spans import Lane, Row, join_lanes, read_spans
from pentad.record.timeline import Timeline, Window
from pentad.record.timeline_chart import picture

_STALENESS = (0, 1, 2, 4)


@dataclass(frozen=True)
class World:
    """What is simulated; the fields are the options of the same names."""

    gpus: int = 64
    engine_gpus: int = 32
    gpus_per_engine: int = 1
    prompts: int = 128
    n: int = 8
    prompt_tokens: int = 256
    length: float = 1500.0
    sigma: float = 0.8
    max_length: int = 8192
    decode_ms: float = 8.0
    decode_ms_per_request: float = 0.04
    capacity: int = 256
    train_us: float = 46.0
    train_fixed_s: float = 1.0
    publish_s: float = 2.0
    reward_s: float = 0.05
    shared: bool = False
    steps: int = 24
    seed: int = 0

    @property
    def trainer_gpus(self) -> int:
        """GPUs that train: the others, or all where they are shared."""
        return self.gpus if self.shared else self.gpus - self.engine_gpus


class Engine:
    """Requests that get the same number of tokens a second each; those above the capacity wait."""

    def __init__(self, world: World, name: str, timeline: Timeline) -> None:
        self._world, self._name, self._timeline = world, name, timeline
        # Of each request that runs: how many tokens every request has got when this one is finished.
        self._running: list[tuple[float, int, asyncio.Future[None]]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._given, self._at, self._number = 0.0, 0.0, 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._span: int | None = None
        self.load = 0

    async def generate(self, tokens: int) -> None:
        """Take as long as a response of so many tokens."""
        future = asyncio.get_running_loop().create_future()
        self._advance()
        self._waiting.append((tokens, future))
        self._plan()
        await future
        self.load -= self._world.max_length

    def pause(self, paused: bool) -> None:
        """Stop, or go on."""
        self._advance()
        self._paused = paused
        self._plan()

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._running and not self._paused:
            self._given += (now - self._at) / self._token_s
        self._at = now

    def _plan(self) -> None:
        while self._waiting and len(self._running) < self._world.capacity:
            tokens, future = self._waiting.pop(0)
            self._number += 1
            heapq.heappush(self._running, (self._given + tokens, self._number, future))
        generates = bool(self._running) and not self._paused
        if generates and self._span is None:
            self._span = self._timeline.begin(self._name, "generation")
        elif not generates and self._span is not None:
            self._timeline.end(self._span)
            self._span = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if generates:
            left = max(0.0, self._running[0][0] - self._given) * self._token_s
            self._timer = asyncio.get_running_loop().call_later(left, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._running and self._running[0][0] <= self._given + 1e-6:
            heapq.heappop(self._running)[2].set_result(None)
        self._plan()

    @property
    def _token_s(self) -> float:
        """Seconds for one token of each request that runs."""
        return (self._world.decode_ms + self._world.decode_ms_per_request * len(self._running)) / 1e3


@dataclass(frozen=True)
class Result:
    """Of the steps after the first quarter."""

    seconds: float
    tokens_per_s: float
    shares: dict[str, float]
    row: Row


class Simulation:
    """One run."""

    def __init__(self, world: World, max_staleness: int) -> None:
        self._world, self._staleness = world, max_staleness
        self.timeline = Timeline(asyncio.get_running_loop().time)
        count = max(1, (world.gpus if world.shared else world.engine_gpus) // world.gpus_per_engine)
        self._engine_names = [f"rollout engine {rank}" for rank in range(count)]
        self._engines = [Engine(world, name, self.timeline) for name in self._engine_names]
        self._ranks = [f"trainer rank {rank}" for rank in range(world.trainer_gpus)]
        self._tokens: dict[int, int] = {}

    async def run(self) -> Result:
        """All steps; a step is what it is in `pentad.loops.loop`."""
        experience = Experience(self._sample, lambda group: True, self._world.prompts, self._staleness)
        first = self._world.steps // 4
        times, tokens, windows = [], [], []
        for _ in range(self._world.steps):
            groups = await experience.take()
            trained = sum(self._tokens.pop(int(group.prompt[0])) for group in groups)
            with self.timeline.span(self._ranks, "training"):
                compute = trained * self._world.train_us / 1e6 / self._world.trainer_gpus
                await asyncio.sleep(self._world.train_fixed_s + compute)
            await self._publish()
            await experience.release()
            window = self.timeline.cut()
            times.append(window.seconds)
            tokens.append(trained)
            windows.append(window)
        await experience.close()
        times, tokens, windows = times[first:], tokens[first:], windows[first:]
        shares = [utilisation(lanes_of(window), window.seconds) for window in windows]
        usual = sorted(windows, key=lambda window: window.seconds)[len(windows) // 2]
        return Result(
            fmean(times),
            sum(tokens) / sum(times) / self._world.gpus,
            {name: fmean(share[name] for share in shares) for name in shares[0]},
            _row(usual),
        )

    async def _sample(self, number: int) -> Group:
        world, chance = self._world, random.Random(f"{self._world.seed}-{number}")
        # The mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2).
        scale = world.length * 2.718281828459045 ** (-(world.sigma**2) / 2)
        lengths = [
            min(world.max_length, max(1, int(scale * chance.lognormvariate(0, world.sigma)))) for _ in range(world.n)
        ]
        engine = min(self._engines, key=lambda engine: engine.load)
        engine.load += world.n * world.max_length  # lengths are not known before
        await asyncio.gather(*map(engine.generate, lengths))
        with self.timeline.span(["rewards"], "rewards"):
            await asyncio.sleep(world.reward_s)
        self._tokens[number] = sum(lengths) + world.n * world.prompt_tokens
        return Group(PromptRow(id=str(number), prompt=""), torch.tensor([number]), (), (), ())

    async def _publish(self) -> None:
        for engine in self._engines:
            engine.pause(True)
        with self.timeline.span([*self._engine_names, *self._ranks], SYNC):
            await asyncio.sleep(self._world.publish_s)
        for engine in self._engines:
            engine.pause(False)


def simulate(world: World, max_staleness: int) -> Result:
    """The steps of a run in virtual time."""

    async def main() -> Result:
        return await Simulation(world, max_staleness).run()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def _row(window: Window) -> Row:
    return Row(0, False, window.seconds, tuple(join_lanes(lanes_of(window), window.seconds)))


def draw(row: Row, width: int = 72) -> str:
    """The usual step as text: of each kind of process the share that is at work, 0 (blank) to all (a full block)."""
    lines = []
    marks = {"rollout engine": "generation", "trainer rank": "training"}
    for kind, phase in marks.items():
        lanes = [lane for lane in row.lanes if lane.who == kind]
        total = sum(map(_size, lanes))
        busy = [0.0] * width
        for lane in lanes:
            for name, begin, end in lane.parts:
                if name == phase:
                    for cell in range(width):
                        low, high = cell * row.seconds / width, (cell + 1) * row.seconds / width
                        inside = max(0.0, min(end, high) - max(begin, low)) / (high - low)
                        busy[cell] += inside * _size(lane) / total
        text = "".join(" ▁▂▃▄▅▆▇█"[min(8, round(8 * share))] for share in busy)
        lines.append(f"  {phase:<11}|{text}|")
    return "\n".join([*lines, f"  {'':<11} 0{'s':<{width - 8}}{row.seconds:>6.1f}s"])


def _size(lane: Lane) -> int:
    return max(1, len(lane.ranks))


def of_run(world: World, directory: Path) -> World:
    """The world of a run that was made: its lengths, and its medians of training and publication.

    Decoding is made as fast as it must be for a synchronous step to generate as long as the run did.
    """
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("time/rollout")]
    rows = rows[len(rows) // 4 :]  # the first steps warm up

    def middle(name: str) -> float:
        return median(row[name] for row in rows if row.get(name) is not None)

    spans = [row for row in read_spans(directory / "spans.jsonl", []) if not row.after]
    counts = [max(len(_ranks(row, kind)) for row in spans) for kind in ("trainer rank", "rollout engine")]
    ranks, engines = counts
    tokens = median(row["perf/tokens_per_s"] * row["time/step"] for row in rows)
    trained = median(row["util/trainer"] * row["time/step"] for row in rows)
    prompts, n, length = (
        settings["trainer"]["prompts_per_step"],
        settings["rollout"]["n"],
        middle("rollout/response_length_mean"),
    )
    world = replace(
        world,
        gpus=engines + ranks,
        engine_gpus=engines,
        prompts=prompts,
        n=n,
        prompt_tokens=max(1, round(tokens / (prompts * n) - length)),
        length=length,
        max_length=settings["rollout"]["max_response_tokens"],
        train_us=trained * ranks / tokens * 1e6,
        train_fixed_s=0.0,
        publish_s=middle("time/sync"),
        reward_s=0.0,
    )
    measured = middle("time/rollout")
    for _ in range(6):
        row = simulate(replace(world, steps=8), 0).row
        generated = max(end for lane in row.lanes for name, _, end in lane.parts if name == "generation")
        factor = measured / generated
        world = replace(
            world, decode_ms=world.decode_ms * factor, decode_ms_per_request=world.decode_ms_per_request * factor
        )
    return world


def _ranks(row: Row, kind: str) -> list[int]:
    return [rank for lane in row.lanes if lane.who == kind for rank in lane.ranks]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(World()).items():
        if name in ("engine_gpus", "shared"):
            continue
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=None)
    parser.add_argument("--engine-gpus", type=int, nargs="+", help="default: an eighth of the GPUs, two eighths, ...")
    parser.add_argument("--max-staleness", type=int, nargs="+", default=_STALENESS)
    parser.add_argument("--run", type=Path, help="directory of a run with engines on devices of their own")
    parser.add_argument("--html", type=Path, help="write pictures there")
    return parser.parse_args()


def main() -> None:
    """Print a table, and a usual step of each row."""
    options = _options()
    world = World() if options.run is None else of_run(World(), options.run)
    given = {name: getattr(options, name, None) for name in vars(world) if name != "engine_gpus"}
    world = replace(world, **{name: value for name, value in given.items() if value is not None})
    eighths = [world.gpus * part // 8 for part in range(1, 8)]
    splits = options.engine_gpus or ([world.engine_gpus] if options.run else sorted({*eighths} - {0}))
    print(f"{world.gpus} GPUs, {world.prompts} x {world.n} samples a step of about {world.length:g} tokens")
    print(f"{'max_staleness':>13}  engines  trainer    s/step  tokens/s/GPU  engines busy  trainer busy")
    pictures: list[tuple[str, str]] = []
    # Engines and trainer share all GPUs and take turns; what sleep and waking take is not counted.
    runs = [(0, [replace(world, shared=True)])]
    runs += [(stale, [replace(world, engine_gpus=split) for split in splits]) for stale in options.max_staleness]
    for stale, worlds in runs:
        result, best = max(((simulate(one, stale), one) for one in worlds), key=lambda pair: pair[0].tokens_per_s)
        name, engines = f"{stale}" + (", shared" if best.shared else ""), best.gpus if best.shared else best.engine_gpus
        print(
            f"{name:>13} {engines:>8} {best.trainer_gpus:>8} {result.seconds:>9.2f} {result.tokens_per_s:>13,.0f} "
            f"{result.shares['util/engines']:>13.1%} {result.shares['util/trainer']:>13.1%}"
        )
        print(draw(result.row))
        pictures.append((f"max_staleness {name}: {result.seconds:.3g} s a step", picture(result.row).svg))
    if options.html is not None:
        options.html.write_text(_page(pictures), encoding="utf-8")


def _page(pictures: list[tuple[str, str]]) -> str:
    colors = ["#2a6fdb", "#e0752d", "#2f9e77", "#a855c4", "#8d9299", "#c9a300", "#1aa3b8", "#d1495b"]
    variables = "".join(f"--series-{i}: {color};" for i, color in enumerate(colors, start=1))
    body = "".join(f"<h2>{escape(title)}</h2>{svg}" for title, svg in pictures)
    style = f":root {{{variables} --ink-soft: #444; --grid: #ddd}} svg {{width: 100%; max-width: 50rem; height: auto}}"
    return f'<!doctype html><meta charset="utf-8"><title>Simulated steps</title><style>{style}</style>{body}'


if __name__ == "__main__":
    main()

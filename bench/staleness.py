"""What staleness costs in learning, and what importance weights win back: reward curves over several seeds.

Trains the quickstart's task, each seed in the same ways: synchronous; stale with importance weights; stale without
them, with old log-probs recomputed by the trainer (which hides staleness, as every ratio is then 1); and stale with
ratios to what sampled. Only `trainer.max_staleness` and `algorithm.*` differ.

    python bench/staleness.py --seeds 5 --staleness 4
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

REPOSITORY = Path(__file__).parent.parent
WAYS = {
    "synchronous": [],
    "weighted": ["algorithm.correction.level=token"],
    "hidden": ["algorithm.correction.level=none"],
    "ratio to what sampled": ["algorithm.old_logprobs=rollout"],
}
LABELS = {
    "synchronous": "synchronous",
    "weighted": "stale, importance weights",
    "hidden": "stale, old log-probs recomputed, no weights",
    "ratio to what sampled": "stale, ratio to what sampled",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--staleness", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/staleness"))
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "results" / "staleness.svg")
    parser.add_argument("overrides", nargs="*", help="further settings of every run")
    options = parser.parse_args()
    found: dict[str, list[dict[str, list[float]]]] = {way: [] for way in options.ways}
    for seed in range(options.seeds):
        for way in options.ways:
            run = train(options, way, seed)
            found[way].append(read(run))
            last = found[way][-1]
            print(f"seed {seed}  {way:22}  reward at the end {fmean(last['reward/mean'][-5:]):.3f}", flush=True)
    summary = {way: summarize(runs) for way, runs in found.items()}
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    facts = {"staleness": options.staleness, "steps": options.steps, "overrides": options.overrides, "ways": summary}
    options.picture.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    draw(found, options.staleness, options.picture)
    for way, facts in summary.items():
        print(
            f"{LABELS[way]}: "
            + ", ".join(f"{name} {mean:.3f} +- {spread:.3f}" for name, (mean, spread) in facts.items())
        )


def train(options: argparse.Namespace, way: str, seed: int) -> Path:
    """One run; one that is there already is taken."""
    run = options.out / f"{way.replace(' ', '-')}-{seed}"
    if not (run / "outcome.json").exists():
        staleness = 0 if way == "synchronous" else options.staleness
        command = [sys.executable, "-m", "pentad.cli", "train", "examples/quickstart.yaml"]
        command += ["allocation=hf:d1+megatron:d1", f"experiment.dir={run.absolute()}", f"experiment.seed={seed}"]
        command += [f"trainer.max_staleness={staleness}", f"trainer.total_steps={options.steps}", "trainer.save_freq=0"]
        command += ["trainer.logger=[]", "trainer.export=false", *WAYS[way], *options.overrides]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{way}, seed {seed}: {done.stderr}")
    return run


def read(run: Path) -> dict[str, list[float]]:
    """Each metric by step."""
    series: dict[str, list[float]] = {}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in row.items():
            series.setdefault(name, []).append(value)
    return series


def summarize(runs: list[dict[str, list[float]]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds."""
    values = {
        "held-out accuracy": [run["eval/sort/accuracy"][-1] for run in runs],
        "reward, last 5 steps": [fmean(run["reward/mean"][-5:]) for run in runs],
        "reward, all steps": [fmean(run["reward/mean"]) for run in runs],
        "staleness": [fmean(run.get("staleness/mean", [0.0])) for run in runs],
        "effective samples": [fmean(run.get("importance/ess", [1.0])) for run in runs],
    }
    return {name: (fmean(mine), pstdev(mine)) for name, mine in values.items()}


def draw(found: dict[str, list[dict[str, list[float]]]], staleness: int, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for way, runs in found.items():
        steps = range(1, min(len(run["reward/mean"]) for run in runs) + 1)
        columns = [[run["reward/mean"][step - 1] for run in runs] for step in steps]
        means, spreads = [fmean(column) for column in columns], [pstdev(column) for column in columns]
        (line,) = axes.plot(steps, means, label=LABELS[way])
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xlabel="step", ylabel="reward", ylim=(0, 1), title=f"Quickstart task, trainer.max_staleness = {staleness}")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

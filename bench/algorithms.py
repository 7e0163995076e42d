"""Reward curves of every algorithm on the quickstart's task, in one picture.

    python examples/quickstart/prepare.py && pentad train examples/quickstart/sft.yaml
    python bench/algorithms.py                 # all of them, about a minute each on two cores
    python bench/algorithms.py --only DAPO PPO # these; the others stay as they are in the file
    python bench/algorithms.py --only          # the picture alone

Each run is examples/quickstart.yaml (DPO: examples/quickstart/dpo.yaml) with the overrides below, 25 steps, evaluated
every five. Writes docs/results/algorithms.json and .svg.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "docs" / "results"
_COMMON = {"trainer.total_steps": "25", "trainer.test_freq": "5"}
# Name of a curve -> configuration, algorithm, overrides.
_RL = "quickstart.yaml"
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "GRPO": (_RL, "grpo", []),
    "Dr. GRPO": (_RL, "dr_grpo", []),
    # Later all groups have equal rewards, and none is left to train on.
    "DAPO": (_RL, "dapo", ["trainer.total_steps=20"]),
    "RLOO": (_RL, "rloo", []),
    "REINFORCE++": (_RL, "reinforce_pp", []),
    "REINFORCE++ baseline": (
        _RL,
        "reinforce_pp",
        [
            "algorithm.group_baseline=true",
            "algorithm.kl_coef=0.001",
            "algorithm.kl_in=loss",
            "algorithm.kl_estimator=k2",
        ],
    ),
    "GSPO": (_RL, "gspo", ["algorithm.optimizer_steps=2"]),
    "CISPO": (_RL, "cispo", ["algorithm.optimizer_steps=2"]),
    "PPO": (_RL, "ppo", ["critic.optimizer.lr=1e-3", "critic.schedule.warmup_steps=8"]),
    "DPO": ("quickstart/dpo.yaml", "dpo", []),
}
REWARD, EVALUATED = "reward/mean", "eval/sort/reward"


def run(name: str, out: Path, *, read: bool) -> dict[str, Any]:
    """Train, and read the curves off the run's metrics; with `read`, those of a run that has been."""
    config, algorithm, overrides = RUNS[name]
    folder = out / name.lower().replace(" ", "_").replace(".", "")
    chosen = {**_COMMON, **dict(text.split("=") for text in overrides)}
    overrides = [f"algorithm.name={algorithm}", *(f"{key}={value}" for key, value in chosen.items())]
    own = [f"experiment.dir={folder}", "experiment.overwrite=true"]
    if not read:
        subprocess.run(
            [sys.executable, "-m", "pentad.cli", "train", str(REPOSITORY / "examples" / config), *overrides, *own],
            check=True,
        )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curves = {
        metric: [[row["step"], round(row[metric], 4)] for row in rows if row.get(metric) is not None]
        for metric in (REWARD, EVALUATED)
    }
    return {"config": f"examples/{config}", "overrides": overrides, **curves}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Rewards of the samples of each step, and of greedy answers to held-out problems."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "pentad", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = {REWARD: "reward of the step's samples", EVALUATED: "reward of greedy answers to held-out problems"}
        for place, (metric, title) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, 2, place)
            for number, (name, result) in enumerate(results.items()):
                if points := result[metric]:
                    color = matplotlib.colormaps["tab10"](number % 10)
                    axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.4)
            axes.set(title=title, xlabel="step", ylim=(0, 1.02))
        figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def main() -> None:
    parser = argparse.ArgumentParser(description="reward curves of every algorithm")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"), help="folder of the runs")
    parser.add_argument("--read", action="store_true", help="train nothing; read runs that are in --out")
    parser.add_argument("--json", type=Path, default=RESULTS / "algorithms.json")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in arguments.only:
        found[name] = run(name, arguments.out, read=arguments.read)
        arguments.json.write_text(json.dumps(found) + "\n")
        print(f"{name}: {found[name][EVALUATED][0][1]} -> {found[name][EVALUATED][-1][1]}", flush=True)
    found = {name: found[name] for name in RUNS if name in found}
    arguments.json.write_text(json.dumps(found) + "\n")
    draw(found, arguments.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()

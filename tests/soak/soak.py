"""Kill a run again and again, go on with it each time, and compare what comes of it with a run that nobody killed.

    python tests/soak/soak.py --kills 60 [--seed 1] [--allocation 'hf:d1+megatron:d1'] [--out runs/soak]

Each kill is SIGKILL, of the driver, a trainer rank, a rollout engine, or every process of the run, Ray's too, at a
random moment; a share of them waits until a checkpoint is being written. Then the same command is started again. At the
end the metrics of all steps and the exported weights must be those of the run without kills, bit for bit. Prints kills
by victim and phase; exits 1 where something differs, or a run goes on from another step than its newest checkpoint's.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "harness")]

from command import Command  # noqa: E402

from pentad.record.checkpoints import Checkpoints, sound  # noqa: E402

VICTIMS = {"driver": None, "trainer rank": "ray::TrainerActor", "engine": "ray::EngineActor", "all": "all"}
# What says how fast a machine is, and how often a disk was full, is not part of a run's result.
_UNCOMPARED = ("time/", "perf/", "save/", "util/")
_WAIT_S = 300.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--allocation", default="hf:d1+megatron:d1")
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare = [sys.executable, REPOSITORY / "examples" / "quickstart" / "prepare.py", "--out", folder / "data"]
    experts = ["--experts", str(options.experts)] if options.experts else []
    subprocess.run([*prepare, *experts], check=True, stdout=subprocess.DEVNULL)
    config = write_config(folder, options.allocation, options.steps)
    print("a run without kills", flush=True)
    whole = Command(folder, "train", str(config), "experiment.dir=whole")
    if whole.ends_within(900) != 0:
        print(whole.stdout + whole.stderr)
        return 1
    soak = Soak(folder, config, random.Random(options.seed))
    for number in range(options.kills):
        if not soak.kill(number):
            print(f"the run was finished before kill {number + 1}; raise --steps")
            break
    soak.finish()
    return soak.report()


def write_config(folder: Path, allocation: str, steps: int) -> Path:
    # Depends on every character, so that groups hold different rewards.
    (folder / "scoring.py").write_text(
        "def score(response):\n"
        "    return sum((place + 1) * ord(letter) for place, letter in enumerate(response)) % 11 / 10\n"
    )
    config = folder / "soak.yaml"
    config.write_text(f"""
experiment: {{name: soak, dir: run}}
allocation: "{allocation}"
model: {{path: {folder}/data/model}}
data: {{train: {folder}/data/train.jsonl, eval: {{sort: {folder}/data/eval.jsonl}}, eval_limit: 16, template: text}}
reward: {{name: "scoring.py:score"}}
rollout: {{n: 4, max_response_tokens: 8}}
trainer: {{total_steps: {steps}, prompts_per_step: 8, save_freq: 3, test_freq: 5, optimizer: {{lr: 1.0e-3}}}}
""")
    return config


class Soak:
    """A run that is killed.

    Attributes:
        kills: by victim and phase.
        problems: what should not have happened.
    """

    def __init__(self, folder: Path, config: Path, chance: random.Random) -> None:
        self._folder, self._config, self._chance = folder, config, chance
        self._run = folder / "run"
        self.kills: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []

    def kill(self, number: int) -> bool:
        """Start the run, kill something of it; False where the run ended by itself."""
        before = self._newest()
        command = self._start()
        victim = self._chance.choice(list(VICTIMS))
        if not self._wait_for_the_moment(command):
            return False
        phase = self._phase(command)
        if victim == "all":
            command.kill()
        elif victim == "driver":
            command.process.kill()
        elif (process := command.find_worker(VICTIMS[victim] or "")) is not None:
            process.kill()
        else:
            victim, phase = "driver", "start-up"
            command.process.kill()
        try:
            command.ends_within(_WAIT_S)
        except AssertionError as error:
            self.problems.append(f"kill {number + 1} of {victim}: {error}")
            command.kill()
        said = re.search(r"while: (\S+)", command.stderr)
        if said and phase != "save":
            phase = said[1]
        self.kills[victim, phase] += 1
        self._check(number, before, command)
        print(f"kill {number + 1}: {victim} during {phase}; checkpoint {self._newest()}", flush=True)
        return True

    def finish(self) -> None:
        """Let the run end."""
        command = self._start()
        if (code := command.ends_within(900)) != 0:
            self.problems.append(f"the last start ended with {code}: {command.stderr}")

    def report(self) -> int:
        """Print what happened; returns the exit code."""
        self.problems += list(differences(self._folder / "whole", self._run))
        victims, phases = (sorted({key[index] for key in self.kills}) for index in (0, 1))
        print(f"\n{self.kills.total()} kills\n{'':14}" + "".join(f"{phase:>12}" for phase in phases))
        for victim in victims:
            print(f"{victim:14}" + "".join(f"{self.kills[victim, phase]:12}" for phase in phases))
        for problem in self.problems:
            print(f"PROBLEM: {problem}")
        if not self.problems:
            print("metrics of all steps and final weights equal those of the run without kills, bit for bit")
        return 1 if self.problems else 0

    def _start(self) -> Command:
        return Command(self._folder, "train", str(self._config))

    def _newest(self) -> int:
        return max(Checkpoints(self._run / "checkpoints").steps(), default=0)

    def _wait_for_the_moment(self, command: Command) -> bool:
        """A random time after the start, or the next time that a checkpoint is being written."""
        end = time.monotonic() + _WAIT_S
        if self._chance.random() < 0.15:  # somewhere in the start
            time.sleep(self._chance.uniform(0.0, 12.0))
            return command.process.poll() is None
        step = self._steps()
        while self._steps() == step and command.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if self._chance.random() < 0.4:
            while not self._saving() and command.process.poll() is None and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(self._chance.uniform(0.0, 0.03))
        else:
            time.sleep(self._chance.uniform(0.0, 2.0))
        return command.process.poll() is None

    def _steps(self) -> int:
        metrics = self._run / "metrics.jsonl"
        return metrics.stat().st_mtime_ns if metrics.exists() else 0

    def _saving(self) -> bool:
        checkpoints = self._run / "checkpoints"
        return checkpoints.is_dir() and any(path.name.endswith(".partial") for path in checkpoints.iterdir())

    def _phase(self, command: Command) -> str:
        if self._saving():
            return "save"
        return "a step" if "weights go to" in command.stdout else "start-up"

    def _check(self, number: int, before: int, command: Command) -> None:
        for path in Checkpoints(self._run / "checkpoints").steps().values():
            try:
                sound(path)
            except Exception as error:
                self.problems.append(f"kill {number + 1}: {error}")
        if self._newest() < before:
            self.problems.append(
                f"kill {number + 1}: the newest checkpoint went back from {before} to {self._newest()}"
            )
        went_on = re.search(r"going on after step (\d+)", command.stdout)
        if went_on and int(went_on[1]) != before:
            self.problems.append(f"kill {number + 1}: went on after step {went_on[1]}, not {before}")


def differences(whole: Path, killed: Path):
    """What differs between the results of two runs."""
    rows = [read(path / "metrics.jsonl") for path in (whole, killed)]
    if len(rows[0]) != len(rows[1]):
        yield f"{len(rows[0])} rows of metrics without kills, {len(rows[1])} with"
    for one, other in zip(*rows, strict=False):
        if one != other:
            names = [name for name in {*one, *other} if one.get(name) != other.get(name)]
            yield f"step {one['step']}: {', '.join(sorted(names))} differ"
            break
    weights = [path / "model" / "model.safetensors" for path in (whole, killed)]
    if not all(file.exists() for file in weights) or weights[0].read_bytes() != weights[1].read_bytes():
        yield "the exported weights differ"


def read(path: Path) -> list[dict[str, float]]:
    rows = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in row.items() if not name.startswith(_UNCOMPARED)} for row in rows]


if __name__ == "__main__":
    sys.exit(main())

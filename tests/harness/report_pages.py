"""Run directories as runs leave them, and what a browser would make of a page."""

import math
import random
from html.parser import HTMLParser
from pathlib import Path

from run_dirs import begun

from pentad.record.metrics import MetricsLog
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog

SETTINGS = "experiment:\n  name: gsm8k-smollm2\ntrainer:\n  total_steps: {total}\nrollout:\n  n: 8\n"
QUESTION = (
    "<|im_start|>user\nNatalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?\nLet's think step by step and output the "
    'final answer after "####".<|im_end|>\n<|im_start|>assistant\n'
)


def realistic_run(path: Path, steps: int, total: int) -> RunDir:
    """A run directory as a run of `steps` of `total` steps would leave it."""
    rng = random.Random(7)
    with begun(path, SETTINGS.format(total=total)) as run_dir:
        log, samples = MetricsLog(run_dir), SampleLog(run_dir)
        log.write(0, {"eval/gsm8k/accuracy": 0.051, "eval/math/accuracy": 0.02})
        for step in range(1, steps + 1):
            level = 0.45 / (1 + math.exp(-(step - 40) / 14))
            rollout, train, sync = rng.gauss(8, 0.6), rng.gauss(4, 0.2), rng.gauss(0.4, 0.03)
            log.write(
                step,
                {
                    "reward/mean": min(max(rng.gauss(level + 0.05, 0.03), 0), 1),
                    "reward/std": rng.gauss(0.3, 0.02),
                    "reward/failures": int(step == 17),
                    "train/loss": rng.gauss(0, 0.01),
                    "train/grad_norm": math.nan if step == 30 else abs(rng.gauss(0.8, 0.15)),
                    "train/kl": 2e-5 * step * rng.uniform(0.8, 1.2),
                    "train/lr": 1e-6 * min(1, step / 10),
                    "train/clip_fraction": rng.uniform(0, 0.01),
                    "rollout/logprob_diff_max": rng.uniform(0.02, 0.05),
                    "rollout/response_length_mean": 160 + 60 * level + rng.gauss(0, 6),
                    "rollout/truncated_fraction": max(0, 0.2 - level / 3 + rng.gauss(0, 0.01)),
                    "data/samples_generated": 512,
                    "data/samples_consumed": 512,
                    "custom/tries": step % 5,
                    "time/rollout": rollout,
                    "time/train": train,
                    "time/sync": sync,
                    "time/step": rollout + train + sync + 0.5,
                    "perf/tokens_per_s": 512 * 250 / (rollout + train + sync + 0.5),
                },
            )
            if step % 20 == 0:
                log.write(step, {"eval/gsm8k/accuracy": 0.05 + 0.9 * level, "eval/math/accuracy": 0.02 + level / 4})
            for k in range(3):
                right = rng.random() < level + 0.05
                answer = "48 / 2 = 24 clips in May.\n48 + 24 = 72 altogether.\n#### 72" if right else "48 * 48 = 2304 "
                samples.write(
                    step,
                    QUESTION,
                    answer * (1 if right else 9),
                    float(right),
                    answer="72",
                    finish_reason="length" if k == 2 else "stop",
                )
        log.close()
        samples.close()
    return run_dir


class Page(HTMLParser):
    """Collects what a browser would run, fetch or show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.events: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            # "#..." points into the page itself (marks of a curve).
            if key in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(str(value))
            if key.startswith("on"):
                self.events.append(key)

    def handle_data(self, data: str) -> None:
        self.text += data

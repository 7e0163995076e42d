"""The report, rendered from real run directories."""

import json
import math
import random
import re
from pathlib import Path

import pytest
from report_pages import SETTINGS, Page, realistic_run
from run_dirs import begun

from pentad.errors import UserError
from pentad.record.charts import smoothed
from pentad.record.distributions import DistributionLog
from pentad.record.lengths import histogram, write_lengths
from pentad.record.metrics import MetricsLog
from pentad.record.report import write_report
from pentad.record.run_data import load_run, summarize
from pentad.record.sample_groups import group_samples
from pentad.record.samples import SampleLog
from pentad.record.spans import SpansLog


def test_a_whole_run(tmp_path: Path) -> None:
    run_dir = realistic_run(tmp_path / "run", steps=60, total=60)
    path = write_report(run_dir)
    assert path == run_dir.report
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("svg") == 16
    for title in ("Reward", "Evaluation", "KL to the initial model", "Time of a step", "Engine against trainer"):
        assert title in page.text
    assert "custom/tries" in page.text, "metrics that nobody foresaw are drawn too"
    assert "train/grad_norm was not finite at step 30." in page.text
    assert "Reward calls that failed and were scored 0: 1." in page.text
    assert "Training, the same prompts at step 1, step 17, step 29, step 45 and step 60" in page.text
    assert "not reached its last step" not in page.text
    assert "rollout:\n  n: 8" in page.text
    assert page.fetched == [] and page.events == [] and "script" not in page.tags
    assert "url(http" not in html and "@import" not in html
    assert "#0000" not in html, "every colour of the curves follows the page"


def test_what_processes_were_at(tmp_path: Path) -> None:
    """A picture and a table of the first, a usual and the last step, and of the last evaluation."""
    with begun(tmp_path / "run", SETTINGS.format(total=9)) as run_dir:
        log, spans = MetricsLog(run_dir), SpansLog(run_dir)
        for step in range(1, 10):
            log.write(step, {"time/step": 10.0, "staleness/share_0": 0.25, "staleness/share_1": 0.75})
            engines = {f"rollout engine {rank}": [("generation", 0.0, 4.0 + rank)] for rank in range(2)}
            trainer = {f"trainer rank {rank}": [("training", 5.0, 9.5), ("made up", 9.5, 10.0)] for rank in range(2)}
            spans.write(step, 0.0, 10.0 + step, {**engines, **trainer, "driver": []})
            spans.write(step, 0.0, 1.0, {"driver": [("evaluation", 0.0, 1.0)]}, after=True)
        log.close()
        spans.close()
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    for title in ("Step 1: 11 s", "Step 5: 15 s", "Step 9: 19 s", "After step 9 (evaluation): 1 s"):
        assert title in page.text
    assert "Step 4" not in page.text
    table = html[html.index("Step 9: 19 s") :]
    cells = re.findall(r"<t[dh][^>]*>([^<]*)<", table[: table.index("</table>")])
    assert cells == [
        *("seconds", "generation", "training", "other", "waiting"),
        *("rollout engine 0", "4", "", "", "15"),
        *("rollout engine 1", "5", "", "", "14"),
        *("trainer rank 0", "", "4.5", "0.5", "14"),
        *("trainer rank 1", "", "4.5", "0.5", "14"),
    ]
    assert "Mean over the steps: 0: 25.0%, 1: 75.0%." in page.text
    assert page.fetched == [] and "#0000" not in html


def test_a_thousand_processes_have_a_small_picture(tmp_path: Path) -> None:
    rng = random.Random(5)
    engines = {
        f"rollout engine {rank}": [("generation", 0.0, rng.uniform(20, 60)), ("made up", 60.0 + rank / 20, 99.0)]
        for rank in range(512)
    }
    trainer = {f"trainer rank {rank}": [("training", 60.0, 99.0)] for rank in range(512)}
    with begun(tmp_path / "run", SETTINGS.format(total=1)) as run_dir:
        MetricsLog(run_dir).write(1, {"time/step": 100.0})
        SpansLog(run_dir).write(1, 0.0, 100.0, {**engines, **trainer})
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "trainer rank 0-511" in html and "different lanes is shown" in html
    assert len(html) < 300_000


def test_facts(tmp_path: Path) -> None:
    with begun(tmp_path / "run", SETTINGS.format(total=4)) as run_dir:
        log = MetricsLog(run_dir)
        for step, accuracy in enumerate((0.1, 0.5, 0.4)):
            log.write(step, {"eval/gsm8k/accuracy": accuracy})
            if step:
                log.write(step, {"reward/mean": step / 4, "time/step": 30.0, "perf/tokens_per_s": 100.0 * step})
        log.close()
    assert summarize(load_run(run_dir)) == {
        "Steps": "2 of 4",
        "Eval gsm8k": "10.0% → 40.0% (best 50.0% at step 1)",
        "Reward": "0.250 → 0.500",
        "Time of the steps": "1:00 (30.0 s a step)",
        "Tokens": "9,000 (150 a second)",
    }


def test_half_a_run_with_a_torn_last_line(tmp_path: Path) -> None:
    run_dir = realistic_run(tmp_path / "run", steps=3, total=100)
    for file in (run_dir.metrics, run_dir.samples):
        file.write_bytes(file.read_bytes()[:-7])
    text = Page(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "The run has not reached its last step" in text
    assert "The last line of metrics.jsonl is unfinished" in text
    assert "The last line of samples.jsonl is unfinished" in text
    assert "2 of 100" in text


@pytest.mark.parametrize(
    ("lines", "charts"),
    [
        ("", 0),
        ('{"step": 0, "eval/gsm8k/accuracy": 0.5}\n', 1),
        ('{"step": 1, "train/loss": null}\n', 0),
        ('{"step": 1, "time/step": 0.0}\n', 1),
        ('{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.0, "time/train": 3, "time/step": 3}\n', 2),
    ],
)
def test_metrics_alone_are_enough(tmp_path: Path, lines: str, charts: int) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.tags.count("svg") == charts
    assert tmp_path.name in page.text


def test_what_models_and_users_write_is_not_markup(tmp_path: Path) -> None:
    attack = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> & \x1b[31m \ud800 $\\alpha$"
    with begun(tmp_path / "run", "experiment:\n  name: '<script>x</script>'\n") as run_dir:
        MetricsLog(run_dir).write(1, {"reward/mean": 1.0})
        samples = SampleLog(run_dir)
        samples.write(1, attack, attack, 1.0, answer=attack, source=attack.replace("\ud800", ""))
        samples.close()
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags and page.events == []
    assert "</pre><script>alert(1)</script>" in page.text
    assert "\\x1b[31m \\xd800 $\\alpha$" in page.text


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = (
        {"step": step, "reward/mean": rng.random(), "time/train": rng.random(), "time/step": 2.0}
        for step in range(1, 20_001)
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_report(tmp_path).stat().st_size < 3_000_000


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": "low"}\n')
    with pytest.raises(UserError, match=r"step 1: train/loss is no number"):
        write_report(tmp_path)


def test_smoothing_keeps_a_line_and_a_gap() -> None:
    line = [0.5 * step for step in range(200)]
    assert smoothed(line)[50:150] == pytest.approx(line[50:150])
    values = [1.0, math.nan, 1.0, 1.0]
    assert smoothed(values) == pytest.approx([1.0, math.nan, 1.0, 1.0], nan_ok=True)


def test_samples_of_the_first_and_last_step_are_of_the_same_prompts() -> None:
    def row(step: int, source: str, prompt: str, response: str) -> dict[str, object]:
        return {"step": step, "source": source, "prompt": prompt, "response": response, "reward": 0.0}

    rows = [row(0, "sort", prompt, "before") for prompt in "ab"]
    rows += [row(1, "train", "p", "x"), row(2, "train", "q", "y"), row(3, "train", "r", "z")]
    rows += [row(3, "sort", prompt, "after") for prompt in "ab"]
    evaluated, first, last = group_samples(rows)
    assert evaluated.title == "Evaluation sort, the same prompts at step 0 and step 3"
    for pair in evaluated.items:
        assert pair[0]["prompt"] == pair[1]["prompt"]
        assert [sample["response"] for sample in pair] == ["before", "after"]
    assert (first.title, last.title) == ("Training, step 1", "Training, step 3 (other prompts than at step 1)")
    assert [item[0]["prompt"] for item in (*first.items, *last.items)] == ["p", "r"]
    (only,) = group_samples(rows[:2])
    assert only.title == "Evaluation sort, step 0" and len(only.items) == 2


def test_samples_between_the_first_and_the_last_step_are_spread_evenly() -> None:
    """However long the run is; and what is kept while the file is read stays small."""
    rows = (
        {"step": step, "source": "e", "prompt": p, "response": str(step)} for step in range(0, 2001, 2) for p in "ab"
    )
    (group,) = group_samples(rows)
    assert [[row["response"] for row in item] for item in group.items] == [["0", "512", "1024", "1536", "2000"]] * 2
    (few,) = group_samples({"step": step, "source": "e", "prompt": "a", "response": ""} for step in (0, 5, 9))
    assert few.title == "Evaluation e, the same prompts at step 0, step 5 and step 9"


def test_distributions_are_drawn(tmp_path: Path) -> None:
    run_dir = realistic_run(tmp_path / "run", 3, 3)
    log = DistributionLog(run_dir)
    for step in (1, 2, 3):
        log.write(step, {"length": list(range(11 * step)), "entropy": [0.5, math.nan, 1.5]})
    log.close()
    data = load_run(run_dir)
    assert data.distributions["length"][1] == [0, 1, 2.5, 5, 7.5, 9, 10]
    assert data.distributions["entropy"][3] == pytest.approx([0.5, 0.6, 0.75, 1.0, 1.25, 1.4, 1.5])
    text = Page(write_report(run_dir).read_text()).text
    assert "Lengths of the responses" in text and "Entropies of the responses" in text


def test_facts_begin_and_end_where_the_curves_do(tmp_path: Path) -> None:
    """Also of supervised training, whose report speaks of no reward; and the time is that of the whole run."""
    with begun(tmp_path / "run", SETTINGS.format(total=40)) as run_dir:
        log = MetricsLog(run_dir)
        for step in range(1, 41):
            log.write(step, {"train/loss": 4.0 - step / 20, "time/step": 1.0})
        log.close()
        run_dir.end("finished", 65.4)
    facts = summarize(load_run(run_dir))
    assert facts["Loss"] == "3.95 → 2.00 (first and last step; mean of the last 4: 2.08)"
    assert facts["Time"] == "1:05 (from the command's start; 1.0 s a step)"
    text = Page(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "reward" not in text.lower().split("settings")[0]
    with begun(tmp_path / "rl", SETTINGS.format(total=2)) as run_dir:
        MetricsLog(run_dir).write(1, {"train/loss": 0.1, "reward/mean": 0.5})
        run_dir.end("interrupted", 3.0)
    text = Page(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "Next to a reward, the loss is no measure of progress." in text
    assert "The run has not reached its last step: it was interrupted." in text


def test_lengths_of_the_data_are_drawn(tmp_path: Path) -> None:
    lengths = [5, 5, 6, 40, 100]
    found = histogram(lengths)
    assert (sum(found["counts"]), found["total"], found["mean"], found["longest"]) == (5, 156, 31.2, 100)
    for number, count in enumerate(found["counts"]):
        low = found["start"] + number * found["width"]
        assert count == sum(low <= length < low + found["width"] for length in lengths)
    run_dir = realistic_run(tmp_path / "run", 2, 2)
    write_lengths(run_dir, {"prompts": lengths, "responses": []})
    html = write_report(run_dir).read_text()
    assert "Lengths of the training prompts" in html
    assert "Tokens; 156 in all, mean 31.2, longest 100." in html
    assert "Lengths of the training responses" not in html

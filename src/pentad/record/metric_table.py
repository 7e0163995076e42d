"""Every metric: its name, what it is, its unit, how it is averaged, and how terminal and report show it.

Invariant: this is the only table of metrics. Terminal, report and docs/metrics.md are made from it, and a run writes no
metric that is not in it (an algorithm of the user's may add its own, which are shown without a description).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of a step.

    Attributes:
        name: `group/name`; `<name>` stands for the name of an evaluation.
        meaning: what it is.
        unit: of its values; empty for a number without unit.
        average: how the value of a step comes from its parts.
        heading: of its column on the terminal; empty for none.
        form: format of its values on the terminal.
        wide: shown only on a terminal of at least 100 columns.
        only_if_set: shown only where it is not 0.
        title: of its curve in the report; metrics of one title share a curve; empty for the name itself.
        caption: of the curve; empty for the meaning.
        smooth: whether the curve is smoothed.
    """

    name: str
    meaning: str
    unit: str
    average: str
    heading: str = ""
    form: str = ""
    wide: bool = False
    only_if_set: bool = False
    title: str = ""
    caption: str = ""
    smooth: bool = True

    @property
    def percent(self) -> bool:
        """Whether values are shown in percent."""
        return self.unit == "fraction"


_OVER_STEPS = "mean over the step's optimizer steps"
_OVER_TOKENS = "mean over trained tokens, then over optimizer steps"
_OVER_SAMPLES = "mean over the step's samples"
_SUM = "sum over the step"

# In the order of the terminal's columns and of the report's curves.
_TABLE = (
    Metric(
        "reward/mean",
        "reward of the step's samples",
        "",
        _OVER_SAMPLES,
        "reward",
        ".3f",
        title="Reward",
        caption="Mean reward of the samples of each step.",
    ),
    Metric(
        "eval/<name>/accuracy",
        "fraction of the prompts of evaluation <name> whose response has a reward of 1; step 0 is the model before "
        "training",
        "fraction",
        "mean over prompts",
        title="Evaluation",
        caption="Responses with a reward of 1; step 0 is the model before training.",
        smooth=False,
    ),
    Metric("eval/<name>/reward", "reward on evaluation <name>", "", "mean over prompts", smooth=False),
    Metric(
        "eval/<name>/response_length_mean",
        "length of the responses of evaluation <name>",
        "tokens",
        "mean over prompts",
        smooth=False,
    ),
    Metric(
        "train/loss",
        "loss, averaged as algorithm.loss_mean says",
        "",
        _OVER_STEPS,
        "loss",
        "#.3g",
        wide=True,
        title="Loss",
    ),
    Metric(
        "train/kl",
        "estimate of KL(policy || initial model) per token (algorithm.kl_estimator)",
        "nats",
        _OVER_TOKENS,
        "KL",
        "#.2g",
        title="KL to the initial model",
        caption="Estimate per token. A sudden rise is a first sign of collapse.",
    ),
    Metric(
        "train/policy_kl",
        "estimate (k3) of KL(policy || policy that sampled) per token; 0 in the first optimizer step after a rollout",
        "nats",
        _OVER_TOKENS,
        title="Policy against the sampling policy",
    ),
    Metric(
        "train/grad_norm",
        "global norm of the gradient before clipping",
        "",
        _OVER_STEPS,
        "grad norm",
        "#.3g",
        title="Gradient norm",
        caption="Before clipping.",
    ),
    Metric(
        "rollout/logprob_diff_max",
        "largest |log-prob of the engine - log-prob of the trainer| of a sampled token",
        "nats",
        "maximum over the step's sampled tokens",
        "logprob diff",
        ".1e",
        wide=True,
        title="Engine against trainer",
        caption="Largest log-prob difference of a sampled token. Growth over the steps points to a bad weight sync.",
    ),
    Metric(
        "rollout/logprob_diff_mean",
        "|log-prob of the engine - log-prob of the trainer| of the sampled tokens",
        "nats",
        "mean over the step's sampled tokens",
        title="Engine against trainer, mean",
    ),
    Metric(
        "rollout/kl",
        "estimate (k3) of the divergence of the engine's log-probs from the trainer's, per sampled token",
        "nats",
        "mean over the step's sampled tokens",
        title="Divergence of the engine from the trainer",
    ),
    Metric(
        "rollout/response_length_mean",
        "length of the responses",
        "tokens",
        _OVER_SAMPLES,
        "length",
        ".0f",
        wide=True,
        title="Response length",
        caption="Mean, in tokens.",
    ),
    Metric(
        "rollout/truncated_fraction",
        "responses cut off at rollout.max_response_tokens",
        "fraction",
        _OVER_SAMPLES,
        title="Truncated responses",
        caption="Cut off at rollout.max_response_tokens.",
    ),
    Metric(
        "train/entropy",
        "entropy of the policy per token",
        "nats",
        _OVER_TOKENS,
        title="Entropy",
        caption="Of the policy, per token, in nats.",
    ),
    Metric(
        "train/clip_fraction",
        "trained tokens at which the clipped ratio decides the loss, so that they have no gradient",
        "fraction",
        _OVER_TOKENS,
        title="Clipped tokens",
        caption="Tokens at which the clipped ratio decides the loss.",
    ),
    Metric(
        "perf/tokens_per_s",
        "prompt and response tokens trained on, over time/step",
        "tokens/s",
        "over the whole step",
        "tokens/s",
        ",.0f",
        title="Throughput",
        caption="Tokens a second over the whole step.",
    ),
    Metric(
        "reward/failures",
        "reward calls that raised an error or ran out of time",
        "calls",
        _SUM,
        "reward failures",
        ".0f",
        only_if_set=True,
        title="Failed reward calls",
        caption="Errors and time-outs.",
        smooth=False,
    ),
    Metric("train/lr", "learning rate", "", "of the step's last optimizer step", title="Learning rate", smooth=False),
    Metric(
        "data/samples_generated",
        "samples that the engines produced",
        "samples",
        _SUM,
        title="Samples",
        caption="Generated and trained on, each step.",
        smooth=False,
    ),
    Metric("data/samples_consumed", "samples that were trained on", "samples", _SUM, title="Samples", smooth=False),
    Metric(
        "data/samples_left_out",
        "samples that were not trained on, as their reward failed (reward.on_failure=drop)",
        "samples",
        _SUM,
        title="Samples",
        smooth=False,
    ),
    Metric(
        "data/groups_dropped",
        "groups that the algorithm did not admit; others were sampled in their place",
        "groups",
        _SUM,
        smooth=False,
    ),
    Metric(
        "reward/std",
        "standard deviation of the step's rewards",
        "",
        "over the step's samples",
        title="Reward spread",
        caption="Standard deviation. Near 0 there is nothing to learn from.",
    ),
    Metric(
        "train/grad_zeros",
        "elements of the gradient that are zero (megatron.optimizer.log_num_zeros_in_grad)",
        "elements",
        _OVER_STEPS,
    ),
    Metric(
        "train/skipped_updates",
        "optimizer steps that were skipped because the gradient was not finite",
        "optimizer steps",
        _SUM,
    ),
    Metric(
        "moe/load_max",
        "tokens of the fullest expert over the mean of its layer, in the layer where that is largest",
        "",
        _OVER_STEPS,
    ),
    Metric(
        "moe/load_min",
        "tokens of the emptiest expert over the mean of its layer, in the layer where that is smallest",
        "",
        _OVER_STEPS,
    ),
    Metric("critic/loss", "loss of the critic", "", _OVER_STEPS, title="Loss of the critic"),
    Metric("critic/grad_norm", "train/grad_norm of the critic", "", _OVER_STEPS, title="Gradient norm of the critic"),
    Metric("critic/lr", "learning rate of the critic", "", "of the step's last optimizer step", smooth=False),
    Metric("critic/grad_zeros", "train/grad_zeros of the critic", "elements", _OVER_STEPS),
    Metric("critic/skipped_updates", "train/skipped_updates of the critic", "optimizer steps", _SUM),
    Metric("critic/load_max", "moe/load_max of the critic", "", _OVER_STEPS),
    Metric("critic/load_min", "moe/load_min of the critic", "", _OVER_STEPS),
    Metric("time/rollout", "generation", "seconds", _SUM),
    Metric("time/reward", "reward functions, where they are not hidden behind generation", "seconds", _SUM),
    Metric("time/train", "log-probs, forward, backward and optimizer", "seconds", _SUM),
    Metric("time/sync", "moving weights to the engines", "seconds", _SUM),
    Metric("time/eval", "evaluation", "seconds", _SUM),
    Metric("time/save", "training waits while its state is copied for a checkpoint", "seconds", _SUM),
    Metric("save/failures", "checkpoints that could not be written so far", "checkpoints", "of the step"),
    Metric("save/gib", "size of the checkpoint before this one", "GiB", "of the step"),
    Metric(
        "save/write_s", "how long the checkpoint before this one was written beside training", "seconds", "of the step"
    ),
    Metric("time/step", "the whole step, without evaluations between steps", "seconds", _SUM),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


def find_metric(name: str) -> Metric | None:
    """The row of a metric by the name that stands in metrics.jsonl; None for one that is not in the table."""
    return METRICS.get(re.sub(r"^eval/[^/]+/", "eval/<name>/", name))


def describe(name: str) -> str:
    """What the table says of a metric, in one line; empty for a name that is not in it."""
    if (metric := find_metric(name)) is None:
        return ""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.meaning}{unit}; {metric.average}"


def metrics_text() -> str:
    """The table for the terminal."""
    return "".join(f"{name}\n    {describe(name)}\n" for name in METRICS)


def metrics_markdown() -> str:
    """The reference page, docs/metrics.md."""
    rows = (
        " | ".join((f"`{metric.name}`", metric.meaning, metric.unit or "-", metric.average)).replace("||", "\\|\\|")
        for metric in METRICS.values()
    )
    return _PREFACE + "".join(f"| {row} |\n" for row in rows).replace("<name>", "\\<name>")


_PREFACE = """\
# Metrics

<!-- Written by `make docs`; a test compares it with the table in the code. -->

Each step of a run is one or more lines of `metrics.jsonl`: `{"step": 3, "reward/mean": 0.41, ...}`. Step 0 is the model
before training. A value that is not finite is `null`. A count or a time is that of one step. An algorithm of your own
may write further metrics; they are shown under their names.

| metric | meaning | unit | value of a step |
|---|---|---|---|
"""

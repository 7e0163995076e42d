"""The metrics of evaluations.

Invariant: each has one row, in the order of the report's curves.
"""

from pentad.record.metric import Metric

EVALUATION = (
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
        "eval/<name>/mean_at_<k>",
        "mean@k: fraction of the k samples of a question with a reward of 1, where an evaluation takes several; the "
        "same as its accuracy",
        "fraction",
        "mean over prompts",
        title="Evaluation with several samples",
        caption="mean@k: part of the samples that are right; pass@k: questions of which one of k samples is right.",
        smooth=False,
    ),
    Metric(
        "eval/<name>/pass_at_<k>",
        "pass@k: probability that one of k samples has a reward of 1, the unbiased estimate from all samples of a "
        "question (Chen et al. 2021)",
        "fraction",
        "mean over prompts",
        title="Evaluation with several samples",
        smooth=False,
    ),
    Metric(
        "eval/<name>/loss",
        "negative log-likelihood of the given responses of evaluation <name> (measure: loss, algorithm sft)",
        "nats a token",
        "mean over tokens",
        title="Loss on held-out rows",
        smooth=False,
        lower=True,
    ),
    Metric(
        "eval/<name>/preference_accuracy",
        "pairs of evaluation <name> whose chosen response has become likelier, against the reference, than the "
        "rejected one (measure: loss, algorithm dpo)",
        "fraction",
        "mean over pairs",
        title="Preferences on held-out pairs",
        smooth=False,
    ),
)

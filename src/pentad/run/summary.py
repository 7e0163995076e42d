"""What a run trains on, in numbers, before it starts.

Invariant: everything that was read and is not trained on is counted here or in a notice, with the reason.
"""

from collections.abc import Mapping, Sequence

from pentad.data.prompts import EncodedPrompts
from pentad.run.prepare import Prepared


def lengths(prepared: Prepared) -> Mapping[str, Sequence[int]]:
    """Tokens of each sequence, by what it is."""
    train = prepared.train
    if isinstance(train, EncodedPrompts):
        return {"prompts": [len(tokens) for tokens in train.tokens]}
    return {
        "prompts": [len(prompt) for prompt, _ in train.examples],
        "responses": [len(response) for _, response in train.examples],
    }


def summary(prepared: Prepared) -> list[str]:
    """One line on the training data, one on each evaluation."""
    trainer, rows = prepared.settings.trainer, len(prepared.train)
    parts = [_tokens(what, found) for what, found in lengths(prepared).items()]
    if not isinstance(prepared.train, EncodedPrompts) and prepared.train.masks:
        trained = sum(int(prepared.train.mask(i).sum()) for i in range(rows))
        parts.append(f"{trained:,} tokens are trained on")
    taken = trainer.total_steps * trainer.prompts_per_step
    noun = "prompts" if isinstance(prepared.train, EncodedPrompts) else "examples"
    lines = [
        f"data.train: {rows:,} rows; {'; '.join(parts)}; {trainer.total_steps:,} steps of {trainer.prompts_per_step:,} "
        f"take {taken:,} {noun}, {taken / rows:.3g} epochs"
    ]
    for name, data in prepared.eval.items():
        lines.append(f"data.eval.{name}: {len(data):,} rows; {_tokens('prompts', [len(t) for t in data.tokens])}")
    for name, examples in prepared.held_out.items():
        found = [len(response) for _, response in examples.examples]
        lines.append(f"data.eval.{name}: {len(examples):,} rows; {_tokens('responses', found)}")
    return lines


def _tokens(what: str, found: Sequence[int]) -> str:
    return f"{what} of {sum(found):,} tokens (mean {sum(found) / len(found):,.1f}, longest {max(found):,})"

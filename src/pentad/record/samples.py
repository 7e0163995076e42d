"""A few completions of each step, as text.

Invariant: samples.jsonl holds prompts as the model got them and responses as it wrote them, unabridged.
"""

import math

from pentad.record.jsonl import JsonLines
from pentad.record.run_dir import RunDir


class SampleLog:
    """Writes samples.jsonl: `step`, `source`, `prompt`, `response`, `reward`, `finish_reason`, `answer`."""

    def __init__(self, run_dir: RunDir, per_step: int = 4) -> None:
        """Keep the first `per_step` samples of each step and source; the later ones are not written."""
        self._lines = JsonLines(run_dir.samples, run_dir)
        self._per_step = per_step
        self._step = -1
        self._written: dict[str, int] = {}

    def write(
        self,
        step: int,
        prompt_text: str,
        response_text: str,
        reward: float,
        *,
        source: str = "train",
        finish_reason: str | None = None,
        answer: str | None = None,
    ) -> None:
        """Write one completion.

        Args:
            step: the step that sampled it; never smaller than the one before.
            prompt_text: the prompt as the model saw it, with its template.
            response_text: what the model wrote.
            reward: its reward; one that is not finite is written as null.
            source: `train`, or the name of the evaluation.
            finish_reason: `stop` or `length`.
            answer: the wanted answer, where there is one.

        Raises:
            UserError: the disk is full.
            ValueError: the step went back.
        """
        if step < self._step:
            raise ValueError(f"samples of step {step} after those of step {self._step}")
        if step > self._step:
            self._step, self._written = step, {}
        if self._written.get(source, 0) >= self._per_step:
            return
        row = {"step": step, "source": source, "prompt": prompt_text, "response": response_text}
        row["reward"] = float(reward) if math.isfinite(reward) else None
        row |= {"finish_reason": finish_reason, "answer": answer}
        self._lines.append(row)
        self._written[source] = self._written.get(source, 0) + 1

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

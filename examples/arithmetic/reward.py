"""A reward of one's own: named in a configuration as `examples/arithmetic/reward.py:last_number`."""

import re


def last_number(prompt: str, response: str, ground_truth: str) -> float:
    """1 where the last whole number of the response is the answer."""
    numbers = re.findall(r"-?\d+", response)
    return float(bool(numbers) and numbers[-1] == ground_truth)

"""What rewards are given."""

from pentad.data.rows import PromptRow
from pentad.rewards.types import RewardItem


def reward_item(row: PromptRow, response: str) -> RewardItem:
    """What a reward is given of a row and a response to it; of a conversation, the last message."""
    prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
    return RewardItem(prompt, response, row.ground_truth, row.data_source, row.extra, row.id)

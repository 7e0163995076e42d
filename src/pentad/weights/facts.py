"""What a layout needs to know of a model."""

from transformers import PreTrainedConfig

from pentad.families.facts import ModelFacts
from pentad.families.hf_config import facts_from_config
from pentad.weights.families import family_of


def model_facts(config: PreTrainedConfig) -> ModelFacts:
    """The facts of a Hugging Face configuration.

    Raises:
        UserError: the architecture, or something that it asks for, is not supported.
    """
    family_of(config)
    return facts_from_config(config.to_dict())

"""What a layout needs to know of a model."""

from transformers import PreTrainedConfig

from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.families.hf_config import facts_from_config


def model_facts(config: PreTrainedConfig) -> ModelFacts:
    """The facts of a Hugging Face configuration.

    Raises:
        UserError: the architecture, or something that it asks for, is not supported.
    """
    facts = facts_from_config(config.to_dict())
    if facts.dense_layers:
        raise UserError(
            "the model's config.json has layers without experts among those with them (mlp_only_layers, "
            "decoder_sparse_step), which Pentad plans but does not train",
            "use a model without them",
        )
    return facts

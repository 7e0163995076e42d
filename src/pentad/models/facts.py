"""What a layout needs to know of a model."""

from transformers import PreTrainedConfig

from pentad.layout.validate import ModelFacts
from pentad.models.families import family_of
from pentad.models.geometry import Geometry


def model_facts(config: PreTrainedConfig) -> ModelFacts:
    """The facts of a Hugging Face configuration.

    Raises:
        UserError: the architecture is not supported.
    """
    geometry = Geometry.of(config)
    return ModelFacts(
        family=family_of(config).model_type,
        num_layers=geometry.layers,
        hidden_size=geometry.hidden,
        num_heads=geometry.heads,
        num_kv_heads=geometry.kv_heads,
        ffn_hidden_size=geometry.ffn,
        vocab_size=geometry.vocab_size,
        head_dim=geometry.head_dim,
        tied=geometry.tied,
    )

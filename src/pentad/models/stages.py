"""How decoder layers are shared out over pipeline stages.

Invariant: every layer is on exactly one stage, in order; the embedding and the output layer count as what they cost.
"""

from pentad.layout import Layout
from pentad.models.geometry import Geometry


def stage_layers(geometry: Geometry, layout: Layout) -> tuple[int, ...]:
    """Decoder layers of each stage, in the order in which a token passes them (virtual stages counted)."""
    stages = layout.pipeline * layout.virtual
    each, rest = divmod(geometry.layers, stages)
    return tuple(each + (0 < stage <= rest) for stage in range(stages)) if rest < stages else (each,) * stages

"""Settings of an algorithm of the user's."""

from typing import Any

from pydantic import Field

from pentad.config.schema.algorithms.base import COLUMN_ROLES, RolloutAlgorithmSettings
from pentad.errors import UserError
from pentad.user_code import load_object


class CustomSettings(RolloutAlgorithmSettings):
    """`algorithm.*` with name module:Class"""

    name: str = Field(pattern=".:.", description="module:Class: an algorithm of your own")
    options: dict[str, Any] = Field({}, description="arguments of the class, with name module:Class")

    @property
    def columns(self) -> frozenset[str]:
        """What the class states in `columns`.

        Raises:
            UserError: the class cannot be imported, or states something else than columns that exist.
        """
        stated = getattr(load_object(self.name, "algorithm.name"), "columns", None)
        if not isinstance(stated, frozenset | set) or not stated <= COLUMN_ROLES.keys():
            raise UserError(
                f"algorithm.name={self.name}: its `columns` must be a set of some of {', '.join(COLUMN_ROLES)}, "
                f"not {stated!r}",
                "write columns = frozenset({'old_logprobs'}) in the class",
            )
        return frozenset(stated)

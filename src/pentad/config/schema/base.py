"""The base of all settings classes: unknown keys are refused; values are not converted and never change."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings.

    Strict: text is not read as a number, nor 1 as true; infinities and NaN are refused. An integer serves as a float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

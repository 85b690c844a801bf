"""The base class of parameter sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

OPERATIONAL = "operational"

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]


def operational(default: Any, **constraints: Any) -> Any:
    """Declare a field that affects where or how fast a stage runs, but not its result."""
    return Field(default, json_schema_extra={OPERATIONAL: True}, **constraints)


class Section(BaseModel):
    """A section of the parameters: frozen, with strict types and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def recipe(self) -> dict[str, Any]:
        """Return the values that affect the stage's result, as JSON types."""
        extras = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        operational_names = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(OPERATIONAL)}
        return self.model_dump(mode="json", exclude=operational_names)

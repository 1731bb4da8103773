"""Strict fields of requests, and the fields of QLIP that both protocols share."""

# Annotations are evaluated here: pydantic before 2.13 looks for `Nothing` in the module of each subclass.
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from qlip.config import Budget

MAX_INT = 2**31 - 1
MAX_FIELDS = 64  # of an object, which limits the number of its errors
EMPTY: tuple[Any, ...] = (None, "", [], {})


def _nothing(value: Any) -> Any:
    if value in EMPTY:
        return value
    raise PydanticCustomError("unknown_parameter", "this server knows no such field")


Nothing = Annotated[Any, AfterValidator(_nothing), WithJsonSchema({"enum": list(EMPTY)})]


class StrictFields(BaseModel):
    """A part of a request: types are not converted, and an unknown field must be empty."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, json_schema_extra={"maxProperties": MAX_FIELDS}
    )
    __pydantic_extra__: dict[str, Nothing]

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "has more than {most} fields", {"most": MAX_FIELDS})
        return value


class QLIPFields(StrictFields):
    """Settings of the vision tower that differ from the server's defaults."""

    enabled: bool | None = Field(None, description="false sees as CLIP does")
    alpha: float | None = Field(None, ge=0, description="split threshold")
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT, description="most visual tokens of a picture")
    image_size: int | None = Field(None, ge=1, le=MAX_INT, description="shorter side, in pixels, of a picture")
    budget: Budget | None = Field(
        None, description="what decides where tokens are spent: the picture's own score, or the newest question"
    )

"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=4096)]

CHANGES_RESULTS = "x-changes-results"


def key(default: Any, description: str, *, changes_results: bool = False, **limits: Any) -> Any:
    """A field; `changes_results` marks a value that a finished slide depends on (pipeline.config.result_hash)."""
    extra = {CHANGES_RESULTS: True} if changes_results else None
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Base of all sections: immutable, strict about types, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

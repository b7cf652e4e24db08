"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=4096)]

CHANGES_RESULTS = "x-changes-results"
AS_BEFORE = "x-as-before"


def key(
    default: Any, description: str, *, changes_results: bool = False, as_before: tuple[Any, ...] = (), **limits: Any
) -> Any:
    """A field; `changes_results` marks a value that a finished slide depends on (pipeline.config.result_hash). `as_before`, of
    a key that came later than others: the value with which a slide comes out as it did before there was this key, so that
    slides of then need not be done again."""
    extra = {CHANGES_RESULTS: True, **({AS_BEFORE: list(as_before)} if as_before else {})} if changes_results else None
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """Base of all sections: immutable, strict about types, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

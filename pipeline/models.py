"""The models of a run: one, or several that see the same patches and answer in one pass over a slide's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.model import Model, load_model
from pipeline.config import model_directories
from pipeline.overrides import ConfigError
from pipeline.rundir import PRIVATE
from pipeline.schema import Config
from results.layout import FORMATS, SUMMARY

# Names in the output folder that cannot be those of a model's own folder.
RESERVED = frozenset({PRIVATE, "run.json", "slidestream.log", SUMMARY[0], *(folder for folder, _ in FORMATS.values())})
NEED_ONNX = ("onnx", "tensorrt")  # engines that are made of it; what `gpu` takes has been built


def load_models(config: Config) -> tuple[Model, ...]:
    """The models that the configuration names, in its order, at the patch size that it wants.

    Raises ModelError; ConfigError where they do not go together.
    """
    wanted = config.inference.patch_px
    models = tuple(sized(load_model(directory), wanted) for directory in model_directories(config))
    if config.inference.engine in NEED_ONNX:
        for model in models:
            model.require_onnx()
    problem = discord(models) or heatmap_problem(config.results.heatmap_class, models)
    if problem:
        raise ConfigError(problem)
    return models


def sized(model: Model, patch_px: int | str) -> Model:
    """The model at `inference.patch_px`. Raises ModelError where its preprocessing cannot follow."""
    return model.at(patch_px) if isinstance(patch_px, int) else model


def prove_size(model: Model) -> None:
    """Tries a model that is wanted at another patch size than its own; a run does so when it starts. Raises ModelError."""
    if model.at_other_size:
        from engines.check import check_model  # which loads ONNX Runtime

        check_model(model)


def size_notices(models: Sequence[Model]) -> list[str]:
    """What is to be said once of models that are used at another patch size than their own."""
    return [
        f"{model.name} was made for patches of {model.own_px} px and sees {model.patch_px} px (inference.patch_px): how good its "
        "answers are at that size is not known, unless its model card tells; results are marked"
        for model in models
        if model.at_other_size
    ]


def discord(models: Sequence[Model]) -> str:
    """Why these models cannot run in one pass; empty where they can."""
    first = models[0]
    for other in models[1:]:
        if (first.patch_px, first.spacing) != (other.patch_px, other.spacing):
            alike = ", or set inference.patch_px, if the networks take that size" if first.spacing == other.spacing else ""
            return (
                f"model: {_sees(first)}, {_sees(other)}: one pass over a slide cannot serve both; make two runs (two runs "
                f"can share a GPU){alike}"
            )
    names: dict[str, Model] = {}
    for model in models:
        name = model.name.casefold()
        if name in names:
            return (
                f"model: {names[name].directory} and {model.directory} have one name, and a name is a folder of results; "
                "rename one of the two directories"
            )
        names[name] = model
        if len(models) > 1 and name in RESERVED:
            return f"model: {model.directory}: with several models, {model.name} cannot be a name; rename the directory"
    return ""


def heatmap_problem(wanted: str | None, models: Sequence[Model]) -> str:
    """Where no model has the class that heatmaps shall show; empty where one has."""
    if wanted is None or any(wanted in model.classes for model in models):
        return ""
    have = "; ".join(f"{model.name} has {', '.join(model.classes)}" for model in models)
    return f"results.heatmap_class: no model has a class {wanted!r}; {have}"


def result_folders(out: Path, models: Sequence[Model]) -> list[Path]:
    """Where each model's results lie: `out` itself for one, a folder of the model's name for each of several."""
    return [out] if len(models) == 1 else [out / model.name for model in models]


def sizes(models: Sequence[Model]) -> dict[str, int]:
    """What sizes need to know of them, as pipeline.sizing takes it."""
    return {
        "patch_px": models[0].patch_px,
        "classes": sum(len(model.classes) for model in models),
        "model_bytes": sum(model.network_path.stat().st_size for model in models),
        "models": len(models),
    }


def result_keys(models: Sequence[Model], hashes: Sequence[str]) -> list[dict[str, str]]:
    """What each model's results depend on beside the slide; `hashes`: pipeline.config.result_hash, for each model."""
    return [{"model": model.sha256, "configuration": digest} for model, digest in zip(models, hashes, strict=True)]


def joint_key(each: Sequence[dict[str, str]]) -> dict[str, str]:
    """The key of journals, which hold the answers of all models; of one model it is its own key."""
    return {name: "+".join(key[name] for key in each) for name in each[0]}


def targets(
    models: Sequence[Model], out: Path, each: Sequence[dict[str, str]], wanted: str | None
) -> list[dict[str, Any]]:
    """For the writers: where each model's results go, the key they get, and the class that their heatmaps show.

    A model that lacks the class `wanted` shows the one that it would show by itself.
    """
    return [
        {"out": str(folder), "key": key, "heatmap_class": wanted if wanted in model.classes else None}
        for model, folder, key in zip(models, result_folders(out, models), each, strict=True)
    ]


def _sees(model: Model) -> str:
    return f"{model.name} sees patches of {model.patch_px} px at {model.spacing:g} µm/px"

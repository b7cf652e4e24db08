from __future__ import annotations

import pytest

from results.colours import GREY, RED, class_colours, heatmap_class, is_tumour


@pytest.mark.parametrize(
    "name", ["tumour", "Tumor", "prob_tumor", "TUM", "Cancer", "malignant", "positive", "adenocarcinoma", "metastasis"]
)
def test_names_that_say_tumour(name):
    """The words that models use for what a pathologist looks for."""
    assert is_tumour(name)


@pytest.mark.parametrize("name", ["normal", "non-tumor", "no_tumor", "NonTumor", "notumor", "nontumor", "benign tumour",
                                  "stroma", "Other", "not tumour", "Hatum", "TUM negative"])  # fmt: skip
def test_names_that_do_not(name):
    """A negated word is no tumour."""
    assert not is_tumour(name)


def test_the_picture_shows_what_was_asked_then_tumour_then_the_last():
    """The configured class, else the one that says tumour, else the last."""
    assert heatmap_class(["tumour", "stroma", "other"]) == 0
    assert heatmap_class(["non-tumour", "tumour"]) == 1
    assert heatmap_class(["a", "b", "c"]) == 2
    assert heatmap_class(["tumour", "stroma"], "stroma") == 1
    with pytest.raises(ValueError, match="results.heatmap_class: the model has no class 'x'; it has a, b"):
        heatmap_class(["a", "b"], "x")


def test_colours_are_stable_and_distinct():
    """Tumour red, other grey, no two alike among a dozen classes."""
    names = ["other", "stroma", "tumour", *(f"class {i}" for i in range(9))]
    colours = class_colours(names)
    assert colours[0] == GREY and colours[2] == RED
    assert len(set(colours)) == 12
    assert class_colours(names) == colours
    assert len(class_colours([f"class {i}" for i in range(40)])) == 40

"""Which class a heatmap shows, and the colour of each class."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Paul Tol's "vibrant" and "muted" qualitative schemes (personal.sron.nl/~pault), distinct to colour-blind eyes.
RED = (204, 51, 17)
GREY = (187, 187, 187)
_OTHERS = (
    (0, 119, 187), (0, 153, 136), (238, 119, 51), (51, 187, 238), (238, 51, 119),
    (51, 34, 136), (153, 153, 51), (136, 34, 85), (17, 119, 51), (221, 204, 119), (170, 68, 153), (136, 204, 238),
)  # fmt: skip

_TUMOUR = re.compile(r"tumou?r|cancer|carcinom|malign|metasta|neoplas|positiv|\btum\b|lesion|adenoma|melanoma")
_NEGATED = re.compile(r"\b(non|no|not|without|peri|adjacent|healthy|normal|benign|negative)\b|\b(non|not?)tum")
_NOTHING = re.compile(r"other|others|background|back|empty|none|rest|negative")


def is_tumour(name: str) -> bool:
    """Whether a class name says tumour (tumor, cancer, malignant, positive, ...), and not ``non-tumor``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[^0-9a-z]+", " ", words.lower())
    return bool(_TUMOUR.search(words)) and not _NEGATED.search(words)


def heatmap_class(classes: Sequence[str], wanted: str | None = None) -> int:
    """Index of the class that the picture shows: ``wanted``, else the first that says tumour, else the last.

    Raises ValueError where ``wanted`` is no class of the model.
    """
    if wanted is not None:
        if wanted not in classes:
            raise ValueError(f"results.heatmap_class: the model has no class {wanted!r}; it has {', '.join(classes)}")
        return list(classes).index(wanted)
    return next((i for i, name in enumerate(classes) if is_tumour(name)), len(classes) - 1)


def class_colours(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """One RGB colour a class, the same for the same list: red for the first tumour class, grey for "other"."""
    colours: list[tuple[int, int, int]] = []
    used = 0
    for name in classes:
        if is_tumour(name) and RED not in colours:
            colours.append(RED)
        elif _NOTHING.fullmatch(name.lower()) and GREY not in colours:
            colours.append(GREY)
        else:
            colours.append(_OTHERS[used % len(_OTHERS)])
            used += 1
    return colours

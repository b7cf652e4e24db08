"""The tissue-mask filter: from the overview to the mask, and from the mask to the patches worth reading."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline.link import Link
from pipeline.memory import SharedSlots
from pipeline.wire import Mask, Planned
from pipeline.worker import Post, main
from results.pictures import save_pictures
from slides.geometry import Geometry, SlideInfo
from slides.plan import plan
from slides.tissue import overview_um_per_px, tissue_mask


def serve(lease: Mask, config: dict, slots: SharedSlots, link: Link) -> Planned:
    """Mask and plan one slide; its overview and mask are on disk before the plan is told."""
    overview = slots.overview(lease.slot, lease.width, lease.height)
    info, grid = SlideInfo.from_dict(lease.info), Geometry.from_dict(lease.geometry)
    um_per_px = overview_um_per_px(info, overview.shape)
    settings = config["tissue"]
    found = tissue_mask(
        overview,
        um_per_px,
        settings["method"],
        min_area_mm2=settings["min_area_mm2"],
        max_hole_mm2=settings["max_hole_mm2"],
    )
    link.beat()
    save_pictures(Path(lease.folder), overview, found.mask)
    link.beat()
    planned = plan(found.mask, info, grid, settings["min_fraction"])
    area_mm2 = float(np.count_nonzero(found.mask)) * (um_per_px / 1000) ** 2
    tissue = {
        "method": found.method,
        "threshold": float(found.threshold),
        "area_mm2": round(area_mm2, 4),
        "um_per_px": um_per_px,
    }
    return Planned(lease.lease, planned.to_bytes(), tissue)


def work(post: Post) -> None:
    cv2.setNumThreads(1)  # processes are what is scaled here
    slots = post.slots()
    link = post.connect(credit=1)
    while True:
        match link.receive(post.config["supervisor"]["beat_s"]):
            case Mask() as lease:
                link.send(serve(lease, post.config, slots, link))


if __name__ == "__main__":
    main("tissue", work)

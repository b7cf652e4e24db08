from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from results.heatmap_tiff import write_heatmap_tiff
from results.raster import probability_raster

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
BIG = {"columns": 600, "rows": 300}


def ome(path) -> ElementTree.Element:
    with tifffile.TiffFile(path) as tiff:
        return ElementTree.fromstring(tiff.ome_metadata)


def test_one_float_channel_a_class_with_its_values(make_record, tmp_path):
    """Channel, row and column find the float32 of the patch there, NaN elsewhere."""
    record = make_record(failed=(1,))
    write_heatmap_tiff(record, tmp_path / "a.tiff")
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        series = tiff.series[0]
        assert tiff.is_ome and len(tiff.series) == 1
        assert (series.axes, series.shape, series.dtype) == ("CYX", (2, 7, 9), np.float32)
        np.testing.assert_array_equal(series.asarray(), probability_raster(record, [0, 1]))


def test_it_is_a_tiled_pyramid(make_record, tmp_path):
    """256 px tiles, each level half of the one before, down to one tile; sub-resolutions of each channel."""
    record = make_record(cells=5000, geometry=BIG)
    write_heatmap_tiff(record, tmp_path / "a.tiff")
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(2, 300, 600), (2, 150, 300), (2, 75, 150)]
        pages = [page.aspage() for level in levels for page in level.pages]
        assert all((page.tilewidth, page.tilelength) == (256, 256) for page in pages)
        assert [bool(page.is_reduced) for page in pages] == [False] * 2 + [True] * 4
        assert [len(page.aspage().subifds) for page in tiff.pages] == [2, 2]
        # The middle of a patch that stands alone survives to the smallest level.
        small = levels[2].asarray()
        assert np.isfinite(small[0, record.rows // 4, record.columns // 4]).all()


def test_pixel_size_and_channel_names(make_record, tmp_path):
    """A pixel is a step of the grid in µm, in OME-XML and in the TIFF tags; channels are named as the columns."""
    record = make_record(geometry={"step_x": 224, "step_y": 112}, classes=("a<b>&", "tumour"))
    write_heatmap_tiff(record, tmp_path / "a.tiff")
    pixels = ome(tmp_path / "a.tiff").find(f"{OME}Image/{OME}Pixels")
    assert float(pixels.get("PhysicalSizeX")) == 56 and float(pixels.get("PhysicalSizeY")) == 28
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    assert pixels.get("Type") == "float"
    assert [channel.get("Name") for channel in pixels.findall(f"{OME}Channel")] == ["prob_a<b>&", "prob_tumour"]
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(10000 / 56)


def test_a_grid_that_does_not_begin_at_the_corner_says_where(make_record, tmp_path):
    """An origin is kept as the planes' position in µm."""
    write_heatmap_tiff(make_record(geometry={"origin_x": 100, "origin_y": 40}), tmp_path / "a.tiff")
    planes = ome(tmp_path / "a.tiff").findall(f".//{OME}Plane")
    assert [(float(plane.get("PositionX")), float(plane.get("PositionY"))) for plane in planes] == [(25, 10)] * 2


@pytest.mark.parametrize("slide", ["Präparat\n日本", "bad\x07bell", "lone\udc80surrogate"])
def test_odd_slide_names_stay_valid_xml(make_record, tmp_path, slide):
    """What XML cannot say is replaced, and the file opens."""
    write_heatmap_tiff(make_record(slide=slide), tmp_path / "a.tiff")
    assert ome(tmp_path / "a.tiff").find(f"{OME}Image").get("Name")[:3] == slide[:3]


def test_bytes_are_the_same_in_every_run(make_record, tmp_path):
    """No time, no random UUID in the file."""
    for name in ("a.tiff", "b.tiff"):
        write_heatmap_tiff(make_record(), tmp_path / name)
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()


def test_one_class_and_no_tissue(make_record, tmp_path):
    """A single channel, all NaN."""
    write_heatmap_tiff(make_record(cells=0, classes=("tumour",)), tmp_path / "a.tiff")
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        assert np.isnan(tiff.series[0].asarray()).all()
        assert tiff.series[0].asarray().shape[-2:] == (7, 9)

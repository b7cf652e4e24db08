"""GeoJSON for QuPath."""

from __future__ import annotations

import json

import shapely.geometry

from review.export import FORMS, disposition
from tests.review.exports import HEAD, reviewed
from tests.review.page import facts


def collection(**changes: object) -> dict:
    return json.loads(FORMS["geojson"].make(reviewed(facts(**changes)), "en"))


def test_every_finding_is_an_annotation_as_qupath_reads_it() -> None:
    """objectType, classification, numbers as measurements, text as metadata: as in QuPath's QuPathTypeAdapters."""
    made = collection()
    assert made["type"] == "FeatureCollection" and len(made["features"]) == 5
    for feature in made["features"]:
        properties = feature["properties"]
        assert properties["objectType"] == "annotation" and len(feature["id"]) == 36
        assert isinstance(properties["classification"]["name"], str) and len(properties["classification"]["color"]) == 3
        assert all(isinstance(value, (int, float)) for value in properties["measurements"].values())
        assert all(isinstance(value, str) for value in properties["metadata"].values())


def test_verdict_and_comment_are_told() -> None:
    """Accepted ones have the plain class; what was rejected can never be taken for it."""
    names = {feature["properties"]["name"]: feature["properties"] for feature in collection()["features"]}
    assert names["r1"]["classification"]["name"] == "tumour"
    assert names["r1"]["comment"] == names["r1"]["metadata"]["ANNOTATION_DESCRIPTION"] == "浸润性癌，切缘阳性"
    assert names["r2"]["classification"]["name"] == "tumour: rejected" and names["r2"]["verdict"] == "rejected"
    assert names["r3"]["classification"]["name"] == "tumour: unsure"
    assert names["r4"]["classification"]["name"] == "tumour: not reviewed" and names["r4"]["verdict"] is None
    assert names["d4"]["kind"] == "drawn"


def test_outlines_are_valid_closed_and_counter_clockwise() -> None:
    """As shapely reads them, with the area that was measured."""
    for feature in collection()["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid and shape.exterior.is_ccw
    assert shapely.geometry.shape(collection()["features"][0]["geometry"]).area == 200 * 150


def test_coordinates_are_qupaths_where_the_slide_has_bounds() -> None:
    """Counted from the corner of the scanned area; the corner is told."""
    made = collection(bounds=(100, 50, 3000, 2000))
    assert made["slidestream"]["origin"] == [100, 50]
    assert shapely.geometry.shape(made["features"][0]["geometry"]).bounds == (0, 50, 200, 200)


def test_the_signature_and_the_logs_head_go_along() -> None:
    """So that a tail cut off the log is noticed."""
    about = collection()["slidestream"]
    assert about["log_head"] == HEAD and about["review"]["signed"]["by"] == "王丽"


def test_a_file_is_named_so_that_every_system_takes_it() -> None:
    """Quotes, slashes and line breaks of a slide's id never reach the header."""
    header = disposition(facts('a/b"\r\nx: 王'), FORMS["pdf"])
    assert header.isascii() and "\r" not in header and "\n" not in header
    assert header.startswith('attachment; filename="b_x.review.pdf"; filename*=UTF-8') and "%E7%8E%8B" in header

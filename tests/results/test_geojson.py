from __future__ import annotations

import json
import uuid

import jsonschema
import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from results.geojson import write_geojson

# QuPath's reader (QuPathTypeAdapters, 0.4 and later), as strict as a file that we write may be held to.
COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "properties": {
                            "type": {"const": "Polygon"},
                            "coordinates": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 1,
                                "items": {
                                    "type": "array",
                                    "minItems": 5,
                                    "maxItems": 5,
                                    "items": {
                                        "type": "array",
                                        "items": {"type": "number"},
                                        "minItems": 2,
                                        "maxItems": 2,
                                    },
                                },
                            },
                        },
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification", "measurements"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {"name": {"type": "string", "minLength": 1}, "color": COLOUR},
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


def written(record, tmp_path, name="a.json") -> dict:
    write_geojson(record, tmp_path / name)
    return json.loads((tmp_path / name).read_text())


def test_it_is_what_qupath_reads(make_record, tmp_path):
    """Every feature has the shape that QuPath's importer documents by its code."""
    collection = written(make_record(failed=(3,)), tmp_path)
    jsonschema.validate(collection, QUPATH)
    assert len(collection["features"]) == 19
    assert {feature["properties"]["objectType"] for feature in collection["features"]} == {"tile"}


def test_shapely_finds_each_patch_in_its_place(make_record, tmp_path):
    """Rings are closed, valid, counter-clockwise, and exactly the patches."""
    record = make_record()
    features = written(record, tmp_path)["features"]
    for patch, feature in zip(record.inferred_order(), features, strict=True):
        polygon = shape(feature["geometry"])
        x, y = record.columns[patch] * 448, record.rows[patch] * 448
        assert polygon.equals(shapely.box(x, y, x + 448, y + 448))
        assert polygon.exterior.is_ccw


def test_measurements_and_classification(make_record, tmp_path):
    """Probabilities come back as float32, and the class is the one with the highest, in its own colour."""
    record = make_record(classes=("stroma", "tumour", "other"))
    features = written(record, tmp_path)["features"]
    colours = {}
    for patch, feature in zip(record.inferred_order(), features, strict=True):
        properties = feature["properties"]
        values = np.array(list(properties["measurements"].values()), np.float32)
        assert list(properties["measurements"]) == ["prob_stroma", "prob_tumour", "prob_other"]
        np.testing.assert_array_equal(values, record.probabilities[patch])
        assert properties["classification"]["name"] == record.classes[record.probabilities[patch].argmax()]
        colours[properties["classification"]["name"]] = tuple(properties["classification"]["color"])
    assert len(set(colours.values())) == 3
    red, green, blue = colours["tumour"]
    assert red > 2 * max(green, blue)


def test_one_class_is_decided_at_one_half(make_record, tmp_path):
    """With a single class a patch below 0.5 is Other, not the class."""
    values = np.array([0.49, 0.5, 0.51], np.float32)[:, None]
    record = make_record(cells=3, classes=("tumour",), probabilities=values)
    features = written(record, tmp_path)["features"]
    for feature in features:
        properties = feature["properties"]
        expected = "tumour" if properties["measurements"]["prob_tumour"] >= 0.5 else "Other"
        assert properties["classification"]["name"] == expected
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"tumour", "Other"}


def test_ids_are_stable_and_never_meet(make_record, tmp_path):
    """A rerun gives the same bytes; another slide, model or grid gives other ids; all are RFC 9562 UUIDs."""
    record = make_record(cells=63)
    first = written(record, tmp_path)
    written(make_record(cells=63), tmp_path, "again.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    ids = [feature["id"] for feature in first["features"]]
    assert {uuid.UUID(name).version for name in ids} == {8}
    assert {uuid.UUID(name).variant for name in ids} == {uuid.RFC_4122}
    others = [
        make_record(cells=63, slide="ward/slide 2"),
        make_record(cells=63, model=record.model | {"sha256": "00" * 32}),
        make_record(cells=63, geometry={"step_x": 447}),
    ]
    for number, other in enumerate(others):
        ids += [feature["id"] for feature in written(other, tmp_path, f"{number}.json")["features"]]
    assert len(set(ids)) == 4 * 63


def test_the_end_of_an_id_is_the_place_on_the_grid(make_record, tmp_path):
    """Row and column can be read off the id, so that a patch can be found in the Parquet file."""
    record = make_record(cells=3)
    features = written(record, tmp_path)["features"]
    assert [feature["id"][-12:] for feature in features] == [
        f"{record.rows[i]:06d}{record.columns[i]:06d}" for i in record.inferred_order()
    ]


def test_a_slide_with_bounds_is_shifted_to_qupaths_origin(make_record, tmp_path):
    """QuPath shows a slide with bounds from their corner on; the tiles must lie where QuPath shows their tissue."""
    plain = written(make_record(), tmp_path)
    shifted = written(make_record(info={"bounds": [100, 40, 3000, 2000]}), tmp_path)
    assert shifted["slidestream"]["origin"] == [100, 40]
    for a, b in zip(plain["features"], shifted["features"], strict=True):
        moved = np.array(a["geometry"]["coordinates"]) - np.array(b["geometry"]["coordinates"])
        assert (moved == [100, 40]).all()


@pytest.mark.parametrize("name", ['quote"d', "back\\slash", "naïve 日本", "new\nline"])
def test_odd_class_names_stay_valid_json(make_record, tmp_path, name):
    """Names are escaped, whatever is in them."""
    properties = written(make_record(classes=(name, "b")), tmp_path)["features"][0]["properties"]
    assert list(properties["measurements"]) == [f"prob_{name}", "prob_b"]


def test_no_tissue_is_an_empty_collection(make_record, tmp_path):
    """A slide without patches is a valid collection without features."""
    collection = written(make_record(cells=0), tmp_path)
    jsonschema.validate(collection, QUPATH)
    assert collection["features"] == []

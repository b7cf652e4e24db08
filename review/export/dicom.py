"""The reviewed findings as DICOM: a segmentation (PS3.3 A.51), and a structured report after TID 1500 (PS3.16).

Needs highdicom (the extra `dicom`). What was rejected is in the report, with its verdict, and never in the segmentation; what nobody
has judged is in neither: both are what a person said, not what a model did.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from results.colours import is_tumour
from review.export import CannotSay, NotInstalled, Reviewed
from review.outline import fill

try:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept
    from pydicom.dataset import Dataset

    from review.export.dicom_source import source_image, uid
except ImportError as missing:
    raise NotInstalled(f"DICOM needs highdicom; install slidestream[dicom] ({missing.name} is missing)") from missing

from pipeline import __version__

SIDE_MOST = 4096  # px of a segmentation's longer side
TILE = 256
SCHEME = "99SLIDESTREAM"
MANUFACTURER, MODEL_NAME = "slidestream", "slidestream review"
_NEOPLASM = CodedConcept("108369006", "SCT", "Neoplasm")
_TISSUE = CodedConcept("85756007", "SCT", "Tissue")
_ABNORMAL = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
_VERDICT = CodedConcept("verdict", SCHEME, "Verdict of the reviewer")
_VERDICTS = {
    "accepted": CodedConcept("accepted", SCHEME, "Accepted"),
    "rejected": CodedConcept("rejected", SCHEME, "Rejected"),
    "unsure": CodedConcept("unsure", SCHEME, "Unsure"),
}
_AREA = CodedConcept("42798000", "SCT", "Area")
_MAX = CodedConcept("max-probability", SCHEME, "Highest probability of the patches")
_MEAN = CodedConcept("mean-probability", SCHEME, "Mean probability of the patches")
_MICROSCOPY = CodedConcept("104157003", "SCT", "Light microscopy procedure")
_COMMENT = CodedConcept("121106", "DCM", "Comment")
_ONE = CodedConcept("1", "UCUM", "no units")
_UM2 = CodedConcept("um2", "UCUM", "square micrometer")


def segmentation(reviewed: Reviewed, language: str) -> bytes:
    """A binary segmentation, tiled sparsely, in the slide's frame of reference: one segment for what was accepted, of each class,
    one for what is unsure, one for what was drawn. CannotSay where there is none of these.
    """
    segments = _segments(reviewed.findings)
    if not segments:
        raise CannotSay("no finding was accepted, unsure or drawn, and an empty segmentation is no DICOM")
    facts = reviewed.facts
    source = source_image(facts)
    shrink = max(1, math.ceil(max(facts.width, facts.height) / SIDE_MOST))
    masks = rasterise(list(segments.values()), facts.width, facts.height, shrink)
    orientation = [float(value) for value in source.ImageOrientationSlide]
    made = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=masks[np.newaxis],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, label, found, reviewed) for number, (label, found) in enumerate(segments.items(), 1)
        ],
        series_instance_uid=hd.UID(),
        series_number=101,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=_text(reviewed.facts.model.get("sha256") or "0", 64),
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=[facts.mpp_y * shrink / 1000, facts.mpp_x * shrink / 1000], slice_thickness=0.001
        ),
        plane_orientation=hd.PlaneOrientationSequence("SLIDE", orientation),
        # A position is that of a pixel's centre, and these pixels are larger than the slide's.
        plane_positions=[
            hd.PlanePositionSequence(
                "SLIDE", _place(source, facts, [[(shrink - 1) / 2] * 2])[0], pixel_matrix_position=(1, 1)
            )
        ],
        tile_pixel_array=True,
        tile_size=(TILE, TILE),
        dimension_organization_type=hd.DimensionOrganizationTypeValues.TILED_SPARSE,
        omit_empty_frames=True,
        content_label="REVIEW",
        content_description="Findings of a slide as a reviewer judged them",
        content_creator_name=_person(reviewed.document["reviewer"]),
        series_description="Reviewed findings",
    )
    made.PatientOrientation = None  # allowed here, and asked for by older validators
    return _bytes(made)


def report(reviewed: Reviewed, language: str) -> bytes:
    """A Comprehensive 3D SR with one planar region for each judged or drawn finding: outline (mm on the slide), verdict, area,
    probabilities, comment. Verified where the review is signed. CannotSay where nothing was judged.
    """
    facts, document = reviewed.facts, reviewed.document
    judged = [finding for finding in reviewed.findings if finding["verdict"] or finding["comment"]]
    if not judged:
        raise CannotSay("nothing was judged yet, so there is nothing to report")
    source = source_image(facts)
    groups = [_group(finding, source, reviewed) for finding in judged]
    person = _person(document["reviewer"])
    context = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(
            observer_type=CodedConcept("121006", "DCM", "Person"),
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=person),
        ),
        observer_device_context=hd.sr.ObserverContext(
            observer_type=CodedConcept("121007", "DCM", "Device"),
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=uid("model", str(facts.model.get("sha256"))),
                name=_text(facts.model.get("name") or "model", 64),
                manufacturer_name=MANUFACTURER,
                model_name=MODEL_NAME,
            ),
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=context, procedure_reported=_MICROSCOPY, imaging_measurements=groups
    )
    signed = document["signed"]
    verified = (
        {
            "verifying_observer_name": _person(signed["by"]),
            "verifying_organization": _text(source.get("InstitutionName") or "not given", 64),
        }
        if signed
        else {}
    )
    made = hd.sr.Comprehensive3DSR(
        evidence=[source],
        content=content[0],
        series_number=102,
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=_text(facts.model.get("sha256") or "0", 64),
        is_complete=bool(signed),
        is_final=bool(signed),
        is_verified=bool(signed),
        series_description="Review of a slide",
        **verified,
    )
    return _bytes(made)


def rasterise(groups: Sequence[Sequence[Mapping[str, Any]]], width: int, height: int, shrink: int) -> np.ndarray:
    """Masks uint8 (rows, columns, groups), one pixel for `shrink` x `shrink` level-0 px: 1 where a pixel's centre is in an outline.

    A finding smaller than a pixel marks the one that it lies in: it must not vanish.
    """
    size = math.ceil(height / shrink), math.ceil(width / shrink)
    masks = np.zeros((*size, len(groups)), np.uint8)
    for number, group in enumerate(groups):
        for finding in group:
            points = np.asarray(finding["outline"], np.float64) / shrink
            left, top = np.floor(points.min(axis=0)).astype(int)
            right, bottom = np.ceil(points.max(axis=0)).astype(int)
            part = fill(points - (left, top), right - left + 1, bottom - top + 1)
            if not part.any():
                x, y = points.mean(axis=0) - (left, top)
                part[int(y), int(x)] = 1
            place = slice(max(top, 0), min(bottom + 1, size[0])), slice(max(left, 0), min(right + 1, size[1]))
            masks[(*place, number)] |= part[
                place[0].start - top : place[0].stop - top, place[1].start - left : place[1].stop - left
            ]
    return masks


def _segments(findings: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        if finding["verdict"] in ("accepted", "unsure"):
            label = "drawn by hand" if finding["kind"] == "drawn" else finding["class"]
            found.setdefault(f"{label}, {finding['verdict']}", []).append(finding)
    return found


def _description(
    number: int, label: str, findings: Sequence[Mapping[str, Any]], reviewed: Reviewed
) -> hd.seg.SegmentDescription:
    drawn = findings[0]["kind"] == "drawn"
    tumour = _means_tumour(findings[0], reviewed)
    how = {} if drawn else {"algorithm_identification": _algorithm(reviewed)}
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(label, 64),
        segmented_property_category=_ABNORMAL if tumour else _TISSUE,
        segmented_property_type=_NEOPLASM if tumour else _TISSUE,
        algorithm_type="MANUAL" if drawn else "SEMIAUTOMATIC",
        tracking_uid=hd.UID(),
        tracking_id=_text(label, 64),
        **how,
    )


def _means_tumour(finding: Mapping[str, Any], reviewed: Reviewed) -> bool:
    # What is drawn is what the reviewer was looking for: the class of the heatmap.
    name = finding["class"] or reviewed.document["class"] or ""
    return is_tumour(name)


def _algorithm(reviewed: Reviewed) -> hd.AlgorithmIdentificationSequence:
    model = reviewed.facts.model
    return hd.AlgorithmIdentificationSequence(
        name=_text(model.get("name") or "model", 64),
        family=_INTELLIGENCE,
        version=_text(model.get("sha256") or "0", 64),
    )


def _group(
    finding: Mapping[str, Any], source: Dataset, reviewed: Reviewed
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    ring = [*finding["outline"], finding["outline"][0]]
    # An outline counts from a pixel's corner, a position in DICOM from its centre.
    places = _place(source, reviewed.facts, [[x - 0.5, y - 0.5] for x, y in ring])
    region = hd.sr.ImageRegion3D(
        graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
        graphic_data=np.asarray(places, np.float64),
        frame_of_reference_uid=source.FrameOfReferenceUID,
    )
    measured = [(_AREA, finding["area_um2"], _UM2), (_MAX, finding["max"], _ONE), (_MEAN, finding["mean"], _ONE)]
    judged = finding["verdict"] and [hd.sr.QualitativeEvaluation(name=_VERDICT, value=_VERDICTS[finding["verdict"]])]
    group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid("finding", reviewed.facts.id, finding["id"]), identifier=_text(finding["id"], 64)
        ),
        referenced_region=region,
        finding_type=_NEOPLASM if _means_tumour(finding, reviewed) else _TISSUE,
        finding_category=_ABNORMAL if _means_tumour(finding, reviewed) else _TISSUE,
        measurements=[
            hd.sr.Measurement(name=name, value=round(float(value), 6), unit=unit)
            for name, value, unit in measured
            if value is not None
        ],
        qualitative_evaluations=judged or None,
    )
    if finding["comment"]:
        comment = hd.sr.TextContentItem(
            name=_COMMENT, value=finding["comment"], relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
        group[0].ContentSequence.append(comment)
    return group


def _place(source: Dataset, facts: Any, points: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Pixel centres (x, y; level-0 px) in mm of the slide's coordinate system (PS3.3 C.8.12.2.1)."""
    origin = source.TotalPixelMatrixOriginSequence[0]
    start = np.array([origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem, 0.0], np.float64)
    along = np.asarray(source.ImageOrientationSlide, np.float64).reshape(2, 3)
    scale = np.array([facts.mpp_x, facts.mpp_y]) / 1000
    places = start + (np.asarray(points, np.float64) * scale) @ along
    return [tuple(float(value) for value in place) for place in places]


def _person(name: str | None) -> str:
    """A person's name as one component (PS3.5 6.2, hence the caret); its delimiters cannot be in it."""
    return _text("".join(letter if letter not in "^=\\" else " " for letter in name or "unknown"), 63) + "^"


def _text(value: str, most: int) -> str:
    """Text for LO and the like: no backslash, no control characters, cut."""
    return (
        "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in str(value)).strip()[:most]
        or "-"
    )


def _bytes(made: Dataset) -> bytes:
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()

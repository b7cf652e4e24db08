"""DICOM SEG and SR, read back with highdicom and judged by dciodvfy and dcmtk where they are installed."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (the extra `dicom`)")

from review.export import FORMS, CannotSay
from review.export.dicom import _VERDICT as VERDICT
from review.export.dicom import rasterise
from review.export.dicom_source import source_image
from tests.review.exports import finding, reviewed
from tests.review.page import TUMOUR, facts


def make(form: str, report: Any = None) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(FORMS[form].make(report or reviewed(), "en")))


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-sr"])
@pytest.mark.parametrize("program", ["dciodvfy", "dcmdump", "dsrdump"])
def test_validators_accept_it(form: str, program: str, tmp_path: Path) -> None:
    """No error by dciodvfy (dicom3tools); dcmtk reads it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: dicom3tools, dcmtk)")
    if program == "dsrdump" and form == "dicom-seg":
        pytest.skip("dsrdump reads reports")
    path = tmp_path / "it.dcm"
    path.write_bytes(FORMS[form].make(reviewed(), "en"))
    run = subprocess.run(
        [program, str(path)], capture_output=True, text=True, timeout=60, check=False, errors="replace"
    )
    assert run.returncode == 0 and "Error" not in run.stderr, run.stderr
    assert not [line for line in run.stderr.splitlines() if line.startswith("E:")]


def test_the_segmentation_has_what_was_accepted_where_it_was() -> None:
    """One segment each for accepted, unsure and drawn; rejected and unjudged regions are in none; pixels lie in the outlines."""
    made = hd.seg.Segmentation.from_dataset(make("dicom-seg"))
    labels = [made.get_segment_description(number).segment_label for number in made.segment_numbers]
    assert labels == ["tumour, accepted", "tumour, unsure", "drawn by hand, accepted"]
    whole = made.get_total_pixel_matrix(combine_segments=False)
    assert whole.shape == (3000, 4000, 3)
    ys, xs = np.nonzero(whole[..., 0])
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (100, 299, 100, 249) and whole[..., 0].sum() == 200 * 150
    ys, xs = np.nonzero(whole[..., 1])
    assert xs.min() == 900, "the third region; the second one was rejected"
    assert made.get_segment_description(1).segmented_property_type.meaning == "Neoplasm"
    assert made.get_segment_description(3).algorithm_type.value == "MANUAL"


def test_a_large_slide_has_larger_pixels_at_the_right_place() -> None:
    """At most 4096 of them a side; spacing and position say where they lie, in mm."""
    big = facts(width=100_000, height=60_000)
    outline = [[50_000, 30_000], [60_000, 30_000], [60_000, 40_000], [50_000, 40_000]]
    made = make("dicom-seg", reviewed(big, 0, findings=[finding("r1", "accepted", outline=outline)]))
    assert max(made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows) == 4000
    spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert [float(value) for value in spacing] == [0.0125, 0.0125]
    origin = made.TotalPixelMatrixOriginSequence[0]
    assert float(origin.XOffsetInSlideCoordinateSystem) == pytest.approx(12 * 0.5 / 1000)
    whole = hd.seg.Segmentation.from_dataset(made).get_total_pixel_matrix(combine_segments=False)
    ys, xs = np.nonzero(whole[..., 0])
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (2000, 2400, 1200, 1600)


def test_a_finding_smaller_than_a_pixel_does_not_vanish() -> None:
    """It marks the pixel that it lies in."""
    tiny = {"outline": [[1000, 1000], [1004, 1000], [1004, 1004]]}
    masks = rasterise([[tiny]], 100_000, 60_000, 25)
    assert masks[40, 40, 0] == 1 and masks.sum() == 1


def test_the_report_has_each_judgement_with_outline_and_comment() -> None:
    """Also the rejected ones, with their verdict; not what nobody judged. Outlines in mm, areas in µm²."""
    made = hd.sr.srread(io.BytesIO(FORMS["dicom-sr"].make(reviewed(), "en")))
    groups = made.content.get_planar_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["r1", "r2", "r3", "d4"]
    verdicts = [group.get_qualitative_evaluations(VERDICT)[0].value.meaning for group in groups]
    assert verdicts == ["Accepted", "Rejected", "Unsure", "Accepted"]
    first = groups[0]
    assert first.get_measurements()[0].value == 7500.0
    ring = np.asarray(first.roi.value)
    expected = np.array([*TUMOUR, TUMOUR[0]], np.float64)
    np.testing.assert_allclose(ring[:, :2], (expected - 0.5) * 0.0005, atol=1e-7)
    text = "".join(str(item) for item in made.content)
    assert "浸润性癌，切缘阳性" in text


def test_a_comment_without_a_verdict_is_reported_without_one() -> None:
    """What was said is there, what was not is not made up."""
    report = reviewed(findings=[finding("r1", None, "look again")])
    groups = hd.sr.srread(io.BytesIO(FORMS["dicom-sr"].make(report, "en"))).content.get_planar_roi_measurement_groups()
    assert len(groups) == 1 and not groups[0].get_qualitative_evaluations(VERDICT)


def test_only_a_signed_review_is_verified() -> None:
    """By whom and complete; an unsigned one is partial."""
    signed, open_review = make("dicom-sr"), make("dicom-sr", reviewed(signed=None, state="in_review"))
    assert (signed.VerificationFlag, signed.CompletionFlag) == ("VERIFIED", "COMPLETE")
    assert str(signed.VerifyingObserverSequence[0].VerifyingObserverName).rstrip("^") == "王丽"
    assert (open_review.VerificationFlag, open_review.CompletionFlag) == ("UNVERIFIED", "PARTIAL")


def test_segmentation_and_report_belong_together() -> None:
    """One study and frame of reference, one source image, the same every time; each file is its own instance."""
    one, two, sr = make("dicom-seg"), make("dicom-seg"), make("dicom-sr")
    assert one.StudyInstanceUID == two.StudyInstanceUID == sr.StudyInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.FrameOfReferenceUID == source_image(facts()).FrameOfReferenceUID


def test_a_slide_that_is_dicom_gives_its_own_patient_and_place(tmp_path: Path) -> None:
    """Patient, study, frame of reference and orientation of its level 0, wherever that lies among the files of its folder."""
    own = source_image(facts())
    own.PatientID, own.PatientName = "4711", "Wang^Li=王^丽"
    own.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    own.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = 20
    own.TotalPixelMatrixOriginSequence[0].YOffsetInSlideCoordinateSystem = 40
    own.SOPInstanceUID = hd.UID()
    own.file_meta.MediaStorageSOPClassUID, own.file_meta.MediaStorageSOPInstanceUID = (
        own.SOPClassUID,
        own.SOPInstanceUID,
    )
    own.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    own.SOPInstanceUID = own.file_meta.MediaStorageSOPInstanceUID = hd.UID()
    own.TotalPixelMatrixColumns = 1000
    own.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("no DICOM")
    slide = facts(path=str(tmp_path / "a.dcm"))
    sr = make("dicom-sr", reviewed(slide))
    assert sr.PatientID == "4711" and str(sr.PatientName) == "Wang^Li=王^丽"
    read = hd.sr.srread(io.BytesIO(FORMS["dicom-sr"].make(reviewed(slide), "en")))
    ring = np.asarray(read.content.get_planar_roi_measurement_groups()[0].roi.value)
    np.testing.assert_allclose(ring[0, :2], [20 - 99.5 * 0.0005, 40 - 99.5 * 0.0005], atol=1e-5)
    assert make("dicom-seg", reviewed(slide)).PatientID == "4711"


def test_what_cannot_be_said_is_refused() -> None:
    """No findings, nothing judged, no known resolution: a reason, and no file that says something else."""
    for form, report in (
        ("dicom-seg", reviewed(findings=[finding("r1", "rejected")])),
        ("dicom-sr", reviewed(findings=[])),
        ("dicom-seg", reviewed(facts(mpp_x=0.0))),
        ("dicom-sr", reviewed(facts(width=0))),
    ):
        with pytest.raises(CannotSay):
            FORMS[form].make(report, "en")


def test_names_cannot_break_out_of_their_element() -> None:
    """Delimiters of DICOM in names, labels and ids are taken out: one value stays one, a name one component."""
    odd = facts("a\\b^c", model={"name": "m\\n\x00", "sha256": "s" * 80, "classes": ["tumour"]})
    made = make("dicom-seg", reviewed(odd, reviewer="x^y=z\\"))
    assert str(made.ContentCreatorName) == "x y z^"
    assert isinstance(made.ContainerIdentifier, str) and isinstance(made.DeviceSerialNumber, str)
    assert made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "m n"

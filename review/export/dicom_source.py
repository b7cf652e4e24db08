"""The DICOM image that a segmentation or report of a slide refers to: the slide's own, or one that stands for it.

A slide that is DICOM gives patient, study, specimen and frame of reference. For any other format a data set is made up that says
no more than is known: its UIDs come from the slide's id and are the same every time, so that segmentation and report of a
slide belong together, and to the slide where it is later converted under these UIDs. It is never written.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pydicom
from highdicom import SpecimenDescription
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from review.export import CannotSay
from review.facts import Facts

_SPACE = uuid.UUID("0f5a3b86-0f0d-5d5c-8a43-0d2ff1e4a6c1")
_FILES_MOST = 500


def uid(*parts: str) -> str:
    """A UID from a UUID (ITU-T X.667, DICOM PS3.5 B.2), the same for the same parts."""
    return f"2.25.{uuid.uuid5(_SPACE, chr(0).join(parts)).int}"


def source_image(facts: Facts) -> Dataset:
    """The slide's largest level as a data set without pixels. CannotSay where size or resolution is unknown."""
    if not (facts.width and facts.height and facts.mpp_x and facts.mpp_y):
        raise CannotSay("the slide has no known size and resolution, which DICOM needs")
    return _own(facts) or _made_up(facts)


def _own(facts: Facts) -> Dataset | None:
    """The level-0 instance among the slide's files, if it is DICOM."""
    if not facts.path:
        return None
    path = Path(facts.path)
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        first = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        for number, name in enumerate(sorted(path.parent.iterdir())):
            if number >= _FILES_MOST:
                break
            if not name.is_file():
                continue
            try:
                found = pydicom.dcmread(name, stop_before_pixels=True)
            except (InvalidDicomError, OSError):
                continue
            size = found.get("TotalPixelMatrixColumns"), found.get("TotalPixelMatrixRows")
            if found.get("SeriesInstanceUID") == first.SeriesInstanceUID and size == (facts.width, facts.height):
                return found if "VOLUME" in found.get("ImageType", ()) else None
    except (InvalidDicomError, OSError, AttributeError):
        return None
    return None


def _made_up(facts: Facts) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = uid("image", facts.id)
    image.StudyInstanceUID = uid("study", facts.id)
    image.SeriesInstanceUID = uid("series", facts.id)
    image.FrameOfReferenceUID = uid("frame", facts.id)
    image.Modality = "SM"
    image.PatientID = image.PatientName = image.PatientBirthDate = image.PatientSex = ""
    image.AccessionNumber = image.StudyID = image.ReferringPhysicianName = ""
    image.StudyDate = image.StudyTime = ""
    image.SeriesNumber = image.InstanceNumber = 1
    image.ContainerIdentifier = name = facts.id.replace("\\", "/")[-64:]
    image.IssuerOfTheContainerIdentifierSequence = []
    image.ContainerTypeCodeSequence = [CodedConcept("433466003", "SCT", "Microscope slide")]
    specimen = SpecimenDescription(
        specimen_id=name, specimen_uid=uid("specimen", facts.id), specimen_preparation_steps=None
    )
    image.SpecimenDescriptionSequence = [specimen]
    image.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    image.Rows, image.Columns = min(256, facts.height), min(256, facts.width)
    image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = facts.height, facts.width
    image.TotalPixelMatrixFocalPlanes = 1
    image.NumberOfFrames = -(-facts.height // image.Rows) * -(-facts.width // image.Columns)
    image.DimensionOrganizationType = "TILED_FULL"
    image.NumberOfOpticalPaths = 1
    image.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]  # only relative: where on the glass the scan lies is not known
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    image.TotalPixelMatrixOriginSequence = [origin]
    image.ImagedVolumeWidth = facts.width * facts.mpp_x / 1000
    image.ImagedVolumeHeight = facts.height * facts.mpp_y / 1000
    image.ImagedVolumeDepth = 0.001
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.BitsAllocated = image.BitsStored = 8
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [facts.mpp_y / 1000, facts.mpp_x / 1000]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    return image

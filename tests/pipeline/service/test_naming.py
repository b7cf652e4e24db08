from __future__ import annotations

import pytest

from pipeline.service.naming import NAME_BYTES, fits, is_temporary, result_name


@pytest.mark.parametrize(
    "name",
    [
        b".hidden.svs", b".S1.svs.Xq3fZa", b"S1.svs.part", b"S1.svs.filepart", b"S1.svs~", b"~$S1.svs", b"S1.TMP",
        b"S1.svs.crdownload", b"S1.tmp.svs", b"S1.part.tiff", b"$RECYCLE.BIN", b".~tmp~", b"S1.svs.Partial",
    ],
)  # fmt: skip
def test_temporary_names_are_known(name: bytes) -> None:
    """Those of rsync, WinSCP, browsers, scanners and Windows, in any case."""
    assert is_temporary(name)


@pytest.mark.parametrize(
    "name", [b"S1.svs", b"part.svs", b"tmp 7.ndpi", b"department.tiff", b"a~b.svs", b"S1.svs.stat", "Grün.svs".encode()]
)
def test_ordinary_names_are_not_temporary(name: bytes) -> None:
    """Also where they contain such a word."""
    assert not is_temporary(name)


def test_results_are_called_as_the_path_below_the_folder() -> None:
    """Without the extension; odd bytes escaped, spaces and newlines kept."""
    assert result_name(b"2026/case 7/S1.a.svs") == "2026/case 7/S1.a"
    assert result_name(b"a\nb\xff.svs") == "a\nb\\xff"


def test_long_names_leave_room_for_endings_and_stay_different() -> None:
    """Cut to a bound in bytes, at a whole character, with a hash of what was cut."""
    one, two = (result_name("ü".encode() * 120 + tail + b".svs") for tail in (b"a", b"b"))
    assert one != two
    assert all(len(part.encode()) <= NAME_BYTES for name in (one, two) for part in name.split("/"))


@pytest.mark.parametrize("path", [b"../a.svs", b"/etc/a.svs", b"a/../../b.svs", b"a//b.svs", b"./a.svs"])
def test_names_never_lead_out_of_the_results(path: bytes) -> None:
    """A path with .. or from the root is refused."""
    with pytest.raises(ValueError, match="no path below a folder"):
        result_name(path)


def test_patterns_fit_without_regard_to_case() -> None:
    """Against the whole path below the folder; odd bytes do no harm."""
    assert fits(b"OR 3/Frozen_17.SVS", ["*frozen*"])
    assert fits(b"or/a\xff.svs", ["or/*"])
    assert not fits(b"b/or/a.svs", ["or/*"])

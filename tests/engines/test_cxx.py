"""engines.cxx: which C++ library an AOTInductor package is linked with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.cxx import SHARED, SONAME, found_by, shared_libstdcxx


@pytest.mark.parametrize(
    ("known", "libraries"),
    [
        ({SHARED: "/lib/libstdc++.so", SONAME: "/lib/libstdc++.so.6"}, []),
        ({SONAME: "/lib/libstdc++.so.6"}, [":libstdc++.so.6"]),  # else the archive would be taken
        ({}, []),  # naming what the linker does not find would break the build
    ],
)
def test_the_shared_library_is_named_where_the_compiler_would_take_the_archive(known: dict, libraries: list):
    """As on machines whose compiler came without the development link."""
    assert shared_libstdcxx(lambda name: known.get(name, name)) == libraries


def test_a_compiler_is_asked():
    """The real one: a file that is there, and a bare name for what is not."""
    find = found_by(shutil.which("g++") or pytest.skip("there is no g++"))
    assert Path(find("libgcc.a")).is_file()
    assert find("libnothing.so") == "libnothing.so"


def test_a_compiler_that_is_not_there_finds_nothing():
    """And the build goes on to say what it lacks."""
    assert found_by("no-such-compiler")(SHARED) == SHARED

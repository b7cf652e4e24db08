from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.service.settle import LOOKS, Change, Seen, Settle, What

REST = 10.0


def seen(path: bytes = b"/s/a.svs", stamp: str = "1", size: int = 100, inode: int | None = 1) -> Seen:
    return Seen(path, stamp, size, None if inode is None else (1, inode), REST)


def looks(settle: Settle, *found: list[Seen], step: float = 5.0, start: float = 0.0) -> list[list[tuple[What, bytes]]]:
    return [
        [(change.what, change.path) for change in settle.look(start + step * i, slides)]
        for i, slides in enumerate(found)
    ]


def test_a_slide_is_ready_when_it_has_been_at_rest() -> None:
    """After three looks over the time of rest, and only once."""
    a = [seen()]
    got = looks(Settle(), a, a, a, a, a)
    assert got == [[(What.NEW, b"/s/a.svs")], [], [(What.READY, b"/s/a.svs")], [], []]


def test_a_slide_that_grows_for_hours_is_not_ready() -> None:
    """Each growth starts the time of rest anew."""
    found = [[seen(stamp=str(i), size=100 + i)] for i in range(1000)]
    got = looks(Settle(), *found)
    assert {what for look in got for what, _ in look} == {What.NEW, What.GROWING}


def test_one_late_look_does_not_make_a_slide_ready() -> None:
    """The share hung between them: two looks are no proof, whatever the time between."""
    settle = Settle()
    assert looks(settle, [seen()], [seen()], step=3600.0)[1] == []
    settle.interrupted(7200.0)
    assert looks(settle, [seen()], [seen()], start=7200.0) == [[], []]
    assert looks(settle, [seen()], start=7210.0) == [[(What.READY, b"/s/a.svs")]]


def test_an_empty_file_is_never_ready() -> None:
    """Scanners make the file first."""
    found = [[seen(size=0)]] * 10
    assert looks(Settle(), *found)[1:] == [[]] * 9


def test_what_was_taken_before_the_start_is_not_taken_again() -> None:
    """Unless it has changed since; what is gone since is said once."""
    settle = Settle({b"/s/a.svs": "1", b"/s/b.svs": "1", b"/s/c.svs": "1"})
    found = [seen(), seen(b"/s/b.svs", "2", inode=2)]
    got = looks(settle, found, found, found)
    assert got == [[(What.GONE, b"/s/c.svs"), (What.NEW, b"/s/b.svs")], [], [(What.READY, b"/s/b.svs")]]


def test_a_rename_keeps_the_time_of_rest() -> None:
    """The same file under another name is no new one, before it is taken or after."""
    settle = Settle()
    old, new = seen(b"/s/a.svs"), seen(b"/s/b.svs")
    assert looks(settle, [old], [old], [new], [new]) == [
        [(What.NEW, b"/s/a.svs")],
        [],
        [(What.RENAMED, b"/s/b.svs"), (What.READY, b"/s/b.svs")],
        [],
    ]
    assert looks(settle, [old], [old], start=20.0) == [[(What.RENAMED, b"/s/a.svs")], []]


def test_an_inode_that_another_file_got_is_no_rename() -> None:
    """After a delete the number may be given again; hard links have one together."""
    assert looks(Settle(), [seen(stamp="1")], [seen(b"/s/b.svs", "2")])[1] == [
        (What.GONE, b"/s/a.svs"),
        (What.NEW, b"/s/b.svs"),
    ]
    links = [seen(b"/s/b.svs"), seen(b"/s/c.svs")]
    assert What.RENAMED not in {what for what, _ in looks(Settle(), [seen()], links)[1]}


def test_without_inodes_a_rename_is_one_gone_and_one_new() -> None:
    """On file systems that have none; the content tells that it is the same slide."""
    got = looks(Settle(), [seen(inode=None)], [seen(b"/s/b.svs", inode=None)])
    assert got[1] == [(What.GONE, b"/s/a.svs"), (What.NEW, b"/s/b.svs")]


def test_a_folder_that_cannot_be_searched_keeps_its_slides() -> None:
    """They are neither gone nor at rest."""
    settle = Settle({b"/s/x/k.svs": "1"})
    slide = seen(b"/s/x/a.svs")
    settle.look(0.0, [slide], [b"/s/x/"])
    assert settle.look(5.0, [], [b"/s/x/"]) == []
    assert [change.what for change in settle.look(20.0, [])] == [What.GONE, What.GONE]


def test_a_slide_that_is_not_whole_is_looked_at_again_later_or_after_a_change() -> None:
    """Not before; and a word about an earlier state of it is ignored."""
    settle = Settle()
    looks(settle, [seen()], [seen()], [seen()])
    settle.refused(b"/s/a.svs", "0", 0.0)
    assert looks(settle, [seen()], start=15.0) == [[]]
    settle.refused(b"/s/a.svs", "1", 50.0)
    assert looks(settle, [seen()], start=49.0) == [[]]
    assert looks(settle, [seen()], start=50.0) == [[(What.READY, b"/s/a.svs")]]
    settle.refused(b"/s/a.svs", "1", 1e9)
    changed = [seen(stamp="2")]
    assert looks(settle, changed, changed, changed, start=60.0)[2] == [(What.READY, b"/s/a.svs")]


@dataclass
class _File:
    """A file of the model: `version` rises at every write."""

    inode: int
    version: int
    written: float


NAMES = st.sampled_from([b"/s/a", b"/s/b", b"/s/c"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, NAMES),
        st.tuples(st.just("delete"), NAMES, NAMES),
        st.tuples(st.just("rename"), NAMES, NAMES),
        st.tuples(st.just("look"), NAMES, NAMES),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 11.0]), NAMES),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.booleans())
def test_whatever_happens_only_slides_at_rest_are_taken_and_each_once(actions: list[tuple], inodes: bool) -> None:
    """Written, renamed over each other, deleted, looked at rarely: READY means that it was not written for the time of
    rest, is there, and was not said of this state before; and in the end everything that lies there is taken."""
    settle, files, now, versions, serial = Settle(), {}, 0.0, 0, 0
    told: dict[bytes, tuple[int, int]] = {}
    believed: set[bytes] = set()

    def look() -> None:
        found = [
            Seen(path, str(file.version), 1, (1, file.inode) if inodes else None, REST) for path, file in files.items()
        ]
        for change in settle.look(now, found):
            take(change)
        assert believed == set(files)

    def take(change: Change) -> None:
        match change.what:
            case What.GONE:
                believed.discard(change.path)
                told.pop(change.path, None)
            case What.RENAMED:
                assert inodes
                believed.discard(change.old)
                believed.add(change.path)
                if change.old in told:
                    told[change.path] = told.pop(change.old)
            case What.NEW:
                believed.add(change.path)
                told.pop(change.path, None)
            case What.GROWING:
                told.pop(change.path, None)
            case What.READY:
                file = files[change.path]
                assert now - file.written >= REST
                assert change.path not in told
                told[change.path] = (file.inode, file.version)

    for action, one, other in actions:
        match action:
            case "write":
                versions += 1
                if one not in files:
                    serial += 1
                    files[one] = _File(serial, versions, now)
                else:
                    files[one] = replace(files[one], version=versions, written=now)
            case "delete":
                files.pop(one, None)
            case "rename" if one in files and one != other:
                files[other] = files.pop(one)
            case "look":
                look()
            case "wait":
                now += one
    for _ in range(LOOKS + 1):
        look()
        now += REST
    assert {path: (file.inode, file.version) for path, file in files.items()} == told
    assert settle.unsettled == 0

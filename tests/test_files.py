"""Whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gatewise.files import directory, whole


def test_it_takes_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
        assert draft.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_half_of_it_is_never_seen(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def stop_halfway() -> None:
        with whole(path) as draft:
            draft.write_text("ne")
            raise error

    with pytest.raises(error):
        stop_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no directory"), whole(tmp_path / "no/a"):
        pass
    with pytest.raises(IsADirectoryError, match="a directory, where a file"), whole(tmp_path):
        pass


def test_what_is_no_regular_file_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="pipe: no regular file, which a file"), whole(pipe):
        raise AssertionError("begun")
    assert pipe.is_fifo()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    link.symlink_to(path)
    for text in ("new", "newer"):  # where it leads to nothing yet, and to a file
        with whole(link) as draft:
            draft.write_text(text)
        assert link.is_symlink()
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_without_permission_the_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, everything is permitted
    with (
        pytest.raises(PermissionError, match=r"denied: '.*/page.html'"),
        whole(tmp_path / "page.html"),
    ):
        raise AssertionError("begun")
    with (
        pytest.raises(PermissionError, match=r"denied: '.*/place'"),
        directory(tmp_path / "place"),
    ):
        raise AssertionError("begun")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_for_nothing_goes_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    def fail(path: Path, name: str = "") -> None:
        with directory(path):
            assert path.is_dir()
            if name:
                (path / name).touch()
            raise KeyboardInterrupt

    for path in (tmp_path / "there", tmp_path / "there" / "new" / "deep"):
        with pytest.raises(KeyboardInterrupt):
            fail(path)
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]  # which was not made here
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "kept", "begun")
    assert (tmp_path / "kept" / "begun").is_file()


@pytest.mark.parametrize("name", [True, False], ids=["the_drafts", "none"])
def test_an_error_names_the_file_that_was_asked_for(name: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def no_room() -> None:
        with whole(path) as draft:
            raise OSError(28, "No space left on device", str(draft) if name else None)

    with pytest.raises(OSError, match="No space left") as wrong:
        no_room()
    assert wrong.value.filename == str(path)

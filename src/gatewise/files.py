"""Files that are written whole or not at all, and where they may be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def directory(path: Path) -> Iterator[None]:
    """Make a directory for files; one that refuses them is refused now, not after hours of work.

    What is made here goes again if the block fails before anything is in it.

    Raises:
        OSError: it cannot be made, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "place"
        >>> with directory(path):
        ...     path.is_dir()
        True
    """
    new = [each for each in (path, *path.parents) if not each.exists()]  # the deepest first
    try:
        path.mkdir(parents=True, exist_ok=True)
        _may_write(path, path)
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty, or was never made
            for each in new:
                each.rmdir()
        raise


def place(path: Path) -> Path:
    """The path, links followed, if a file can stand there: to be asked before the work begins.

    Raises:
        OSError: the directory is missing or cannot be written to, or the path is one, or a device
            or the like, whose place a file must not take.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a directory, where a file is to be written")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: no regular file, which a file could take the place of")
    if path.is_symlink():
        path = path.resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}")
    _may_write(path.parent, path)
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write to the path given; it takes the place of ``path`` when the block ends well.

    Raises:
        OSError: as in :func:`place`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "page.txt"
        >>> with whole(path) as page:
        ...     _ = page.write_text("all of it")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('all of it', 1)
    """
    target = place(path)
    draft = target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}")
    try:
        yield draft
        os.replace(draft, target)
    except OSError as wrong:
        if wrong.filename == str(draft) or (wrong.errno and not wrong.filename):
            wrong.filename = str(path)  # nobody gave the draft's; a full disk gives none
        raise
    finally:
        draft.unlink(missing_ok=True)


def _may_write(folder: Path, path: Path) -> None:
    """Refuse a path in a folder without permission, by its own name and not by the draft's."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

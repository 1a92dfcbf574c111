"""The tagger: its batches, its numbers against torch.nn, its score, what it restores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from gatewise import ArgumentError
from gatewise.corpus import SENTENCE, letters_of, read
from gatewise.tagger import KINDS, Batch, Score, Tagger, pack, score

TEXT = read(
    "In the beginning God created the heaven and the earth. And the earth was without form."
)


def test_batches_are_what_torch_packs() -> None:
    starts, lengths = np.array([3, 0, 20, 41]), np.array([7, 3, 19, 7])
    batch = Batch.of(TEXT, starts, lengths)
    order = [2, 0, 3, 1]  # the longest first, equal ones as they came
    spans = [slice(starts[b], starts[b] + lengths[b]) for b in order]
    expected = pack_sequence([torch.from_numpy(TEXT.letters[span]) for span in spans])
    assert torch.equal(batch.letters.data, expected.data)
    assert torch.equal(batch.letters.batch_sizes, expected.batch_sizes)
    ends = pack_sequence([torch.from_numpy(TEXT.ends[span]).float() for span in spans])
    assert torch.equal(batch.ends, ends.data)
    last = [torch.arange(int(n)) == n - 1 for n in lengths[order]]
    assert torch.equal(batch.last, pack_sequence(last).data)
    assert len(batch) == lengths.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_families_agree(kind: str) -> None:
    ours, theirs = Tagger(kind, 12, 5), Tagger(kind, 12, 5, family=nn)
    theirs.load_state_dict(ours.state_dict())
    batch = Batch.of(TEXT, np.array([0, 17, 44]), np.array([17, 27, 9]))
    for model in (ours, theirs):
        logits = model(batch.letters)
        nn.functional.binary_cross_entropy_with_logits(logits.data, batch.ends).backward()
    with torch.no_grad():
        torch.testing.assert_close(ours(batch.letters).data, theirs(batch.letters).data)
    grads = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, grads[name].grad, rtol=1e-4, atol=1e-7, msg=name)
    assert ours.size == theirs.size == sum(p.numel() for p in theirs.parameters())


class Knowing(Tagger):
    """Calls an end after every letter of a chosen set."""

    def __init__(self, ends: str) -> None:
        nn.Module.__init__(self)
        self.said = torch.from_numpy(letters_of(ends)[0])

    def forward(self, letters: PackedSequence) -> PackedSequence:
        logits = torch.isin(letters.data, self.said) * 2.0 - 1
        return PackedSequence(logits, letters.batch_sizes)


def test_restore() -> None:
    assert Knowing("e").restore("wetheapple, Eve!") == "we the apple, E ve!"
    assert Knowing("z").restore("i love  china") == "ilovechina"
    with pytest.raises(ArgumentError, match="at least one letter"):
        Knowing("z").restore("42")


def test_score_counts_inner_ends_only() -> None:
    text = read("see the tree. he ate. be")
    # see|the|tree: after e of "se", "see", "the", "tre"; the last letter of a piece is left out.
    found = score(Knowing("e"), text)
    assert found == Score(found=3, false=2, missed=0)
    assert score(Knowing("t"), text) == Score(found=0, false=3, missed=3)
    assert found.precision == 3 / 5
    assert found.recall == 1
    assert found.f1 == pytest.approx(2 * 0.6 / 1.6)
    assert Score().f1 == 0


def test_score_is_that_of_every_sentence_alone() -> None:
    model = Tagger("bilstm", 6, 4)
    with torch.no_grad():
        model.linear.bias += 0.1
    counts = np.zeros(3, int)
    starts, lengths = TEXT.pieces(TEXT.stops >= SENTENCE)
    for start, length in zip(starts, lengths, strict=True):
        piece = TEXT[start : start + length]
        with torch.no_grad():
            said = (model(pack(piece.letters)).data > 0).numpy()[:-1]
        true = piece.ends[:-1]
        counts += [(said & true).sum(), (said & ~true).sum(), (~said & true).sum()]
    assert counts.sum() > 0
    assert score(model, TEXT, batch=1) == score(model, TEXT) == Score(*counts.tolist())

"""Training a tagger: what decides it, its steps, the race against torch.nn, its file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import gatewise
from gatewise.about import info
from gatewise.corpus import PHRASE, SENTENCE, VERSE, Letters
from gatewise.errors import ArgumentError
from gatewise.files import whole
from gatewise.tagger import KINDS, Batch, Score, Tagger

#: How often a training piece ends at a stop of each strength: pieces begin and end where sentences
#: do, as what people type does, and some are short.
CUTS = {PHRASE: 0.5, SENTENCE: 0.9, VERSE: 1.0}

#: Training steps of each model that are also run with torch.nn, spread over the whole training.
RACED = 24

#: The key of a model file's metadata, and what it begins with.
FORMAT = "gatewise.tagger"


@dataclass(frozen=True)
class Settings:
    """All that decides a trained model: equal settings, equal model.

    Args:
        hidden_size, embedding_size: of each direction; of each letter.
        epochs: how often every training letter is seen.
        letters: train on the first so many letters, score on as many held out; 0 is all of them.
        batch: pieces in a batch, about.
        learning_rate: the highest; it rises for a twentieth of the way, then falls to zero.
        seed: of the weights, the pieces and their order.
    """

    hidden_size: int = 128
    embedding_size: int = 32
    epochs: int = 1
    letters: int = 0
    batch: int = 64
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        most = {"hidden_size": 10**6, "embedding_size": 10**6, "epochs": 1000, "batch": 10**6}
        for name, highest in most.items():
            if not 1 <= getattr(self, name) <= highest:
                raise ArgumentError(f"{name}: expected 1 to {highest:,}, got {getattr(self, name)}")
        if self.letters < 0:
            raise ArgumentError(f"letters: expected 0 (all) or more, got {self.letters}")
        if not 0 <= self.seed < 2**63:
            raise ArgumentError(f"seed: expected 0 to 2**63 - 1, got {self.seed}")


Pieces = tuple[NDArray[np.int64], NDArray[np.int64]]


def plan(text: Letters, settings: Settings) -> list[Pieces]:
    """The (starts, lengths) of every batch of the whole training, in order.

    Each epoch cuts the text anew; the pieces of a batch are alike in length, the batches shuffled.

    Example:
        >>> text = gatewise.corpus.read("in the beginning. god created. the heaven and the earth.")
        >>> batches = plan(text, Settings(epochs=3))
        >>> sum(int(lengths.sum()) for _, lengths in batches) == 3 * len(text)
        True
    """
    rng = np.random.default_rng(settings.seed)
    chance = np.zeros(VERSE + 1)
    chance[list(CUTS)] = list(CUTS.values())
    batches: list[Pieces] = []
    for _ in range(settings.epochs):
        starts, lengths = text.pieces(rng.random(len(text)) < chance[text.stops])
        alike = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
        groups = np.array_split(alike, max(1, round(len(alike) / settings.batch)))
        batches += [(starts[groups[k]], lengths[groups[k]]) for k in rng.permutation(len(groups))]
    return batches


@dataclass
class Race:
    """The same training steps with gatewise and with torch.nn, in turn.

    Args:
        letters: in each step that was raced.
        seconds: of each of them, by family.
        difference: between the two losses of a step, the largest seen.
    """

    letters: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"gatewise": [], "torch.nn": []}
    )
    difference: float = 0.0

    def epoch(self, family: str, letters: int) -> float | None:
        """Seconds for an epoch of so many letters; None when nothing was raced.

        By the median letter: a step in which the machine did something else does not move it.

        Example:
            >>> Race([10, 20, 10], {"gatewise": [1.0, 4.0, 60.0]}).epoch("gatewise", 100)
            20.0
        """
        return self._letter(family, 0.5) * letters if self.letters else None

    def spread(self) -> float:
        """How many times longer the slow letters took than the quick ones of the same family.

        The slowest tenth and the quickest do not count: one pause makes no busy machine.

        Example:
            >>> Race([10] * 5, {"gatewise": [10.0, 10.0, 20.0, 70.0, 70.0]}).spread()
            7.0
        """
        ends = [(self._letter(family, 0.9), self._letter(family, 0.1)) for family in self.seconds]
        return max(slow / quick for slow, quick in ends) if self.letters else 1.0

    def _letter(self, family: str, share: float) -> float:
        """Seconds of the letter before which, from the quickest on, lies this share of all."""
        steps = zip(self.seconds[family], self.letters, strict=True)
        rates = sorted((seconds / count, count) for seconds, count in steps)
        passed = np.cumsum([count for _, count in rates])
        return rates[int(np.searchsorted(passed, share * passed[-1]))][0]


def place() -> str:
    """Where times are measured: machine, threads, instruction set, versions."""
    here = info()
    return (
        f"{here.machine}, threads used: {torch.get_num_threads()}, gatewise {here.version}"
        f" ({here.isa or 'no native core'}), torch {here.torch}"
    )


class Training:
    """One tagger in training. It stops after any batch, is saved whole, and goes on from there.

    Args:
        kind: one of ``KINDS``.
        settings: all that decides the result.
        text: what to train on.
        family: as in :class:`Tagger`; torch.nn runs no race.

    Example:
        >>> text = gatewise.corpus.read("let there be light. and there was light.")
        >>> training = Training("rnn", Settings(hidden_size=8, epochs=2), text)
        >>> len(list(training.run())) == training.steps == training.step
        True
    """

    def __init__(
        self, kind: str, settings: Settings, text: Letters, family: Any = gatewise
    ) -> None:
        self.kind, self.settings = kind, settings
        self.text = text[: settings.letters or len(text)]
        self.plan = plan(self.text, settings)
        self.step, self.steps = 0, len(self.plan)
        self.seen, self.seconds = 0, 0.0
        self.race, self.place = Race(), place()
        self.score: Score | None = None
        torch.manual_seed(settings.seed)
        sizes = settings.hidden_size, settings.embedding_size
        self.model = Tagger(kind, *sizes, family=family)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self._twin, self._warm = None, False
        if family is gatewise:
            self._twin = Tagger(kind, *sizes, family=nn)
            self._twin_optimizer = torch.optim.Adam(self._twin.parameters())
        self._raced = {int((k + 0.5) * self.steps / RACED) for k in range(RACED)}

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.step == self.steps

    def run(self) -> Iterator[float]:
        """Take the steps that are left, and yield the loss after each."""
        while not self.done:
            batch = Batch.of(self.text, *self.plan[self.step])
            way = self.seen / (self.settings.epochs * len(self.text))
            rate = self.settings.learning_rate * min(1.0, way / 0.05 + 0.01)
            rate *= 0.5 + 0.5 * math.cos(math.pi * way)
            if self._twin and self.step in self._raced:
                loss, seconds = self._step_raced(self._twin, batch, rate)
            else:
                loss, seconds = _step(self.model, self.optimizer, batch, rate)
            self.step += 1
            self.seen += len(batch)
            self.seconds += seconds
            yield loss

    def _step_raced(self, twin: Tagger, batch: Batch, rate: float) -> tuple[float, float]:
        """Take a step, and the same one with torch.nn; who goes first changes every time."""
        twin.load_state_dict(self.model.state_dict())
        if not self._warm:  # the first call of anything is slow; ours has had its own
            _step(twin, self._twin_optimizer, batch, 0.0)
            self._warm = True
        runs: dict[str, tuple[float, float]] = {}
        odd = len(self.race.letters) % 2
        order = ("gatewise", "torch.nn") if odd else ("torch.nn", "gatewise")
        for family in order:
            ours = family == "gatewise"
            pair = (self.model, self.optimizer) if ours else (twin, self._twin_optimizer)
            runs[family] = _step(*pair, batch, rate)
            self.race.seconds[family].append(runs[family][1])
        self.race.letters.append(len(batch))
        apart = abs(runs["gatewise"][0] - runs["torch.nn"][0])
        self.race.difference = max(self.race.difference, apart)
        return runs["gatewise"]

    def about(self) -> dict[str, Any]:
        """All that the file says beside the weights."""
        return {
            "kind": self.kind,
            "version": info().version,
            "settings": asdict(self.settings),
            "cuts": list(CUTS.values()),
            "text": len(self.text),
            "step": self.step,
            "steps": self.steps,
            "seen": self.seen,
            "seconds": self.seconds,
            "raced": RACED,
            "race": asdict(self.race),
            "place": self.place,
            "score": self.score and asdict(self.score),
        }

    def save(self, path: Path) -> None:
        """Write the model and, until training is done, what it needs to go on."""
        tensors = {name: t.contiguous() for name, t in self.model.state_dict().items()}
        if not self.done:
            for k, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{k}.{name}": value for name, value in state.items()}
        data = safetensors.torch.save(tensors, {FORMAT: json.dumps(self.about())})
        with whole(path) as draft:
            draft.write_bytes(data)

    def resume(self, path: Path) -> bool:
        """Go on from a file, if it comes from the same settings, text and version of gatewise."""
        try:
            about, tensors = read(path)
        except (OSError, ArgumentError):
            return False
        mine = self.about()
        decide = ("kind", "version", "settings", "cuts", "text", "steps", "raced")
        if any(about.get(key) != mine[key] for key in decide):
            return False
        states: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("adam.")]:
            _, k, part = name.split(".")
            states.setdefault(int(k), {})[part] = tensors.pop(name)
        self.model.load_state_dict(tensors)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
        self.step, self.seen, self.seconds = about["step"], about["seen"], about["seconds"]
        if self.done or about["place"] == self.place:  # times of one machine do not mix with others
            self.race, self.place = Race(**about["race"]), about["place"]
        self.score = about["score"] and Score(**about["score"])
        return True


def _step(
    model: Tagger, optimizer: torch.optim.Optimizer, batch: Batch, rate: float
) -> tuple[float, float]:
    """One training step, whole; its loss and its seconds."""
    start = time.perf_counter()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(batch.letters).data, batch.ends)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), time.perf_counter() - start


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a model file says, and its tensors.

    Raises:
        OSError: it cannot be read.
        ArgumentError: it is no tagger's file, or it is damaged.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(head["__metadata__"][FORMAT])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        raise ArgumentError(
            f"{path}: not a tagger that gatewise demo saved, or damaged; a text is read by a "
            "tagger, a series of numbers (--input) by any LSTM or RNN"
        ) from None
    return about, tensors


def load(path: Path) -> Tagger:
    """A saved tagger, to use.

    Raises:
        OSError, ArgumentError: as in :func:`read`.
    """
    about, tensors = read(path)
    try:
        return _built(about, tensors)
    except (KeyError, TypeError, RuntimeError) as wrong:
        raise ArgumentError(f"{path}: its weights do not fit what it says ({wrong})") from None


def _built(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tagger:
    settings = about["settings"]
    if about["kind"] not in KINDS:
        raise KeyError(about["kind"])
    model = Tagger(about["kind"], settings["hidden_size"], settings["embedding_size"])
    model.load_state_dict({k: t for k, t in tensors.items() if not k.startswith("adam.")})
    return model.eval()

"""The main job: put the spaces back into English with a plain RNN, an LSTM and a Bi-LSTM.

Trains what is not trained yet, races every model against torch.nn on the way, scores them on
chapters they never saw, restores sentences, and writes one page that shows every gate meanwhile.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gatewise import corpus
from gatewise.corpus import SENTENCE, Corpus, letters_of
from gatewise.explain import text_page
from gatewise.files import directory, whole
from gatewise.tagger import KINDS, Score, Tagger, score
from gatewise.training import Settings, Training

#: Sentences that are restored whatever else is asked, with one that was held out.
SENTENCES = ("ilovechina", "thequickbrownfoxjumpsoverthelazydog")

#: What is said below them.
UNKNOWN = "They know the English of the King James Bible, in which there is no china."

#: From this spread of its rounds on, a race was run on a machine that had other things to do.
BUSY = 3.0

#: Columns of a terminal that a progress line fills with a bar that says anything.
WIDE = 64

Results = dict[str, Any]


class Interrupt:
    """Ctrl-C waits for the end of a batch, so that what is saved is whole; the second one does not.

    Example:
        >>> with Interrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interrupt:
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)


def run(
    out: Path,
    settings: Settings,
    texts: Sequence[str] = (),
    fresh: bool = False,
    console: Console | None = None,
) -> Results:
    """Do the whole job.

    Args:
        out: the directory of models, results.json and the page; made if it is not there.
        settings: of the three models.
        texts: sentences without spaces to restore, before the demo's own.
        fresh: train again what is already trained.
        console: where the progress and the table go.

    Returns:
        What results.json holds; ``interrupted`` says that Ctrl-C came.

    Raises:
        ArgumentError: a text without letters, or the English text is not installed.
        OSError: ``out`` cannot be written to.
        KeyboardInterrupt: Ctrl-C came before anything was trained, or a second time.
    """
    console = console or Console()
    for asked in texts:
        letters_of(asked)  # says what is wrong before anything is trained
    with directory(out):
        english = _first(corpus.load(), settings.letters)
        trainings, interrupted = train(out, settings, english, fresh, console)
        if not trainings:  # Ctrl-C came before the first of them: there is nothing to show
            raise KeyboardInterrupt
    results = results_of(trainings, english)
    results["interrupted"] = interrupted
    models = {kind: training.model.eval() for kind, training in trainings.items() if training.score}
    results["restored"] = restore(models, [*texts, *SENTENCES, _held_out(english)])
    console.print(table(results, console.width))
    console.print(f"[dim]{escape(caption(results))}[/dim]\n")
    if busy(results):
        console.print(busy(results) + "\n")
    console.print(restored_table(results))
    console.print(f"[dim]{UNKNOWN}[/dim]\n")
    console.print(verdict(results) + "\n")
    paths = {KINDS[kind]: out / f"{kind}.safetensors" for kind in models}
    paths["results"] = out / "results.json"
    with whole(paths["results"]) as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n")
    if len(models) == len(KINDS):
        paths["explorer"] = out / "explorer.html"
        text = [*texts, *SENTENCES][0]
        text_page(paths["explorer"], models["bilstm"], text, beside=models["rnn"])
    for name, path in paths.items():
        console.print(f"  {name:<10}{escape(str(path))}", soft_wrap=True, highlight=False)
    if interrupted:
        console.print("Stopped. The same command goes on from here.")
    return results


def train(
    out: Path, settings: Settings, text: Corpus, fresh: bool, console: Console
) -> tuple[dict[str, Training], bool]:
    """Train what is not trained yet; each model is saved when it is done, or when Ctrl-C comes.

    Returns:
        The trainings that were begun, by kind, and whether Ctrl-C came.
    """
    trainings: dict[str, Training] = {}
    drawn = console.is_terminal or console.is_jupyter  # a file takes lines: bars would end up there
    columns = _columns(console.width)
    bars = Progress(*columns, console=console, refresh_per_second=4, disable=not drawn)
    with Interrupt() as interrupt, bars as progress:
        for kind, name in KINDS.items():
            if interrupt.asked:
                break
            path = out / f"{kind}.safetensors"
            training = trainings[kind] = Training(kind, settings, text.train)
            known = not fresh and training.resume(path)
            task = progress.add_task(name, total=training.steps, completed=training.step, note="")
            if not drawn and not training.done:
                batches = training.steps - training.step
                console.print(f"{name:<9} training, {batches} batches", highlight=False)
            loss = None
            for step_loss in training.run():
                loss = step_loss if loss is None else 0.98 * loss + 0.02 * step_loss
                progress.update(task, completed=training.step, note=f"loss {loss:.3f}")
                if interrupt.asked:
                    break
            if loss is not None or training.score is None:
                progress.update(task, note="scoring")
                training.score = score(training.model, text.held_out)
                training.save(path)
            reused = known and loss is None
            note = f"F1 {training.score.f1:.3f}{', trained before' if reused else ''}"
            progress.update(task, note=note, completed=training.step)
            if not drawn:
                console.print(f"{name:<9} {note}", highlight=False)
    return trainings, interrupt.asked


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    """Of the progress line; the bar and the count of batches give way first."""
    name = TextColumn("{task.description:<9}")
    note = TextColumn("{task.fields[note]}")
    narrow = width < WIDE
    left = TimeRemainingColumn(elapsed_when_finished=True, compact=narrow)
    if narrow:
        return name, note, left
    return name, BarColumn(), MofNCompleteColumn(), TextColumn("batches "), note, left


def results_of(trainings: Mapping[str, Training], text: Corpus) -> Results:
    """The numbers of the table, as plain values."""
    settings = next(iter(trainings.values())).settings
    models = {}
    for kind, training in trainings.items():
        found = training.score or Score()
        models[kind] = {
            "name": KINDS[kind],
            "f1": found.f1,
            "precision": found.precision,
            "recall": found.recall,
            "seconds_per_epoch": {
                family: training.race.epoch(family, len(text.train))
                for family in training.race.seconds
            },
            "raced_batches": len(training.race.letters),
            "race_spread": training.race.spread(),
            "loss_difference": training.race.difference,
            "parameters": training.model.size,
            "trained": training.step / training.steps,
            "training_seconds": training.seconds,
        }
    return {
        "measured_on": sorted({training.place for training in trainings.values()}),
        "settings": asdict(settings),
        "text": corpus.SOURCE,
        "training_letters": len(text.train),
        "held_out_letters": len(text.held_out),
        "models": models,
    }


def restore(models: Mapping[str, Tagger], texts: Sequence[str]) -> list[dict[str, str]]:
    """Each text as every model reads it."""
    return [{"text": t} | {k: model.restore(t) for k, model in models.items()} for t in texts]


def _first(text: Corpus, letters: int) -> Corpus:
    """The first so many letters of both parts; 0 is all."""
    if letters == 0:
        return text
    return Corpus(text.train[:letters], text.held_out[:letters])


def _held_out(text: Corpus) -> str:
    """A held-out sentence of middling length, without its spaces."""
    starts, lengths = text.held_out.pieces(text.held_out.stops >= SENTENCE)
    k = int(abs(lengths - 48).argmin())
    return text.held_out[starts[k] : starts[k] + lengths[k]].spaced().replace(" ", "")


def _rows(results: Results) -> list[tuple[str, ...]]:
    """The table as text: a header, then a row a model."""
    rows: list[tuple[str, ...]] = [
        ("model", "F1", "gatewise s/epoch", "torch.nn s/epoch", "parameters")
    ]
    for model in results["models"].values():
        part = "" if model["trained"] == 1 else f" ({model['trained']:.0%} trained)"
        seconds = model["seconds_per_epoch"]
        ours, theirs = (seconds[family] for family in ("gatewise", "torch.nn"))
        rows.append(
            (
                model["name"] + part,
                f"{model['f1']:.3f}",
                "" if ours is None else _seconds(ours),
                "" if theirs is None else f"{_seconds(theirs)} ({theirs / ours:.1f} x)",
                f"{model['parameters']:,}",
            )
        )
    return rows


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def table(results: Results, width: int) -> Table:
    """The one table, for a terminal; on a narrow one, a model below the other."""
    header, *rows = _rows(results)
    frame = 3 * len(header) + 1
    if sum(max(map(len, column)) for column in zip(header, *rows, strict=True)) + frame > width:
        narrow = Table.grid(padding=(0, 2))
        for name, *numbers in rows:
            narrow.add_row(f"[bold]{name}[/bold]")
            for what, number in zip(header[1:], numbers, strict=True):
                narrow.add_row(f"  {what}", number)
        return narrow
    made = Table()
    for k, name in enumerate(header):
        made.add_column(name, justify="left" if k == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def table_markdown(results: Results) -> str:
    """The table and its caption as Markdown, for the README.

    Example:
        >>> results = json.loads(Path("gatewise-demo/results.json").read_text())  # doctest: +SKIP
        >>> print(table_markdown(results))  # doctest: +SKIP
    """
    header, *rows = _rows(results)
    rule = ("---", *["---:"] * (len(header) - 1))
    lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", caption(results)]) + "\n"


def caption(results: Results) -> str:
    """What the numbers are and where they come from."""
    models = results["models"].values()
    settings = results["settings"]
    batches = max(model["raced_batches"] for model in models)
    apart = max(model["loss_difference"] for model in models)
    passes = "1 epoch" if settings["epochs"] == 1 else f"{settings['epochs']} epochs"
    sizes = {kind: model["parameters"] for kind, model in results["models"].items()}
    more = (
        f", at which the LSTM has {sizes['lstm'] / sizes['rnn']:.1f} times the parameters of the"
        " plain RNN"
        if {"rnn", "lstm"} <= sizes.keys()
        else ""
    )
    return (
        "F1 of the word ends (the harmonic mean of how many of those it set are right, and how many"
        " of the right ones it set) in held-out sentences (every tenth chapter, of the"
        f" {results['text']}: {results['held_out_letters']:,} letters); hidden size"
        f" {settings['hidden_size']} in each direction{more}; {passes} of"
        f" {results['training_letters']:,} letters, with one seed, and one learning rate for all"
        " that was tuned for none."
        f" Seconds per epoch: whole training steps on the same {batches} batches of packed"
        " sequences, gatewise and torch.nn in turn; the median time of a letter, scaled to an epoch"
        f" (losses apart by at most {apart:.0e})."
        f" {'; '.join(results['measured_on'])}."
    )


def busy(results: Results) -> str:
    """A warning where the rounds of a race took very unequal times, else nothing.

    Example:
        >>> busy({"models": {"rnn": {"race_spread": 1.4}, "lstm": {"race_spread": 5.2}}})
        'The machine was busy (rounds 5 times apart): such seconds say little.'
        >>> busy({"models": {"rnn": {"race_spread": 1.4}}})
        ''
    """
    spread = max(model["race_spread"] for model in results["models"].values())
    if spread <= BUSY:
        return ""
    return f"The machine was busy (rounds {spread:.0f} times apart): such seconds say little."


def verdict(results: Results) -> str:
    """Who read best, said plainly.

    Example:
        >>> verdict({"models": {"rnn": {"name": "plain RNN", "f1": 0.75, "trained": 1}}})
        'Not all three are trained: no comparison.'
    """
    models = results["models"]
    if len(models) < len(KINDS) or any(model["trained"] < 1 for model in models.values()):
        return "Not all three are trained: no comparison."
    both = models["bilstm"]
    others = sorted((models["lstm"], models["rnn"]), key=lambda model: -model["f1"])
    beside = ", ".join(f"{model['name']} {model['f1']:.3f}" for model in others)
    found = f"F1 {both['f1']:.3f} ({beside})"
    if round(both["f1"], 3) <= round(others[0]["f1"], 3):
        return f"The Bi-LSTM does not read best here: {found}."
    return (
        f"The Bi-LSTM reads best: {found}. It sees the letters that follow;"
        " the other two decide before they come."
    )


def restored_table(results: Results) -> Table:
    """Each text above what every model made of it."""
    made = Table.grid(padding=(0, 2))
    made.add_column()
    made.add_column(overflow="fold")  # a text without spaces has no other place to break
    for row in results["restored"]:
        made.add_row("", f"[bold]{escape(row['text'])}[/bold]")
        for kind in KINDS:
            if kind in row:
                made.add_row(KINDS[kind], escape(row[kind]))
        made.add_row()
    return made

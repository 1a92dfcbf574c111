"""The command: gatewise demo | explain | study | bench | info.

Each subcommand imports what it needs inside its function, so that help and ``info`` come at once.
Exit status: 0 done; 1 typer, which reads the arguments, is not installed, or the reader of a pipe
left; 2 the input is wrong or a package is missing, said in one line; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

try:
    import typer
except ModuleNotFoundError:  # installed without its extras: one line, and no traceback
    sys.exit("gatewise: typer is not installed; pip install 'gatewise[all]'")
except KeyboardInterrupt:
    sys.exit(130)

from gatewise.errors import ArgumentError, GatewiseError
from gatewise.files import place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gatewise.lstm import LSTM, RNN

DEMO = Path("gatewise-demo")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if get_terminal_size().columns >= 60 else None,  # boxes cut words
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    help="""
An LSTM for CPUs: a drop-in for torch.nn.LSTM, fast, and every gate of every step in sight.

Begin with `gatewise demo`; `gatewise explain --text theskyisfullofstars` shows your own.
""",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"gatewise {version('gatewise')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say which, and exit."),
    ] = False,
) -> None: ...


@contextmanager
def _said(command: str, out: Path | None = None) -> Iterator[None]:
    """What is wrong with the input in one line and exit status 2; Ctrl-C ends with 130.

    A warning is one line, too.

    Args:
        out: where the command writes; what fails there is told how to write elsewhere.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda warning, *_: _say(command, str(warning))
            yield
        with _printing(command):  # a reader that left is met here
            sys.stdout.flush()
    except BrokenPipeError:
        raise  # click ends in silence, with 1
    except KeyboardInterrupt:
        _say(command, "stopped")
        raise typer.Exit(130) from None
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("gatewise"):
            raise
        package = (missing.name or "").partition(".")[0]
        _say(command, f"{package} is not installed; pip install 'gatewise[all]'")
        raise typer.Exit(2) from None
    except OSError as wrong:
        path = wrong.filename
        with _printing(command):
            if wrong.errno == errno.ENOSPC and not path:  # a file that is written has its name
                raise
        named = f"{path}: {wrong.strerror}" if path else wrong.strerror or str(wrong)
        if path and out and (out.is_relative_to(path) or Path(path).is_relative_to(out)):
            named += "; choose another place with --out"
        _say(command, named)
        raise typer.Exit(2) from None
    except GatewiseError as wrong:
        _say(command, _as_typed(command, str(wrong)))
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as wrong:
        if not isinstance(wrong, MemoryError) and "can't allocate memory" not in str(wrong):
            raise
        _say(command, f"not enough memory ({str(wrong).rpartition(': ')[2]})")
        raise typer.Exit(2) from None


@contextmanager
def _printing(command: str = "") -> Iterator[None]:
    """What standard output does not take ends the command in one line; a reader may leave."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as wrong:
        _say(command, f"standard output: {wrong.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, at the exit
        raise typer.Exit(2) from None


def _as_typed(command: str, message: str) -> str:
    """A message that begins with the name of an argument, with the option's in its place."""
    name, colon, rest = message.partition(":")
    if name not in signature(globals()[command]).parameters:
        return message
    return f"--{name.replace('_', '-')}{colon}{rest}"


def _print(command: str, text: object) -> None:
    with _printing(command):
        print(text, flush=True)


def _say(command: str, message: str) -> None:
    print(f"{f'gatewise {command}'.strip()}: {' '.join(message.split())}", file=sys.stderr)


@app.command()
def demo(
    text: Annotated[
        list[str] | None,
        typer.Option(help="Restore this too, as inthebeginning; may be given repeatedly."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of models, results and page.")] = DEMO,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is trained.")] = False,
    hidden_size: Annotated[int, typer.Option(help="Of all three models, each direction.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the training text.")] = 1,
    letters: Annotated[int, typer.Option(help="Use the first N letters only; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the weights and the batches.")] = 0,
) -> None:
    """Put the spaces back into English: plain RNN, LSTM and Bi-LSTM side by side.

    Trains three character taggers on the King James text (about two minutes on two cores), prints
    their F1 on chapters held out, and the seconds of an epoch with gatewise and with torch.nn
    measured in the same run. Then restores sentences, and writes a page that shows every gate while
    the Bi-LSTM reads the first of them. Words that the Bible has not, china for one, may come out
    in pieces.

    What is trained is kept and used again; after Ctrl-C the same command goes on where it stopped.

        gatewise demo --text thisisasentencewithoutspaces
    """
    with _said("demo", out):
        from gatewise import demo as job
        from gatewise.training import Settings

        settings = Settings(hidden_size=hidden_size, epochs=epochs, letters=letters, seed=seed)
        _replaces_no_others(out)
        results = job.run(out, settings, text or [], fresh)
        if results["interrupted"]:
            raise typer.Exit(130)


def _replaces_no_others(out: Path) -> None:
    """Refuse a directory where models of the names of the demo's are somebody else's."""
    from gatewise.tagger import KINDS
    from gatewise.training import read

    for path in (out / f"{kind}.safetensors" for kind in KINDS):
        try:
            read(path)
        except OSError:  # mostly, there is none
            continue
        except ArgumentError:
            raise ArgumentError(
                f"--out: {path} is no model of gatewise demo, which would replace it; choose "
                "another place, or remove it"
            ) from None


@app.command()
def explain(
    model: Annotated[
        Path | None,
        typer.Option(help="A tagger that demo saved, or a state_dict (.safetensors, .pt)."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="What a tagger reads; the first 2,000 letters are shown.")
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="What an LSTM or RNN reads: .csv or .npy, a row a step.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="A second model on the same input, to compare.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Which layer of a larger state_dict, as encoder.lstm.")
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(help="Which cell, where the weights leave it open, as rnn_relu (see info)."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Which sequence of an array (T, B, I); the first is 0.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("gatewise-explain.html"),
) -> None:
    """Write one page that shows every gate of every step of a model on your own input.

    The page opens from disk, without a network or a server. A text is read by a tagger (without
    --model: the Bi-LSTM that gatewise demo left in ./gatewise-demo, its plain RNN beside it). A
    series is read by any torch.nn.LSTM, torch.nn.RNN or gatewise layer whose state_dict you saved
    with torch.save(layer.state_dict(), "lstm.pt"); without --model, by an LSTM that first learns
    from it, for some seconds, to say each next row, with a plain RNN beside it.

        gatewise explain --text theskyisfullofstars
        gatewise explain --input series.csv
        gatewise explain --model lstm.pt --input series.csv
    """
    with _said("explain", out):
        if (text is None) == (input is None):
            raise ArgumentError("give either --text TEXT or --input FILE.csv|.npy")
        if text is not None and (layer or cell or batch is not None):
            raise ArgumentError(
                "--layer, --cell and --batch: expected with --input only, got --text"
            )
        if model is None and input is not None and (layer or cell or beside):
            raise ArgumentError("--layer, --cell and --beside: expected with --model, got none")
        if model is None and input is None:
            model, known = DEMO / "bilstm.safetensors", DEMO / "rnn.safetensors"
            if not model.is_file():
                raise ArgumentError(f"no model: give --model FILE, or run gatewise demo ({model})")
            beside = beside or (known if known.is_file() else None)
        _to_read(out, {"--model": model, "--beside": beside, "--input": input})
        place(out)
        from gatewise import explain as job
        from gatewise.training import load

        if text is not None and model is not None:
            job.text_page(out, load(model), text, load(beside) if beside else None)
        elif input is not None:
            series = job.read_series(input, batch)
            if model is None:
                title, layers = _learned(series.values, input.name)
            else:
                title = f"{model.name} reads {input.name}"
                layers = [job.read_layer(path, layer, cell) for path in (model, beside) if path]
            job.series_page(out, layers, series.values, title, series.columns)
        _print("explain", out)


def _learned(series: NDArray[np.float32], name: str) -> tuple[str, list[LSTM | RNN]]:
    """A title, and an LSTM and a plain RNN that learned from a series to say its next row."""
    from gatewise.forecasting import learn

    lstm, rnn = learn(series, "lstm"), learn(series, "rnn")
    _say(
        "explain",
        f"no --model, so two learned to say each next row of {name}; mean squared error there, "
        f"columns scaled to variance 1: LSTM {lstm.error:.2g}, plain RNN {rnn.error:.2g}, always "
        f"saying the same row again {lstm.same_again:.2g}",
    )
    return f"What comes next in {name}?", [lstm.layer, rnn.layer]


def _to_read(out: Path, files: dict[str, Path | None]) -> None:
    """Refuse at once, before torch is imported, what cannot be read, and an --out that is read."""
    if str(out) == "-":
        raise ArgumentError("--out: expected a file, for a page opens from disk, got -")
    for option, path in files.items():
        if path is None:
            continue
        path.stat()
        if path.is_dir():
            raise ArgumentError(f"{option}: expected a file, got the directory {path}")
        if out.exists() and out.samefile(path):
            raise ArgumentError(
                f"--out: expected another file than {option}, which the page would replace, "
                f"got {out}"
            )


@app.command()
def study(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Which; without it, what there is to ask."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every study; as --quick or --full without a NAME.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A look: under a minute each.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All that the lesson shows: hours.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")] = False,
    out: Annotated[Path, typer.Option(help="Directory of results and figures.")] = Path(
        "gatewise-studies"
    ),
) -> None:
    """Measure what the LSTM buys and costs against the plain RNN, on this machine.

    Each study takes minutes, unless --quick or --full says otherwise. What was measured is kept;
    after Ctrl-C the same command goes on where it stopped.

        gatewise study price
        gatewise study --all --quick
    """
    with _said("study", out):
        from gatewise import studies

        names = list(studies.names())
        if quick and full:
            raise ArgumentError("--quick and --full: expected one of them, got both")
        if name is not None and all_:
            raise ArgumentError(f"NAME and --all: expected one of them, got {name} and --all")
        if name is not None and name not in names:
            raise ArgumentError(f"NAME: expected one of {', '.join(names)}, got {name}")
        if name is None and not (all_ or quick or full):
            for each in names:
                _print("study", f"{each:<18}{studies.load(each).question}")
            _print(
                "study", "\ngatewise study NAME measures the answer; --quick takes a first look."
            )
            return
        mode: studies.Mode = "quick" if quick else "full" if full else "default"
        for each in names if name is None else [name]:
            done = studies.run(each, mode, out, fresh=fresh)
            _print("study", f"{each}: {done.answer}\n  {done.path}\n  {done.figure}")


@app.command(
    context_settings={  # all options, --help among them, are for bench.run to read
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def bench(context: typer.Context) -> None:
    """Time gatewise against torch.nn, interleaved; in a checkout of the repository only.

    What follows is passed on to bench.run: gatewise bench --help shows its options.
    """
    with _said("bench"):
        import subprocess

        root = Path(__file__).parents[2]
        if not (root / "bench" / "run.py").is_file():
            raise ArgumentError("not in a checkout: clone the repository and run make bench there")
        places = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "bench.run", *context.args],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
            check=False,
        )
        raise typer.Exit(ended.returncode)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what is installed: versions, instruction sets found and chosen, threads, cells."""
    with _said("info"):
        import json

        from gatewise import about

        found = about.info()
        _print("info", json.dumps(found.to_dict(), indent=2) if as_json else found)


def main() -> None:
    """The command, where its own help is asked for, too: no traceback on a full disk or Ctrl-C."""
    try:
        with _printing():
            try:
                app()
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # what app itself makes of one
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()

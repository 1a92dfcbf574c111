"""Equal tuning: who tries what, and what is chosen."""

from __future__ import annotations

import math

import pytest

from gatewise.studies import tuning
from gatewise.studies.frame import Json

RATES = [0.01, 0.003, 0.03]


def plan(*cells: str, rates: list[float] = RATES) -> list[Json]:
    return [
        {"cell": cell, "seed": seed, "sequences": 96, "rates": rates}
        for seed in (0, 1)
        for cell in cells
    ]


def records(pilots: list[Json], *errors: float | None) -> list[Json]:
    return [
        {"unit": unit, "values": {"solved_at": None, "best": error}}
        for unit, error in zip(pilots, errors, strict=True)
    ]


def test_every_network_tries_the_same_rates_once_at_a_seed_that_does_not_count() -> None:
    pilots = tuning.pilots(plan("rnn", "lstm"))
    assert [(p["cell"], p["rate"]) for p in pilots] == [
        (cell, rate) for cell in ("rnn", "lstm") for rate in RATES
    ]
    assert {p["sequences"] for p in pilots} == {96}
    assert {p["seed"] for p in pilots}.isdisjoint({0, 1})


def test_every_run_is_at_its_own_networks_best_rate() -> None:
    units = plan("rnn", "lstm")
    found = records(tuning.pilots(units), 0.2, 0.1, 0.3, 0.9, 0.9, 0.5)
    tuned = tuning.tuned(units, found, tuning.error)
    assert [(u["cell"], u["seed"], u["rate"]) for u in tuned] == [
        ("rnn", 0, 0.003), ("lstm", 0, 0.03), ("rnn", 1, 0.003), ("lstm", 1, 0.03),
    ]  # fmt: skip
    assert all(u.keys() == {"cell", "seed", "sequences", "rate"} for u in tuned)
    assert {u["sequences"] for u in tuned} == {96}


def test_a_single_rate_needs_no_pilot() -> None:
    units = plan("rnn", rates=[0.01])
    assert tuning.pilots(units) == []
    assert [u["rate"] for u in tuning.tuned(units, [], tuning.error)] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("errors", "rate"),
    [
        ((0.2, 0.3, 0.1), 0.03),
        ((0.109, 0.1, 0.2), 0.01),  # a tenth apart is equal
        ((0.111, 0.1, 0.2), 0.003),
        ((None, 0.2, 0.1), 0.03),
        ((0.5, None, None), 0.01),
        ((None, None, None), 0.01),
        ((0.0, 0.0, 0.0), 0.01),
    ],
)
def test_another_rate_than_the_first_has_to_be_better_by_more_than_a_tenth(
    errors: tuple[float | None, ...], rate: float
) -> None:
    pilots = tuning.pilots(plan("rnn"))
    (chosen,) = tuning.choices(records(pilots, *errors), tuning.error)
    assert chosen["rate"] == rate
    assert [error for _, _, error in chosen["tried"]] == list(errors)


def test_solved_comes_before_unsolved_and_sooner_before_later() -> None:
    soon, late, never, lost = (
        tuning.sequences({"solved_at": at, "best": best})
        for at, best in ((320, 0.009), (9600, 0.001), (None, 0.01), (None, None))
    )
    assert soon < late < never < lost == math.inf


def test_errors_at_the_own_rate_stand_beside_those_at_the_one_rate() -> None:
    units = plan("rnn", "lstm")

    def record(unit: Json, best: float | None) -> Json:
        values = {"best": best, "baseline": 0.7, "parameters": len(unit["cell"]), "error_is": "x"}
        return {"unit": unit, "values": values | {"solved_at": None}}

    found = [
        record(tuning.at(0.01, u), b) for u, b in zip(units, (0.2, 0.4, 0.3, None), strict=True)
    ]
    pilots = zip(tuning.pilots(units), (0.2, 0.1, 0.3, 0.5, 0.9, 0.9), strict=True)
    found += [record(unit, best) for unit, best in pilots]
    found += [record(u, 0.1) for u in tuning.tuned(units, found, tuning.error) if u["rate"] != 0.01]
    rnn, lstm = tuning.outcomes(found, 0.01)
    assert (rnn["cell"], rnn["rate"], rnn["errors"], rnn["half"]) == ("rnn", 0.003, [0.1, 0.1], 0)
    assert rnn["one_rate"]["errors"] == [0.2, 0.3]
    assert rnn["one_rate"]["error"] == 0.25
    assert (lstm["rate"], lstm["errors"]) == (0.01, [0.4, 0.7])  # one was lost
    assert lstm["one_rate"] == {key: lstm[key] for key in ("error", "half", "errors", "solved")}
    assert [row["parameters"] for row in (rnn, lstm)] == [3, 4]

"""Equal tuning: who tries what, and what is chosen."""

from __future__ import annotations

import math

import pytest

from gatewise.studies import tuning
from gatewise.studies.frame import Json

RATES = [0.003, 0.01, 0.03]


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
    pilots = tuning.pilots(plan("rnn", "lstm"), part=3)
    assert [(p["cell"], p["rate"]) for p in pilots] == [
        (cell, rate) for cell in ("rnn", "lstm") for rate in RATES
    ]
    assert {p["sequences"] for p in pilots} == {32}
    assert {p["seed"] for p in pilots}.isdisjoint({0, 1})


def test_every_run_is_at_its_own_networks_best_rate() -> None:
    units = plan("rnn", "lstm")
    found = records(tuning.pilots(units), 0.1, 0.2, 0.3, 0.9, 0.9, 0.5)
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
        ((0.3, 0.2, 0.1), 0.03),
        ((0.100, 0.105, 0.1), 0.01),  # a tenth apart is equal: the middle rate
        ((None, 0.2, 0.1), 0.03),
        ((0.5, None, None), 0.003),
        ((None, None, None), 0.01),
    ],
)
def test_of_rates_that_count_as_equal_the_middle_one(
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

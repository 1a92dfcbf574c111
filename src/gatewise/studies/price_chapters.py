"""What the lesson says of the price: of the gates, and of seeing them."""

from __future__ import annotations

from gatewise.studies import price, wording
from gatewise.studies.frame import Json
from gatewise.studies.networks import LAYERS


def cost(run: Json) -> str:
    """Time, memory and work, and all three to the same error."""
    summary = run["summary"]
    layers = list(LAYERS) + [name + price.LOW for name in LAYERS]
    lengths = {row["H"]: row["T"] for row in summary["steps"]}
    head = ["H", "T", *layers]
    parts = []
    for phase in price.PHASES:
        rows = [
            [row["H"], row["T"], *(wording.ms(row["milliseconds"].get(name)) for name in layers)]
            for row in summary["steps"]
            if row["phase"] == phase
        ]
        parts.append(f"Milliseconds, {phase}:\n\n{wording.table(head, rows)}")
    ratios = wording.table(
        ["H", "T", *(" over ".join(pair) for pair in price.RATIOS)],
        [
            [
                H,
                lengths[H],
                *(
                    wording.ratio(price.ratio(summary, H, above, below))
                    for above, below in price.RATIOS
                ),
            ]
            for H in price.sizes(summary)
        ],
    )
    counts = wording.table(
        ["H", "T", "layer", "parameters", "multiply-adds forward", "kilobytes kept for backward"],
        [
            [fact["H"], fact["T"], name, f"{row['parameters']:,}", f"{row['multiply_adds']:,}",
             f"{row['bytes_kept'] / 1e3:,.0f}"]
            for fact in summary["facts"]
            for name, row in fact["layers"].items()
            if name in LAYERS
        ],
    )  # fmt: skip
    failed = sorted(
        {(name, why) for fact in summary["facts"] for name, why in fact["failed"].items()}
    )
    growth = wording.table(
        ["layer", *(f"time grows with {axis} to the power" for axis in summary["exponents"])],
        [
            [name, *(summary["exponents"][axis].get(name, "") for axis in summary["exponents"])]
            for name in LAYERS
        ],
    )
    return "\n\n".join(
        [
            "Three gates and a candidate in place of one tanh: four times the parameters, four "
            "times the multiply-adds of the same hidden size, and more to keep for the backward "
            "pass. What that costs in time is a matter of the implementation as well: two layers "
            "compare as cells only where the same kernels run both. torch's plain RNN goes step "
            "by step through many small operations, which at a small H take longer than the "
            "products, its LSTM is one fused call; so torch's ratio is the smaller, and an LSTM of "
            "one library over a plain RNN of another says what changing both brings. Four layers "
            "took turns in one run.",
            f"Training step, ratios with their 95 % intervals:\n\n{ratios}",
            *parts,
            counts,
            *(f"Did not run here: {name} ({why})." for name, why in failed),
            growth,
            _same_loss(summary["same_loss"]),
        ]
    )


def _same_loss(found: Json) -> str:
    if not found:
        return "A plain RNN was lost in this run: there is no error that all of them reach."
    rows = [
        [
            name,
            f"{row['rate']:g}",
            f"{row['reached']} of {row['seeds']}",
            wording.middle(row["sequences"], ",.0f"),
            f"{row['milliseconds_a_step'][0]:.2f}",
            wording.middle(row["seconds"], ".2f"),
            wording.middle(
                row["multiply_adds"] and [n / 1e9 for n in row["multiply_adds"]], ",.1f"
            ),
            wording.short(row["best"]),
        ]
        for name, row in found["layers"].items()
    ]
    head = ["layer", "learning rate", "seeds that got there", "sequences", "ms a step", "seconds",
            "10^9 multiply-adds", "best error later"]  # fmt: skip
    return (
        f"To the same error: {found['error_is']} {found['target']:.3g} on held-out text, which "
        "every seed of the plain RNN reaches (the middle of the seeds, and from the lowest to the "
        f"highest):\n\n{wording.table(head, rows)}"
    )


def seeing(run: Json) -> str:
    """What it takes to see the gates."""
    summary = run["summary"]
    rows = [
        [
            f"({row['T']}, {row['B']}, {row['H']})",
            wording.ratio(row["trace / forward"]),
            wording.ratio(row["cells / trace"]),
            wording.ratio(row["gradients / backward"]),
            wording.ratio(row["cells / gradients"]),
            " / ".join(f"{row['bytes'][way] / 1e3:,.0f}" for way in ("forward", "trace", "cells")),
        ]
        for row in summary["rows"]
    ]
    head = ["(T, B, H)", "trace over forward", "LSTMCell loop over trace",
            "trace with gradients over forward and backward", "loop with gradients over that",
            "kilobytes: forward / trace / loop"]  # fmt: skip
    return f"""
What the backward pass must keep of every step (the gates and the cell state) is what a person
wants to see. `lstm.trace(x)` hands out that one buffer; the usual way with torch alone is a loop
of LSTMCell, which shows h and c and no gate. Here the trace is made and all six fields are
read: each is a view that takes Python 0.01 to 0.02 ms, which a run as short as that of
(100, 1, 64) feels and a longer one does not.

{wording.table(head, rows)}
"""

"""One layer of a recurrent network as a differentiable operation: the one door to computation.

``layer`` chooses the route, here and nowhere else:

    operators      compiled, exported, fake or meta tensors     one node of the graph
    autograd       somebody may want a derivative               an autograd.Function
    stepping       the same, of one small step                  another
    checkpointing  the gradient alone, in little memory         another
    native         nobody does                                  the core at once
    formulas       a device, dtype or cell without a kernel     the page; says so once
                   a compiled step                              the page, which is compiled

each in the module of its name. All but the last run the native core.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatewise import autograd, checkpointing, formulas, native, operators, stepping
from gatewise.errors import DTypeError
from gatewise.native import Flat, GradSink, Results
from gatewise.reference import Weights
from gatewise.spec import CellSpec

# Tensors with memory of their own: any other class is its own affair, and torch's dispatcher's.
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})

#: Computed in float32 and rounded once, at the end, by runs that are not reduced (native.py).
REDUCED = (torch.bfloat16, torch.float16)

#: Multiplications from which on a step of a cell is reduced: less would gain little for the
#: accuracy that it costs.
_REDUCED_STEP = 1 << 20


class LayerResult(NamedTuple):
    """output (T, B, D*P) or (N, D*P); h_n (D, B, P); c_n (D, B, H), h_n where there is no cell
    state; tape (D, T, B, S, H) or (D, N, S, H) or None."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    tape: Tensor | None


def layer(
    cell: CellSpec,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_sizes: Tensor | None = None,
    *,
    keep_tape: bool = False,
    sink: GradSink | None = None,
    taps: Sequence[Callable[..., Tensor]] | None = None,
    checkpoint: bool | int | None = None,
    reduced: bool = False,
) -> LayerResult:
    """Run the D directions of one layer.

    Args:
        cell: a row of ``gatewise.CELLS``.
        x: (T, B, I), or packed (N, I) with ``batch_sizes``.
        h0, c0: (D, B, P), (D, B, H), or None for zeros.
        weights: one per direction; the second runs right to left.
        batch_sizes: (T) int64 on the CPU, as ``PackedSequence.batch_sizes``.
        keep_tape: return the values of ``cell.slots`` at every step, differentiable like the rest.
        sink: gets the total gradient of every slot and hidden state from each eager backward pass.
        taps: one per direction, to see and replace values (``reference.untouched`` says how); the
            layer then runs by the page.
        checkpoint: for the gradient, keep the states of every k steps in place of the gates; True
            for k = ceil(sqrt(T)) or more. Only eager, without tape, sink and taps; else it means
            nothing.
        reduced: products round what they multiply to bfloat16, as under autocast, where that pays;
            all else stays in the dtype of x.

    Returns:
        LayerResult, in the dtype of x; a tape is never rounded. Under autocast in autocast's, but
        where torch's fused layer does not serve (packed input, of whatever lengths; a projection) c
        keeps the dtype it came in, if that is wider, and so does h, if no product follows.

    Example:
        >>> import torch
        >>> from gatewise.spec import CELLS
        >>> w = Weights(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> layer(CELLS["lstm"], torch.ones(5, 1, 3), None, None, [w]).output.shape
        torch.Size([5, 1, 2])
    """
    flat: list[Tensor | None] = [x, batch_sizes, h0, c0]
    for w in weights:
        flat.extend(w)  # += with a NamedTuple is not known to the compiler of torch 2.10
    dtype = _dtype(x)
    watched = keep_tape or sink is not None or taps is not None
    if dtype == x.dtype == torch.bfloat16 and len(weights) == 1 and x.dim() == 3 and len(x) == 1:
        one = None if watched else _brief_step(cell, x, h0, c0, flat)
        if one is not None:
            return one
    of_h = of_c = dtype
    if dtype in REDUCED:
        fused = not cell.has_cell_state or (batch_sizes is None and weights[0].W_hr is None)
        came = x if c0 is None else c0
        of_c = dtype if fused else torch.promote_types(dtype, came.dtype)
        of_h = of_c if weights[0].W_hr is None else dtype
    brief = dtype == torch.bfloat16 and not (watched or checkpoint)
    found = _brief_run(cell, of_h, flat) if brief else None
    if found is None:
        flat = _widened(flat, dtype) if dtype in REDUCED else flat
        reduced = reduced or dtype == torch.bfloat16
        found = _run(cell, keep_tape, sink, taps, checkpoint, flat, reduced)
    y, h_n, c_n, tape = found
    if c_n is None or not native.is_there(c_n):
        c_n = h_n
    if dtype in REDUCED:
        y, h_n, c_n = y.to(of_h), h_n.to(of_h), c_n.to(of_c)
    return LayerResult(y, h_n, c_n, tape if keep_tape else None)


def step(
    cell: CellSpec,
    memo: stepping.Memo,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: tuple[Tensor | None, ...],
    reduced: bool = False,
    autocast: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """One step of a layer, in as few calls as can be: h and c, or h twice where there is no
    cell state; None where ``layer`` has to do it, since something is not plain or does not fit.

    Args:
        memo: the module's own.
        x: (B, I).
        h, c: (B, H), or None for zeros.
        weights: the fields of ``reference.Weights``.
        reduced: as in ``layer``.
        autocast: whether what autocast asks for is seen to.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or (not autocast and torch._C._is_any_autocast_enabled())
        or autograd.may_be_forward()
    ):
        return None
    try:
        joint = memo.of(weights) if records_gradients() else None
        if joint and (joint.stand_in is not None or _any_requires_grad((x, h, c))):
            h_n, c_n = stepping.step(cell, joint, x, h, c, reduced)
        else:
            h_n, c_n, _ = native.step(cell, False, x, h, c, weights, reduced)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # the checks say what it is
        return None
    return h_n, h_n if c_n is None else c_n


def pays_reduced(x: Tensor, W_ih: Tensor, W_hh: Tensor) -> bool:
    """Whether autocast is of bfloat16, and a step of x (B, I) through a cell so large that it pays
    to round what its products multiply."""
    return (
        x.dim() == 2
        and len(x) * (W_ih.numel() + W_hh.numel()) >= _REDUCED_STEP
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and native.may_reduce(x[None], None)
    )


def _brief_step(
    cell: CellSpec, x: Tensor, h0: Tensor | None, c0: Tensor | None, flat: Flat
) -> LayerResult | None:
    """A single step in bfloat16, for which to widen the weights would be most of the work; None
    where it has to be done all the same."""
    if _recorded(flat) or _wants_derivative(flat) or not native.covers(cell):
        return None
    h, c = (None if s is None else s[0] for s in (h0, c0))
    try:
        y, c_n, _ = native.step(cell, False, x[0], h, c, tuple(flat[4:]))
    except (TypeError, ValueError, RuntimeError):  # the checks say what it is
        return None
    h_n = y.clone()  # what the caller does to the one does not change the other
    return LayerResult(y[None], h_n[None], (h_n if c_n is None else c_n)[None], None)


def _brief_run(cell: CellSpec, output: torch.dtype, flat: Flat) -> Results | None:
    """A reduced run whose x and y are bfloat16 as they come and as they are wanted; None where it
    has to be done in float32."""
    x, batch_sizes, *_ = flat
    assert x is not None
    if (
        _recorded(flat)
        or not x.is_cpu
        or not native.covers(cell)
        or not native.may_reduce(x, batch_sizes)
        or autograd.may_be_forward()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    ):
        return None
    wide = _widened(flat, torch.bfloat16, but_x=x.dtype == torch.bfloat16)
    output = torch.bfloat16 if output == torch.bfloat16 else torch.float32
    if _wants_grad(wide):
        run = autograd.Run(cell, True, torch.bfloat16, output, by_groups=True, sink=None)
        return autograd.layer(run, *wide)
    return native.forward(cell, None, True, *wide, output=output)


def any_step(
    cell: CellSpec,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    w: Weights,
    reduced: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step, as ``step``, of whatever ``layer`` takes; the compiler gets the page to compile: it
    fuses a step with what surrounds it, where an operator a step takes twice the time."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if compiling and x.dtype in native.DTYPES:
        return formulas.step(cell, x, h, c, w)
    x, h, c = as_first(x, h, c)
    run = layer(cell, x, h, c, (w,), reduced=reduced)
    return run.h_n.squeeze(0), run.c_n.squeeze(0)


def as_first(
    x: Tensor, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One as the first of its kind: an axis more in front, for the batch, or for time and D."""
    return (
        x.unsqueeze(0),
        None if h is None else h.unsqueeze(0),
        None if c is None else c.unsqueeze(0),
    )


def _any_requires_grad(flat: Flat) -> bool:
    for t in reversed(flat):  # noqa: SIM110 (half the time of any(), and a step pays for it)
        if t is not None and t.requires_grad:
            return True
    return False


def _dtype(x: Tensor) -> torch.dtype:
    """What products are in: autocast's, under autocast, for what is not float64."""
    if (x.dtype == torch.float32 or x.dtype in REDUCED) and _autocast(x):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _autocast(x: Tensor) -> bool:
    return x.is_cpu and torch.is_autocast_enabled("cpu")


def _widened(flat: Flat, dtype: torch.dtype, but_x: bool = False) -> list[Tensor | None]:
    """All numbers, x or not, in float32; outside autocast all must have come in one dtype."""
    narrow: dict[int, Tensor] = {}
    for k, t in enumerate(flat):
        if t is None or not t.is_floating_point():
            continue
        if t.dtype != dtype and (t.dtype == torch.float64 or not _autocast(t)):
            raise DTypeError(
                f"layer: expected every tensor in the dtype of x, {dtype}, got {t.dtype}; "
                "convert it with .to(x)"
            )
        if t.dtype != torch.float32 and not (but_x and k == 0):
            narrow[k] = t
    wide = list(flat)
    for k, t in zip(narrow, _in_float32(list(narrow.values()), flat), strict=True):
        wide[k] = t
    return wide


def _in_float32(narrow: list[Tensor], flat: Flat) -> Sequence[Tensor]:
    """Copies, in memory that is used again: large weights, widened at every call, would have it
    fresh from the system, and the first touch of it costs more than a step."""
    eager = not (_recorded(flat) or autograd.may_be_forward())
    if not narrow or not eager or not all(t.is_cpu for t in narrow):
        return [t.float() for t in narrow]
    room = native.scratch([t.shape for t in narrow])
    if not _wants_grad(narrow):
        torch._foreach_copy_(room, narrow)
        return room
    return [wide.copy_(t) for wide, t in zip(room, narrow, strict=True)]


def _run(
    cell: CellSpec,
    keep_tape: bool,
    sink: GradSink | None,
    taps: Sequence[Callable[..., Tensor]] | None,
    checkpoint: bool | int | None,
    flat: Flat,
    reduced: bool,
) -> Results:
    """Choose the route."""
    x = flat[0]
    assert x is not None
    if taps is not None:
        return formulas.layer(cell, *flat, taps=taps, sink=sink)
    known = x.dtype in native.DTYPES and (x.is_cpu or x.is_meta) and native.covers(cell)
    if not known:
        _warn_once(f"no kernel for cell {cell.name!r}, {x.dtype}, device {x.device.type!r}")
        return formulas.layer(cell, *flat, sink=sink)
    if x.is_meta or _recorded(flat):
        exporting = torch.compiler.is_exporting()  # mostly to infer: a backward would run it again
        keep_tape = keep_tape or (not exporting and _wants_grad(flat))
        return operators.layer(cell, reduced, keep_tape, *flat)
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "gatewise does not support TorchScript: use torch.compile, or torch.export in place of "
            "torch.jit.trace"
        )
    reduced = reduced and native.may_reduce(x, flat[1])
    if checkpoint and _wants_grad(flat) and not (keep_tape or sink or autograd.may_be_forward()):
        return checkpointing.layer(cell, reduced, checkpoint, *flat)
    if sink is not None or _wants_derivative(flat):
        unseen = not (keep_tape or autograd.may_be_forward())  # which sees its tangent
        tape = torch.bfloat16 if reduced and unseen else x.dtype
        return autograd.layer(autograd.Run(cell, reduced, tape, x.dtype, unseen, sink), *flat)
    return native.forward(cell, x.dtype if keep_tape else None, reduced, *flat)


def _recorded(flat: Flat) -> bool:
    """Whether somebody records what is called: then a layer is one operator."""
    return (
        torch.compiler.is_compiling()
        or not _PLAIN.issuperset(map(type, flat))
        or torch._C._len_torch_dispatch_stack() > 0
        or autograd.is_functionalized()
    )


def _wants_grad(flat: Flat) -> bool:
    return records_gradients() and any(t is not None and t.requires_grad for t in flat)


def records_gradients() -> bool:
    """In inference mode nothing is recorded, not even where gradients are switched on within it."""
    if torch.compiler.is_compiling():  # which knows no inference mode
        return torch.is_grad_enabled()
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _wants_derivative(flat: Flat) -> bool:
    """By backward, by forward mode, or by a transform of torch.func."""
    return _wants_grad(flat) or autograd.may_be_forward()


_warned: set[str] = set()


def _warn_once(what: str) -> None:
    if what not in _warned and not torch.compiler.is_compiling():
        _warned.add(what)
        warnings.warn(
            f"gatewise: {what}; this runs on plain torch formulas, right but slow", stacklevel=4
        )

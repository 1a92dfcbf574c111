"""swap: puts gatewise under the torch.nn.LSTM, RNN, LSTMCell and RNNCell modules of a model; and
unswap: puts torch.nn back.

Nothing is copied: a module becomes an instance of the other library's class of the same name. Who
holds it, its parameters, buffers, hooks and training mode are thereby what they were.

A subclass with a forward of its own stays one: its class is made anew with ours between it and
torch's, so that what it calls by ``super()`` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from gatewise import both, checks
from gatewise.cells import LSTMCell, RNNCell
from gatewise.lstm import LSTM, RNN, Layers, Recurrent

OURS: dict[type[nn.Module], type[Recurrent]] = {
    nn.LSTM: LSTM,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.RNNCell: RNNCell,
}
THEIRS: dict[type[nn.Module], type[nn.Module]] = {ours: theirs for theirs, ours in OURS.items()}
#: What a module of ours keeps, and torch's does not.
_KEPT = ("cell", "checkpoint", "_names", "_memo")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

#: What a subclass may define and still be replaced: how it is built, initialised and printed, and
#: flatten_parameters, which does nothing on a CPU; then what Python and TorchScript write.
_BUILDING = re.compile(
    r"__init__|_*(re)?(set|init)(ialize|ialise)?_*(parameters|params|weights|bias|biases)?"
    r"|extra_repr|__repr__|flatten_parameters"
)
_WRITTEN = re.compile(
    r"__(module|qualname|doc|annotations|annotate|annotate_func|annotations_cache|dict|weakref"
    r"|orig_bases|parameters|static_attributes|firstlineno|constants|jit_\w+"
    r"|abstractmethods|slots)__|_abc_impl"
)


class Row(NamedTuple):
    """One recurrent module of a model.

    Args:
        name: its qualified name, all of them if several places hold it; "" is the model itself.
        what: the class it had, and the one it has now if it was replaced.
        why: the reason it was left; or what is to be known about the replacement, else "".
    """

    name: str
    what: str
    why: str


@dataclass(frozen=True)
class Swapped:
    """What ``swap`` or ``unswap`` did; prints as a table.

    Args:
        model: the model that was given: the same object.
        replaced: the modules that are gatewise's now, or torch's: rows (name, what, why).
        left: the recurrent modules that are not, each with the reason.
    """

    model: nn.Module
    replaced: tuple[Row, ...]
    left: tuple[Row, ...]

    def __str__(self) -> str:
        rows = [("replaced", *row) for row in self.replaced] + [("left", *row) for row in self.left]
        table = [(did, name or "(the model)", what, why) for did, name, what, why in rows]
        width = [max(len(row[k]) for row in table) for k in range(3)] if table else []
        lines = ["  ".join((*map(str.ljust, row, width), row[3])).rstrip() for row in table]
        return "\n".join(lines) or "LSTM, RNN, LSTMCell, RNNCell: none to replace in this model"


def swap(model: nn.Module, *, keep_type: bool = False) -> Swapped:
    """Put gatewise under every torch LSTM, RNN, LSTMCell and RNNCell of a model, in place.

    Each stays the same object, with its parameters, buffers, hooks, parametrizations and training
    mode; only its class changes. So an optimizer made before goes on working, and what holds the
    module, or how often, does not matter. A second call finds nothing more to do.

    A subclass that only changes how it is built and initialised is replaced. One with methods of
    its own keeps them, and its type, over our layer: a forward that calls ``super().forward``. One
    that computes the layer itself, or overrides what torch's layer asks of itself, is left and
    listed.

    Args:
        model: any module; it may itself be a torch.nn.LSTM.
        keep_type: each stays an instance of torch's class too, for a model that asks
            ``isinstance(m, torch.nn.LSTM)``. torch.compile runs no such layer.

    Returns:
        Swapped: what was replaced, and what was left and why.

    Raises:
        ArgumentError: model is no torch.nn.Module.

    Example:
        >>> import torch, gatewise
        >>> model = torch.nn.Sequential(torch.nn.LSTM(2, 3), torch.nn.GRU(2, 3))
        >>> print(gatewise.swap(model))
        replaced  0  torch.nn.LSTM -> gatewise.LSTM
        left      1  torch.nn.GRU                    gatewise has no such cell
    """
    replaced, left = [], []
    for module, name in _named(model):
        cls = type_before_parametrizations(module)
        if not _is_recurrent(module):
            continue
        if why := _obstacle(module, cls):
            left.append(Row(name, _show(cls), why))
            continue
        base = next(c for c in cls.__mro__ if c in OURS)
        own, why = _defined(cls, base), ""
        if all(map(_BUILDING.fullmatch, own)):
            _become(module, getattr(both, base.__name__) if keep_type else OURS[base])
            why = "no longer runs " + ", ".join(own) if own else ""
        else:
            _become(module, both.over(cls, getattr(both, base.__name__)))
            why = "keeps its own " + ", ".join(n for n in own if not _BUILDING.fullmatch(n))
        replaced.append(Row(name, f"{_show(cls)} -> gatewise.{base.__name__}", why))
    return Swapped(model, tuple(replaced), tuple(left))


def unswap(model: nn.Module) -> Swapped:
    """Put torch.nn back under every gatewise LSTM, RNN, LSTMCell and RNNCell of a model, in place:
    for what runs no layers but torch's (ONNX, TorchScript, ``quantize_dynamic``).

    It does not matter whether ``swap`` made them or they were ours from the start. Each stays the
    same object, as in ``swap``, and gives the same results, to rounding.

    Args:
        model: any module; it may itself be a gatewise.LSTM.

    Returns:
        Swapped: what is torch's again; and what was left and why: a cell that torch.nn has not, a
        subclass of ours with methods of its own, a module that is being watched.

    Raises:
        ArgumentError: model is no torch.nn.Module.

    Example:
        >>> import torch, gatewise
        >>> model = torch.nn.Sequential(gatewise.LSTM(2, 3))
        >>> print(gatewise.unswap(model))
        replaced  0  gatewise.LSTM -> torch.nn.LSTM
    """
    replaced, left = [], []
    for module, name in _named(model):
        cls = type_before_parametrizations(module)
        ours = next((c for c in cls.__mro__ if c in THEIRS), None)
        if ours is None:
            continue
        base, shown = THEIRS[ours], f"gatewise.{ours.__name__}"
        made_over = getattr(both, base.__name__) in cls.__bases__  # see both.over
        own = [] if made_over or issubclass(cls, base) else _defined(cls, ours)
        if why := _no_way_back(module, base, own):
            left.append(Row(name, shown if cls is ours else _show(cls), why))
            continue
        every = getattr(module, "checkpoint", None)
        lost = own if every is None else [f"checkpoint={every}", *own]
        _become_torchs(module, cls.__bases__[0] if made_over else base)
        why = "no longer with " + ", ".join(lost) if lost else ""
        replaced.append(Row(name, f"{shown} -> torch.nn.{base.__name__}", why))
    return Swapped(model, tuple(replaced), tuple(left))


def _no_way_back(module: nn.Module, base: type[nn.Module], own: list[str]) -> str:
    """Why a module of ours cannot be torch's; "" if it can."""
    if {"_run_layer", "_step"} & vars(module).keys():
        return "is watched: leave gatewise.tracing or gatewise.patching first"
    if isinstance(module, Layers) and module.mode.partition("_")[0] != base.__name__:
        return f"torch.nn has no cell {module.cell.name!r}"
    if own := [name for name in own if not _BUILDING.fullmatch(name)]:
        return f"has its own {', '.join(own)}, made for gatewise.{base.__name__}"
    return ""


def _become_torchs(module: nn.Module, theirs: type[nn.Module]) -> None:
    """Change the class, and keep what torch's keeps."""
    state: dict[str, Any] = {}
    if isinstance(module, Layers):
        for name in ("mode", "_all_weights", "_flat_weights_names"):
            state[name] = getattr(module, name)
        if isinstance(module, RNN):  # whose cell may have been given by name
            state["nonlinearity"] = module.mode.removeprefix("RNN_").lower()
    for name in _KEPT:
        vars(module).pop(name, None)
    _set_class(module, theirs)
    vars(module).update(state)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _named(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module once, with the names of all the places that hold it."""
    checks.module(model)
    names: dict[nn.Module, list[str]] = {model: [""]}
    for prefix, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                names.setdefault(child, []).append(f"{prefix}.{name}".lstrip("."))
    return ((module, ", ".join(places)) for module, places in names.items())


def _is_recurrent(module: nn.Module) -> bool:
    """Whether a person would call it a recurrent layer of torch's."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return not isinstance(module, Recurrent)
    scripted = getattr(module, "original_name", "") if _scripted(module) else ""
    name = scripted or type(module).__name__
    torchs = scripted or type(module).__module__.startswith("torch.ao.nn.")
    return bool(torchs) and name.removesuffix("Cell") in ("LSTM", "RNN", "GRU")


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _obstacle(module: nn.Module, cls: type) -> str:
    """Why a recurrent module cannot be replaced; "" if it can."""
    if _scripted(module):
        return "is TorchScript already: swap before torch.jit.script"
    if cls.__module__.startswith("torch.ao.nn."):
        return "is quantized, or made to be: the kernels compute floating point"
    base = next((c for c in cls.__mro__ if c in OURS), None)
    if base is None:
        gru = issubclass(cls, nn.GRU | nn.GRUCell)
        return "gatewise has no such cell" if gru else "computes a cell of its own"
    own = [n for n in _defined(cls, base) if hasattr(base, n) and not _calls_super(cls, base, n)]
    own += [n for n in vars(module) if callable(getattr(cls, n, None))]
    own = [name for name in own if not _BUILDING.fullmatch(name)]
    if own:
        return f"has its own {', '.join(own)}"
    theirs, ours = base(1, 1, device="meta"), OURS[base](1, 1, device="meta")
    if clash := (set(dir(ours)) - set(dir(theirs))) & set(dir(module)):
        return f"has an attribute named as one of gatewise's: {', '.join(sorted(clash))}"
    for weight in module.parameters():
        if weight.device.type not in ("cpu", "meta"):
            return f"is on {weight.device}: the kernels run on the CPU"
        if weight.dtype not in DTYPES:
            return f"is {weight.dtype}: the kernels compute float32, float64 and bfloat16"
    return ""


def _defined(cls: type, base: type) -> list[str]:
    """The names that a subclass, and those between it and torch's class, write themselves."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    return sorted({n for c in between for n in vars(c) if not _WRITTEN.fullmatch(n)})


def _calls_super(cls: type, base: type, name: str) -> bool:
    """Whether a forward, in each class that has one, hands on to the forward below it."""
    if name not in ("forward", "__call__"):
        return False
    between = cls.__mro__[: cls.__mro__.index(base)]
    codes = [getattr(vars(c)[name], "__code__", None) for c in between if name in vars(c)]
    return all(code is not None and {"super", name} <= set(code.co_names) for code in codes)


def _become(module: nn.Module, ours: type[Recurrent]) -> None:
    _set_class(module, ours)
    module.__setstate__(vars(module))


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """A parametrization's class, between, is made anew over the class."""
    if is_parametrized(module):
        members = {k: v for k, v in vars(type(module)).items() if not _WRITTEN.fullmatch(k)}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def _show(cls: type) -> str:
    if cls.__module__ == nn.LSTM.__module__:
        return f"torch.nn.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"

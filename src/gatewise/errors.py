"""The errors gatewise raises. Each says the argument, what was expected, what came, and the remedy."""

from __future__ import annotations


class GatewiseError(Exception):
    """Base of every error that gatewise raises on purpose."""


class ShapeError(GatewiseError, ValueError, RuntimeError):
    """A rank or a size does not fit. Both of torch's types, since torch raises either."""


class DTypeError(GatewiseError, ValueError, TypeError):
    """A dtype or a device does not fit."""


class ArgumentError(GatewiseError, ValueError, TypeError):
    """A setting is out of its range or of the wrong kind."""

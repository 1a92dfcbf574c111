"""The errors gatewise raises. Each says the argument, what was expected, what came, and the remedy.

torch raises ValueError, TypeError or RuntimeError for the same mistake in different places, so each
class here is also every type that torch raises for its kind.
"""

from __future__ import annotations


class GatewiseError(Exception):
    """Base of every error that gatewise raises on purpose."""


class ShapeError(GatewiseError, ValueError, RuntimeError):
    """A rank or a size does not fit."""


class DTypeError(GatewiseError, ValueError, TypeError, RuntimeError):
    """A dtype or a device does not fit."""


class ArgumentError(GatewiseError, ValueError, TypeError, RuntimeError):
    """A setting is out of its range or of the wrong kind."""


class StaleError(GatewiseError, RuntimeError):
    """A copy is no longer that of its original."""

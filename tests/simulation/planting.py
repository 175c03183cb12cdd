"""How mutants change what ships."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> Any:
    """A patch that replaces a function by what ``make`` makes of it."""
    return patch.object(owner, name, make(getattr(owner, name)))

"""Cells as labels."""

from __future__ import annotations

from typing import Any


def label_of(value: Any) -> str:
    """A cell as a label: "" for a blank, a whole number without its decimal point."""
    if value is None or value != value:
        return ""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)

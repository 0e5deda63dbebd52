"""Tables on stdout, of which no figure is ever cut off."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

WIDE = 10_000
"""Columns of a file or pipe, which has no width."""


def print_table(table: Table) -> None:
    """A terminal that is too narrow folds cells; a file or pipe has each row on one line."""
    for column in table.columns:
        column.overflow = "fold"
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)

"""The command `lix` as its script starts it: Ctrl-C may come while the rest is being imported."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from lix_core.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()

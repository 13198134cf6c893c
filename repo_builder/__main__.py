"""Where ``repo-builder`` and ``python -m repo_builder`` begin; Ctrl-C during the imports is told like any other."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from repo_builder import cli
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)  # as cli.main ends then
    cli.main()


if __name__ == "__main__":
    main()

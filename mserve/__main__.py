"""`mserve` and `python -m mserve`: Ctrl-C is an answer, also while the first modules are read."""

import sys


def main() -> None:
    """Run the command line; never returns."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

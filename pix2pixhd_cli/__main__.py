"""`p2phd`, and `python -m pix2pixhd_cli`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback even while it is imported."""
    try:
        from pix2pixhd_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

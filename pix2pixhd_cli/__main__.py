"""`python -m pix2pixhd_cli` is `p2phd`."""

from pix2pixhd_cli.cli import main

if __name__ == "__main__":
    main()

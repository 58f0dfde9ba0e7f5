"""Run the lab without installing it: python3 -m rekernel_lab."""

from rekernel_lab.cli import main

main()

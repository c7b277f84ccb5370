"""`python -m zipfmax`: the same command line as `zipfmax`."""

from zipfmax.cli import main

main()

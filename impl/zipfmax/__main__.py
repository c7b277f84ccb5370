"""`python -m zipfmax`: the same command line as `zipfmax`."""

from zipfmax.command import main

main()

"""`python -m vitx`, the same as the command `vitx`."""

from vitx.commands import main

main()

"""`python -m relay`, for where the command `relay` is not on the path."""

from relay.cli import main

main()

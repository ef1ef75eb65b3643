"""`python -m weightledger` is the `weightledger` command."""

from weightledger.api.cli import main

main()

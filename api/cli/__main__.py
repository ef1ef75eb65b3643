"""`python -m api.cli` is the `weightledger` command."""

from api.cli import main

main()

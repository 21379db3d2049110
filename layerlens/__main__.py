"""`python -m layerlens`."""

from layerlens.cli import main

main()

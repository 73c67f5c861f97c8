"""`python -m lorascope`."""

from lorascope.cli.app import main

main()

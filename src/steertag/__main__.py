"""`python -m steertag` is `stag`."""

from steertag.cli.main import main

main()

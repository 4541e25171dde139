"""`python -m mserve`."""

from .cli import main

main()

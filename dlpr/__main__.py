"""``python -m dlpr``: the command line where the script ``dlpr`` is not on the path."""

from dlpr.cli import main

main()

"""The one error that the command line turns into a single line and exit status 2."""


class UsageError(Exception):
    """Wrong use or missing input: the message says what was wrong and what is allowed, in one line."""

"""The one exception for bad input. It imports nothing, so every module may raise it."""


class SpikingError(ValueError):
    """Bad input, told in one or two sentences: where, what was given, what was expected, what to do.

    The command line prints the message as one line and exits with code 2. Faults of the library itself
    are never a `SpikingError`.
    """

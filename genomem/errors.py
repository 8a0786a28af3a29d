"""The one error that callers can mend, and the exit codes of the command line."""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class GenomemError(Exception):
    """A mistake in the input that the caller can mend.

    The message is one line that names the file, the place in it, and the fix:
    ``yeast.fa: record 'chrII' appears twice (lines 1 and 9); rename one of them``.
    The command line prints it without a traceback and exits with code 2.
    """

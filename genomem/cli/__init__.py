"""The command line: one verb a stage. The only place for arguments, standard output and exit codes.

Hyper-parameters live in the study, not in flags, so that a study file is the whole experiment.
Heavy imports happen inside the verbs: `genomem --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from genomem import __version__
from genomem.cli import bench, evaluate, inspect, kmer, stages
from genomem.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, GenomemError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 a mistake that the user can mend, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except GenomemError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        print("genomem: interrupted" + (f"; {error}" if str(error) else ""), file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_FULL and not isinstance(error, PermissionError):
            raise
        problem = f"{error.filename or 'results'}: {error.strerror}"
        return _fail(f"{problem}; nothing half-written was kept - make room or mend the permissions, and run it again")
    return EXIT_OK


def _fail(message: str) -> int:
    print(f"genomem: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genomem",
        description="DNA models that remember, from reference genomes to a benchmark report.",
        epilog="`snakemake --cores all` runs every stage of a study in order; each verb runs one stage by hand.",
    )
    parser.add_argument("--version", action="version", version=f"genomem {__version__}")
    verbs = parser.add_subparsers(title="stages, in the order of a study", metavar="VERB", required=True)
    stages.add_verbs(verbs)
    evaluate.add_tasks(verbs.add_parser("evaluate", help="the final evaluation: held-out chromosomes, test sets, controls"))
    stages.add_report(verbs)
    kmer.add_verbs(verbs)
    inspect.add_topics(verbs.add_parser("inspect", help="not a stage: look into what a memory holds"))
    bench.add_topics(verbs.add_parser("bench", help="not a stage: speed and memory against peers and floors"))
    return parser

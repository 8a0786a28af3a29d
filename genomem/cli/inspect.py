"""The topics of `genomem inspect`."""

from __future__ import annotations

import argparse


def add_topics(parser: argparse.ArgumentParser) -> None:
    """Adds a topic for each kind of memory."""
    parser.add_subparsers(title="topics", metavar="TOPIC", required=True)

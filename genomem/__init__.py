"""genomem: DNA models that remember, from reference genomes to a benchmark report."""

__version__ = "0.1.0"

"""Reading a study from YAML, and saying in one line what is wrong with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from genomem.config.kmer_memory import KmerMemory
from genomem.config.mixers import MIXER_OPTIONS
from genomem.config.schema import (
    CNN,
    Benchmark,
    Evaluate,
    Finetune,
    Genome,
    Pretrain,
    Quoted,
    Recall,
    SequenceModel,
    SimulatedBenchmark,
    SimulatedGenome,
    Source,
    Study,
)
from genomem.config.section import Section
from genomem.errors import GenomemError

DEFAULT_STUDY = Path("config/quickstart.yaml")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_study(path: Path | str, overrides: dict[str, Any] | None = None) -> Study:
    """Reads a study file.

    Args:
        path: A YAML file; `config/` holds examples.
        overrides: Nested mapping laid over the file's, key by key (Snakemake's `--config`).

    Raises:
        GenomemError: The file is missing, is not YAML, or does not fit the schema.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such study file; config/ holds examples") from None
    except IsADirectoryError:
        raise GenomemError(f"{path}: is a folder; name a study file such as {DEFAULT_STUDY}") from None
    except UnicodeDecodeError:
        raise GenomemError(f"{path}: is not a text file; a study is YAML in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise GenomemError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise GenomemError(f"{path}: a study is a mapping of keys such as name, genomes and models; this file holds {_kind(tree)}")
    return parse_study(merge(tree, overrides or {}), origin=str(path))


def parse_study(tree: dict[str, Any], origin: str) -> Study:
    """Checks a nested mapping against the schema. `origin` names it in errors.

    Raises:
        GenomemError: One line with the key's path, what is wrong, and what is allowed.
    """
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = _explain(problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GenomemError(f"{origin}: {first}{more}") from None


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with `overrides` laid over it; mappings are merged key by key, all else is replaced."""
    merged = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def dump_study(study: Study) -> str:
    """Returns the resolved study, every default written out, as YAML that `load_study` reads."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _explain(problem: Mapping[str, Any]) -> str:
    """Turns one pydantic problem into one line: path, what is wrong, what is allowed."""
    section, keys = _locate(problem["loc"])
    path = ".".join(keys) or "study"
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        allowed = sorted(section.model_fields) if section else []
        near = get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{path}: unknown key; {hint}allowed keys: {', '.join(allowed)}"
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["discriminator"].strip("'")
        return f"{path}.{tag}: unknown {tag} {problem['ctx']['tag']!r}; known: {problem['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{path}: needs the key {problem['ctx']['discriminator']}"
    if kind == "missing":
        return f"{path}: this key is required"
    if kind == "value_error":
        return f"{path}: {problem['ctx']['error']}" if keys else str(problem["ctx"]["error"])
    got = "" if isinstance(value, dict | list) else f", not {value!r}"
    return f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}"


def _locate(loc: tuple[str | int, ...]) -> tuple[type[Section] | None, list[str]]:
    """Follows a pydantic location through the schema: the section that holds the last key, and the user's keys.

    Pydantic puts the tag of a discriminated union into the location; users wrote no such key, so it is dropped.
    """
    section: type[Section] | None = Study
    keys: list[str] = []
    is_name = False
    tags: dict[str, type[Section]] | None = None
    for place, step in enumerate(loc, start=1):
        if tags is not None and not is_name and step in tags:
            section, tags = tags[str(step)], None
            continue
        keys.append(str(step))
        if is_name:
            is_name = False
        elif section is not None and step in section.model_fields and place < len(loc):
            section, tags, is_name = _SECTIONS.get((section, str(step)), _Below(None))
    return section, keys


class _Below(NamedTuple):
    """What stands below a key: its section, the tags that pydantic puts in front of one, and whether names or numbers come first."""

    section: type[Section] | None
    tags: dict[str, type[Section]] | None = None
    is_named: bool = False


_MODELS: dict[str, type[Section]] = {"sequence_model": SequenceModel, "cnn": CNN}
_SECTIONS: dict[tuple[type[Section], str], _Below] = {
    (Study, "genomes"): _Below(Genome, is_named=True),
    (Study, "benchmarks"): _Below(Benchmark, is_named=True),
    (Study, "models"): _Below(SequenceModel, _MODELS, is_named=True),
    (Study, "pretrain"): _Below(Pretrain),
    (Study, "finetune"): _Below(Finetune),
    (Study, "evaluate"): _Below(Evaluate),
    (Evaluate, "recall"): _Below(Recall),
    (Evaluate, "quoted"): _Below(Quoted, is_named=True),
    (Genome, "simulate"): _Below(SimulatedGenome),
    (Genome, "sources"): _Below(Source, is_named=True),
    (Benchmark, "simulate"): _Below(SimulatedBenchmark),
    (Benchmark, "sources"): _Below(Source, is_named=True),
    (SequenceModel, "kmer_memory"): _Below(KmerMemory),
    (SequenceModel, "layers"): _Below(None, MIXER_OPTIONS, is_named=True),
}


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"

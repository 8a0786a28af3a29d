"""config/README.md lists every key of a study, as the schema has it.

`make docs` (or `python tests/test_config_readme.py`) writes its tables anew after a change of the schema.
"""

from pathlib import Path
from typing import Any

from genomem.config import (
    CNN,
    MIXER_OPTIONS,
    Benchmark,
    Evaluate,
    Finetune,
    Genome,
    KmerMemory,
    Pretrain,
    Quoted,
    Recall,
    Section,
    SequenceModel,
    SimulatedBenchmark,
    SimulatedGenome,
    Source,
    Study,
)

README = Path(__file__).resolve().parents[1] / "config/README.md"
BEGIN = "<!-- keys: written by tests/test_config_readme.py -->\n"
SECTIONS: dict[str, type[Section]] = {
    "The study": Study,
    "`genomes.<name>`": Genome,
    "`genomes.<name>.simulate`": SimulatedGenome,
    "`benchmarks.<name>`": Benchmark,
    "`benchmarks.<name>.simulate`": SimulatedBenchmark,
    "`sources` of a genome or a benchmark, each": Source,
    "`models.<name>` with `architecture: sequence_model`": SequenceModel,
    "`models.<name>.kmer_memory`": KmerMemory,
    "`models.<name>` with `architecture: cnn`": CNN,
    **{f"`layers` of a model: `mixer: {name}`": section for name, section in MIXER_OPTIONS.items()},
    "`pretrain`": Pretrain,
    "`finetune`": Finetune,
    "`evaluate`": Evaluate,
    "`evaluate.recall`": Recall,
    "`evaluate.quoted`, each": Quoted,
}


def tables() -> str:
    """Returns one table a section: key, what it takes, default, meaning."""
    parts = []
    for title, section in SECTIONS.items():
        schema = section.model_json_schema()
        parts.append(
            f"### {title}\n\n{section.__doc__.strip().splitlines()[0]}\n\n| key | takes | default | meaning |\n| --- | --- | --- | --- |\n"
        )
        parts += [row(key, value, key in schema.get("required", [])) for key, value in schema["properties"].items()]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def row(key: str, value: dict[str, Any], is_required: bool) -> str:
    default = "required" if is_required else "" if value.get("default") in (None, "", {}, []) else f"`{plain(value['default'])}`"
    meaning = value.get("description", "") if "$ref" not in value and "additionalProperties" not in value else "see below"
    return f"| `{key}` | {takes(value)} | {default} | {meaning.replace('<', '&lt;')} |\n"


def plain(default: Any) -> str:
    if isinstance(default, dict):
        return "every default of the section"
    return str(default).lower() if isinstance(default, bool) else str(default)


def takes(value: dict[str, Any]) -> str:
    """What may stand behind a key, in words, from its JSON schema."""
    if "anyOf" in value or "oneOf" in value:
        options = [takes(option) for option in value.get("anyOf", value.get("oneOf")) if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "const" in value:
        return f"`{plain(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{option}`" for option in value["enum"])
    if "$ref" in value:
        return "a section"
    if value.get("type") == "array":
        if "prefixItems" in value:
            return "a list of " + ", ".join(takes(item) for item in value["prefixItems"])
        return f"a list, each {takes(value['items'])}"
    if value.get("type") == "object":
        return "a section for each name"
    words = {"integer": "a whole number", "number": "a number", "boolean": "`true` or `false`", "string": "text"}[value["type"]]
    if value.get("format") == "path":
        words = "a path"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[name]:g}" for name, sign in signs.items() if name in value]
    return " ".join([words, ", ".join(limits)]).strip()


def test_readme_lists_every_key():
    assert README.read_text(encoding="utf-8").partition(BEGIN)[2].strip() == tables().strip()


def test_tables_reach_every_section():
    def leaves(section: type[Section]) -> set[type[Section]]:
        children = section.__subclasses__()
        return set().union(*map(leaves, children)) if children else {section}

    assert leaves(Section) == set(SECTIONS.values())


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text.partition(BEGIN)[0] + BEGIN + "\n" + tables(), encoding="utf-8")

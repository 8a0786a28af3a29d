"""The page says what the records say, is whole without a network, and changes only when they do."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

MASKED_COLUMNS = ["Validation at the end, bits per base", "Masked validation at the end, bits per masked base"]
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "col", "embed", "source", "track", "wbr"}


class Reader(HTMLParser):
    """An independent reading of the page: its tables by id, all text, all attributes; and whether every tag closes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, dict] = {}
        self.text, self.tags, self.open = "", [], []
        self._table: dict = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables[values["id"].removeprefix("table-")] = {"caption": "", "rows": [], "scopes": []}
        elif tag == "tr":
            self._table["rows"].append([])
        elif tag in ("th", "td"):
            self._table["rows"][-1].append("")
            self._table["scopes"].append((tag, values.get("scope")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "caption" in self.open:
            self._table["caption"] += data
        elif "td" in self.open or "th" in self.open:
            self._table["rows"][-1][-1] += data

    def cells(self, table: str) -> dict[str, list[str]]:
        """First cell of a row -> its other cells."""
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in self.tables[table]["rows"]}


@pytest.fixture(scope="module")
def html(tiny) -> str:
    return tiny.layout.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Reader:
    return Reader(html)


def result(path) -> dict:
    return json.loads(path.read_text())["result"]


def test_the_summary_is_computed_from_the_records(page):
    # 1.902 - 1.871 = 0.031 and 1.871 - 1.861 = 0.010: the figures that the fixture writes.
    sentence = (
        "titans_lmm reaches 1.871 bits per base on 2 held-out chromosomes (95 % interval 1.867 to 1.875), "
        "0.031 below the best plain Markov model (order 5) and 0.010 above the best back-off model (order 24)."
    )
    assert sentence in page.text
    assert "On coding the highest accuracy is titans_lmm's" in page.text
    assert "its interval above the best control, k-mer logistic regression (0.780)" in page.text


def test_the_language_table_holds_every_model_with_its_bits(page, tiny):
    cells = page.cells("language_bits")
    for model in ("titans_lmm", "attention"):
        found = result(tiny.layout.language(model))
        low, high = found["interval"]["all"]
        expected = ["271,884", f"{found['bits']['all']:.4f}", f"{low:.3f} to {high:.3f}", f"{found['margin']['all']:+.4f}"]
        assert cells[model] == expected + [f"{found['bits'][kind]:.4f}" for kind in ("unmasked", "repeat", "sure", "unsure")]
    for row in result(tiny.layout.markov)["models"]:
        assert cells[row["name"]][:2] == [f"{row['contexts']:,}", f"{row['bits']['all']:.4f}"]


def test_the_pretraining_table_shows_the_end_and_a_resumed_run(page, tiny, write_study):
    final = result(tiny.layout.pretrained("attention", 0) / "record.json")["final_validation_bits"]
    cells = page.cells("pretraining")
    assert cells["attention"][cells["Model"].index("Validation at the end, bits per base")] == f"{final:.4f}"
    assert "Last resumed from step" not in cells["Model"]
    written = write_study(benchmarks={})
    written.edit(written.layout.pretrained("attention", 0) / "record.json", {"run": {"resumed_from_step": 400}})
    cells = Reader(written.report()).cells("pretraining")
    column = cells["Model"].index("Last resumed from step")
    assert (cells["attention"][column], cells["titans_lmm"][column]) == ("400", "–")


def test_several_pretraining_seeds_show_their_spread_and_every_run(write_study):
    written = write_study(pretrain={"seeds": [0, 3]})
    html = written.report()
    page = Reader(html)
    assert "titans_lmm reaches 1.872 bits per base on 2 held-out chromosomes (mean of 2 pretraining seeds, 95 % interval" in page.text
    cells = page.cells("language_bits")
    found = result(written.layout.language("titans_lmm"))
    assert found["bits"]["all"] == pytest.approx(1.872)
    assert found["sd"]["all"] == pytest.approx(0.002 / 2**0.5)
    assert cells["Model"][1:3] == ["All positions", "± SD"]
    assert cells["titans_lmm"][1:3] == ["1.8720", "0.0014"]
    assert cells["order 5"][2] == "–"
    for table in ("language_bits", "language_chromosomes"):
        assert "means over 2 pretraining seeds" in page.tables[table]["caption"]
    rows = written.data()["tables"]["pretraining"]["rows"]
    assert [(row["model"], row["seed"]) for row in rows] == [(m, s) for m in ("titans_lmm", "attention") for s in (0, 3)]
    for row in rows:
        final = result(written.layout.pretrained(row["model"], row["seed"]) / "record.json")["final_validation_bits"]
        assert row["final_validation_bits"] == final
    assert [row[1] for row in page.tables["pretraining"]["rows"]] == ["Seed", "0", "3", "0", "3"]
    figure = html[html.index('id="plot-pretraining"') :].partition("</figure>")[0]
    assert figure.count(">titans_lmm</text>") == 1
    assert "titans_lmm, seed 0, ends at 1.876 validation bits; titans_lmm, seed 3, ends at 1.878 validation bits" in figure
    assert "pretrained 2 times (seeds 0, 3)" in page.text
    assert "no interval on this page covers chance in pretraining" not in page.text
    assert "genomem pretrain config/tiny.yaml --model attention --seed 3" in page.text
    assert page.open == []


def test_one_pretraining_seed_has_no_column_for_seeds_and_says_what_that_means(page, html):
    assert page.cells("language_bits")["Model"][2] == "95 % interval"
    assert page.cells("pretraining")["Model"][0] == "Parameters"
    assert "is pretrained once (seed 0) and fine-tuned with 3 seeds on each benchmark;" in " ".join(page.text.split())
    assert "One pretraining seed means that no interval on this page covers chance in pretraining." in page.text
    assert "pretraining seeds" not in page.text


def test_differences_from_the_baseline_are_those_of_the_record(write_study):
    page = Reader(write_study(evaluate={"baseline": "attention"}).report())
    table = page.tables["language_comparison"]
    assert [[cell.strip() for cell in row] for row in table["rows"]] == [
        ["Positions", "Difference", "95 % interval"],
        ["titans_lmm, 271,884 parameters"],
        ["All positions", "−0.0220", "−0.0250 to −0.0190"],
        ["Unmasked", "−0.0220", "−0.0250 to −0.0190"],
        ["Repeats", "−0.0220", "−0.0250 to −0.0190"],
    ]
    assert table["caption"].startswith("Differences from attention (271,884 parameters) in bits per base on the held-out")
    assert (
        "Differences from attention are paired: each model minus attention on the same bases, summed over blocks of 5,000 neighbouring "
        "bases. The interval resamples those blocks, so what both models find hard alike does not widen it."
    ) in page.text
    assert "genomem evaluate comparison config/tiny.yaml" in page.text
    assert page.cells("stages")["evaluate_comparison"][0] == "1"
    assert page.open == []


def test_differences_of_several_seeds_are_shown_seed_by_seed(write_study):
    page = Reader(write_study(evaluate={"baseline": "attention"}, pretrain={"seeds": [0, 3]}).report())
    cells = page.cells("language_comparison")
    assert cells["Positions"] == ["Difference", "95 % interval", "Each seed"]
    assert cells["All positions"] == ["−0.0210", "−0.0240 to −0.0180", "−0.0220, −0.0200"]
    assert "on the same bases and with the same pretraining seed, summed" in page.text
    assert "The interval resamples those blocks and the pairs of runs with one seed, so" in page.text


def test_a_study_that_compares_nothing_has_no_table_of_differences(page, write_study):
    alone = Reader(write_study(evaluate={"baseline": "attention"}, models={"attention": {"layers": ["attention"]}}).report())
    for reader in (page, alone):
        assert "language_comparison" not in reader.tables
        assert "Differences from" not in reader.text
        assert "evaluate comparison" not in reader.text


def recall_study(write_study, gaps, seeds=(0,)):
    return write_study(evaluate={"recall": {"repeat_bp": 400, "gaps_bp": list(gaps)}}, pretrain={"seeds": list(seeds)})


def test_recall_is_that_of_the_records_with_the_table_under_the_models(write_study):
    page = Reader(recall_study(write_study, [0, 100]).report())
    table = page.tables["recall"]
    ceiling = ["table of 12-mers", "1.9600", "0.0600", "0.0220", "1.9600", "+1.9000", "–"]
    assert [[cell.strip() for cell in row] for row in table["rows"]] == [
        ["Model", "First copy", "Second copy", "Second copy after 32 bases", "Control", "Gain", "95 % interval"],
        ["400 bases from start to start, 0 of them between the copies"],
        ["titans_lmm", "1.9000", "1.8620", "1.8612", "1.9000", "+0.0380", "0.0340 to 0.0420"],
        ["attention", "1.9000", "1.9200", "1.9204", "1.9000", "−0.0200", "−0.0240 to −0.0160"],
        ceiling,
        ["500 bases from start to start, 100 of them between the copies"],
        ["titans_lmm", "1.9000", "1.8810", "1.8806", "1.9000", "+0.0190", "0.0150 to 0.0230"],
        ["attention", "1.9000", "1.9100", "1.9102", "1.9000", "−0.0100", "−0.0140 to −0.0060"],
        ceiling,
    ]
    assert "stretch of 400 bases" in table["caption"]
    assert "what the model remembers of the first copy, and 0 without memory; where" in page.text
    assert "genomem evaluate recall config/tiny.yaml --model attention" in page.text
    assert page.cells("stages")["evaluate_recall"][0] == "2"
    assert page.open == []


def test_recall_of_several_seeds_is_shown_seed_by_seed(write_study):
    page = Reader(recall_study(write_study, [0], seeds=[0, 3]).report())
    cells = page.cells("recall")
    assert cells["Model"][-1] == "Gain of each seed"
    assert cells["titans_lmm"][4:] == ["+0.0390", "0.0350 to 0.0430", "+0.0380, +0.0400"]
    assert "means over 2 pretraining seeds" in page.tables["recall"]["caption"]


@pytest.mark.parametrize(("gaps", "is_drawn"), [([0, 100], False), ([0, 50, 100], True)], ids=["two gaps", "three gaps"])
def test_recall_is_drawn_against_the_distance_where_there_are_more_than_two(write_study, gaps, is_drawn):
    html = recall_study(write_study, gaps).report()
    assert ('id="plot-recall"' in html) == is_drawn
    if is_drawn:
        figure = html[html.index('id="plot-recall"') :].partition("</figure>")[0]
        assert "At 400 bases: titans_lmm 0.0380; attention -0.0200" in figure
        assert all(f">{text}</text>" in figure for text in ("400", "450", "500", "titans_lmm", "attention", "gain, bits per base"))
        assert "The table gains 1.900 to 1.900." in figure


def test_a_study_that_asks_for_no_recall_has_none(page):
    assert "recall" not in page.tables
    assert "Recall of a repeat" not in page.text
    assert "evaluate recall" not in page.text


def test_the_margin_is_that_of_the_record(write_study):
    written = write_study(benchmarks={})
    written.edit(written.layout.language("attention"), {"result": {"margin": {"all": 0.1234}}})
    cells = Reader(written.report()).cells("language_bits")
    assert cells["attention"][3] == "+0.1234"
    assert cells["order 5"][3] == "–"


def test_the_page_says_what_models_are_made_of_and_how_they_are_tuned(page):
    assert "titans_lmm: no convolutional stem, then 2 × (titans_lmm), 128 channels." in page.text
    assert "All models share one set of fine-tuning settings" in page.text


@pytest.mark.parametrize(("dataset", "metric"), [("promoters", "mcc"), ("coding", "accuracy")])
def test_the_score_table_holds_models_and_controls_headline_first(page, tiny, dataset, metric):
    cells = page.cells(f"scores_{dataset}")
    assert cells["Model or control"][2] == {"mcc": "MCC", "accuracy": "Accuracy"}[metric]
    for model in tiny.study.models:
        found = result(tiny.layout.classification(dataset, model))
        (low, high), (least, most) = found["interval"][metric], found["range"][metric]
        start = "pretrained" if model != "conv_net" else "scratch"
        expected = [start, f"{found['parameters']:,}", f"{found['mean'][metric]:.3f}", f"{found['sd'][metric]:.3f}"]
        assert cells[model][:6] == [*expected, f"{least:.3f} to {most:.3f}", f"{low:.3f} to {high:.3f}"]
    controls = result(tiny.layout.controls(dataset))["controls"]
    names = {
        "majority class": "majority",
        "sequence length only": "length",
        "k-mer logistic regression": "kmer",
        "nearest train overlap": "overlap",
    }
    for name, key in names.items():
        assert cells[name][2] == f"{controls[key][metric]:.3f}"


def test_a_warning_stands_exactly_where_a_model_is_not_above_the_best_control(page, tiny):
    for dataset, best in (("promoters", 0.56), ("coding", 0.78)):
        for model in tiny.study.models:
            metric = tiny.study.benchmarks[dataset].metric
            low = result(tiny.layout.classification(dataset, model))["interval"][metric][0]
            assert (f"{model} on {dataset}: its interval" in page.text) == (low <= best)
    assert "conv_net on coding" in page.text


def test_leaks_counts_and_provenance_are_on_the_page(page, tiny):
    assert "0 % stand whole in train and 4.3 % share a 32-mer with it, on either strand" in page.text
    assert page.cells("counts_coding")["All"] == ["2,000", "600"]
    jobs = len(tiny.study.pretrained_models) * 2 + 1 + 1 + 2 + 2 * 3 + 2 * 3 * 3
    assert page.cells("stages")["All"][0] == str(jobs)
    assert page.cells("environment")["Commit"] == ["0123456789abcdef0123456789abcdef01234567", str(jobs)]
    assert json.loads((tiny.layout.genome_store("beta") / "manifest.json").read_text())["sequence_sha256"] in page.cells("genomes")["beta"]
    assert "git checkout 0123456789abcdef0123456789abcdef01234567" in page.text
    assert "snakemake --cores all --configfile config/tiny.yaml" in page.text
    assert "genomem finetune config/tiny.yaml --model conv_net --dataset coding --seed 2" in page.text
    assert "validation_fraction: 0.1" in page.text


def test_times_are_summed_over_jobs(tiny, page):
    files = [tiny.layout.language(model) for model in ("titans_lmm", "attention")]
    runs = [json.loads(path.read_text())["run"] for path in files]
    stages = {row["stage"]: row for row in tiny.data()["tables"]["stages"]["rows"]}
    assert stages["evaluate_language"]["wall"] == pytest.approx(sum(run["wall_seconds"] for run in runs))
    assert stages["evaluate_language"]["cpu"] == pytest.approx(sum(run["cpu_seconds"] for run in runs))
    assert stages["evaluate_language"]["memory"] == max(run["peak_memory_bytes"] for run in runs)


def test_tables_are_accessible(page):
    for name, table in page.tables.items():
        assert table["caption"].strip(), name
        assert len({len(row) for row in table["rows"] if len(row) > 1}) == 1, name
        assert all(scope in ("col", "row", "rowgroup") for tag, scope in table["scopes"] if tag == "th"), name
    assert page.open == []


def test_figures_are_images_with_a_label_and_text(html):
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == 2 + 2 * 2
    for figure in figures:
        svg = ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label")) > 20
        texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert any(text in ("bits per base", "MCC", "accuracy", "epoch") for text in texts)


def test_the_page_is_one_file_that_fetches_nothing(html, page):
    assert len(html.encode()) < 2_000_000
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "onclick", "onload"} & set(attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes[key][1:] for _, attributes in page.tags for key in ("href", "xlink:href") if key in attributes}
    assert targets <= set(ids)


def test_the_same_records_give_the_same_bytes(tiny, html):
    data = tiny.layout.report.with_suffix(".json").read_bytes()
    assert tiny.report() == html
    assert tiny.layout.report.with_suffix(".json").read_bytes() == data


def test_the_data_file_holds_every_table_of_the_page(tiny, page):
    data = tiny.data()
    assert set(data["tables"]) == set(page.tables)
    assert data["summary"] in page.text
    assert all(warning in page.text for warning in data["warnings"])
    assert data["is_simulated"] is True


def test_words_of_the_study_are_data_not_html(write_study):
    html = write_study(description='<script>alert("1")</script> & <b>bold</b>', benchmarks={}).report()
    assert "<script" not in html
    assert "<b>" not in html
    assert 'alert("1")' in Reader(html).text


def test_a_study_without_benchmarks(write_study):
    page = Reader(write_study(benchmarks={}).report())
    assert "The study has no benchmarks." in page.text
    assert "This study has no benchmarks." in page.text
    assert "These genomes are simulated" in page.text
    assert not [name for name in page.tables if "scores" in name or "benchmark" in name]


def test_a_study_without_a_pretrained_model(write_study):
    written = write_study(models={"conv_net": {"architecture": "cnn"}})
    assert not written.layout.markov.exists()
    page = Reader(written.report())
    assert "No model was pretrained." in page.text
    assert not [name for name in page.tables if "language" in name]


def test_a_masked_score_stands_where_pretraining_is_described_and_nowhere_among_bits_per_base(write_study):
    models = {"titans_lmm": {"layers": ["titans_lmm"]}, "both_ways": {"layers": ["attention"], "bidirectional": True}}
    written = write_study(models=models)
    html = written.report()
    page = Reader(html)
    final = result(written.layout.pretrained("both_ways", 0) / "record.json")["final_masked_validation_bits"]
    cells = page.cells("pretraining")
    columns = [cells["Model"].index(title) for title in MASKED_COLUMNS]
    assert [cells["both_ways"][column] for column in columns] == ["–", f"{final:.4f}"]
    assert cells["titans_lmm"][columns[1]] == "–"
    assert "not comparable with bits per base" in page.tables["pretraining"]["caption"]
    assert "both_ways" not in page.cells("language_bits")
    assert "both_ways" not in page.cells("language_chromosomes")["Chromosome"]
    figures = {
        name: html[html.index(f'id="plot-{name}"') :].partition("</figure>")[0] for name in ("bits", "pretraining", "masked_pretraining")
    }
    assert [name for name, figure in figures.items() if "both_ways" in figure] == ["masked_pretraining"]
    assert "bits per masked base" in figures["masked_pretraining"]
    assert "both_ways" in page.cells("scores_coding")
    assert "genomem evaluate language config/tiny.yaml --model both_ways" not in page.text
    assert "genomem pretrain config/tiny.yaml --model both_ways" in page.text
    assert page.open == []


def test_a_study_of_bidirectional_models_alone(write_study):
    written = write_study(models={"both_ways": {"layers": ["attention"], "bidirectional": True}}, benchmarks={})
    assert not written.layout.markov.exists()
    page = Reader(written.report())
    assert "both_ways is bidirectional: pretrained to predict masked bases from both sides and both strands." in page.text
    assert "No model" not in page.text
    assert not [name for name in page.tables if "language" in name]
    titles = page.cells("pretraining")["Model"]
    assert [title for title in MASKED_COLUMNS if title in titles] == MASKED_COLUMNS[1:]


QUOTED = {"name": "GeCo3 -l 12", "bits_per_base": 1.8116, "protocol": "XV and XVI given I to XIV, one run."}


def test_quoted_figures_stand_under_those_that_were_measured_and_say_where_they_are_from(write_study):
    page = Reader(write_study(evaluate={"quoted": [QUOTED]}).report())
    rows = [[cell.strip() for cell in row] for row in page.tables["language_bits"]["rows"]]
    assert rows[-2] == ["Quoted, not measured here"]
    assert rows[-1][:3] == ["GeCo3 -l 12", "–", "1.8116"]
    assert "GeCo3 -l 12, 1.8116 bits per base, is quoted: XV and XVI given I to XIV, one run." in page.text


def test_a_kmer_memory_states_its_bytes_and_its_protocol(write_study):
    written = write_study()
    assert "k-mer tables" not in Reader(written.report()).text
    written.edit(
        written.layout.language("titans_lmm"), {"result": {"kmer_memory": {"start": "genome", "state_bytes": 3 * 2**20, "orders": []}}}
    )
    page = Reader(written.report())
    assert page.cells("language_bits")["titans_lmm"][1] == "3 MiB"
    assert page.cells("language_bits")["attention"][1] == "–"
    assert "titans_lmm has a k-mer memory beside the network. It has read the training and the validation chromosomes" in page.text
    written.edit(written.layout.language("titans_lmm"), {"result": {"kmer_memory": {"start": "empty"}}})
    assert "The k-mer memory of titans_lmm starts empty in every window." in Reader(written.report()).text


def test_a_kmer_memory_is_named_where_models_are_described(write_study):
    models = {"with": {"layers": ["attention"], "kmer_memory": {"orders": [11, 14]}}, "without": {"layers": ["attention"]}}
    page = Reader(write_study(models=models, benchmarks={}).report())
    assert "128 channels, with a k-mer memory of orders 11, 14 (output)." in page.text
    assert "These models differ in what stands around the mixer" in page.text


def test_a_model_that_is_a_language_model_alone_stands_in_no_benchmark_table(write_study):
    models = {"titans_lmm": {"layers": ["titans_lmm"]}, "attention": {"layers": ["attention"], "finetune": False}}
    page = Reader(write_study(models=models).report())
    assert "attention" in page.cells("language_bits")
    assert "attention" not in page.cells("scores_coding")
    assert "titans_lmm" in page.cells("scores_coding")


def test_positions_that_do_not_exist_are_dashes(write_study):
    written = write_study(benchmarks={})
    absent = {"bits": {"repeat": None, "sure": None}}
    for model in ("titans_lmm", "attention"):
        written.edit(written.layout.language(model), {"result": absent})
    models = [model | {"bits": model["bits"] | absent["bits"]} for model in result(written.layout.markov)["models"]]
    written.edit(written.layout.markov, {"result": {"models": models}})
    html = written.report()
    assert Reader(html).cells("language_bits")["titans_lmm"][5:7] == ["–", "–"]
    figure = html[html.index('id="plot-bits"') :]
    assert "Sure positions" not in figure[: figure.index("</figure>")]


def test_one_seed_has_no_spread_and_a_long_name_is_cut_in_figures_only(write_study):
    name = "a_model_with_a_name_that_is_longer_than_a_label_may_be"
    models = {"titans_lmm": {"layers": ["titans_lmm"]}, name: {"architecture": "cnn"}}
    html = write_study(seeds=[7], models=models, benchmarks={"coding": {"simulate": {"genome": "beta", "task": "coding"}}}).report()
    page = Reader(html)
    assert page.cells("scores_coding")["titans_lmm"][3:5] == ["–", "–"]
    assert "(one seed)" in page.tables["scores_coding"]["caption"]
    assert name in page.cells("scores_coding")
    assert f">{name[:25]}…</text>" in html

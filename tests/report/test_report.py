"""The page as a file: complete, self-contained, escaped, and honest about what is unknown."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qmeter.errors import MissingExtra, UnknownName
from qmeter.record import Quantity, RecordKind
from qmeter.report import write_report
from qmeter.report.charts import placed
from qmeter.report.export import write_csv
from qmeter.report.page import embedded
from qmeter.report.palette import COLOURS, SHAPES, styles
from qmeter.store import StudyStore
from qmeter.testing.records import made_records, made_study

NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://www.w3.org/2000/xmlns/")


class Tags(HTMLParser):
    """Every start tag with its attributes, and the ids."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_names_no_other_address(page: Path) -> None:
    text = page.read_text()
    assert [u for u in re.findall(r"https?://[^\s\"'`<>)\\]*", text) if u not in NAMESPACES] == []
    assert "//cdn" not in text and "@import" not in text and "url(" not in text.split("<script", 1)[0]
    for tag, attributes in Tags(text).tags:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert str(attributes.get("href") or "#").startswith("#"), attributes
        assert not [name for name in attributes if name.startswith("on")]


def test_links_lead_somewhere_and_ids_are_unique(page: Path) -> None:
    tags = Tags(page.read_text()).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for _, a in tags if a.get("href")} <= set(ids)


def test_recommendation_and_table_stand_above_everything_else(page: Path) -> None:
    text = page.read_text()
    order = [text.index(mark) for mark in ("Recommendation", "Serve llama-3.1-8b with", 'class="main"', "Trade-offs")]
    assert order == sorted(order)
    assert "Runner-up" in text or "tie within noise" in text


def test_failures_invalid_cells_and_unknowns_say_why(page: Path) -> None:
    text = page.read_text()
    assert "the weights (made up) do not fit" in text and "OutOfMemory" in text
    assert "client_lateness" in text and "give the client a core of its own" in text
    assert re.search(r'title="no usable cell[^"]*"[^>]*class="[^"]*unknown', text)
    assert ">nan<" not in text.lower() and "Infinity" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_every_chart_has_svg_png_and_csv(page: Path) -> None:
    text = page.read_text()
    names = set(re.findall(r'data-chart="([^"]+)"', text))
    assert len(names) >= 8
    folder = page.parent / "charts"
    for name in names:
        assert (folder / f"{name}.svg").read_text().startswith("<svg")
        assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert len((folder / f"{name}.csv").read_text().splitlines()) > 1
    assert {p.stem for p in folder.iterdir()} == names


def test_quantities_csv_holds_intervals_units_and_reasons(page: Path) -> None:
    with open(page.parent / "tables" / "quantities.csv") as file:
        rows = list(csv.DictReader(file))
    ttft = next(r for r in rows if r["quantity"] == "ttft_p50_s")
    assert float(ttft["low"]) <= float(ttft["value"]) <= float(ttft["high"]) and ttft["unit"] == "s"
    assert all(r["value"] or r["why"] for r in rows)


def test_a_host_without_energy_says_so_and_never_zero(tmp_path: Path) -> None:
    study = made_study(rates=(4,), window="4s")
    store = StudyStore.create(tmp_path / "s", study, "name: made-up\n")
    made_records(study, gpus=0, store=store)
    text = write_report(store.folder).read_text()
    assert "this host gives no energy reading" in text and "no RAPL" in text
    assert "Energy was not compared" in text
    assert "0 J" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_simulated_numbers_are_marked(tmp_path: Path) -> None:
    study = made_study(rates=(4,), window="4s")
    store = StudyStore.create(tmp_path / "s", study, "name: made-up\n")
    made_records(study, kind=RecordKind.SIMULATED, store=store)
    text = write_report(store.folder).read_text()
    assert "These numbers are simulated, not measured (calibration: made-up calibration)" in text
    assert 'class="mark simulated"' in text


def test_a_study_with_no_record_gives_a_page_that_says_so(tmp_path: Path) -> None:
    store = StudyStore.create(tmp_path / "s", made_study(), "name: made-up\n")
    text = write_report(store.folder).read_text()
    assert "No record yet" in text


def test_a_study_where_everything_failed_gives_a_page(tmp_path: Path) -> None:
    study = made_study(rates=(4,))
    store = StudyStore.create(tmp_path / "s", study, "name: made-up\n")
    for record in made_records(study):
        if record.cell["deployment"]["method"] == "nf4":
            store.append(record)
    text = write_report(store.folder).read_text()
    assert "OutOfMemory" in text and "no cell gave usable numbers" in text and "No record yet" not in text


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    """GIVEN names and reasons full of HTML WHEN reported THEN nothing of it becomes markup or ends the script."""
    study = made_study(rates=(4,), window="4s")
    evil = "</script><img src=x onerror=alert(1)>'\"&"
    store = StudyStore.create(tmp_path / "s", study.model_copy(update={"description": evil}), "x\n")
    for record in made_records(study)[:3]:
        cell = json.loads(json.dumps(record.cell))
        cell["deployment"]["method"] += evil
        broken = {"ppl_ratio": Quantity.unknown("1", evil)}
        store.append(record.model_copy(update={"cell": cell, "quality": broken}))
    text = write_report(store.folder).read_text()
    assert text.count("</script>") == 3
    assert "img" not in {tag for tag, _ in Tags(text).tags}
    assert "onerror" not in {name for _, a in Tags(text).tags for name in a}


def test_embedded_json_cannot_end_its_element() -> None:
    assert "<" not in embedded({"a": "</script>", "b": "\u2028"})
    assert json.loads(embedded({"a": "</script>&"})) == {"a": "</script>&"}
    with pytest.raises(ValueError, match="JSON"):
        embedded({"a": float("nan")})


def test_csv_text_is_not_a_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["a"], ["=1+1"], [-2.5], ["−3"]])
    assert (tmp_path / "x.csv").read_text().split() == ["a", "'=1+1", "-2.5", "−3"]


def test_missing_extra_names_the_install_line(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtra) as raised:
        write_report(study_folder)
    assert raised.value.hint == "pip install 'qmeter[report]'"


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        write_report(tmp_path)


def test_every_method_has_a_look_of_its_own() -> None:
    names = [f"m{i}" for i in range(40)]
    looks = styles(names, references=["m0"])
    assert len({(s.colour, s.shape) for s in looks}) == 40
    assert looks[0].colour not in COLOURS and set(s.shape for s in looks) <= set(SHAPES)


def test_names_on_a_chart_keep_clear_of_each_other() -> None:
    spot = {"x_low": 0, "x_high": 10, "y_low": 0, "y_high": 10}
    rows = [{"method": f"method-{i}", "x": 5 + i * 0.01, "y": 5.0} | spot for i in range(8)]
    shown = [r["place"] for r in placed(rows) if r["place"]]
    assert 1 <= len(shown) <= 4 and len(set(shown)) == len(shown)

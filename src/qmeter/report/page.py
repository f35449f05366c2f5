"""The HTML page from its parts: Jinja2 with autoescape on, styles and scripts inline, nothing fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from qmeter.report.charts import Chart
from qmeter.report.palette import SVG_PATHS, Style

_TEMPLATES = "qmeter.report.templates"
_SITE = re.compile(r"https?://(?!www\.w3\.org/)[^/\s\"'`<>)\\]+")


def render(parts: Mapping[str, Any], chart_groups: Mapping[str, Sequence[Chart]], styles: Sequence[Style]) -> str:
    """The whole page.

    Args:
        parts: what the template names.
        chart_groups: charts by section; they are embedded as data, drawn by the inline Vega runtime.
        styles: methods in the legend.
    """
    specs = [c for charts in chart_groups.values() for c in charts]
    return render_template("report.html.j2", parts, chart_groups, styles, runtime() if specs else "")


def render_template(
    template: str, parts: Mapping[str, Any], chart_groups: Mapping[str, Sequence[Chart]], styles: Sequence[Style],
    script: str,
) -> str:  # fmt: skip
    """A page of this room's templates, its styles, scripts (``script``: the chart runtime) and data inline."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:].rstrip(".")
    specs = {c.name: c.spec for charts in chart_groups.values() for c in charts}
    return environment.get_template(template).render(
        **parts,
        charts=chart_groups,
        styles=styles,
        shapes=SVG_PATHS,
        css=Markup(_read("report.css")),
        js=Markup(_read("report.js")),
        runtime=Markup(script),
        specs=Markup(embedded(specs)),
    )


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element: no ``<`` that could end it, no line separators."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def runtime() -> str:
    """The Vega, Vega-Lite and vega-embed runtime as one script.

    Names of project sites are taken out of its links (paths stay: the schema's version is read from one).
    """
    import vl_convert

    snippet = "window.qmeterEmbed = vegaEmbed;"
    script: str = vl_convert.javascript_bundle(snippet)
    return _SITE.sub("", script).replace("</script", "<\\/script")


def _read(name: str) -> str:
    return (files(_TEMPLATES) / name).read_text(encoding="utf-8")

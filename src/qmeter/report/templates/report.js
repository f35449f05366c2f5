"use strict";
(function () {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const views = [];
  const font = getComputedStyle(document.body).fontFamily;
  const config = {
    background: "transparent", font: font,
    legend: { disable: true },
    view: { stroke: null },
    axis: { labelFontSize: 12, titleFontSize: 12, titlePadding: 8, gridDash: [], domain: false, ticks: false, labelPadding: 6, grid: true, titleFontWeight: 600, labelOverlap: true },
    axisY: { titleAlign: "left", titleAnchor: "end", titleAngle: 0, titleX: 0, titleY: -10, titleBaseline: "bottom" },
    rule: { color: "#8a93a0" },
    line: { color: "#8a93a0" },
    tick: { color: "#8a93a0" }
  };
  const options = { mode: "vega-lite", renderer: "svg", actions: false, config: config, tooltip: { theme: "custom" } };

  function draw(element) {
    const spec = specs[element.dataset.chart];
    if (!spec) return Promise.resolve();
    return window.qmeterEmbed(element, spec, options).then(function (result) {
      views.push(result.view);
      element.dataset.drawn = "yes";
    }).catch(function (error) {
      element.textContent = "This chart could not be drawn: " + error.message;
      element.dataset.drawn = "failed";
    });
  }

  let focused = "";
  function focus(method) {
    focused = focused === method ? "" : method;
    document.querySelectorAll(".legend button").forEach(function (b) {
      b.setAttribute("aria-pressed", String(b.dataset.method === focused));
    });
    views.forEach(function (v) {
      try { v.signal("focus", focused).runAsync(); } catch (e) { /* a chart without methods has no focus */ }
    });
  }

  function sort(table, column, header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("thead th").forEach(function (h) { h.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows).map(function (row, i) {
      const text = row.cells[column].dataset.sort;
      return { row: row, key: text === undefined ? null : Number(text), i: i };
    });
    keyed.sort(function (a, b) {
      if (a.key === null || b.key === null) return a.key === b.key ? a.i - b.i : a.key === null ? 1 : -1;
      return (ascending ? 1 : -1) * (a.key - b.key) || a.i - b.i;
    });
    keyed.forEach(function (k) { body.appendChild(k.row); });
  }

  document.querySelectorAll("[data-sortable]").forEach(function (table) {
    Array.from(table.tHead.rows[0].cells).forEach(function (header, column) {
      const button = header.querySelector("button");
      if (button) button.addEventListener("click", function () { sort(table, column, header); });
    });
  });
  document.querySelectorAll(".legend button").forEach(function (b) {
    b.addEventListener("click", function () { focus(b.dataset.method); });
  });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details:not(.bulk)").forEach(function (d) { d.open = true; });
  });
  Promise.all(Array.from(document.querySelectorAll("[data-chart]")).map(draw)).then(function () {
    document.documentElement.dataset.charts = "done";
  });
})();

/* The page's charts, drawn with Chart.js, which is loaded when the first chart comes near. Colours follow the colour scheme. */

"use strict";

(() => {
  const DASHES = { solid: [], dashed: [6, 4], dotted: [2, 3], points: [] };
  const drawn = new Map();

  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  async function library() {
    await parsed;
    if (!window.Chart) {
      const script = document.createElement("script");
      script.textContent = document.getElementById("chart-library").textContent;
      document.head.append(script);
    }
    return window.Chart;
  }

  const hasPoints = chart => chart.series.some(series => series.line === "points");

  function dataset(chart, series) {
    const ink = colour(`--series-${series.colour}`), few = chart.ticks.length < 12, points = series.line === "points";
    const line = !points && hasPoints(chart);
    return {
      label: series.name, data: series.values, borderColor: ink, backgroundColor: ink, clip: 8,
      borderWidth: chart.kind === "bars" || points ? 0 : 2, borderDash: DASHES[series.line], showLine: !points, spanGaps: true,
      pointRadius: points ? 4 : few && !line ? 2.5 : 0, pointHoverRadius: 5, pointStyle: line ? "line" : "circle",
      barPercentage: 0.9, categoryPercentage: 0.82, borderRadius: 2,
    };
  }

  function legendLabels(chart) {
    const lines = !hasPoints(chart) && chart.kind === "line", side = lines ? 22 : 9;
    return {
      color: colour("--ink"), font: { size: 12 }, padding: 12,
      boxWidth: side, boxHeight: lines ? 0 : side, usePointStyle: !lines && chart.kind === "line",
    };
  }

  function format(chart, value) {
    if (value === null) return "unknown";
    return chart.percent ? `${(100 * value).toFixed(1)}\u202f%` : value.toFixed(3);
  }

  function configuration(chart) {
    const bars = chart.kind === "bars", percents = chart.axis.endsWith("%"), soft = colour("--soft"), line = colour("--line");
    const values = { border: { display: false }, grid: { color: line }, beginAtZero: true, max: chart.percent ? 1 : undefined,
      ticks: { color: soft, maxTicksLimit: 5, callback: value => chart.percent ? `${Math.round(100 * value)}\u202f%` : value } };
    const axis = { border: { color: line }, grid: { display: false },
      title: { display: !bars, text: chart.axis, color: soft, font: { size: 11 } },
      ticks: { color: bars ? colour("--ink") : soft, maxRotation: 0, autoSkip: !bars, autoSkipPadding: 12 } };
    return {
      type: bars ? "bar" : "line",
      data: { labels: chart.ticks, datasets: chart.series.map(series => dataset(chart, series)) },
      options: {
        animation: false, maintainAspectRatio: false, indexAxis: bars ? "y" : "x",
        interaction: { mode: "index", intersect: false, axis: bars ? "y" : "x" },
        scales: bars ? { x: { ...values, position: "top" }, y: axis } : { x: axis, y: values },
        plugins: {
          legend: { position: bars ? "top" : "bottom", align: "start", labels: legendLabels(chart) },
          tooltip: { callbacks: {
            title: ([item]) => bars ? item.label : `${chart.axis.replace(", %", "")} ${item.label}${percents ? "\u202f%" : ""}`,
            label: item => ` ${item.dataset.label}: ${format(chart, item.raw)}`,
          } },
        },
      },
    };
  }

  async function draw(canvas) {
    const Chart = await library(), chart = REPORT.charts[canvas.dataset.chart];
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    drawn.get(canvas)?.destroy();
    drawn.set(canvas, new Chart(canvas, configuration(chart)));
  }

  watch(document.querySelectorAll("[data-chart]"), { entered: draw });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
})();

"use strict";
(async () => {
  const text = (id) => document.getElementById(id).textContent.trim();
  const unzipped = (id) => {
    const bytes = Uint8Array.from(atob(text(id)), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  };

  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    // "<" is escaped so that no text ends the script element. Unescaped, the bytes match the content hash.
    const json = text("report").replace(/\\(u003c|.)/g, (all, c) => (c === "u003c" ? "<" : all));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
    link.download = "isoflop-report.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  const charts = [...document.querySelectorAll(".chart")];
  if (!charts.length) return;

  async function loadPlotly() {
    const code = new Blob([await unzipped("plotly").arrayBuffer()], { type: "text/javascript" });
    const script = document.createElement("script");
    script.src = URL.createObjectURL(code);
    await new Promise((done, failed) => {
      script.onload = done;
      script.onerror = () => failed(new Error("the chart library could not be loaded"));
      document.head.append(script);
    });
    URL.revokeObjectURL(script.src);
  }

  function look() {
    const style = getComputedStyle(document.documentElement);
    const css = (name) => style.getPropertyValue(name).trim();
    return {
      "font.color": css("--muted"), "yaxis.gridcolor": css("--grid"), "hoverlabel.bgcolor": css("--card"),
      "hoverlabel.bordercolor": css("--line"), "hoverlabel.font.color": css("--text"),
    };
  }

  // [on screen, on paper], as in report.css.
  const heights = { tall: [720, 560], mid: [460, 360], own: [0, 0] };  // "own": the height of the figure
  const kindOf = (chart) => Object.keys(heights).find((kind) => chart.classList.contains(kind));
  const heightOf = (chart) => (kindOf(chart) === "own" ? [chart.clientHeight, chart.clientHeight] : heights[kindOf(chart)] ?? [280, 205]);
  const restyle = (extra) => charts.map((chart) => Plotly.relayout(chart, { ...look(), ...extra(chart) }));

  try {
    const [figures] = await Promise.all([unzipped("figures").json(), loadPlotly()]);
    for (const chart of charts) {
      const { data, layout } = figures[chart.id.replace("chart-", "")];
      if (kindOf(chart) === "own") chart.style.height = `${layout.height ?? 280}px`;
      await Plotly.newPlot(chart, data, { ...layout, autosize: true }, { displayModeBar: false, responsive: true });
    }
    restyle(() => ({}));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => restyle(() => ({})));
    // Paper is white and as wide as A4 whatever the window was; the charts must be redrawn for it before the print.
    addEventListener("beforeprint", () => {
      document.documentElement.classList.add("paper");
      restyle((chart) => ({ autosize: false, width: kindOf(chart) ? 640 : 318, height: heightOf(chart)[1], "font.size": 10 }));
    });
    addEventListener("afterprint", () => {
      document.documentElement.classList.remove("paper");
      restyle((chart) => ({ autosize: true, width: null, height: heightOf(chart)[0], "font.size": 12 }));
    });
  } catch (error) {
    const note = document.getElementById("no-charts");
    note.hidden = false;
    note.className = "note";
    note.textContent = `The charts need a browser from 2023 or newer (${error.message}). All numbers are below.`;
  }
})();

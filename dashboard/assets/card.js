// The card of one chart: its title, how its points were obtained, its current value, its legend and a Plotly figure.
//
// A figure is mounted once and then redrawn only when it would look different. Its ranges belong to the view, so zoom and
// hidden lines survive every update. Measured: a redraw takes 20-28 ms for any number of points below 10,000, so the cost is
// the number of redraws.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const { decades, element, refill, setText, textButton, toggleButton, withText } =
  await import(new URL(`common.js?v=${VERSION}`, import.meta.url).href); // a static import would lose the version

export class Card {
  // `chart` has a `title`, and may have a `note` and `how` its points were obtained. A subclass has `update(Plotly, range)`.
  constructor(view, chart, { id, prefix = "" }) {
    Object.assign(this, { view, chart, mounted: false, shown: "", hidden: new Set(), entries: new Map() });
    this.node = element("section", "iso-card", `${prefix}chart-${id}`, { "aria-label": chart.title });
    this.top = element("div", "iso-top");
    this.sub = element("div", "iso-sub");
    this.note = withText("div", "iso-note", chart.note ?? "");
    this.legend = element("div", "iso-legend");
    this.sub.append(this.note, this.legend);
    this.plot = element("div", "iso-plot", `${prefix}plot-${id}`, { "data-empty": "" });
    this.words = element("div", "iso-words", `words-${id}`, { hidden: "" });
    this.node.append(this.top, this.sub, this.plot, this.words);
    this.title = chart.how ? this.askingTitle(id) : withText("div", "iso-title", chart.title);
    this.top.append(this.title);
    if (chart.how) this.explain(chart.how);
  }

  // --- parts

  // A title that says how the points were obtained: to a pointer on it, and below it after a click.
  askingTitle(id) {
    const how = (this.how = element("div", "iso-words iso-how", `how-${id}`, { hidden: "" }));
    this.sub.after(how);
    const title = textButton("iso-title iso-asks", this.chart.title, `title-${id}`, () => {
      how.hidden = !how.hidden;
      title.setAttribute("aria-expanded", String(!how.hidden));
    }, { "aria-expanded": "false" });
    return title;
  }

  explain(sentences) {
    setText(this.how, sentences.join(" "));
    this.title.title = sentences.join("\n");
  }

  // The value at the right of the title.
  addValue(id) {
    this.now = element("div", "iso-now", `value-${id}`);
    [this.number, this.unit] = [element("span"), element("small")];
    this.now.append(this.number, this.unit);
    this.top.append(this.now);
  }

  showValue(text, unit) {
    setText(this.number, text);
    setText(this.unit, unit);
  }

  // A legend entry that shows and hides its line.
  addEntry(key, name) {
    const button = toggleButton("iso-entry", `legend-${key}`, this.hidden, key, () => this.view.paint());
    button.append(name);
    this.entries.set(key, button);
    this.legend.append(button);
    return button;
  }

  // A legend without switches: [{name, swatch}].
  showLegend(entries) {
    refill(this.legend, entries, () => entries.map(({ name, swatch }) => withText("span", "iso-entry", name, "", { style: `--swatch: ${swatch}` })));
  }

  // A sentence instead of the picture; "" shows the picture.
  showWords(text) {
    setText(this.words, text);
    this.words.hidden = !text;
    this.plot.hidden = Boolean(text);
  }

  color(n) {
    const { series } = this.view.look;
    return series[n % series.length];
  }

  // The theme has changed. A subclass with entries defines the `swatch(key)` of each.
  restyle() {
    for (const [key, button] of this.entries) button.style.setProperty("--swatch", this.swatch(key));
  }

  // --- the figure

  // Draws the [traces, layout] that `figure()` returns, unless `state` is already drawn.
  async draw(Plotly, state, figure) {
    const wanted = `${state}|${this.view.look.signature}`;
    if (wanted === this.shown && this.mounted) return;
    this.shown = wanted;
    const [traces, layout] = figure();
    if (this.mounted) await Plotly.react(this.plot, traces, layout);
    else await this.mount(Plotly, traces, layout);
    if (this.hoverX !== undefined && this.keepsHover()) Plotly.Fx.hover(this.plot, { xval: this.hoverX }, "xy"); // a redraw removes it
  }

  async mount(Plotly, traces, layout) {
    this.mounted = true;
    this.view.debug.mounts += 1;
    delete this.plot.dataset.empty;
    await Plotly.newPlot(this.plot, traces, layout, {
      displayModeBar: false,
      doubleClick: this.doubleClick(),
      scrollZoom: false,
      showTips: false,
    });
    this.listen();
  }

  // false: the view itself restores the whole range.
  doubleClick() {
    return false;
  }

  listen() {
    const { plot, view } = this;
    plot.on("plotly_relayout", (change) => {
      const [from, to] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (from !== undefined && to !== undefined) view.zoomTo([this.onAxis(from), this.onAxis(to)]);
    });
    plot.on("plotly_doubleclick", () => view.zoomTo(null));
    plot.on("plotly_hover", (event) => this.point((this.hoverX = event.xvals && this.onAxis(event.xvals[0]))));
    plot.on("plotly_unhover", () => this.point((this.hoverX = undefined)));
  }

  // A place on the horizontal axis in the view's own numbers, from Plotly's value.
  onAxis(value) {
    return Number(value);
  }

  // The pointer is at `x`, or has left (undefined).
  point() {}

  keepsHover() {
    return true;
  }

  // Whether the vertical axis is logarithmic: the reader's choice, otherwise by the spread of the values.
  isLog(seen, chosen) {
    const { log_from: from } = this.chart;
    return Boolean(from && (chosen ?? (seen.positive < Infinity && seen.high / seen.positive > from)));
  }

  frame(more) {
    const { look } = this.view;
    return {
      autosize: true,
      margin: { l: 44, r: 12, t: 8, b: 28 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: look.background, // the line under the pointer gets an edge that contrasts with this colour; without it the edge is white in the dark theme
      font: { family: look.font, size: 11, color: look.faint },
      showlegend: false,
      dragmode: look.touch ? false : "zoom", // a finger scrolls the page
      hovermode: "x unified",
      hoverlabel: { bgcolor: look.background, bordercolor: look.border, font: { family: look.font, size: 11.5, color: look.text } },
      ...more,
    };
  }

  xAxis(range, more) {
    const { faint } = this.view.look;
    return {
      showline: false, ticks: "", color: faint, range, showgrid: false, zeroline: false, ticklabelstandoff: 5,
      spikethickness: 1, spikecolor: faint, spikedash: "solid", ...more,
    };
  }

  yAxis(range, log, more) {
    const { faint, grid } = this.view.look;
    return {
      showline: false, ticks: "", color: faint, type: log ? "log" : "linear", range, fixedrange: true, gridcolor: grid,
      zerolinecolor: grid, zerolinewidth: 1, ticklabelstandoff: 3, nticks: 5, tickformat: log ? "~g" : (this.chart.tick ?? ""),
      ...(log && { dtick: decades(range) }), ...more,
    };
  }
}

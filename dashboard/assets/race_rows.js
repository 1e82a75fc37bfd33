// The table of a race: a row for each configuration.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const {
  capital, count, element, lossText, preparingText, progressBar, setText, showProgress, textButton, withText,
} = await load("common.js");
const { laneState, mean, median } = await load("lanes.js");

// `key` as in RACE_COLUMNS of engine/charts/facts.py.
export const COLUMNS = [
  { key: "Loss", title: "Training loss" },
  { key: "Accuracy", title: "Test accuracy" },
  { key: "Steps", title: "Steps" },
  { key: "Samples/s", title: "Samples/s" },
  { key: "Target", title: "Target" },
];

// One lane: its name, its state and its current values, as medians over its seeds, like the table of results.
export class Row {
  constructor(view, place) {
    this.view = view;
    this.node = element("div", "race-row", `lane-${place}`, { role: "row" });
    const first = element("div", "race-lane", "", { role: "rowheader" });
    this.name = textButton("race-name", "", `lane-name-${place}`, () => view.toggleLane(place), { title: "Show or hide" });
    this.label = element("span", "race-label");
    this.name.append(element("span", "race-swatch", `swatch-${place}`), this.label);
    this.baseline = withText("span", "race-tag", "baseline");
    first.append(this.name, this.baseline);
    this.badge = element("span", "iso-badge", `lane-status-${place}`);
    this.progress = progressBar("Progress");
    const state = element("div", "race-state", "", { role: "cell" });
    state.append(this.badge, this.progress);
    this.values = COLUMNS.map(({ key, title }) => {
      const testid = `lane-${key.toLowerCase().replace("/", "-per-")}-${place}`;
      const cell = element("div", "race-value", testid, { role: "cell", "data-label": title });
      cell.append(element("span"));
      return cell;
    });
    this.busy = element("span", "iso-flaw", `lane-busy-${place}`, { hidden: "" });
    this.values[COLUMNS.findIndex(({ key }) => key === "Samples/s")].prepend(this.busy); // so that the numbers stay aligned
    this.why = element("div", "race-why", `lane-why-${place}`);
    this.node.append(first, state, ...this.values, this.why);
  }

  show(lane, hidden) {
    const { view } = this;
    COLUMNS.forEach(({ key }, i) => (this.values[i].title = view.how[key] ?? ""));
    const { runs } = lane;
    this.node.style.setProperty("--swatch", view.color(lane));
    setText(this.label, lane.label);
    this.label.title = lane.label;
    this.baseline.hidden = !lane.baseline;
    this.name.setAttribute("aria-pressed", String(!hidden));
    const state = laneState(runs);
    this.badge.dataset.status = state.status;
    setText(this.badge, capital(state.text));
    showProgress(this.progress, mean(runs.map((run) => run.progress)) ?? 0);
    this.progress.setAttribute("aria-label", `Progress of ${lane.label}`);
    this.progress.hidden = runs.every((run) => run.over);
    this.texts(lane).forEach((text, i) => {
      setText(this.values[i].lastChild, text);
      this.values[i].toggleAttribute("data-bad", text === "NaN");
    });
    this.mark(runs);
    this.explain(runs);
  }

  // Other programs used the machine, so the lane's throughput is lower than it would be alone.
  mark(runs) {
    const found = runs.filter((run) => run.answer?.busy);
    this.busy.hidden = !found.length;
    setText(this.busy, `busy${runs.length > 1 ? ` ${found.length} of ${runs.length}` : ""}`);
    this.busy.title = `The machine was busy: ${[...new Set(found.map((run) => run.answer.busy))].slice(0, 3).join("; ")}`;
  }

  texts({ runs }) {
    const now = runs.map((run) => run.answer?.current).filter(Boolean);
    const of = (name) => now.map((current) => current[name]).filter((v) => v !== null);
    const losses = of("loss");
    const accuracies = of("accuracy");
    const speeds = (now.length && runs.some((run) => !run.over) ? runs.filter((run) => !run.over && run.answer?.current).map((run) => run.answer.current.samples_per_s) : of("samples_per_s")).filter((v) => v !== null && v !== undefined);
    const steps = of("steps");
    const [fewest, most] = [Math.min(...steps), Math.max(...steps)];
    const accuracy = accuracies.length ? median(accuracies) : null; // never rounded up to 100: one mistake is a mistake
    return [
      !now.length ? "–" : losses.length < now.length ? "NaN" : lossText(median(losses)),
      accuracy === null ? "–" : `${(100 * (accuracy < 1 ? Math.min(accuracy, 0.9999) : accuracy)).toFixed(2)} %`,
      !steps.length ? "–" : fewest === most ? count(most) : `${count(fewest)}–${count(most)}`,
      speeds.length ? count(median(speeds)) : "–",
      this.target(runs),
    ];
  }

  // Where the lane reached the target, on the chosen axis: the median over its seeds, if more than half of them reached it.
  target(runs) {
    const { view } = this;
    if (!view.target) return "–";
    const asked = runs.map((run) => run.crossing(view.target, view.axis, view));
    const found = asked.filter(Boolean);
    if (asked.includes(undefined)) return "…";
    if (!found.length) return runs.every((run) => run.over) ? "not reached" : "–";
    const all = [...found.map(({ x }) => x), ...Array(runs.length - found.length).fill(Infinity)];
    const middle = median(all);
    const text = Number.isFinite(middle) ? view.axisText(middle) : "";
    if (runs.length === 1) return text;
    return `${text}${text && " · "}${found.length} of ${runs.length} seeds`;
  }

  // Why seeds ended before their budget, or which task they run before their first step.
  explain(runs) {
    const seeds = new Map(); // of each reason
    for (const run of runs) {
      const { preparing, why } = run.answer ?? {};
      const text = run.error || why || (preparing && (preparing.done === null ? `${preparing.text}…` : preparingText(preparing, 0)));
      if (text) seeds.set(text, [...(seeds.get(text) ?? []), run.seed]);
    }
    const shown = [...seeds].map(([text, of]) => (runs.length > 1 ? `Seed${of.length > 1 ? "s" : ""} ${of.join(", ")}: ${text}` : text));
    setText(this.why, shown.slice(0, 3).join("\n") + (shown.length > 3 ? `\nand ${shown.length - 3} more` : ""));
    this.why.hidden = !shown.length;
  }
}

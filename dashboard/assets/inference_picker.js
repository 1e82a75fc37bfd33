// The grid in which a user chooses the cells to measure, before a run.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { element, loadStylesheet, textButton } = await load("common.js");

export class Picker {
  constructor(parent, data) {
    Object.assign(this, { parent, key: data.key, chosen: new Set(data.chosen), shape: "" });
    this.node = element("div", "iso-live iso-picker", "picker");
    this.node.style.visibility = "hidden"; // until the stylesheet is there
    parent.append(this.node);
  }

  start() {
    Promise.all([loadStylesheet("live.css"), loadStylesheet("inference.css")]).then(() => (this.node.style.visibility = ""));
  }

  end() {
    clearTimeout(this.timer);
    this.node.remove();
  }

  update(data) {
    const shape = JSON.stringify([data.rows, data.columns, data.disabled]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build(data);
    }
    this.show();
  }

  build({ rows, columns, corner, disabled }) {
    this.node.style.setProperty("--columns", columns.length);
    this.cells = new Map();
    const grid = element("div", "inf-pick", "", { role: "group", "aria-label": "Combinations to measure" });
    const button = (className, label, keys, testid, attributes) =>
      textButton(className, label, testid, () => this.toggle(keys), { ...attributes, ...(disabled && { disabled: "" }) });
    const head = (label, keys, testid) => button("inf-head", label, keys, testid, { title: "Select all or none of them" });
    const all = rows.flatMap((row) => columns.map((column) => `${row.id}x${column.id}`));
    grid.append(head(corner, all, "pick-all"));
    for (const column of columns) grid.append(head(column.label, rows.map((row) => `${row.id}x${column.id}`), `pick-column-${column.id}`));
    for (const row of rows) {
      const side = head(row.label, columns.map((column) => `${row.id}x${column.id}`), `pick-row-${row.id}`);
      side.dataset.row = "";
      grid.append(side);
      for (const column of columns) {
        const key = `${row.id}x${column.id}`;
        const box = button("inf-box", "", [key], `pick-${key}`, { role: "checkbox", "aria-label": `batch ${row.label}, ${column.name}` });
        this.cells.set(key, box);
        grid.append(box);
      }
    }
    this.node.replaceChildren(grid);
  }

  toggle(keys) {
    const on = !keys.every((key) => this.chosen.has(key));
    for (const key of keys) on ? this.chosen.add(key) : this.chosen.delete(key);
    this.show();
    clearTimeout(this.timer); // several clicks in a row are one message
    this.timer = setTimeout(() => this.setState("cells", [...this.cells.keys()].filter((key) => this.chosen.has(key))), 250);
  }

  show() {
    for (const [key, button] of this.cells) button.setAttribute("aria-checked", String(this.chosen.has(key)));
  }
}

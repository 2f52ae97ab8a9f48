/** The curves of training: of one run every budget, of several runs one budget side by side. */

import { h, listen } from "../../core/dom";
import { csv, save } from "../../core/download";
import { brief, count, sig3, visible } from "../../core/format";
import { segments, tableOf } from "../bias/shared";
import { type Chart, type Line, LineChart } from "./chart";
import { type Axis, colour, duration, type Panel } from "./shared";
import { levelNames, levelText, type Run, type Series } from "./tables";

const MEASURES: { name: string; title: string; unit?: string; log?: boolean; times?: number }[] = [
  { name: "fvu", title: "FVU of the batch, log scale", log: true },
  { name: "loss", title: "Loss, log scale", log: true },
  { name: "l0", title: "L0, active latents per row" },
  { name: "dead", title: "Dead latents, %", unit: " %", times: 100 },
  { name: "learning_rate", title: "Learning rate" },
  { name: "rate", title: "Rows per second" },
];
const TABLE_LINES = 24;

export function curvesPanel(root: HTMLElement, { state }: Panel): () => void {
  const axis = segments<Axis>(
    "Horizontal axis",
    [
      { key: "rows", text: "rows seen" },
      { key: "seconds", text: "time" },
    ],
    (key) => state.set("axis", key),
  );
  const level = h("select", { "aria-label": "Budget at which runs are compared" });
  const levelLabel = h("label", { class: "nbs-check" }, "FVU at", level);
  const legend = h("div", { class: "nbs-controls nbs-legends" });
  const grid = h("div", { class: "nbs-charts" });
  const thinned = h("p", { class: "nbs-note" });
  const table = h("details", {}, h("summary", {}, "Curves as a table"));
  const download = h("button", { type: "button", class: "nbs-button" }, "CSV");
  root.append(h("div", { class: "nbs-line" }, axis.element, levelLabel, download), legend, grid, thinned, table);
  const charts = MEASURES.map(() => new LineChart((x) => mark(x)));
  grid.append(...charts.map(({ element }) => element));
  const mark = (x: number | undefined) => {
    for (const chart of charts) chart.mark(x);
  };
  listen(level, "change", () => draw());
  listen(download, "click", () => saveAll(state.get("runs"), state.get("series")));

  const fillTable = () => {
    if (!table.open) return;
    const [run, series] = [state.get("runs")[state.get("chosen")], state.get("series")[state.get("chosen")]];
    table.querySelector(".nbs-wide")?.remove();
    if (run && series) table.append(twin(run, series));
  };
  listen(table, "toggle", fillTable);

  const draw = () => {
    const [runs, series] = [state.get("runs"), state.get("series")];
    const names = [...new Set(runs.flatMap(levelNames))];
    const single = series.filter(Boolean).length < 2;
    const known = [...level.options].map(({ value }) => value);
    if (known.join() !== names.join()) {
      const before = level.value;
      level.replaceChildren(...names.map((name) => h("option", { value: name }, levelText(name))));
      level.value = names.includes(before) ? before : (names.at(-1) ?? "");
    }
    levelLabel.hidden = single || names.length < 2;
    const seconds = state.get("axis") === "seconds";
    const xText = (x: number) => (seconds ? duration(x) : brief(Math.round(x)));
    for (const [at, { name, title, unit, log, times }] of MEASURES.entries()) {
      const lines = name === "fvu" && single ? levelLines(runs, series, seconds) : [];
      if (!lines.length) {
        const column = name === "fvu" ? level.value : name;
        for (const [number, one] of series.entries()) {
          if (!one || !column) continue;
          const y = one.of(column).map((value) => value * (times ?? 1));
          lines.push({ name: visible(runs[number]?.name ?? ""), colour: number, x: xs(one, seconds), y });
        }
      }
      const chart: Chart = { title, lines, xText };
      if (unit) chart.unit = unit;
      if (log) chart.log = true;
      charts[at]?.draw(chart);
    }
    const signs = single
      ? levelLines(runs, series, seconds).map((one) => sign(one.colour, one.name))
      : runs.map((run, at) => sign(at, visible(run.name)));
    legend.replaceChildren(...signs);
    const cut = runs.filter(({ stride }) => stride > 1);
    thinned.textContent = cut
      .map((run) => `${visible(run.name)}: every ${run.stride}th of ${count(run.lines)} lines is drawn, and the last.`)
      .join(" ");
    fillTable();
  };
  const stop = state.on(["series", "axis"], () => {
    axis.mark(state.get("axis"));
    draw();
  });
  const stopChosen = state.on(["chosen"], fillTable);
  let width = 0;
  const observer =
    typeof ResizeObserver === "undefined"
      ? undefined
      : new ResizeObserver(() => {
          if (grid.clientWidth === width || grid.clientWidth === 0) return;
          width = grid.clientWidth;
          draw();
        });
  observer?.observe(grid);
  return () => {
    observer?.disconnect();
    stop();
    stopChosen();
  };
}

function xs(series: Series, seconds: boolean): number[] {
  return series.of(seconds ? "seconds" : "rows");
}

function levelLines(runs: Run[], series: (Series | undefined)[], seconds: boolean): Line[] {
  const at = series.findIndex(Boolean);
  const [run, one] = [runs[at], series[at]];
  if (!run || !one) return [];
  return levelNames(run).map((name, place) => ({
    name: levelText(name),
    colour: place,
    x: xs(one, seconds),
    y: one.of(name),
  }));
}

function sign(at: number, text: string): HTMLElement {
  return h("span", { class: "nbs-legend" }, h("i", { class: colour(at) }), text);
}

/** Evenly chosen lines of the chosen run, the last among them. */
function twin(run: Run, series: Series): HTMLElement {
  const names = ["rows", "seconds", "loss", "learning_rate", "dead", "l0", ...levelNames(run)];
  const columns = names.map((name) => series.of(name));
  const last = series.steps.length - 1;
  const each = Math.max(1, Math.ceil(last / TABLE_LINES));
  const chosen = series.steps.flatMap((_, at) => (at === last || at % each === 0 ? [at] : []));
  const lines = chosen.map((at) => [
    count(series.steps[at] ?? 0),
    ...columns.map((values, column) => (column === 0 ? count(values[at] ?? 0) : sig3(values[at] ?? Number.NaN))),
  ]);
  const heads = ["step", ...names.map((name) => (name.startsWith("fvu") ? `FVU, ${levelText(name)}` : name))];
  return tableOf(`Curves of ${visible(run.name)}`, heads, lines);
}

function saveAll(runs: Run[], series: (Series | undefined)[]): void {
  const names = [...new Set(series.flatMap((one) => one?.columns ?? []))].filter((name) => name !== "step");
  const lines = runs.flatMap((run, at) => {
    const one = series[at];
    if (!one) return [];
    const columns = names.map((name) => one.of(name));
    return one.steps.map((step, line) => [run.name, step, ...columns.map((values) => values[line] ?? Number.NaN)]);
  });
  save("training.csv", csv(["run", "step", ...names], lines));
}

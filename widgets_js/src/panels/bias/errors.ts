/** The error gaps: one line per group, or per group and level of a concept. Small groups are masked. */

import { h } from "../../core/dom";
import { count, percent, sig3, visible } from "../../core/format";
import {
  axis,
  distinct,
  interval,
  maskedText,
  named,
  none,
  numberButton,
  type Panel,
  qText,
  roundUp,
  section,
  segments,
  tableOf,
  whisker,
} from "./shared";
import { type ErrorLine, type Example, type Gap, value } from "./tables";

const BEHIND = "Show the inputs behind this number";

type Measure = "accuracy" | "tpr" | "fpr";
const MEASURES: { key: Measure; text: string; title: string }[] = [
  { key: "accuracy", text: "Accuracy", title: "share of right answers" },
  { key: "tpr", text: "TPR", title: "true positive rate: right among those that have the label" },
  { key: "fpr", text: "FPR", title: "false positive rate: wrong among those that have not" },
];

export function errorsPanel(root: HTMLElement, panel: Panel): () => void {
  const { report } = panel;
  const gaps = report.gaps();
  if (gaps.length) {
    const part = section("Gaps between the groups");
    part.body.append(note("A rate of the group less that of the others, on held-out rows."), gapTable(panel, gaps));
    root.append(part.element);
  }
  const errors = report.errors();
  const part = section("Errors of the classifier by group");
  if (errors.length) {
    part.body.append(
      note("On held-out rows, with 95 % intervals. The base rate stands beside every rate."),
      errorTable(panel, errors),
    );
  } else part.body.append(none("The report holds no errors: give ns.bias_report a classifier."));
  root.append(part.element);
  for (const [output, lines] of report.classErrors()) {
    const one = section(visible(`${report.label(output)} against the other classes`));
    one.body.append(errorTable(panel, lines));
    root.append(one.element);
  }
  const groups = section("Groups");
  const table = report.table("groups");
  const lines = Array.from({ length: table.rows }, (_, row) => {
    const name = named(report.label(value(table, "group", row)));
    if (value(table, "masked", row)) return [name, h("span", { class: "nbs-masked" }, maskedText(report)), ""];
    return [name, count(value(table, "n", row)), percent(value(table, "base_rate", row))];
  });
  groups.body.append(tableOf("Groups of the report", ["Group", "n", "Share"], lines));
  root.append(groups.element);
  return () => {};
}

function note(text: string): HTMLElement {
  return h("p", { class: "nbs-note" }, text);
}

function gapTable(panel: Panel, gaps: Gap[]): HTMLElement {
  const { report } = panel;
  const ends = gaps.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]).filter(Number.isFinite);
  const domain = roundUp(Math.max(0, ...ends));
  const cells = gaps.map((gap) => {
    const name = h("span", {}, named(report.label(gap.group)), " less ", named(report.label(gap.versus)));
    if (gap.masked) return [name, gap.measure, h("span", { class: "nbs-masked" }, maskedText(report)), "", "", ""];
    return [
      name,
      gap.measure,
      whisker(gap, [-domain, domain], { hollow: !(gap.q <= report.about.q), at: 0 }),
      numberButton(interval(gap), BEHIND, () => open(panel, gap.group, -1, -1)),
      qText(gap.q),
      `${count(gap.n)} / ${count(gap.n_rest)}`,
    ];
  });
  const head = ["Groups", "Rate", `${axis(-domain)} … ${axis(domain)}`, "Gap [95 %]", "q", "n / others"];
  return tableOf("Gaps between the groups", head, cells);
}

/** The table with a picture of one measure; `concept` where the lines are its levels. */
export function errorTable(panel: Panel, lines: ErrorLine[], concept = -1): HTMLElement {
  const element = h("div");
  let measure: Measure = "accuracy";
  const choose = segments("Measure of the picture", MEASURES, (key) => {
    measure = key;
    draw();
  });
  const holder = h("div");
  element.append(h("div", { class: "nbs-controls" }, choose.element), holder);
  const draw = () => {
    choose.mark(measure);
    holder.replaceChildren(drawTable(panel, lines, measure, concept));
  };
  draw();
  return element;
}

function drawTable(panel: Panel, lines: ErrorLine[], measure: Measure, concept: number): HTMLElement {
  const { report } = panel;
  const shown = lines.filter(({ masked }) => !masked).map((line) => line[measure]);
  const finite = shown.flatMap(({ low, high }) => [low, high]).filter(Number.isFinite);
  const domain: [number, number] = finite.length ? widened(Math.min(...finite), Math.max(...finite)) : [0, 1];
  const cells = lines.map((line) => {
    const level = line.level >= 0 ? [" · ", named(report.label(line.level))] : [];
    const name = h("span", {}, named(report.label(line.group)), ...level);
    if (line.masked) return [name, h("span", { class: "nbs-masked" }, maskedText(report)), "", "", "", "", "", "", ""];
    const button = (one: Measure) =>
      numberButton(interval(line[one]), BEHIND, () => open(panel, line.group, line.level, concept));
    return [
      name,
      whisker(line[measure], domain),
      count(line.n),
      percent(line.base_rate),
      button("accuracy"),
      button("tpr"),
      button("fpr"),
      sig3(line.calibration),
      sig3(line.ece),
    ];
  });
  const ends = `${sig3(domain[0])} … ${sig3(domain[1])}`;
  const head = ["Group", ends, "n", "Base rate", "Accuracy [95 %]", "TPR [95 %]", "FPR [95 %]", "Calibration", "ECE"];
  return tableOf(`Errors by group; picture of ${measure}`, head, cells);
}

/** Ends of the track: steps of 0.05 around what is shown, so that gaps are seen and the ends are named. */
export function widened(low: number, high: number): [number, number] {
  const from = Math.max(0, Math.floor(low * 20 - 0.2) / 20);
  const to = Math.min(1, Math.ceil(high * 20 + 0.2) / 20);
  return to > from ? [from, to] : [Math.max(0, from - 0.05), Math.min(1, to + 0.05)];
}

/** The inputs of the group: those of its own, else those that the chosen concept names as members of it. */
function open({ report, source, state }: Panel, group: number, level: number, concept: number): void {
  const of = (all: Example[]) => all.filter((one) => one.group === group);
  const own = concept >= 0 ? [] : of(report.shown());
  const chosen = concept >= 0 ? concept : report.conceptOf(state.get("latent"));
  const mine = own.length ? own : of(source.known(chosen)?.examples(chosen) ?? []);
  const inputs = distinct(mine.map(({ input }) => input)).map((input) => ({
    input,
    said: sig3(mine.find((one) => one.input === input)?.act ?? 0),
  }));
  const label = report.label(group);
  const when = level >= 0 ? `, concept ${report.label(level)}` : "";
  const name = own.length ? label : `members on which ${report.names[chosen]} is strongest`;
  state.set("behind", { title: `Inputs of ${label}${when}`, strips: [{ name, inputs }] });
}

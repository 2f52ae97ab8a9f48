/** How strongly the concept is active in each group: one small histogram per group over one common axis. */

import { h, listen, s } from "../../core/dom";
import { count, sig3 } from "../../core/format";
import { named, tableOf } from "./shared";
import type { Histogram, Report } from "./tables";

const WIDTH = 300;
const HEIGHT = 56;

/** Undefined where the report has none. Heights are shares of the group's active rows: groups differ in size. */
export function histograms(report: Report, all: Histogram[]): HTMLElement | undefined {
  if (!all.length) return undefined;
  const largest = Math.max(...all.map(({ max }) => max));
  const share = ({ counts }: Histogram) => Array.from(counts, (one) => one / Math.max(1, sum(counts)));
  const tallest = Math.max(...all.flatMap(share), 1e-9);
  const body = h("div", { class: "nbs-facts" });
  for (const one of all) {
    const label = `${report.label(one.group)}: ${count(sum(one.counts))} active rows, activations 0 to ${sig3(one.max)}`;
    const svg = s("svg", {
      class: "nbs-mean",
      width: WIDTH,
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": label,
    });
    const step = ((WIDTH * one.max) / largest || 0) / one.counts.length;
    for (const [bin, part] of share(one).entries()) {
      const height = (part / tallest) * (HEIGHT - 4);
      svg.append(
        s("rect", { fill: "currentColor", x: bin * step, width: Math.max(0.5, step - 1), y: HEIGHT - height, height }),
      );
    }
    body.append(h("div", {}, h("p", { class: "nbs-note" }, named(label)), svg));
  }
  const bins = all.flatMap((one) =>
    Array.from(one.counts, (rows, bin) => [
      named(report.label(one.group)),
      `${sig3((one.max * bin) / one.counts.length)} to ${sig3((one.max * (bin + 1)) / one.counts.length)}`,
      count(rows),
    ]),
  );
  const twin = h("details", {}, h("summary", {}, "Histograms as a table"));
  listen(twin, "toggle", () => twin.append(tableOf("Histograms", ["group", "activation", "rows"], bins)), {
    once: true,
  });
  return h("section", { class: "nbs-section" }, h("h4", {}, "Activation in each group"), body, twin);
}

function sum(values: ArrayLike<number>): number {
  return Array.prototype.reduce.call(values, (all, one) => (all as number) + (one as number), 0) as number;
}

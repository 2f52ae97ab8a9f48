/** FVU against the number of active latents, all runs beside each other, and the same as a table. */

import { h, s } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { scale } from "../bias/curve";
import { named, tableOf } from "../bias/shared";
import { logTicks } from "./chart";
import { colour, dash, type Panel } from "./shared";
import type { Run } from "./tables";

const HEIGHT = 280;
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 16, 10, 36];

interface Curve {
  name: string;
  place: number;
  /** Whether the rule sets k; where it does not, x is the L0 that was measured. */
  own: boolean;
  points: { k: number; fvu: number }[];
}

export function paretoPanel(root: HTMLElement, { state }: Panel): () => void {
  const holder = h("div", { class: "nbs-plot" });
  holder.style.height = `${HEIGHT}px`;
  const legend = h("div", { class: "nbs-controls nbs-legends" });
  const table = h("div");
  root.append(
    h(
      "p",
      { class: "nbs-note" },
      "Mean of the last ten logged batches of each run. Rows that no run trained on: ns.compare([…], test).",
    ),
    holder,
    legend,
    table,
  );
  const draw = () => {
    const curves = curvesOf(state.get("runs"));
    holder.replaceChildren(
      curves.length
        ? picture(curves, holder.clientWidth || 560)
        : h("p", { class: "nbs-none" }, "No line of a log yet."),
    );
    legend.replaceChildren(
      ...curves.map((one) =>
        h("span", { class: "nbs-legend" }, h("i", { class: colour(one.place) }), visible(one.name)),
      ),
    );
    table.replaceChildren(...(curves.length ? [twin(curves)] : []));
  };
  const stop = state.on(["runs"], draw);
  const observer = typeof ResizeObserver === "undefined" ? undefined : new ResizeObserver(draw);
  observer?.observe(root);
  return () => {
    observer?.disconnect();
    stop();
  };
}

/** Widths are left out: they nest the dictionary, not the number of active latents. */
export function curvesOf(runs: Run[]): Curve[] {
  return runs.flatMap((run, place) => {
    const l0 = run.latest.l0 ?? Number.NaN;
    const points = run.quality
      .filter(({ width }) => width === null)
      .map(({ k, fvu }) => ({ k: k ?? l0, fvu }))
      .filter(({ k, fvu }) => k > 0 && fvu > 0);
    const own = run.quality.some(({ k }) => k === null);
    return points.length ? [{ name: run.name, place, own, points }] : [];
  });
}

function picture(curves: Curve[], width: number): SVGSVGElement {
  const every = curves.flatMap(({ points }) => points);
  const ks = [...new Set(every.map(({ k }) => k))].sort((one, other) => one - other);
  const logs = (values: number[]) =>
    scale(Math.log10(Math.min(...values)), Math.log10(Math.max(...values))) as [number, number];
  const [left, right] = logs(ks);
  const [low, high] = logs(every.map(({ fvu }) => fvu));
  const x = (k: number) => LEFT + ((Math.log10(k) - left) / (right - left)) * (width - LEFT - RIGHT);
  const y = (fvu: number) => TOP + (1 - (Math.log10(fvu) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const said = curves.map(({ name, points }) => {
    const each = points.map(({ k, fvu }) => `${sig3(fvu)} at ${sig3(k)}`);
    return `${visible(name)}: ${each.join(", ")}`;
  });
  const svg = s("svg", {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": `FVU against active latents per row, both on a log scale. ${said.join("; ")}.`,
  });
  for (const tick of logTicks(low, high)) {
    svg.append(
      s("line", { class: "nbs-grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      s("text", { class: "nbs-tick", x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, sig3(tick)),
    );
  }
  let end = -40;
  for (const k of ks) {
    if (x(k) - end < 34) continue;
    end = x(k);
    svg.append(
      s("text", { class: "nbs-tick", x: x(k), y: HEIGHT - 20, "text-anchor": "middle" }, count(Math.round(k))),
    );
  }
  svg.append(
    s(
      "text",
      { class: "nbs-tick", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" },
      "active latents per row, log scale",
    ),
  );
  for (const { points, place, own } of curves) {
    const d = points.map(({ k, fvu }, at) => `${at ? "L" : "M"}${x(k).toFixed(1)} ${y(fvu).toFixed(1)}`).join("");
    svg.append(
      s("path", {
        class: colour(place),
        d,
        fill: "none",
        stroke: "currentColor",
        "stroke-width": 2,
        "stroke-dasharray": dash(place) || undefined,
      }),
      ...points.map(({ k, fvu }) =>
        s("circle", {
          class: colour(place),
          cx: x(k),
          cy: y(fvu),
          r: 4.5,
          fill: own ? "none" : "currentColor",
          stroke: "currentColor",
          "stroke-width": 2,
        }),
      ),
    );
  }
  return svg;
}

function twin(curves: Curve[]): HTMLElement {
  const ks = [...new Set(curves.flatMap(({ points }) => points.map(({ k }) => k)))].sort((one, other) => one - other);
  const lines = curves.map(({ name, points }) => [
    named(name),
    ...ks.map((k) => {
      const at = points.find((point) => point.k === k);
      return at ? sig3(at.fvu) : "–";
    }),
  ]);
  return tableOf(
    "FVU of each run at each k",
    ["run", ...ks.map((k) => `k = ${Number.isInteger(k) ? count(k) : sig3(k)}`)],
    lines,
  );
}

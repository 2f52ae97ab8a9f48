/** How much of the metric the n strongest latents bring back, beside random orders of the same latents. */

import { h, listen, s } from "../../core/dom";
import { brief, count, sig3 } from "../../core/format";
import { type Panel, twin } from "./shared";
import type { Point } from "./tables";

const HEIGHT = 190;
const TICK = 12; // pixels that a number of the axis takes
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 12, 10, 32];

export function faithfulnessPanel(root: HTMLElement, panel: Panel, own: Point[], random: Point[]): () => void {
  const holder = h("div");
  holder.style.height = `${HEIGHT}px`;
  const sign = (name: string, text: string) => h("span", { class: "nbs-legend" }, h("i", { class: name }), text);
  const legend = h("div", { class: "nbs-controls" }, sign("nbs-own-curve", "strongest first"));
  if (random.length) legend.append(sign("nbs-band", "random orders: mean, 2.5 – 97.5 %"));
  root.append(
    h("h4", {}, "Faithfulness"),
    h("p", { class: "nbs-note" }, "Metric recovered when only n latents are kept; 1 is with all of them, 0 with none."),
    holder,
    legend,
    twin("Faithfulness as a table", ["latents", "recovered", "random", "2.5 %", "97.5 %"], () =>
      own.map((point) => {
        const by = random.find(({ latents }) => latents === point.latents);
        const chance = [by?.recovered, by?.low, by?.high].map((one) => (one === undefined ? "–" : sig3(one)));
        return [count(point.latents), sig3(point.recovered), ...chance];
      }),
    ),
  );
  const draw = () => holder.replaceChildren(picture(panel, own, random, holder.clientWidth || 420));
  draw();
  if (typeof ResizeObserver === "undefined") return () => {};
  let width = holder.clientWidth;
  const observer = new ResizeObserver(() => {
    if (holder.clientWidth === width || holder.clientWidth === 0) return;
    width = holder.clientWidth;
    draw();
  });
  observer.observe(holder);
  return () => observer.disconnect();
}

function picture(panel: Panel, own: Point[], random: Point[], width: number): SVGSVGElement {
  const every = [...own, ...random];
  const ends = every.flatMap(({ recovered, low, high }) => [recovered, low, high]).filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...ends), Math.max(1, ...ends)];
  const most = Math.max(1, ...every.map(({ latents }) => latents));
  const x = (latents: number) => LEFT + (Math.log2(1 + latents) / Math.log2(1 + most)) * (width - LEFT - RIGHT);
  const y = (value: number) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const half = own.find(({ recovered }) => recovered >= 0.5);
  const said = half ? `half of it by ${count(half.latents)} latents` : "never half of it";
  const svg = s("svg", {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": `Metric recovered by up to ${count(most)} latents, strongest first: ${said}.`,
  });
  // The two ends of the scale first; others where there is room for their number.
  const placed: number[] = [];
  for (const value of [0, 1, low, high, 0.5]) {
    if (placed.some((other) => Math.abs(other - y(value)) < TICK)) continue;
    placed.push(y(value));
    svg.append(
      s("line", { class: "nbs-grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "nbs-tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, sig3(value)),
    );
  }
  const path = (points: [number, number][]) => points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
  const banded = random.filter((one) => Number.isFinite(one.low) && Number.isFinite(one.high));
  if (banded.length > 1) {
    const lower = banded.map((one): [number, number] => [x(one.latents), y(one.low)]);
    const upper = banded.map((one): [number, number] => [x(one.latents), y(one.high)]).reverse();
    svg.append(s("path", { class: "nbs-band", d: `M${path([...lower, ...upper])}Z` }));
  }
  const curve = (points: Point[], name: string, thick: number) => {
    if (!points.length) return;
    const d = `M${path(points.map((one) => [x(one.latents), y(one.recovered)]))}`;
    svg.append(s("path", { class: name, d, fill: "none", stroke: "currentColor", "stroke-width": thick }));
  };
  curve(random, "nbs-random", 1);
  curve(own, "nbs-own-curve", 2);
  for (const one of own) {
    const dot = s("circle", {
      class: "nbs-own-curve",
      cx: x(one.latents),
      cy: y(one.recovered),
      r: 3.5,
      fill: "currentColor",
    });
    const by = random.find(({ latents }) => latents === one.latents);
    const chance = by ? [`random orders ${sig3(by.recovered)} [${sig3(by.low)}, ${sig3(by.high)}]`] : [];
    listen(dot, "pointerenter", () =>
      panel.say([sig3(one.recovered), `recovered by ${count(one.latents)} latents`, ...chance]),
    );
    svg.append(dot);
  }
  const room = Math.max(34, (width - LEFT - RIGHT) / 8);
  let free = -1;
  for (const { latents } of own) {
    if (x(latents) < free) continue;
    free = x(latents) + room;
    svg.append(
      s("text", { class: "nbs-tick", x: x(latents), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, brief(latents)),
    );
  }
  svg.append(s("text", { class: "nbs-tick", x: LEFT, y: HEIGHT - 3 }, "latents kept (log scale)"));
  return svg;
}

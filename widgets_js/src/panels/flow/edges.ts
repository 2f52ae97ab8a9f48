/** The edges of the graph, on a canvas. */

import { attr, h } from "../../core/dom";
import { bandOf, type Layout } from "./layout";
import type { Edge, Flow, Link } from "./tables";

const BUCKETS = 8;
const DPR_MOST = 2;

/** A canvas of the layout's size; its colours are those of the page's theme. */
export class EdgeCanvas {
  readonly canvas = h("canvas", { role: "img" });
  /** Elements whose colour the style sheet sets: plain edges, those inside the null, the chosen chain. */
  readonly inks = ["nbs-ink", "nbs-ink nbs-inside", "nbs-ink nbs-chained"].map((name) => h("i", { class: name }));
  #colours: string[] | undefined;

  constructor(readonly flow: Flow) {}

  /** The theme may have changed: read the colours again. */
  forget(): void {
    this.#colours = undefined;
  }

  paint(plan: Layout, edges: Edge[], chain: Link[], chosen: number, label: string): void {
    const { canvas } = this;
    const scale = Math.min(DPR_MOST, globalThis.devicePixelRatio || 1);
    canvas.width = Math.round(plan.width * scale);
    canvas.height = Math.round(plan.height * scale);
    canvas.style.width = `${plan.width}px`;
    canvas.style.height = `${plan.height}px`;
    attr(canvas, "aria-label", label);
    const context = canvas.getContext("2d");
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    this.#colours ??= this.inks.map((one) => getComputedStyle(one).color || "gray");
    drawBands(context, plan, this.#colours[1] ?? "gray");
    drawEdges(this.flow, context, plan, edges, chain, chosen, this.#colours);
  }
}

function drawBands(context: CanvasRenderingContext2D, { bands, width }: Layout, ink: string): void {
  context.fillStyle = ink;
  context.strokeStyle = ink;
  context.font = "11px system-ui, sans-serif";
  for (const [number, { text, top }] of bands.entries()) {
    if (bands.length > 1) context.fillText(text, 4, top + 11);
    if (!number) continue;
    context.globalAlpha = 0.3;
    context.fillRect(0, top, width, 1);
    context.globalAlpha = 1;
  }
}

/** Edges of like strength are one path: a page is drawn with some twenty strokes. */
function drawEdges(
  flow: Flow,
  context: CanvasRenderingContext2D,
  { at }: Layout,
  edges: Edge[],
  chain: Link[],
  chosen: number,
  [plain, inside, chained]: string[],
): void {
  const next = new Map<number, number>();
  for (const [before, { key }] of chain.slice(1).entries()) next.set(chain[before]?.key ?? -1, key);
  const paths = Array.from({ length: 2 * BUCKETS }, () => new Path2D());
  const band = (site: number) => bandOf(flow.sites[site]?.lane ?? 0);
  const own = new Path2D();
  const join = (path: Path2D, source: number, target: number) => {
    const [a, b] = [at.get(source), at.get(target)];
    if (!a || !b) return false;
    const bend = Math.max(14, (b.x - a.x) * 0.45);
    path.moveTo(a.x, a.y);
    path.bezierCurveTo(a.x + bend, a.y, b.x - bend, b.y, b.x, b.y);
    return true;
  };
  for (const { source, target, cosine, above } of edges) {
    if (next.get(source.key) === target.key) continue;
    const bucket = Math.max(0, Math.min(BUCKETS - 1, Math.floor(cosine * BUCKETS)));
    // Between lanes, what chance gives would cover all else: there it is drawn for the chosen latent alone.
    const own = source.key === chosen || target.key === chosen;
    if (!above && !own && band(source.site) !== band(target.site)) continue;
    const path = paths[bucket + (above ? BUCKETS : 0)];
    if (path) join(path, source.key, target.key);
  }
  for (const [source, target] of next) join(own, source, target);
  for (const [number, path] of paths.entries()) {
    const share = ((number % BUCKETS) + 0.5) / BUCKETS;
    const above = number >= BUCKETS;
    context.strokeStyle = (above ? plain : inside) ?? "gray";
    context.globalAlpha = above ? 0.16 + 0.5 * share : 0.1 + 0.12 * share;
    context.lineWidth = above ? 0.5 + 2 * share : 0.7;
    context.stroke(path);
  }
  context.globalAlpha = 1;
  context.strokeStyle = chained ?? "black";
  context.lineWidth = 2.5;
  context.stroke(own);
}

/** The graph: edges on a canvas, latents as SVG marks above it, one Tab stop with arrow keys. */

import { attr, h, listen, s } from "../../core/dom";
import { count, visible } from "../../core/format";
import { EdgeCanvas } from "./edges";
import { bandOf, hit, type Layout, layout } from "./layout";
import { described, legend, Marks } from "./marks";
import { type Panel, type Say, shown } from "./shared";
import { type Flow, type Link, type Node, placeOf } from "./tables";

export function graphPanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const { flow, state } = panel;
  const edges = new EdgeCanvas(flow);
  const marks = new Marks(flow);
  const heads = h("div", { class: "nbs-columns", "aria-hidden": "true" });
  const svg = s("svg", { class: "nbs-nodes", role: "listbox", tabindex: "0", "aria-label": "Latents" });
  const ring = s("circle", { r: 8, cx: -99, cy: -99, fill: "none", stroke: "currentColor" });
  svg.append(marks.element, ring, marks.labels);
  const stage = h("div", { class: "nbs-stage" }, edges.canvas, ...edges.inks);
  stage.append(svg);
  const box = h("div", { class: "nbs-graph" }, heads, stage);
  // What scrolls inside must not make the rest of the dashboard be laid out again.
  box.style.contain = "layout paint";
  const none = h("p", { class: "nbs-none", hidden: true }, "No latent passes these filters.");
  root.append(box, none, legend());
  let plan: Layout | undefined;
  let chain: Link[] = [];
  let rows = Math.max(1, flow.about.saved.shown);
  let width = 0;
  let revealed: number | undefined;

  const paint = (at: Layout) =>
    edges.paint(at, state.get("graph").edges, chain, state.get("chosen"), canvasText(panel, at, chain));
  const draw = () => {
    width ||= box.clientWidth || 640;
    const found = shown(panel);
    chain = found.chain;
    rows = Math.max(rows, ...countsOf(found.nodes));
    plan = layout(flow, found.nodes, state.get("lanes"), width - 2, rows);
    stage.style.width = heads.style.width = `${plan.width}px`;
    stage.style.height = `${plan.height}px`;
    attr(svg, "width", plan.width);
    attr(svg, "height", plan.height);
    none.hidden = found.nodes.length > 0;
    heads.replaceChildren(...plan.columns.map(head));
    const chosen = state.get("chosen");
    marks.draw(plan, state.get("graph").edges, new Set(chain.map(({ key }) => key)), chosen);
    if (plan.at.has(chosen)) attr(svg, "aria-activedescendant", marks.idOf(chosen));
    paint(plan);
  };
  /** Once per choice: what the reader scrolled to stays when filters change. */
  const reveal = () => {
    const chosen = state.get("chosen");
    const at = plan?.at.get(chosen);
    if (!at || revealed === chosen) return;
    revealed = chosen;
    const top = heads.offsetHeight;
    const { scrollTop, scrollLeft, clientHeight, clientWidth } = box;
    if (at.y < scrollTop + 10 || at.y > scrollTop + clientHeight - top - 20) box.scrollTop = at.y - clientHeight / 2;
    if (at.x < scrollLeft + 20 || at.x > scrollLeft + clientWidth - 20) box.scrollLeft = at.x - clientWidth / 2;
  };
  let frame = 0;
  const later = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
      reveal();
    });
  };
  attend(svg, ring, panel, () => ({ plan, chain }), say);
  const stops = [
    state.on(["graph", "lanes", "kind", "score", "least", "chosen"], later),
    state.on(["chosen"], () => {
      const node = flow.node(state.get("chosen"));
      if (node) say(described(flow, node));
    }),
    watch(
      box,
      () => {
        width = box.clientWidth;
        draw();
      },
      () => {
        edges.forget();
        if (plan) paint(plan);
      },
    ),
  ];
  return () => {
    cancelAnimationFrame(frame);
    for (const stop of stops) stop();
  };
}

/** Latents of each site. */
function countsOf(nodes: Node[]): number[] {
  const counts = new Map<number, number>();
  for (const { site } of nodes) counts.set(site, (counts.get(site) ?? 0) + 1);
  return [...counts.values()];
}

/** Pointer and keys: the latent nearest to the pointer speaks, a click or an arrow key chooses. */
function attend(
  svg: SVGSVGElement,
  ring: SVGCircleElement,
  { flow, state }: Panel,
  now: () => { plan: Layout | undefined; chain: Link[] },
  say: Say,
): void {
  let over: number | undefined;
  const point = (event: MouseEvent) => {
    const edge = svg.getBoundingClientRect();
    const { plan } = now();
    return plan && hit(plan, event.clientX - edge.left, event.clientY - edge.top);
  };
  const hover = (node: Node | undefined) => {
    if (over === node?.key) return;
    over = node?.key;
    const at = over === undefined ? undefined : now().plan?.at.get(over);
    attr(ring, "cx", at?.x ?? -99);
    attr(ring, "cy", at?.y ?? -99);
    svg.style.cursor = node ? "pointer" : "";
    if (node) say(described(flow, node));
  };
  const choose = (node: Node | undefined) => {
    if (node) state.set("chosen", node.key);
  };
  listen(svg, "pointermove", (event) => hover(point(event)));
  listen(svg, "pointerleave", () => hover(undefined));
  listen(svg, "click", (event) => choose(point(event)));
  listen(svg, "keydown", (event) => {
    const { plan, chain } = now();
    if (event.ctrlKey || event.metaKey || event.altKey || !plan) return;
    const next = moved(flow, plan, chain, state.get("chosen"), event.key);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(next);
  });
}

/** Draw again at another width; paint again in another theme. */
function watch(box: HTMLElement, draw: () => void, paint: () => void): () => void {
  const stops: (() => void)[] = [];
  if (typeof ResizeObserver !== "undefined") {
    let width = box.clientWidth;
    const sizes = new ResizeObserver(() => {
      if (box.clientWidth === width || box.clientWidth === 0) return;
      width = box.clientWidth;
      draw();
    });
    sizes.observe(box);
    stops.push(() => sizes.disconnect());
  }
  const themes = new MutationObserver(paint);
  for (const one of [document.documentElement, document.body]) themes.observe(one, { attributes: true });
  stops.push(() => themes.disconnect());
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
    const media = globalThis.matchMedia?.(query);
    media?.addEventListener("change", paint);
    stops.push(() => media?.removeEventListener("change", paint));
  }
  return () => {
    for (const stop of stops) stop();
  };
}

/** Where a key leads from the chosen latent: up and down in its column, left and right along its chain. */
export function moved(flow: Flow, plan: Layout, chain: Link[], chosen: number, key: string): Node | undefined {
  const at = plan.at.get(chosen);
  if (!at) return [...plan.at.values()][0]?.node;
  const all = [...plan.at.values()];
  if (key === "ArrowUp" || key === "ArrowDown") {
    const column = all.filter(({ node }) => node.site === at.node.site).sort((a, b) => a.y - b.y);
    return column[column.indexOf(at) + (key === "ArrowUp" ? -1 : 1)]?.node;
  }
  const members = chain.filter(({ key: one }) => plan.at.has(one));
  if (key === "Home" || key === "End") return members.at(key === "Home" ? 0 : -1)?.node;
  if (key !== "ArrowLeft" && key !== "ArrowRight") return undefined;
  const by = key === "ArrowLeft" ? -1 : 1;
  const linked = members[members.findIndex((one) => one.key === chosen) + by];
  if (linked?.node) return linked.node;
  const band = bandOf(flow.sites[at.node.site]?.lane ?? 0);
  const beside = all.filter(({ node, x }) => by * (x - at.x) > 1 && bandOf(flow.sites[node.site]?.lane ?? 0) === band);
  const least = Math.min(...beside.map(({ x }) => Math.abs(x - at.x)));
  const column = beside.filter(({ x }) => Math.abs(x - at.x) < least + 1);
  return column.sort((a, b) => Math.abs(a.y - at.y) - Math.abs(b.y - at.y))[0]?.node;
}

function head({ x, text, title }: Layout["columns"][number]): HTMLElement {
  const one = h("span", { title: visible(title) }, text);
  one.style.left = `${x}px`;
  return one;
}

function canvasText({ state, flow }: Panel, { at }: Layout, chain: Link[]): string {
  const edges = state.get("graph").edges.filter(({ source, target }) => at.has(source.key) && at.has(target.key));
  const above = edges.filter((one) => one.above).length;
  const ends = [chain[0], chain.at(-1)].map((one) => (one ? flow.where(placeOf(one.key).site) : ""));
  return (
    `${count(at.size)} latents at ${flow.sites.length} sites and ${count(edges.length)} edges, ${count(above)} of them ` +
    `above their threshold. The chosen chain has ${count(chain.length)} ${chain.length === 1 ? "latent" : "latents"}, from ${ends[0]} to ${ends[1]}.`
  );
}

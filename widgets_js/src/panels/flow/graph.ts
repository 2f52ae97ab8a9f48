/** The graph: edges on a canvas, latents as SVG marks above it, one Tab stop with arrow keys. */

import { freshId } from "../../core/a11y";
import { h, s } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { bandOf, hit, type Layout, layout } from "./layout";
import { type Panel, type Say, shown } from "./shared";
import { type Edge, type Flow, KINDS, type Link, type Node, placeOf, SCORES } from "./tables";

/** Marks of the kinds, so that colour alone does not carry them; the last one is for latents without a kind. */
const MARKS = [
  { class: "nbs-translated", d: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0" },
  { class: "nbs-processed", d: "M-3.6-3.6h7.2v7.2h-7.2z" },
  { class: "nbs-newborn", d: "M0-4.8L4.6 3.6H-4.6z" },
  { class: "nbs-unexplained", d: "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0" },
  { class: "nbs-kindless", d: "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0" },
];
const BUCKETS = 8;
const DPR_MOST = 2;

/** A drawn latent, and what was last said to it. */
interface Mark {
  mark: SVGPathElement;
  where: string;
  looks: string;
}

export function graphPanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const { flow, state } = panel;
  const inks = ["nbs-ink", "nbs-ink nbs-inside", "nbs-ink nbs-chained"].map((name) => h("i", { class: name }));
  const heads = h("div", { class: "nbs-columns", "aria-hidden": "true" });
  const canvas = h("canvas", { role: "img" });
  const svg = s("svg", { class: "nbs-nodes", role: "listbox", tabindex: "0", "aria-label": "Latents" });
  const labels = s("g", { "aria-hidden": "true" });
  const marks = s("g", { role: "presentation" });
  const ring = s("circle", { r: 8, cx: -99, cy: -99, fill: "none", stroke: "currentColor" });
  svg.append(marks, ring, labels);
  const stage = h("div", { class: "nbs-stage" }, canvas, ...inks);
  stage.append(svg);
  const box = h("div", { class: "nbs-graph" }, heads, stage);
  const none = h("p", { class: "nbs-none", hidden: true }, "No latent passes these filters.");
  root.append(box, none, legend());
  // What scrolls inside must not make the rest of the dashboard be laid out again.
  box.style.contain = "layout paint";
  const drawn = new Map<number, Mark>();
  let plan: Layout | undefined;
  let width = 0;
  let colours: string[] | undefined;
  let revealed: number | undefined;
  let chain: Link[] = [];
  let rows = Math.max(1, flow.about.saved.shown);
  let over: number | undefined;
  const id = freshId("node");

  const draw = () => {
    width ||= box.clientWidth || 640;
    const found = shown(panel);
    chain = found.chain;
    const counts = new Map<number, number>();
    for (const { site } of found.nodes) counts.set(site, (counts.get(site) ?? 0) + 1);
    rows = Math.max(rows, ...counts.values());
    plan = layout(flow, found.nodes, state.get("lanes"), width - 2, rows);
    stage.style.width = heads.style.width = `${plan.width}px`;
    stage.style.height = `${plan.height}px`;
    for (const [name, value] of [["width", plan.width] as const, ["height", plan.height] as const]) {
      svg.setAttribute(name, String(value));
    }
    none.hidden = found.nodes.length > 0;
    heads.replaceChildren(...plan.columns.map(head));
    place(plan, new Set(chain.map(({ key }) => key)));
    paint(plan);
  };

  /** Marks are kept from page to page: only what changed is touched. */
  const place = (at: Layout, members: Set<number>) => {
    const chosen = state.get("chosen");
    const near = new Set<number>();
    for (const { source, target } of state.get("graph").edges) {
      if (source.key === chosen) near.add(target.key);
      if (target.key === chosen) near.add(source.key);
    }
    for (const [key, { mark }] of drawn) {
      if (at.at.has(key)) continue;
      mark.remove();
      drawn.delete(key);
    }
    for (const { x, y, node } of at.at.values()) {
      const one = drawn.get(node.key) ?? make(node);
      const member = members.has(node.key);
      const looks = `${node.key === chosen} ${member} ${near.has(node.key)}`;
      const where = `translate(${x.toFixed(1)} ${y.toFixed(1)})`;
      if (one.where !== where) one.mark.setAttribute("transform", where);
      if (one.looks !== looks) {
        one.mark.setAttribute("aria-selected", String(node.key === chosen));
        one.mark.classList.toggle("nbs-member", member);
        one.mark.classList.toggle("nbs-far", !member && !near.has(node.key));
      }
      Object.assign(one, { where, looks });
    }
    if (at.at.has(chosen)) svg.setAttribute("aria-activedescendant", `${id}-${chosen}`);
    labels.replaceChildren(...names(flow, at, members, chosen));
  };

  const make = (node: Node) => {
    const kind = node.kind < 0 ? KINDS.length : node.kind;
    const label = described(flow, node).join(", ");
    const mark = s("path", { id: `${id}-${node.key}`, ...MARKS[kind], role: "option", "aria-label": label });
    const made: Mark = { mark, where: "", looks: "" };
    drawn.set(node.key, made);
    marks.append(mark);
    return made;
  };

  const paint = (at: Layout) => {
    const scale = Math.min(DPR_MOST, globalThis.devicePixelRatio || 1);
    canvas.width = Math.round(at.width * scale);
    canvas.height = Math.round(at.height * scale);
    canvas.style.width = `${at.width}px`;
    canvas.style.height = `${at.height}px`;
    canvas.setAttribute("aria-label", canvasText(panel, at, chain));
    const context = canvas.getContext("2d");
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    colours ??= inks.map((one) => getComputedStyle(one).color || "gray");
    drawBands(context, at, colours[1] ?? "gray");
    drawEdges(flow, context, at, state.get("graph").edges, chain, state.get("chosen"), colours);
  };

  const point = (event: PointerEvent | MouseEvent) => {
    const edge = svg.getBoundingClientRect();
    return plan && hit(plan, event.clientX - edge.left, event.clientY - edge.top);
  };
  const hover = (node: Node | undefined) => {
    if (over === node?.key) return;
    over = node?.key;
    const at = over === undefined ? undefined : plan?.at.get(over);
    ring.setAttribute("cx", String(at?.x ?? -99));
    ring.setAttribute("cy", String(at?.y ?? -99));
    svg.style.cursor = node ? "pointer" : "";
    if (node) say(described(flow, node));
  };
  const choose = (node: Node | undefined) => {
    if (node) state.set("chosen", node.key);
  };
  svg.addEventListener("pointermove", (event) => hover(point(event)));
  svg.addEventListener("pointerleave", () => hover(undefined));
  svg.addEventListener("click", (event) => choose(point(event)));
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !plan) return;
    const next = moved(flow, plan, chain, state.get("chosen"), event.key);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(next);
  });

  /** Once per choice: what the reader scrolled to stays when filters change. */
  const reveal = () => {
    const chosen = state.get("chosen");
    const at = plan?.at.get(chosen);
    if (!at || revealed === chosen) return;
    revealed = chosen;
    const head = heads.offsetHeight;
    if (at.y < box.scrollTop + 10 || at.y > box.scrollTop + box.clientHeight - head - 20) {
      box.scrollTop = at.y - box.clientHeight / 2;
    }
    if (at.x < box.scrollLeft + 20 || at.x > box.scrollLeft + box.clientWidth - 20) {
      box.scrollLeft = at.x - box.clientWidth / 2;
    }
  };
  let frame = 0;
  const later = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
      reveal();
    });
  };
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
        colours = undefined;
        if (plan) paint(plan);
      },
    ),
  ];
  return () => {
    cancelAnimationFrame(frame);
    for (const stop of stops) stop();
  };
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

/** Names stand above the latents of the chain where a column is wide enough for a word. */
function names(flow: Flow, { at, step, width }: Layout, members: Set<number>, chosen: number): SVGTextElement[] {
  const room = Math.floor(step / 6.4);
  const found: SVGTextElement[] = [];
  for (const key of members) {
    const here = at.get(key);
    if (!here || (room < 6 && key !== chosen)) continue;
    const whole = flow.title(key);
    const most = Math.max(room, 9);
    const text = whole.length > most ? `${whole.slice(0, most - 1)}…` : whole;
    const anchor = here.x < step / 2 ? "start" : here.x > width - step / 2 ? "end" : "middle";
    const x = anchor === "start" ? 2 : anchor === "end" ? width - 2 : here.x;
    const y = (here.y - 7).toFixed(1);
    found.push(s("text", { "font-size": 10, "stroke-width": 3, x: x.toFixed(1), y, "text-anchor": anchor }, text));
  }
  return found;
}

/** A latent in a few words. */
export function described(flow: Flow, node: Node): string[] {
  const parts = [flow.title(node.key), `${flow.where(node.site)}${node.name ? `, latent ${node.latent}` : ""}`];
  if (node.kind >= 0) parts.push(KINDS[node.kind] ?? "");
  for (const [number, sign] of ["s(R)", "s(A)", "s(M)", "carried"].entries()) {
    const value = node.score[SCORES[number] as (typeof SCORES)[number]];
    if (!Number.isNaN(value)) parts.push(`${sign} ${sig3(value)}`);
  }
  return parts;
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

function legend(): HTMLElement {
  const line = h("div", { class: "nbs-filters nbs-marks" });
  for (const [number, text] of [...KINDS, "no kind"].entries()) {
    const icon = s("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" });
    icon.append(s("path", { ...MARKS[number] }));
    const one = h("span", { class: "nbs-legend" });
    one.append(icon, text);
    line.append(one);
  }
  const inks: [string, string][] = [
    ["nbs-ink", "above threshold"],
    ["nbs-ink nbs-inside", "inside the null"],
    ["nbs-ink nbs-chained", "chosen chain"],
  ];
  for (const [name, text] of inks) line.append(h("span", { class: "nbs-legend" }, h("i", { class: name }), text));
  return line;
}

/** The latents of the graph, as SVG marks above its edges. */

import { freshId } from "../../core/a11y";
import { attr, h, s } from "../../core/dom";
import { sig3 } from "../../core/format";
import type { Layout } from "./layout";
import { type Edge, type Flow, KINDS, type Node, SCORES } from "./tables";

/** Marks of the kinds, so that colour alone does not carry them; the last one is for latents without a kind. */
const MARKS = [
  { class: "nbs-translated", d: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0" },
  { class: "nbs-processed", d: "M-3.6-3.6h7.2v7.2h-7.2z" },
  { class: "nbs-newborn", d: "M0-4.8L4.6 3.6H-4.6z" },
  { class: "nbs-unexplained", d: "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0" },
  { class: "nbs-kindless", d: "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0" },
];

/** A drawn latent, and what was last said to it. */
interface Mark {
  mark: SVGPathElement;
  where: string;
  looks: string;
}

/** Marks are kept from page to page: only what changed is touched. */
export class Marks {
  readonly element = s("g", { role: "presentation" });
  readonly labels = s("g", { "aria-hidden": "true" });
  readonly #drawn = new Map<number, Mark>();
  readonly #id = freshId("node");

  constructor(readonly flow: Flow) {}

  idOf(key: number): string {
    return `${this.#id}-${key}`;
  }

  draw(plan: Layout, edges: Edge[], members: Set<number>, chosen: number): void {
    const near = new Set<number>();
    for (const { source, target } of edges) {
      if (source.key === chosen) near.add(target.key);
      if (target.key === chosen) near.add(source.key);
    }
    for (const [key, { mark }] of this.#drawn) {
      if (plan.at.has(key)) continue;
      mark.remove();
      this.#drawn.delete(key);
    }
    for (const { x, y, node } of plan.at.values()) {
      const one = this.#drawn.get(node.key) ?? this.#make(node);
      const member = members.has(node.key);
      const looks = `${node.key === chosen} ${member} ${near.has(node.key)}`;
      const where = `translate(${x.toFixed(1)} ${y.toFixed(1)})`;
      if (one.where !== where) attr(one.mark, "transform", where);
      if (one.looks !== looks) {
        attr(one.mark, "aria-selected", node.key === chosen);
        one.mark.classList.toggle("nbs-member", member);
        one.mark.classList.toggle("nbs-far", !member && !near.has(node.key));
      }
      Object.assign(one, { where, looks });
    }
    this.labels.replaceChildren(...names(this.flow, plan, members, chosen));
  }

  #make(node: Node): Mark {
    const kind = MARKS[node.kind < 0 ? KINDS.length : node.kind];
    const label = described(this.flow, node).join(", ");
    const mark = s("path", { id: this.idOf(node.key), ...kind, role: "option", "aria-label": label });
    const made: Mark = { mark, where: "", looks: "" };
    this.#drawn.set(node.key, made);
    this.element.append(mark);
    return made;
  }
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

/** What the marks and lines mean. */
export function legend(): HTMLElement {
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

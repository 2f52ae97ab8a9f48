/** What the panels of the flow dashboard share. */

import { attr, h, listen } from "../../core/dom";
import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { Card } from "../tables";
import { chainOf, type Flow, type Graph, type Link, type Node, type Score } from "./tables";

export type Tab = "cards" | "steer" | "tree" | "table";

export interface View {
  /** Key of the chosen latent. */
  chosen: number;
  /** The latents and edges at hand. */
  graph: Graph;
  lanes: ReadonlySet<number>;
  /** -1: every kind. */
  kind: number;
  score: Score;
  least: number;
  tab: Tab;
  kernel: Kernel;
  /** Whether the kernel is choosing what to show. */
  busy: boolean;
}

export interface Steered {
  sides: { side: string; text: string; url: string | undefined }[];
  metrics: { name: string; before: number; after: number; control: number }[];
  note: string;
}

export interface Pair {
  parent: number;
  child: number;
  child_level: number;
  parent_level: number;
  both_rows: number;
  conditional: number;
  base_rate: number;
  lift: number;
  q_value: number;
}

/** Where everything comes from; panels never see the widget's model. */
export interface Source {
  card(key: number): Card | undefined;
  /** From the kernel; those that have no card stay without. */
  askCards(keys: number[]): Promise<void>;
  find(text: string): Promise<Node[]>;
  /** The saved pairs of a site, or those around a latent from the kernel. */
  tree(key: number): Promise<{ pairs: Pair[]; whole: boolean }>;
  steer(key: number, strength: number, mode: string): Promise<Steered>;
}

export interface Panel {
  flow: Flow;
  state: State<View>;
  source: Source;
}

export type Say = (parts: string[]) => void;

/** Whether the filters let a latent through. */
export function passes(flow: Flow, view: Pick<View, "lanes" | "kind" | "score" | "least">, node: Node): boolean {
  return (
    view.lanes.has(flow.sites[node.site]?.lane ?? -1) &&
    (view.kind < 0 || node.kind === view.kind) &&
    (view.least <= 0 || node.score[view.score] >= view.least)
  );
}

/** What is drawn: what passes, and the chosen latent with its chain. */
export function shown({ flow, state }: Panel): { nodes: Node[]; chain: Link[] } {
  const chain = chainOf(flow, state.get("chosen"));
  const view = {
    lanes: state.get("lanes"),
    kind: state.get("kind"),
    score: state.get("score"),
    least: state.get("least"),
  };
  const nodes = new Map<number, Node>();
  for (const { node } of chain)
    if (node && view.lanes.has(flow.sites[node.site]?.lane ?? -1)) nodes.set(node.key, node);
  for (const node of state.get("graph").nodes) if (passes(flow, view, node)) nodes.set(node.key, node);
  return { nodes: [...nodes.values()], chain };
}

/** A group of buttons of which one is pressed. */
export function segments<T extends string>(
  label: string,
  options: { key: T; text: string; title?: string }[],
  choose: (key: T) => void,
): { element: HTMLElement; mark(keys: T[]): void } {
  const element = h("div", { class: "nbs-segments", role: "group", "aria-label": label });
  const buttons = options.map(({ key, text, title }) => {
    const button = h("button", { type: "button", title }, text);
    listen(button, "click", () => choose(key));
    element.append(button);
    return { key, button };
  });
  return {
    element,
    mark: (keys) => {
      for (const one of buttons) attr(one.button, "aria-pressed", keys.includes(one.key));
    },
  };
}

export function badge(text: string): HTMLElement {
  return h("span", { class: "nbs-badge" }, text);
}

export function note(...children: (Node_ | string)[]): HTMLElement {
  return h("p", { class: "nbs-note" }, ...children);
}

type Node_ = globalThis.Node;

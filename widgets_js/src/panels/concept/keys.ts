/** The keys of the concept dashboard. */

import { keySheet } from "../../core/keys";
import type { Panel } from "./shared";

export function keysPanel(root: HTMLElement, { concepts, state }: Panel): () => void {
  const move = (by: 1 | -1) => {
    const order = state.get("order");
    const at = Array.prototype.indexOf.call(order, concepts.rowOf(state.get("latent")));
    const next = order[at < 0 ? 0 : at + by];
    if (next !== undefined) state.set("latent", concepts.latent[next] as number);
  };
  return keySheet(root, [
    { key: "/", text: "search", actions: { "/": () => root.querySelector<HTMLElement>(".nbs-search")?.focus() } },
    { key: "[  ]", text: "previous, next concept of the list", actions: { "[": () => move(-1), "]": () => move(1) } },
    { key: "↑ ↓", text: "move in the list" },
    { key: "← →", text: "move among pictures, move a slider" },
    { key: "0", text: "reset the edit", actions: { "0": () => state.set("set", new Map()) } },
  ]);
}

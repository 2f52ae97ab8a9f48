/** The keys of the feature dashboard. */

import { listen } from "../core/dom";
import { keySheet } from "../core/keys";
import { openNote } from "./note";
import { openOwn } from "./read";
import type { Panel } from "./shared";

export function keysPanel(root: HTMLElement, panel: Panel): () => void {
  const { state } = panel;
  const other = () => state.set("examples", state.get("examples") === "top" ? "intervals" : "top");
  const stop = keySheet(root, [
    { key: "/", text: "search", actions: { "/": () => root.querySelector<HTMLElement>(".nbs-search")?.focus() } },
    {
      key: "[  ]",
      text: "previous, next latent of the list",
      actions: { "[": () => neighbour(panel, -1), "]": () => neighbour(panel, 1) },
    },
    { key: "↑ ↓", text: "move in the list" },
    { key: "← →", text: "move among pictures or tokens" },
    { key: "hold h", text: "pictures without the heat map", actions: { h: () => state.set("held", true) } },
    { key: "t", text: "strongest, all strengths", actions: { t: other } },
    { key: "n", text: "label, rate or comment", actions: { n: () => openNote(root) } },
    { key: "o", text: "your own text", actions: { o: () => openOwn(root) } },
  ]);
  const release = () => state.set("held", false);
  const onUp = (event: KeyboardEvent) => event.key === "h" && release();
  listen(root, "keyup", onUp);
  listen(root, "focusout", release);
  return () => {
    stop();
    root.removeEventListener("keyup", onUp);
    root.removeEventListener("focusout", release);
  };
}

function neighbour({ state }: Panel, move: 1 | -1): void {
  const order = state.get("order");
  const at = Array.prototype.indexOf.call(order, state.get("latent"));
  const next = order[at < 0 ? 0 : at + move];
  if (next !== undefined) state.set("latent", next);
}

/** Filters, and the search by name or number. */

import { freshId } from "../../core/a11y";
import { attr, bdi, h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { sig3 } from "../../core/format";
import { type Panel, segments } from "./shared";
import { KINDS, type Node, SCORES, type Score } from "./tables";

const QUIET_MS = 120;
const SIGNS = ["s(R)", "s(A)", "s(M)", "carried"];

export function toolsPanel(root: HTMLElement, panel: Panel): () => void {
  const stops = [search(root, panel), lanes(root, panel), scores(root, panel)];
  return () => {
    for (const stop of stops) stop();
  };
}

function search(root: HTMLElement, { flow, source, state }: Panel): () => void {
  const id = freshId("hits");
  const input = h("input", {
    type: "search",
    class: "nbs-search",
    placeholder: "Name or number  /",
    role: "combobox",
    "aria-label": "Search latents by name or number",
    "aria-controls": id,
    "aria-expanded": "false",
    spellcheck: "false",
    autocomplete: "off",
  });
  const list = h("div", {
    class: "nbs-help nbs-hits",
    role: "listbox",
    id,
    "aria-label": "Found latents",
    hidden: true,
  });
  root.append(h("div", { class: "nbs-finder" }, input, list));
  let found: Node[] = [];
  let at = -1;
  let turn = 0;
  /** The text that `found` answers. */
  let answered = "";
  let timer: ReturnType<typeof setTimeout> | undefined;

  const close = () => {
    turn += 1;
    list.hidden = true;
    attr(input, "aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (next: number) => {
    at = Math.max(-1, Math.min(found.length - 1, next));
    for (const [number, row] of [...list.children].entries()) {
      attr(row, "aria-selected", number === at);
      if (number !== at) continue;
      row.scrollIntoView?.({ block: "nearest" });
      attr(input, "aria-activedescendant", row.id);
    }
  };
  const choose = (node: Node | undefined) => {
    if (!node) return;
    close();
    state.set("chosen", node.key);
  };
  const look = async () => {
    const text = input.value.trim();
    if (!text) return close();
    turn += 1;
    const mine = turn;
    try {
      const nodes = await source.find(text);
      if (mine !== turn) return;
      [found, answered] = [nodes, text];
      const rows = nodes.map((node, number) => {
        const where = `${node.name ? `#${node.latent}, ` : ""}${flow.where(node.site)}`;
        const row = h("p", { role: "option", id: `${id}-${number}` }, bdi(flow.title(node.key)), ` ${where}`);
        listen(row, "pointerdown", (event) => {
          event.preventDefault();
          choose(node);
        });
        return row;
      });
      const alone = state.get("kernel") === "none" ? " in this saved view" : "";
      list.replaceChildren(...(rows.length ? rows : [h("p", { class: "nbs-none" }, `No latent matches${alone}.`)]));
      list.hidden = false;
      attr(input, "aria-expanded", "true");
      mark(0);
    } catch (error) {
      if (mine !== turn) return;
      [found, answered] = [[], text];
      list.replaceChildren(errorCard("The search failed.", error));
      list.hidden = false;
    }
  };
  /** A quick Enter waits for the answer to what was typed. */
  const enter = async () => {
    clearTimeout(timer);
    if (list.hidden || answered !== input.value.trim()) await look();
    choose(found[Math.max(0, at)]);
  };
  listen(input, "input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => void look(), state.get("kernel") === "live" ? QUIET_MS : 0);
  });
  listen(input, "keydown", (event) => {
    const moves: Record<string, () => void> = {
      ArrowDown: () => mark(at + 1),
      ArrowUp: () => mark(at - 1),
      Enter: () => void enter(),
      Escape: () => {
        input.value = "";
        close();
      },
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    move();
  });
  listen(input, "blur", close);
  return () => {
    turn += 1;
    clearTimeout(timer);
  };
}

function lanes(root: HTMLElement, { flow, state }: Panel): () => void {
  const options = [
    { key: "0", text: "Residual", lanes: [0, 3] },
    { key: "1", text: "Attention", lanes: [1] },
    { key: "2", text: "MLP", lanes: [2] },
  ].filter((one) => flow.sites.some(({ lane }) => one.lanes.includes(lane)));
  if (options.length < 2) return () => {};
  const group = segments("Lanes", options, (key) => {
    const next = new Set(state.get("lanes"));
    for (const lane of options.find((one) => one.key === key)?.lanes ?? []) {
      if (!next.delete(lane)) next.add(lane);
    }
    if (next.size) state.set("lanes", next);
  });
  root.append(group.element);
  return state.on(["lanes"], () => group.mark([...state.get("lanes")].map(String)));
}

function scores(root: HTMLElement, { state }: Panel): () => void {
  const kind = h("select", { "aria-label": "Kind" }, h("option", { value: -1 }, "every kind"));
  for (const [number, text] of KINDS.entries()) kind.append(h("option", { value: number }, text));
  listen(kind, "change", () => state.set("kind", Number(kind.value)));
  const score = h("select", { "aria-label": "Score" });
  for (const [number, text] of SIGNS.entries()) score.append(h("option", { value: SCORES[number] ?? "" }, text));
  listen(score, "change", () => state.set("score", score.value as Score));
  const least = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0, "aria-label": "Least score" });
  listen(least, "input", () => state.set("least", Number(least.value)));
  const said = h("span", { class: "nbs-status" });
  root.append(kind, h("label", { class: "nbs-check" }, score, "≥", least, said));
  return state.on(["least"], () => {
    said.textContent = sig3(state.get("least"));
    attr(least, "aria-valuetext", said.textContent);
  });
}

/** The list of concepts: found by name, runner-up or number, and drawn only where it is seen. */

import { liveRegion } from "../../core/a11y";
import { bdi, h, listen } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { VirtualList } from "../../core/list";
import type { Panel } from "./shared";
import type { Concepts } from "./tables";

const ROW_HEIGHT = 30;

/** Rows whose name, label, attribute, runner-up or number holds the text; exact names first. */
export function found(concepts: Concepts, text: string, all: boolean): Uint32Array {
  const wanted = text.trim().toLowerCase().replace(/^#/, "");
  const ranks: [number, number][] = [];
  for (let row = 0; row < concepts.length; row += 1) {
    if (!all && !concepts.accepted[row] && !concepts.label(row)) continue;
    const rank = wanted ? match(concepts, row, wanted) : 0;
    if (rank !== undefined) ranks.push([rank, row]);
  }
  ranks.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return Uint32Array.from(ranks, ([, row]) => row);
}

function match(concepts: Concepts, row: number, wanted: string): number | undefined {
  const own = [concepts.label(row), concepts.word(row)].map((one) => one?.toLowerCase());
  if (own.includes(wanted)) return 0;
  if (own.some((one) => one?.startsWith(wanted))) return 1;
  if (own.some((one) => one?.includes(wanted)) || String(concepts.latent[row]) === wanted) return 2;
  if (concepts.attribute(row)?.toLowerCase().replaceAll("_", " ").includes(wanted)) return 3;
  return concepts.runnerUps(row).some(({ word }) => word.toLowerCase().includes(wanted)) ? 4 : undefined;
}

export function listPanel(root: HTMLElement, panel: Panel): () => void {
  const { concepts, state } = panel;
  const search = h("input", {
    type: "search",
    class: "nbs-search",
    placeholder: "Concept or number  /",
    "aria-label": "Search concepts by name or number",
    spellcheck: "false",
    autocomplete: "off",
  });
  const box = h("input", { type: "checkbox" });
  const accepted = [...concepts.accepted].filter((one) => one > 0).length;
  const label = h("label", { class: "nbs-check" }, box, `Also the ${count(concepts.length - accepted)} not accepted`);
  label.hidden = accepted === concepts.length;
  const spoken = liveRegion();
  const empty = h("p", { class: "nbs-none", hidden: true });
  const list = new VirtualList({
    label: "Concepts",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => drawRow(row, concepts, state.get("order")[index] as number),
    choose: (index) => choose(index),
  });
  const choose = (index: number) => {
    const row = state.get("order")[index];
    if (row !== undefined) state.set("latent", concepts.latent[row] as number);
  };
  const place = () => Array.prototype.indexOf.call(state.get("order"), concepts.rowOf(state.get("latent")));
  root.append(
    h("div", { class: "nbs-tools" }, search, h("div", { class: "nbs-filters" }, label)),
    heads(),
    list.element,
    empty,
    spoken.element,
  );
  listen(search, "input", () => state.set("text", search.value));
  listen(search, "keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      if (event.key === "Enter" || place() < 0) choose(0);
      list.element.focus();
    } else if (event.key === "Escape") {
      search.value = "";
      state.set("text", "");
    }
  });
  listen(box, "change", () => state.set("all", box.checked));
  const stops = [
    state.on(["text", "all"], () => {
      const order = found(concepts, state.get("text"), state.get("all"));
      state.set("order", order);
      list.reset(order.length, place());
      list.element.hidden = order.length === 0;
      empty.hidden = order.length > 0;
      empty.textContent = concepts.length
        ? "No concept matches. Names that were not accepted can be shown too."
        : "No latent has a name.";
      spoken.say(`${count(order.length)} of ${count(concepts.length)} named latents`);
    }),
    state.on(["latent"], () => list.choose(place())),
  ];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function heads(): HTMLElement {
  const names = ["Concept", "latent", "cosine", "AUC"].map((name) => h("span", { class: "nbs-note" }, name));
  return h("div", { class: "nbs-head", "aria-hidden": "true" }, ...names);
}

function drawRow(element: HTMLElement, concepts: Concepts, row: number): void {
  const name = visible(concepts.name(row));
  const auc = concepts.auc[row] ?? Number.NaN;
  const accepted = Boolean(concepts.accepted[row] || concepts.label(row));
  const cosine = concepts.cosine[row] ?? 0;
  element.classList.toggle("nbs-doubtful", !accepted);
  const said = `cosine ${sig3(cosine)}${Number.isNaN(auc) ? "" : `, AUC ${sig3(auc)}`}`;
  element.title = `${name}, latent ${concepts.latent[row]}, ${said}${accepted ? "" : ", not accepted"}`;
  element.append(
    h("span", { class: "nbs-col-name" }, bdi(name)),
    h("span", { class: "nbs-col-latent" }, `#${concepts.latent[row]}`),
    h("span", { class: "nbs-col-max" }, sig3(cosine)),
    h("span", { class: "nbs-col-max" }, Number.isNaN(auc) ? "" : sig3(auc)),
  );
}

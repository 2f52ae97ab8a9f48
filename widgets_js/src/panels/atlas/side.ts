/** Beside the map: the picked latent with its strongest examples, and what is shown as a table. */

import { liveRegion } from "../../core/a11y";
import { bdi, h } from "../../core/dom";
import { csv, save } from "../../core/download";
import { errorCard } from "../../core/errors";
import { count, percent, sig3, visible } from "../../core/format";
import { VirtualList } from "../../core/list";
import type { Card } from "./cards";
import { button, choose, type Panel, shown } from "./shared";

const ROW_HEIGHT = 30;
/** A latent that is passed by with the arrow keys is not asked for. */
const QUIET_MS = 120;

export function sidePanel(root: HTMLElement, panel: Panel): () => void {
  const picked = h("div", { class: "nbs-scroll" });
  const table = h("div", { class: "nbs-latents" });
  root.append(picked, table);
  const stops = [pickedPanel(picked, panel), tablePanel(table, panel)];
  return () => {
    for (const stop of stops) stop();
  };
}

function pickedPanel(root: HTMLElement, panel: Panel): () => void {
  const { atlas, state, source } = panel;
  const [head, body] = [h("div"), h("div", { class: "nbs-body" })];
  root.append(head, body);
  let turn = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const fill = () => {
    const latent = state.get("latent");
    const card = source.card(latent);
    title(head, panel, latent, card);
    body.replaceChildren(
      card?.examples ? card.draw(atlas.about) : h("p", { class: "nbs-note" }, why(panel, latent, card)),
    );
  };
  const ask = async (latent: number, mine: number) => {
    try {
      await source.ask(latent);
      if (mine === turn) fill();
    } catch (error) {
      if (mine === turn) body.replaceChildren(errorCard(`Latent ${latent} could not be loaded.`, error));
    }
  };
  const stop = state.on(["latent", "kernel"], () => {
    turn += 1;
    clearTimeout(timer);
    const latent = state.get("latent");
    fill();
    root.scrollTop = 0;
    if (state.get("kernel") === "live" && !source.card(latent))
      timer = setTimeout(() => void ask(latent, turn), QUIET_MS);
  });
  const stopTitle = state.on(["labels", "selected"], () => {
    const latent = state.get("latent");
    title(head, panel, latent, source.card(latent));
  });
  return () => {
    turn += 1;
    clearTimeout(timer);
    stop();
    stopTitle();
  };
}

function title(head: HTMLElement, panel: Panel, latent: number, card: Card | undefined): void {
  const { atlas, state } = panel;
  const at = atlas.at(latent);
  const name = atlas.name(latent);
  const text = h("h3", {}, `Latent ${latent}`);
  if (name) text.append(" ", bdi(visible(name), "nbs-name"));
  const facts = h("p", { class: "nbs-note" });
  const all = count(atlas.about.rows);
  if (card?.dead) facts.textContent = `never active on these ${all} rows`;
  else if (card) {
    const level = at === undefined ? "" : `, level ${atlas.said(atlas.column("level"), at)}`;
    facts.textContent = `active on ${percent(card.density)} (${count(card.active_rows)} of ${all} rows), largest ${sig3(card.max)}, mean ${sig3(card.mean)}${level}`;
  } else if (at !== undefined) facts.textContent = atlas.facts(at).join(", ");
  if (at === undefined) facts.textContent += " This latent has no place on the map.";
  const chosen = state.get("selected").includes(latent);
  const toggle = button(chosen ? "Take out of the choice" : "Choose", () =>
    choose(panel, [latent], chosen ? "take" : "add"),
  );
  head.replaceChildren(text, facts, toggle);
}

function why({ atlas, state }: Panel, latent: number, card: Card | undefined): string {
  if (card) return card.dead ? "" : "No example is stored.";
  const at = atlas.at(latent);
  if (at !== undefined && atlas.codes("density")?.[at] === 0) return "";
  if (state.get("kernel") !== "none") return "";
  return `Its examples are not inside this saved view, which holds those of ${count(atlas.about.cards)} latents; a running kernel shows them.`;
}

function tablePanel(root: HTMLElement, panel: Panel): () => void {
  const { atlas, state } = panel;
  let listed: ArrayLike<number> = [];
  const list = new VirtualList({
    label: "Latents",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => drawRow(row, panel, listed[index] ?? -1),
    choose: (index) => listed[index] !== undefined && state.set("latent", listed[index]),
  });
  const said = liveRegion();
  const found = button("Choose these", () => choose(panel, state.get("found") ?? [], "set"));
  const keep = button("Save as CSV", () => save("latents.csv", table(panel, listed)));
  const head = h("div", { class: "nbs-head", "aria-hidden": "true" });
  root.append(h("div", { class: "nbs-controls" }, found, keep), head, list.element, said.element);
  const at = () => Array.prototype.indexOf.call(listed, state.get("latent"));
  const stops = [
    state.on(["found", "selected", "cut", "colour", "labels"], () => {
      listed = shown(panel) ?? atlas.latents;
      const column = atlas.column(state.get("colour"));
      head.replaceChildren(...["Latent", "Name", column.label].map((text) => h("span", {}, text)));
      list.reset(listed.length, at());
      found.hidden = !state.get("found")?.length;
      said.say(counted(panel, listed.length));
    }),
    state.on(["latent"], () => list.choose(at())),
  ];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function counted({ atlas, state }: Panel, length: number): string {
  const all = `of ${count(atlas.length)} latents`;
  const { names } = atlas.about;
  if (state.get("found")) {
    const part = state.get("kernel") === "none" && names.saved < names.all;
    const inside = part ? `; ${count(names.saved)} of ${count(names.all)} names are inside this saved view` : "";
    return `${state.get("cut") ? "the first " : ""}${count(length)} found ${all}${inside}`;
  }
  return state.get("selected").length ? `${count(length)} chosen ${all}` : `${count(length)} latents`;
}

function drawRow(row: HTMLElement, { atlas, state }: Panel, latent: number): void {
  const point = atlas.at(latent);
  const column = atlas.column(state.get("colour"));
  const value = point === undefined ? "not on the map" : atlas.said(column, point);
  row.append(
    h("span", { class: "nbs-col-latent" }, String(latent)),
    bdi(visible(atlas.name(latent) ?? ""), "nbs-col-name"),
    h("span", { class: "nbs-col-max" }, value.replace("≈ ", "")),
  );
}

function table({ atlas }: Panel, latents: ArrayLike<number>): string {
  const columns = atlas.about.columns.filter(({ key }) => atlas.codes(key));
  const lines = Array.from(latents, (latent) => {
    const at = atlas.at(latent);
    const values = columns.map((column) => (at === undefined ? null : atlas.value(column, at)));
    return [latent, atlas.name(latent) ?? "", ...values];
  });
  return csv(["latent", "name", ...columns.map(({ label }) => label)], lines);
}

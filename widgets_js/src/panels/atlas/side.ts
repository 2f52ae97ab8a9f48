/** Beside the map: the picked latent with its strongest examples, and what is shown as a table. */

import { liveRegion } from "../../core/a11y";
import { bdi, h } from "../../core/dom";
import { csv, save } from "../../core/download";
import { errorCard } from "../../core/errors";
import { count, percent, sig3, visible } from "../../core/format";
import { VirtualList } from "../../core/list";
import { State } from "../../core/state";
import { imagesPanel } from "../images";
import type { Panel as CardPanel, View as CardView } from "../shared";
import { textsPanel } from "../texts";
import { type Asked, choose, type Panel, type Say, shown } from "./shared";

const ROW_HEIGHT = 30;
const WAIT_WORDS_MS = 300;
const BUSY_WORDS_MS = 2_000;
/** A latent that is passed by with the arrow keys is not asked for. */
const QUIET_MS = 120;

export function sidePanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const picked = h("div", { class: "nbs-scroll" });
  const table = h("div", { class: "nbs-latents" });
  root.append(picked, table);
  const stops = [pickedPanel(picked, panel, say), tablePanel(table, panel)];
  return () => {
    for (const stop of stops) stop();
  };
}

function pickedPanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const { state, source } = panel;
  const body = h("div", { class: "nbs-body" });
  const head = h("div");
  root.append(head, body);
  let clear = () => {};
  let turn = 0;
  const timers: ReturnType<typeof setTimeout>[] = [];
  const hush = () => timers.splice(0).forEach(clearTimeout);
  const fill = (asked: Asked | undefined) => {
    clear();
    clear = () => {};
    const latent = state.get("latent");
    title(head, panel, latent, asked);
    if (asked?.card?.examples.length) {
      body.replaceChildren();
      clear = examples(body, panel, asked.card, say);
    } else body.replaceChildren(h("p", { class: "nbs-note" }, why(panel, latent, asked)));
  };
  const words = (text: string, after: number) =>
    setTimeout(() => body.replaceChildren(h("p", { class: "nbs-note", role: "status" }, text)), after);
  const ask = async (latent: number) => {
    const mine = turn;
    timers.push(words("Asking the kernel …", WAIT_WORDS_MS));
    timers.push(words("A cell is running; the kernel will answer after it.", BUSY_WORDS_MS));
    try {
      const asked = await source.ask(latent);
      if (mine !== turn) return;
      hush();
      fill(asked);
    } catch (error) {
      if (mine !== turn) return;
      hush();
      body.replaceChildren(errorCard(`Latent ${latent} could not be loaded.`, error));
    }
  };
  const stop = state.on(["latent", "kernel"], () => {
    turn += 1;
    hush();
    const latent = state.get("latent");
    const asked = source.card(latent);
    fill(asked);
    root.scrollTop = 0;
    if (state.get("kernel") === "live" && !asked?.facts) timers.push(setTimeout(() => void ask(latent), QUIET_MS));
  });
  const stopTitle = state.on(["labels", "selected"], () => {
    const latent = state.get("latent");
    title(head, panel, latent, source.card(latent));
  });
  return () => {
    turn += 1;
    hush();
    stop();
    stopTitle();
    clear();
  };
}

function title(head: HTMLElement, panel: Panel, latent: number, asked: Asked | undefined): void {
  const { atlas, state } = panel;
  const at = atlas.at(latent);
  const name = atlas.name(latent);
  const text = h("h3", {}, `Latent ${latent}`);
  if (name) text.append(" ", bdi(visible(name), "nbs-name"));
  const facts = h("p", { class: "nbs-note" });
  const exact = asked?.facts;
  if (exact?.dead) facts.textContent = `never active on these ${count(atlas.about.rows)} rows`;
  else if (exact) {
    const rows = `${count(exact.active_rows)} of ${count(atlas.about.rows)} rows`;
    const level = at === undefined ? "" : `, level ${atlas.said(atlas.column("level"), at)}`;
    facts.textContent = `active on ${percent(exact.density)} (${rows}), largest ${sig3(exact.max)}, mean ${sig3(exact.mean)}${level}`;
  } else facts.textContent = at === undefined ? "has no place on this map" : atlas.facts(at).join(", ");
  const chosen = state.get("selected").includes(latent);
  const toggle = h("button", { type: "button", class: "nbs-button" }, chosen ? "Take out of the choice" : "Choose");
  toggle.addEventListener("click", () => choose(panel, [latent], chosen ? "take" : "add"));
  head.replaceChildren(text, facts, toggle);
}

function why({ atlas, state }: Panel, latent: number, asked: Asked | undefined): string {
  if (asked?.card || asked?.facts) return "No example is stored.";
  const at = atlas.at(latent);
  if (at !== undefined && atlas.codes("density")?.[at] === 0)
    return `Never active on these ${count(atlas.about.rows)} rows.`;
  if (state.get("kernel") === "none")
    return `Its examples are not inside this saved view, which holds those of ${count(atlas.about.cards)} latents; a running kernel shows them.`;
  return "";
}

/** The panels of the feature dashboard, which ask for no more than this. */
function examples(body: HTMLElement, { atlas }: Panel, card: NonNullable<Asked["card"]>, say: Say): () => void {
  const state = new State({ scale: "card", heat: true, opacity: 0.7, held: false, kernel: "none" } as CardView);
  const own = { about: atlas.about, state } as unknown as CardPanel;
  const draw = atlas.about.modality === "text" ? textsPanel : imagesPanel;
  const stop = draw(body, own, card, card.examples, say);
  if (atlas.about.modality === "image") for (const key of body.querySelectorAll(".nbs-key")) key.remove();
  return stop;
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
  const found = h("button", { type: "button", class: "nbs-button" }, "Choose these");
  found.addEventListener("click", () => choose(panel, state.get("found") ?? [], "set"));
  const button = h("button", { type: "button", class: "nbs-button" }, "Save as CSV");
  button.addEventListener("click", () => save("latents.csv", table(panel, listed)));
  const head = h("div", { class: "nbs-head", "aria-hidden": "true" });
  root.append(h("div", { class: "nbs-controls" }, found, button), head, list.element, said.element);
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

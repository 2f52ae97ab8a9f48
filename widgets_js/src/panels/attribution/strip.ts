/** The tokens of a prompt in lines, or the patches over their picture, coloured by attribution: one Tab stop. */

import { freshId, step } from "../../core/a11y";
import { attr, h, listen } from "../../core/dom";
import { sig3, visible } from "../../core/format";
import { bySource, type Panel, placeOf, signed } from "./shared";
import type { Input } from "./tables";

export function stripPanel(root: HTMLElement, panel: Panel): () => void {
  const { about, state } = panel;
  const line = h("div", {
    class: about.grid ? "nbs-strip nbs-patches" : "nbs-strip nbs-tokens",
    role: "listbox",
    tabindex: "0",
    dir: about.grid ? undefined : "auto",
    "aria-label": `${about.grid ? "Patches" : "Tokens"}; arrow keys choose one`,
  });
  const legend = h("span", { class: "nbs-legend" });
  root.append(line, legend);
  let cells: HTMLElement[] = [];

  const draw = () => {
    const input = state.get("shown");
    cells = input ? make(panel, input) : [];
    if (input && about.grid) line.replaceChildren(...patches(panel, input, cells));
    else line.replaceChildren(...cells);
    shade();
    mark();
  };
  const shade = () => {
    const values = valuesOf(panel);
    // Prefix tokens carry much of what a tower says and would leave every patch pale.
    const largest = Math.max(0, ...values.slice(about.grid ? about.prefix_tokens : 0).map(Math.abs));
    const tokens = state.get("shown")?.tokens ?? [];
    for (const [at, cell] of cells.entries()) {
      const value = values[at] ?? 0;
      cell.style.setProperty("--share", (largest ? Math.min(1, Math.abs(value) / largest) : 0).toFixed(3));
      cell.classList.toggle("nbs-against", value < 0);
      // What shows its name and its value needs no label.
      if (about.grid && at < about.prefix_tokens) cell.textContent = `${prefixName(about, at)} ${signed(value)}`;
      else attr(cell, "aria-label", `${placeOf(about, at, tokens[at]?.text ?? "")}, ${signed(value)}`);
    }
    legend.replaceChildren(
      h("span", {}, sig3(-largest)),
      h("i", { class: "nbs-ramp" }),
      h("span", {}, signed(largest)),
    );
  };
  const mark = () => {
    const chosen = cells[state.get("token")];
    for (const cell of cells) attr(cell, "aria-selected", cell === chosen);
    if (chosen) attr(line, "aria-activedescendant", chosen.id);
    else line.removeAttribute("aria-activedescendant");
  };
  const say = (at: number) => {
    const token = state.get("shown")?.tokens[at];
    if (!token) return;
    const value = valuesOf(panel)[at] ?? 0;
    const error = Number.isNaN(token.error) ? [] : [`reconstruction error ${signed(token.error)}`];
    panel.say([signed(value), placeOf(about, at, token.text), ...(state.get("colour") === "all" ? error : [])]);
  };
  const at = (event: Event) =>
    cells.indexOf((event.target as Element).closest<HTMLElement>(".nbs-cell") as HTMLElement);
  listen(line, "pointerover", (event) => say(at(event)));
  listen(line, "click", (event) => at(event) >= 0 && state.set("token", at(event)));
  listen(line, "focus", () => say(state.get("token")));
  listen(line, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const next = moved(panel, event.key, cells.length);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    state.set("token", next);
    say(next);
  });
  const stops = [state.on(["shown"], draw), state.on(["colour", "latent", "cells"], shade), state.on(["token"], mark)];
  return () => {
    for (const stop of stops) stop();
  };
}

/** What the colours show at every token. */
export function valuesOf({ state }: Panel): number[] {
  const tokens = state.get("shown")?.tokens ?? [];
  const [colour, latent, cells] = [state.get("colour"), state.get("latent"), state.get("cells")];
  if (colour === "all") return tokens.map(({ total }) => total);
  if (colour === "latent") {
    return tokens.map(({ shares }) => shares.find((one) => one.latent === latent)?.attribution ?? 0);
  }
  const sums = cells ? bySource(cells) : [];
  return tokens.map((_, at) => sums[at] ?? 0);
}

/** Where a key leads; over patches Up and Down move by a row, and prefix tokens lie above the first one. */
function moved({ about, state }: Panel, key: string, length: number): number | undefined {
  const token = state.get("token");
  if (!about.grid) return key === "ArrowUp" || key === "ArrowDown" ? undefined : step(key, token, length);
  const [, columns] = about.grid;
  const prefix = about.prefix_tokens;
  if (key === "ArrowDown" && token < prefix) return prefix;
  if (key === "ArrowUp" && token < prefix + columns) return token < prefix || !prefix ? token : prefix - 1;
  return step(key, token, length, columns);
}

function make({ about }: Panel, { tokens }: Input): HTMLElement[] {
  return tokens.map(({ token, text }) => {
    const shown = about.grid ? "" : about.numbered ? `[${token}]` : visible(text) || " ";
    return h("span", { class: "nbs-cell", role: "option", id: freshId("cell") }, shown);
  });
}

function prefixName({ prefix_tokens }: Panel["about"], token: number): string {
  return prefix_tokens === 1 ? "CLS" : `prefix ${token}`;
}

/** Prefix tokens beside the picture, and the grid of patches over it. */
function patches({ about }: Panel, { picture }: Input, cells: HTMLElement[]): HTMLElement[] {
  const [rows, columns] = about.grid as [number, number];
  const grid = h("div", { class: "nbs-grid-cells", role: "presentation" });
  grid.style.gridTemplate = `repeat(${rows},1fr) / repeat(${columns},1fr)`;
  grid.append(...cells.slice(about.prefix_tokens));
  const over = h("div", { class: "nbs-picture", role: "presentation" });
  over.style.aspectRatio = `${columns}/${rows}`;
  if (picture) over.append(h("img", { src: picture, alt: "", draggable: "false" }));
  over.append(grid);
  const plain = h("div", { class: "nbs-picture", role: "presentation" });
  plain.style.aspectRatio = `${columns}/${rows}`;
  if (picture) plain.append(h("img", { src: picture, alt: "", draggable: "false" }));
  const prefix = h("div", { class: "nbs-prefix", role: "presentation" });
  prefix.append(...cells.slice(0, about.prefix_tokens));
  return [...(picture ? [plain] : []), over, ...(about.prefix_tokens ? [prefix] : [])];
}

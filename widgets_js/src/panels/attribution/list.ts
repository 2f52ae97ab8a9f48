/** The latents behind the chosen token, or behind the whole input: chosen with a click, Enter or the arrow keys. */

import { bdi, h } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { VirtualList } from "../../core/list";
import { choices, nameOf, type Panel, placeOf, signed } from "./shared";
import type { Share, Token } from "./tables";

const ROW_HEIGHT = 28;

export function listPanel(root: HTMLElement, panel: Panel): () => void {
  const { about, ranking, state } = panel;
  const title = h("h4");
  const note = h("p", { class: "nbs-note" });
  const head = h("div", { class: "nbs-head", "aria-hidden": "true" });
  for (const text of ["Latent", "Name", "", "Attribution", "Activation"]) head.append(h("span", {}, text));
  let shown: Share[] = [];
  let largest = 1;
  const list = new VirtualList({
    label: "Latents",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => shown[index] && drawRow(row, shown[index], largest),
    choose: (index) => {
      const one = shown[index];
      if (!one) return;
      state.set("latent", one.latent);
      panel.say([signed(one.attribution), nameOf(one), `activation ${sig3(one.activation)}`]);
    },
  });
  const which = choices(
    "Latents of",
    [
      ["token", about.grid ? "This patch" : "This token", "Latents behind the chosen token"],
      ["all", "Whole input", "Latents summed over all tokens"],
    ],
    (key) => state.set("list", key),
  );
  if (!about.by_token || !ranking.length) which.element.hidden = true;
  root.append(h("div", { class: "nbs-line" }, title, which.element), note, head, list.element);
  const position = () => shown.findIndex(({ latent }) => latent === state.get("latent"));
  const draw = () => {
    const every = state.get("list") === "all" || !about.by_token;
    which.mark(every ? "all" : "token");
    const token = state.get("shown")?.tokens[state.get("token")];
    shown = every ? ranking : (token?.shares ?? []);
    largest = Math.max(0, ...shown.map(({ attribution }) => Math.abs(attribution))) || 1;
    title.textContent = every ? `${count(about.latents)} latents of the whole input` : behind(panel, token);
    note.textContent = every ? rest(about.latents - shown.length, Number.NaN) : said(token);
    note.hidden = !note.textContent;
    list.reset(shown.length, position());
  };
  const stops = [state.on(["list", "token", "shown"], draw), state.on(["latent"], () => list.choose(position()))];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function behind({ about }: Panel, token: Token | undefined): string {
  if (!token) return "No token is chosen";
  return `Behind ${placeOf(about, token.token, token.text)}: ${signed(token.total)}`;
}

function said(token: Token | undefined): string {
  if (!token) return "";
  const error = Number.isNaN(token.error) ? "" : `Reconstruction error ${signed(token.error)}. `;
  const none = token.shares.length ? "" : "No latent is active here. ";
  return `${none}${error}${rest(token.rest_count, token.rest)}`;
}

function rest(more: number, sum: number): string {
  if (more <= 0) return "";
  return `${count(more)} weaker ones are not listed${Number.isNaN(sum) ? "" : `, together ${signed(sum)}`}.`;
}

function drawRow(row: HTMLElement, one: Share, largest: number): void {
  const name = one.name ? visible(one.name) : "";
  row.title = `${nameOf(one)}, attribution ${signed(one.attribution)}, activation ${sig3(one.activation)}`;
  const swing = h("i", { class: "nbs-swing" });
  const half = (Math.abs(one.attribution) / largest) * 50;
  const bar = h("i", { class: one.attribution < 0 ? "nbs-against" : "" });
  bar.style.cssText = `left:${one.attribution < 0 ? 50 - half : 50}%;width:${half}%`;
  swing.append(bar);
  row.append(
    h("span", { class: "nbs-col-latent" }, String(one.latent)),
    h("span", { class: "nbs-col-name" }, name ? bdi(name) : "–"),
    swing,
    h("span", { class: "nbs-end" }, signed(one.attribution)),
    h("span", { class: "nbs-end" }, sig3(one.activation)),
  );
}

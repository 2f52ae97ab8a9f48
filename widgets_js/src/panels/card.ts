/** The card of the chosen latent, and every state it can be in: drawn, waiting, empty, not saved, failed. */

import { bdi, h, listen } from "../core/dom";
import { errorCard } from "../core/errors";
import { count, percent, sig3, visible } from "../core/format";
import { examplesPanel } from "./examples";
import { histogramPanel } from "./histogram";
import { notePanel } from "./note";
import { promotedPanel } from "./promoted";
import { readPanel } from "./read";
import type { Panel, Readout } from "./shared";
import type { About, Card } from "./tables";

const WAIT_WORDS_MS = 300;
const BUSY_WORDS_MS = 2_000;

export function cardPanel(root: HTMLElement, panel: Panel): () => void {
  const { state, source, latents } = panel;
  const head = h("header", { class: "nbs-title" });
  const note = h("section", { class: "nbs-section" });
  const own = h("section", { class: "nbs-section" });
  const body = h("div", { class: "nbs-body" });
  const foot = h("div", { class: "nbs-readout", role: "status", "aria-live": "polite" });
  const scroller = h("div", { class: "nbs-scroll" }, head, note, own, body);
  root.append(scroller, foot);
  const readout: Readout = (parts) => {
    const [first = "", ...rest] = parts;
    foot.replaceChildren(rest.length ? h("b", {}, bdi(first)) : first, ...rest.map((part) => bdi(part)));
  };
  let clear = () => {};
  let turn = 0;

  const draw = (card: Card) => {
    clear();
    body.replaceChildren();
    const stops = [histogramPanel(section(body, "Activations"), card, readout)];
    promotedPanel(body, card, readout);
    stops.push(examplesPanel(body, panel, card, readout));
    clear = () => {
      for (const stop of stops) stop();
    };
  };
  const place = (...nodes: Node[]) => {
    clear();
    clear = () => {};
    body.replaceChildren(...nodes);
  };

  const ask = async (latent: number, mine: number, quiet: boolean) => {
    const waiting = quiet ? undefined : skeleton(panel);
    if (waiting) place(waiting.element);
    try {
      const card = await source.ask(latent);
      if (mine === turn) draw(card);
    } catch (error) {
      // A saved card stays: the kernel could only have added to it.
      if (mine !== turn || quiet) return;
      const failed = errorCard(`Latent ${latent} could not be loaded.`, error);
      const again = h("button", { type: "button", class: "nbs-button" }, "Try again");
      listen(again, "click", () => show());
      failed.append(again);
      place(failed);
    } finally {
      waiting?.stop();
    }
  };

  const show = () => {
    turn += 1;
    const latent = state.get("latent");
    drawHead(head, panel, latent);
    readout(["Point at a bar, a picture or a token to read its value."]);
    if (latents.dead[latent]) return place(neverFired(panel, latent));
    const card = source.asked(latent) ?? source.saved(latent);
    if (card) {
      draw(card);
      if (card.partial && state.get("kernel") === "live" && !source.asked(latent)) void ask(latent, turn, true);
    } else if (state.get("kernel") === "none") place(notSaved(panel, latent));
    else void ask(latent, turn, false);
  };

  const stopNote = notePanel(note, panel);
  const stopRead = readPanel(own, panel, readout);
  const stopNotes = state.on(["notes"], () => drawHead(head, panel, state.get("latent")));
  const stopLatent = state.on(["latent"], () => {
    scroller.scrollTop = 0;
    show();
  });
  let kernel = state.get("kernel");
  const stopKernel = state.on(["kernel"], () => {
    const before = kernel;
    kernel = state.get("kernel");
    const latent = state.get("latent");
    const drawn = source.asked(latent) ?? source.saved(latent);
    // A drawn card stays as it is unless the kernel can complete it.
    if (before !== kernel && !latents.dead[latent] && (!drawn || (drawn.partial && kernel === "live"))) show();
  });
  return () => {
    turn += 1;
    stopLatent();
    stopKernel();
    stopNotes();
    stopNote();
    stopRead();
    clear();
  };
}

export function section(root: HTMLElement, title: string): HTMLElement {
  const element = h("section", { class: "nbs-section" }, h("h4", {}, title));
  root.append(element);
  return element;
}

function drawHead(head: HTMLElement, { about, latents }: Panel, latent: number): void {
  const name = latents.name(latent);
  const title = h("h3", {}, `Latent ${latent}`);
  if (name) title.append(" ", bdi(visible(name), "nbs-name"));
  const found = latents.found(latent);
  if (found && found !== name) title.append(" ", h("span", { class: "nbs-badge" }, "automatic: ", bdi(visible(found))));
  const dead = Boolean(latents.dead[latent]);
  if (dead) title.append(" ", h("span", { class: "nbs-badge" }, "dead"));
  const rows = latents.active_rows[latent] ?? 0;
  const facts = h(
    "div",
    { class: "nbs-facts" },
    fact("Density", percent(latents.density[latent] ?? 0), `${count(rows)} of ${count(about.rows)} rows`),
    fact("Largest", dead ? "–" : sig3(latents.max[latent] ?? 0), "activation"),
    fact("Mean", dead ? "–" : sig3(latents.mean[latent] ?? 0), "where active"),
    dead ? fact("Level", "–", "") : levelFact(about, latents.level[latent] ?? 0),
  );
  head.replaceChildren(title, facts);
}

/** What a level is in: a nested width, a budget, or nothing where the dictionary is not nested. */
function levelFact(about: About, level: number): HTMLElement {
  const width = about.widths[level];
  if (width !== undefined) return fact("Level", String(level), `first ${count(width)} latents`);
  const k = about.budgets[level];
  return k === undefined ? fact("Level", "–", "not nested") : fact("Level", String(level), `budget k = ${count(k)}`);
}

/** Plain elements: hosts style definition lists in ways of their own. */
function fact(term: string, value: string, unit: string): HTMLElement {
  return h("div", {}, h("span", {}, term), h("b", {}, value), h("span", {}, unit));
}

function neverFired({ about }: Panel, latent: number): HTMLElement {
  return h(
    "div",
    { class: "nbs-message" },
    h("strong", {}, `Latent ${latent} was never active on these ${count(about.rows)} rows.`),
    h(
      "p",
      {},
      "Choose another latent, or analyse more inputs. Many dead latents mean that the dictionary is larger than these activations need: train on more rows or with a smaller expansion.",
    ),
  );
}

function notSaved({ about, source }: Panel, latent: number): HTMLElement {
  return h(
    "div",
    { class: "nbs-message" },
    h("strong", {}, `The card of latent ${latent} is not inside this saved view.`),
    h(
      "p",
      {},
      `The list holds all ${count(about.d_sae)} latents; the cards of ${count(source.savedCount)} are inside (${about.rule}), marked in the list. No kernel answers here: run the notebook again to see the rest, or name this one with `,
      h("code", {}, `FeatureDashboard(analysis, saved=[${latent}])`),
      ".",
    ),
  );
}

/** A grey card of the final size, which says after a while what it waits for. */
function skeleton({ about }: Panel): { element: HTMLElement; stop(): void } {
  const words = h("p", { class: "nbs-waiting", role: "status" });
  const texts = about.modality === "text";
  const tiles = h("div", { class: texts ? "" : "nbs-pictures" });
  for (let number = 0; number < 12; number += 1) tiles.append(h("div", { class: "nbs-ghost" }));
  const element = h("div", { "aria-busy": "true" });
  const chart = h("div", { class: "nbs-ghost" });
  chart.style.marginBottom = "37px"; // the line that opens its table, and the room before the next part
  section(element, "Activations").append(chart);
  section(element, "Strongest examples").append(words, tiles);
  const soon = setTimeout(() => {
    words.textContent = "Asking the kernel …";
  }, WAIT_WORDS_MS);
  const later = setTimeout(() => {
    words.textContent = "A cell is running; the kernel will answer after it.";
  }, BUSY_WORDS_MS);
  return {
    element,
    stop: () => {
      clearTimeout(soon);
      clearTimeout(later);
    },
  };
}

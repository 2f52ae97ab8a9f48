/** A text of the user's own, read by a running kernel: where the latent is active on it, and which latents are. */

import { roving } from "../core/a11y";
import { bdi, h, listen } from "../core/dom";
import { errorCard, ShownError } from "../core/errors";
import { sig3, visible } from "../core/format";
import type { Panel, Readout } from "./shared";
import type { Card, Example, Reading } from "./tables";
import { textsPanel } from "./texts";

const MAX_CHARS = 100_000;
const WAIT_WORDS_MS = 300;

export function readPanel(root: HTMLElement, panel: Panel, readout: Readout): () => void {
  const { about, latents, source, state } = panel;
  root.hidden = about.modality !== "text" || about.pooled;
  if (root.hidden) return () => {};
  const field = h("textarea", {
    class: "nbs-search nbs-own",
    placeholder: "Type or paste a text",
    "aria-label": "Your own text",
    rows: 2,
    spellcheck: "false",
  });
  const button = h("button", { type: "button", class: "nbs-button" }, "Read");
  const said = h("span", { class: "nbs-cut", role: "status", "aria-live": "polite" });
  const result = h("div");
  const fields = h("div", {}, field, h("div", { class: "nbs-controls" }, button, said));
  const none = h("p", { class: "nbs-note" });
  const editor = h("details", {}, h("summary", {}, "Try your own text"), none, fields, result);
  root.append(editor);
  /** The text of the answer that is shown; another latent reads it again. */
  let shown = "";
  let turn = 0;
  let clear = () => {};

  const place = (...nodes: Node[]) => {
    clear();
    clear = () => {};
    result.replaceChildren(...nodes);
  };
  const ask = async (text: string) => {
    turn += 1;
    const mine = turn;
    const latent = state.get("latent");
    const soon = setTimeout(() => {
      said.textContent = "Asking the kernel …";
    }, WAIT_WORDS_MS);
    try {
      check(text);
      const reading = await source.read(latent, text);
      if (mine !== turn) return;
      shown = text;
      place();
      clear = draw(result, panel, latent, reading, readout);
    } catch (error) {
      if (mine !== turn) return;
      shown = "";
      place(errorCard("The text was not read.", error));
    } finally {
      clearTimeout(soon);
      if (mine === turn) said.textContent = "";
    }
  };
  listen(button, "click", () => void ask(field.value));
  listen(field, "keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    void ask(field.value);
  });
  const stops = [
    state.on(["kernel"], () => {
      const live = state.get("kernel") === "live" && about.reads === true;
      fields.hidden = !live;
      none.hidden = live;
      if (about.reads) none.replaceChildren("This needs a running kernel: run the notebook again to read a text.");
      else none.replaceChildren("Nothing to read with: give ", h("code", {}, "read=ns.reader(lm, dictionary)"), ".");
    }),
    state.on(["latent"], () => {
      if (!shown) return;
      if (state.get("kernel") === "live") void ask(shown);
      else place();
    }),
    // Names in the list of latents follow the labels.
    state.on(["notes"], () => {
      for (const one of result.querySelectorAll<HTMLElement>("[data-latent]")) {
        one.querySelector("bdi")?.replaceChildren(visible(latents.name(Number(one.dataset.latent)) ?? ""));
      }
    }),
  ];
  return () => {
    turn += 1;
    for (const stop of stops) stop();
    clear();
  };
}

/** Open the field and go there. */
export function openOwn(root: HTMLElement): void {
  const editor = root.querySelector<HTMLElement>(".nbs-own")?.closest("details");
  if (!editor) return;
  editor.open = true;
  (editor.querySelector<HTMLElement>(".nbs-own") ?? editor).focus();
}

function check(text: string): void {
  if (!text.trim()) throw new ShownError("The text is empty.", "Type at least one word.");
  if (text.length <= MAX_CHARS) return;
  const said = `The text has ${text.length.toLocaleString("en-US")} characters; at most 100,000 are read.`;
  throw new ShownError(said, "Give a shorter passage.");
}

/** The tokens as an example of the card, then the strongest latents as buttons. */
function draw(root: HTMLElement, panel: Panel, latent: number, reading: Reading, readout: Readout): () => void {
  const act = Math.max(0, ...reading.act);
  const at = act > 0 ? reading.act.indexOf(act as never) : -1;
  const active = [...reading.act.keys()].filter((place) => (reading.act[place] ?? 0) > 0);
  const example: Example = {
    interval: -1,
    rank: 0,
    act,
    token: Math.max(0, at),
    at,
    key: act > 0 ? "your text" : `your text: latent ${latent} is not active on it`,
    thumb: undefined,
    width: 0,
    height: 0,
    map: Float32Array.from(active, (place) => reading.act[place] ?? 0),
    map_at: Uint32Array.from(active),
    context: { start: 0, number: 0, before: false, after: false, tokens: reading.tokens },
    effect: reading.effect,
  };
  const largest = Math.max(act, panel.latents.max[latent] ?? 0);
  const card = { latent, scale: largest, promoted: [] as Card["promoted"] } as Card;
  const stop = textsPanel(root, panel, card, [example], readout);
  const line = h("div", { class: "nbs-controls" }, h("span", { class: "nbs-cut" }, "Strongest latents:"));
  for (const one of reading.strongest) {
    const name = panel.latents.name(one.latent);
    const choose = h("button", { type: "button", class: "nbs-button", "data-latent": one.latent });
    choose.append(`${one.latent} `, bdi(visible(name ?? "")), ` ${sig3(one.act)}`);
    choose.title = `on “${visible(reading.tokens[one.token] ?? "")}”, token ${one.token}`;
    listen(choose, "click", () => panel.state.set("latent", one.latent));
    line.append(choose);
  }
  line.style.gap = "4px 6px";
  root.append(line);
  const stopKeys = roving(line, "button");
  return () => {
    stop();
    stopKeys();
  };
}

/** Cards of the atlas: exact numbers and the strongest examples of a latent, as small pictures or passages. */

import { paint } from "../../core/colour";
import { bdi, h } from "../../core/dom";
import { sig3, visible } from "../../core/format";
import { type Table, Thumbs, unpack } from "../../core/wire";
import type { About } from "./tables";

export interface Card {
  density: number;
  active_rows: number;
  mean: number;
  max: number;
  dead: boolean;
  /** The examples, drawn. */
  draw(about: About): HTMLElement;
  examples: number;
}

/** The cards of one message or of the saved view. */
export class Cards {
  readonly #thumbs: Thumbs;
  readonly #facts: Table | undefined;
  readonly #examples: Table | undefined;

  /** Without anything: no card. */
  constructor(header?: unknown, bytes?: unknown, thumbsHeader?: unknown, thumbs?: unknown) {
    const { facts, examples }: Record<string, Table> = header === undefined ? {} : unpack(header, bytes);
    [this.#facts, this.#examples] = [facts, examples];
    this.#thumbs = new Thumbs(thumbsHeader, thumbs);
  }

  card(latent: number): Card | undefined {
    const [facts, examples] = [this.#facts, this.#examples];
    const row = facts?.numbers("latent").indexOf(latent) ?? -1;
    if (!facts || !examples || row < 0) return undefined;
    const fact = (name: string) => facts.numbers(name)[row] ?? Number.NaN;
    const lines = Array.from(examples.numbers("latent").keys()).filter(
      (line) => examples.numbers("latent")[line] === latent,
    );
    const draw = examples.has("tokens") ? passage : tile;
    return {
      density: fact("density"),
      active_rows: fact("active_rows"),
      mean: fact("mean"),
      max: fact("max"),
      dead: fact("dead") > 0,
      examples: lines.length,
      draw: (about) =>
        h(
          "div",
          { class: draw === tile ? "nbs-pictures" : "nbs-texts" },
          ...lines.map((line) => draw(examples, line, fact("scale"), about, this.#thumbs)),
        ),
    };
  }

  dispose(): void {
    this.#thumbs.dispose();
  }
}

function tile(table: Table, line: number, _: number, { grid }: About, thumbs: Thumbs): HTMLElement {
  const act = sig3(table.numbers("act")[line] ?? 0);
  const key = visible(String(table.json("key")[line]));
  const url = thumbs.url(table.numbers("thumb")[line] ?? -1);
  const picture = h("div", { class: "nbs-picture" });
  picture.append(url ? h("img", { src: url, alt: "", decoding: "async" }) : h("span", {}, "no picture"));
  const map = table.list("map", line);
  if (grid && map.length === grid[0] * grid[1]) {
    const heat = h("canvas", { class: "nbs-heat" });
    paint(heat, map, grid[0], grid[1]);
    picture.append(heat);
  }
  const said = `${key}, activation ${act}`;
  return h(
    "div",
    { class: "nbs-tile", role: "img", "aria-label": said, title: said },
    picture,
    h("div", { class: "nbs-caption" }, h("b", {}, act)),
  );
}

/** The activation of a token is said by its colour and its title, the strongest one is underlined, too. */
function passage(table: Table, line: number, scale: number): HTMLElement {
  const tokens = table.json("tokens")[line] as string[];
  const [map, at] = [table.list("map", line), table.list("map_at", line)];
  const values = new Map(Array.from(at, (place, number) => [place, map[number] ?? 0]));
  const more = (name: string) => (table.numbers(name)[line] ? "… " : "");
  const text = h("div", { class: "nbs-tokens", dir: "auto" }, more("before"));
  for (const [place, token] of tokens.entries()) {
    const value = values.get(place) ?? 0;
    const shown = h(
      "span",
      { class: "nbs-token", title: value > 0 && sig3(value), "data-value": value > 0 },
      visible(token),
    );
    shown.style.setProperty("--share", String(value / scale));
    if (place === table.numbers("at")[line]) shown.classList.add("nbs-strongest");
    text.append(shown);
  }
  text.append(tokens.length ? more("after") : "The text is not stored with the analysis.");
  const head = h("div", { class: "nbs-caption" }, h("b", {}, sig3(table.numbers("act")[line] ?? 0)));
  head.append(bdi(visible(String(table.json("key")[line])), "nbs-key"));
  return h("div", { class: "nbs-passage" }, head, text);
}

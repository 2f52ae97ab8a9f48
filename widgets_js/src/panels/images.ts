/** Examples that are pictures, with the patches on which the latent is active painted over them. */

import { roving } from "../core/a11y";
import { paint } from "../core/colour";
import { bdi, h, listen } from "../core/dom";
import { sig3, visible } from "../core/format";
import type { Panel, Readout } from "./shared";
import type { Card, Example } from "./tables";

/** A grid of pictures. `examples` belong to one card, whose scale all heat maps share. */
export function imagesPanel(
  root: HTMLElement,
  panel: Panel,
  card: Card,
  examples: Example[],
  readout: Readout,
): () => void {
  const grid = h("div", { class: "nbs-pictures", role: "group", "aria-label": "Pictures; arrow keys move among them" });
  const repaints: (() => void)[] = [];
  for (const example of examples) grid.append(tile(panel, card, example, readout, repaints));
  root.append(grid);
  const stops = [roving(grid, ".nbs-tile", () => columnsOf(grid)), panel.state.on(["scale"], () => runAll(repaints))];
  return () => runAll(stops);
}

function runAll(all: (() => void)[]): void {
  for (const one of all) one();
}

/** How many tiles stand in the first line, for Up and Down. */
function columnsOf(grid: HTMLElement): number {
  const tiles = [...grid.children] as HTMLElement[];
  const first = tiles[0]?.offsetTop;
  return Math.max(1, tiles.filter((one) => one.offsetTop === first).length);
}

/** Where the peak lies, in words: rows and columns count from 1. */
export function place(panel: Panel, example: Example): string {
  const { grid, pooled, prefix_tokens } = panel.about;
  if (pooled) return "whole image";
  if (example.token < prefix_tokens) return prefix_tokens === 1 ? "CLS token" : `prefix token ${example.token + 1}`;
  if (example.at < 0 || !grid) return `token ${example.token}`;
  return `row ${Math.floor(example.at / grid[1]) + 1}, column ${(example.at % grid[1]) + 1}`;
}

function tile(panel: Panel, card: Card, example: Example, readout: Readout, repaints: (() => void)[]): HTMLElement {
  const key = visible(example.key);
  const act = sig3(example.act);
  const where = place(panel, example);
  const picture = h("div", { class: "nbs-picture" });
  if (example.width && example.height) picture.style.aspectRatio = `${example.width}/${example.height}`;
  if (example.thumb) {
    // Decorative here: the tile's own label says what it is.
    picture.append(h("img", { src: example.thumb, alt: "", decoding: "async", draggable: "false" }));
  } else picture.append(h("span", { class: "nbs-nopicture" }, "no picture"));
  const grid = panel.about.grid;
  if (grid && example.map.length === grid[0] * grid[1]) {
    picture.append(heat(panel, example, grid, repaints));
    if (example.at >= 0) picture.append(peak(example.at, grid));
  }
  const figure = h(
    "div",
    { class: "nbs-tile", role: "img", "aria-label": `${key}, activation ${act}, peak at ${where}`, title: key },
    picture,
    h("div", { class: "nbs-caption" }, h("b", {}, act), bdi(key, "nbs-key")),
  );
  const about = () => readout([`activation ${act}`, where, key]);
  listen(figure, "focus", about);
  listen(figure, "pointerenter", about);
  if (grid) {
    listen(picture, "pointermove", (event) => {
      const said = under(event, picture, panel, card, example, grid);
      if (said) readout([...said, key]);
    });
  }
  return figure;
}

/** The patch under the pointer and its activation, as exact as the map (1/255 of the scale). */
function under(
  event: PointerEvent,
  picture: HTMLElement,
  panel: Panel,
  card: Card,
  example: Example,
  grid: [number, number],
): string[] | undefined {
  const box = picture.getBoundingClientRect();
  const row = Math.floor(((event.clientY - box.top) / box.height) * grid[0]);
  const column = Math.floor(((event.clientX - box.left) / box.width) * grid[1]);
  const at = row * grid[1] + column;
  const byte = example.map[at];
  if (byte === undefined || row < 0 || column < 0 || column >= grid[1]) return undefined;
  const value = at === example.at ? sig3(example.act) : byte ? `≈ ${sig3((byte / 255) * card.scale)}` : "0";
  return [`activation ${value}`, place(panel, { ...example, at, token: at + panel.about.prefix_tokens })];
}

function heat(panel: Panel, example: Example, grid: [number, number], repaints: (() => void)[]): HTMLCanvasElement {
  const canvas = h("canvas", { class: "nbs-heat", role: "img", "aria-label": "heat map of the patches" });
  canvas.style.cssText = "image-rendering:pixelated;opacity:var(--heat);transition:opacity .12s";
  repaints.push(() => {
    const largest = Math.max(1, ...example.map);
    const stretch = panel.state.get("scale") === "example" ? 255 / largest : 1;
    paint(
      canvas,
      Array.from(example.map, (value) => Math.round(value * stretch)),
      grid[0],
      grid[1],
    );
  });
  return canvas;
}

/** A thin frame around the patch of the peak: colour alone should not carry it. */
function peak(at: number, [rows, columns]: [number, number]): HTMLElement {
  const frame = h("i", { class: "nbs-peak" });
  frame.style.cssText =
    "position:absolute;opacity:min(1,var(--heat) * 9);border:1.5px solid #fff;box-shadow:0 0 0 1px #000a";
  frame.style.left = `${((at % columns) / columns) * 100}%`;
  frame.style.top = `${(Math.floor(at / columns) / rows) * 100}%`;
  frame.style.width = `${100 / columns}%`;
  frame.style.height = `${100 / rows}%`;
  return frame;
}

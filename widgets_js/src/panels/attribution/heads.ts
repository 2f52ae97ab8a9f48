/** One pre-activation by head and source position: a heat map with a cursor, sums of heads, and a table twin. */

import { h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { count, percent, sig3 } from "../../core/format";
import { nameOf, type Panel, placeOf, signed, twin } from "./shared";
import type { Cells, Pair } from "./tables";

/** Blue for, orange against, on any ground: the share is their opacity. */
const FOR = [47, 111, 208];
const AGAINST = [224, 138, 0];
const MOST_LINES = 200;
const ROW = 22;
const ALL_ROWS = 16;

export function headsPanel(root: HTMLElement, panel: Panel, ask: (pair: Pair) => Promise<Cells>): () => void {
  const { state, pairs } = panel;
  const select = h("select", { "aria-label": "Latent and target" });
  for (const [place, pair] of pairs.entries()) {
    select.append(h("option", { value: place }, `${nameOf(pair)} at token ${pair.target}`));
  }
  const other = h("p", { class: "nbs-note" });
  const body = h("div");
  root.append(h("div", { class: "nbs-line" }, h("h4", {}, "Heads by sources"), select), other, body);
  let turn = 0;
  listen(select, "change", () => {
    const pair = pairs[Number(select.value)];
    state.set("pair", Number(select.value));
    if (pair) state.set("latent", pair.latent);
  });
  const load = async () => {
    turn += 1;
    const mine = turn;
    const pair = pairs[state.get("pair")] as Pair;
    select.value = String(state.get("pair"));
    try {
      const cells = await ask(pair);
      if (mine !== turn) return;
      body.replaceChildren(...drawn(panel, pair, cells));
      state.set("cells", cells);
    } catch (error) {
      if (mine !== turn) return;
      state.set("cells", undefined);
      body.replaceChildren(errorCard("Heads and sources could not be loaded.", error));
    }
  };
  const stops = [
    state.on(["latent"], () => {
      const latent = state.get("latent");
      // Another target of the same latent stays, and so does what is shown where the latent has nothing to show.
      if (pairs[state.get("pair")]?.latent !== latent) {
        const found = pairs.findIndex((one) => one.latent === latent);
        if (found >= 0) state.set("pair", found);
      }
      const shown = pairs[state.get("pair")] as Pair;
      other.hidden = shown.latent === latent;
      other.textContent = `Latent ${latent} is not taken apart by head and source; shown is ${nameOf(shown)}.`;
    }),
    state.on(["pair", "kernel"], () => void load()),
  ];
  return () => {
    turn += 1;
    for (const stop of stops) stop();
  };
}

function drawn(panel: Panel, pair: Pair, cells: Cells): HTMLElement[] {
  const { heads, sources, contribution } = cells;
  const largest = Math.max(0, ...contribution.map(Math.abs));
  const sums = Array.from({ length: heads }, (_, head) => {
    let sum = 0;
    for (let source = 0; source < sources; source += 1) sum += contribution[head * sources + source] ?? 0;
    return sum;
  });
  const height = Math.max(90, Math.min(heads, ALL_ROWS) * ROW);
  const map = h("div", {
    class: "nbs-heads",
    role: "img",
    tabindex: "0",
    "aria-label": `Heat map of ${heads} heads by ${count(sources)} sources for ${nameOf(pair)} at token ${pair.target}, sum ${signed(pair.sum)}; arrow keys read single cells`,
  });
  map.style.height = `${height}px`;
  const canvas = h("canvas");
  paint(canvas, cells, largest);
  const cursor = h("i", { class: "nbs-cursor", hidden: true });
  map.append(canvas, cursor);
  let at = 0;
  const say = (cell: number) => {
    at = cell;
    const [head, source] = [Math.floor(cell / sources), cell % sources];
    cursor.hidden = false;
    cursor.style.cssText = `left:${(source / sources) * 100}%;top:${(head / heads) * 100}%;width:${100 / sources}%;height:${100 / heads}%`;
    const text = panel.state.get("shown")?.tokens[source]?.text ?? "";
    const attention = `attention ${percent(cells.attention[cell] ?? 0)}`;
    panel.say([
      signed(contribution[cell] ?? 0),
      `head ${head}`,
      `from ${placeOf(panel.about, source, text)}`,
      attention,
    ]);
  };
  const under = (event: MouseEvent) => {
    const box = map.getBoundingClientRect();
    const source = Math.floor(((event.clientX - box.left) / box.width) * sources);
    const head = Math.floor(((event.clientY - box.top) / box.height) * heads);
    return source >= 0 && source < sources && head >= 0 && head < heads ? head * sources + source : undefined;
  };
  listen(map, "pointermove", (event) => {
    const cell = under(event);
    if (cell !== undefined) say(cell);
  });
  listen(map, "click", (event) => {
    const cell = under(event);
    if (cell !== undefined) panel.state.set("token", cell % sources);
  });
  listen(map, "focus", () => say(at || loudest(cells)));
  listen(map, "blur", () => {
    cursor.hidden = true;
  });
  listen(map, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [head, source] = [Math.floor(at / sources), at % sources];
    const moves: Record<string, [number, number]> = {
      ArrowRight: [head, source + 1],
      ArrowLeft: [head, source - 1],
      ArrowDown: [head + 1, source],
      ArrowUp: [head - 1, source],
      Home: [head, 0],
      End: [head, sources - 1],
    };
    const next = moves[event.key];
    if (event.key === "Enter") panel.state.set("token", source);
    else if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    if (next && next[0] >= 0 && next[0] < heads && next[1] >= 0 && next[1] < sources) say(next[0] * sources + next[1]);
  });
  const labels = h("div", { class: "nbs-rows" });
  const few = heads <= ALL_ROWS;
  const every = few ? 1 : Math.ceil(heads / ALL_ROWS);
  for (let head = 0; head < heads; head += every) {
    labels.append(h("span", {}, few ? `${head}: ${signed(sums[head] ?? 0)}` : `head ${head}`));
  }
  labels.style.height = `${height}px`;
  const whole = Number.isNaN(pair.pre) ? "" : ` with bias ${signed(pair.bias)}: pre-activation ${signed(pair.pre)}`;
  const foot = `Sum ${signed(pair.sum)}${whole}. Rows: heads with their sums. Columns: sources 0 to ${count(sources - 1)}. Colours run to ±${sig3(largest)}.`;
  return [
    h("div", { class: "nbs-heads-line" }, labels, map),
    h("p", { class: "nbs-note" }, foot),
    twin("Heads and sources as a table", ["head", "source", "contribution", "attention"], () => lines(panel, cells)),
  ];
}

/** The strongest cells, as text. */
function lines(panel: Panel, { sources, contribution, attention }: Cells): string[][] {
  const order = [...contribution.keys()].sort(
    (a, b) => Math.abs(contribution[b] ?? 0) - Math.abs(contribution[a] ?? 0) || a - b,
  );
  return order.slice(0, MOST_LINES).map((cell) => {
    const source = cell % sources;
    const where = placeOf(panel.about, source, panel.state.get("shown")?.tokens[source]?.text ?? "");
    return [`${Math.floor(cell / sources)}`, where, signed(contribution[cell] ?? 0), percent(attention[cell] ?? 0)];
  });
}

function loudest({ contribution }: Cells): number {
  let best = 0;
  for (const [cell, value] of contribution.entries()) {
    if (Math.abs(value) > Math.abs(contribution[best] ?? 0)) best = cell;
  }
  return best;
}

function paint(canvas: HTMLCanvasElement, { heads, sources, contribution }: Cells, largest: number): void {
  canvas.width = sources;
  canvas.height = heads;
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(sources, heads);
  for (const [cell, value] of contribution.entries()) {
    image.data.set([...(value < 0 ? AGAINST : FOR), largest ? (Math.abs(value) / largest) * 255 : 0], cell * 4);
  }
  context.putImageData(image, 0, 0);
}

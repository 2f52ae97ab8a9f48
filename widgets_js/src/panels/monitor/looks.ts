/** The last look at a few rows: what they are decoded to at each budget, and the rows that latents are strongest on. */

import { bdi, h } from "../../core/dom";
import { count, percent, sig3, visible } from "../../core/format";
import { none } from "../bias/shared";
import type { Panel } from "./shared";
import type { Forming, Looks, Sample } from "./tables";

// Blue below the mean, orange above it, nothing at it: the paper shows through.
const [BELOW, ABOVE] = [
  [43, 109, 214],
  [230, 126, 0],
] as const;

/** Pixels of a line of text, beside which stands what it is about. */
const LINE = 16;

/** Rows and their reconstructions at each budget. */
export function samplePanel(root: HTMLElement, { state }: Panel): () => void {
  return state.on(["looks", "chosen"], () => {
    const [looks, run] = [state.get("looks"), state.get("chosen")];
    if (!looks?.has(run)) return root.replaceChildren(nothing());
    const { ks, fvu, step, probe } = looks.levels(run);
    const said = ks.map((k, at) => `${levelOf(k)}: ${sig3(fvu[at] ?? Number.NaN)}`).join(", ");
    root.replaceChildren(
      h(
        "p",
        { class: "nbs-note" },
        `Step ${count(step)}, the same ${count(probe)} rows at every look: FVU ${said}. Of ${looks.samples(run).length} of them the ${looks.samples(run)[0]?.x.length ?? 0} dimensions that vary most: the row, then what it is decoded to. Blue is below the mean, orange above.`,
      ),
      h("div", { class: "nbs-samples" }, ...looks.samples(run).map((one) => sample(looks, one, ks))),
    );
  });
}

function sample(looks: Looks, one: Sample, ks: number[]): HTMLElement {
  const width = one.x.length;
  const rows = [one.x, ...ks.map((_, at) => Array.from(one.xHat).slice(at * width, (at + 1) * width))];
  const canvas = h("canvas", { "aria-hidden": "true", class: "nbs-strips" });
  paint(canvas, rows);
  canvas.style.height = `${LINE * rows.length}px`;
  const lines = ks.map((k, at) => {
    const share = one.explained[at] ?? Number.NaN;
    const bar = h("span", { class: "nbs-bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(Math.min(1, Math.max(0, share))));
    return h("div", { class: "nbs-level" }, h("span", {}, levelOf(k)), bar, h("span", {}, percent(share)));
  });
  return h(
    "article",
    { class: "nbs-sample" },
    tile(looks, one.input),
    h("div", { class: "nbs-decoded" }, h("div", { class: "nbs-level" }, h("span", {}, "row")), ...lines, canvas),
  );
}

/** One line of pixels per row; its colours share a scale. */
function paint(canvas: HTMLCanvasElement, rows: ArrayLike<number>[]): void {
  const width = rows[0]?.length ?? 0;
  if (!width) return;
  canvas.width = width;
  canvas.height = rows.length;
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(width, rows.length);
  const most = Math.max(1e-9, ...rows.flatMap((row) => Array.from(row, Math.abs)).filter(Number.isFinite));
  for (const [line, row] of rows.entries()) {
    for (let at = 0; at < width; at += 1) {
      const value = row[at] ?? 0;
      image.data.set([...(value < 0 ? BELOW : ABOVE), (255 * Math.abs(value)) / most], (line * width + at) * 4);
    }
  }
  context.putImageData(image, 0, 0);
}

/** Latents, and the rows that they are strongest on now. */
export function formingPanel(root: HTMLElement, { state }: Panel): () => void {
  return state.on(["looks", "chosen"], () => {
    const [looks, run] = [state.get("looks"), state.get("chosen")];
    if (!looks?.has(run)) return root.replaceChildren(nothing());
    const { step, probe } = looks.levels(run);
    const forming = looks.forming(run);
    root.replaceChildren(
      h(
        "p",
        { class: "nbs-note" },
        `Step ${count(step)}. The strongest of the same ${count(probe)} rows at every look; as a feature forms, they stay and become alike.`,
      ),
      h("div", { class: "nbs-samples" }, ...forming.map((one) => feature(looks, one, probe))),
    );
    if (!forming.length)
      root.append(none("No latent is active on at least two and at most a quarter of these rows yet."));
  });
}

function feature(looks: Looks, one: Forming, probe: number): HTMLElement {
  const of = one.inputs.length;
  const stayed = Number.isNaN(one.kept)
    ? ""
    : ` · ${one.kept} of ${of} strongest as at the last look (by chance ${sig3(one.chance)})`;
  const tiles = one.inputs.map((input, at) => tile(looks, input, sig3(one.acts[at] ?? 0)));
  return h(
    "section",
    {},
    h("h4", {}, `Latent ${one.latent}`),
    h("p", { class: "nbs-note" }, `active on ${count(one.active)} of ${count(probe)} rows${stayed}`),
    of ? h("div", { class: "nbs-pictures" }, ...tiles) : none("Silent on these rows now."),
  );
}

/** A picture, the beginning of a text, or a key; with which token it is, where there are several. */
function tile(looks: Looks, number: number, said = ""): HTMLElement {
  const { key, text, token, url } = looks.input(number);
  const name = `${visible(key)}${token ? `, token ${count(token)}` : ""}`;
  const inside = url
    ? h("img", { src: url, alt: name, loading: "lazy" })
    : h("p", { class: "nbs-passage" }, bdi(visible(text || key)));
  return h(
    "figure",
    { class: "nbs-tile", title: name },
    h("div", { class: "nbs-picture" }, inside),
    h("figcaption", { class: "nbs-caption" }, said ? h("b", {}, said) : null, bdi(name, "nbs-key")),
  );
}

function levelOf(k: number): string {
  return k ? `k = ${count(k)}` : "own rule";
}

function nothing(): HTMLElement {
  return none("No look at rows yet. It comes with the first lines of the log, where the rows can be read by number.");
}

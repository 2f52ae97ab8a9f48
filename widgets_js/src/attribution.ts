/** The attribution strip: connects the widget's model to the panels, which know only tables and state. */

import { bdi, h } from "./core/dom";
import { errorCard, ShownError } from "./core/errors";
import { count, sig3, visible } from "./core/format";
import { attempt, dashboard, onTrait } from "./core/host";
import { keySheet } from "./core/keys";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { faithfulnessPanel } from "./panels/attribution/faithfulness";
import { headsPanel } from "./panels/attribution/heads";
import { listPanel } from "./panels/attribution/list";
import { type Colour, choices, nameOf, type Panel, signed, type View } from "./panels/attribution/shared";
import { stripPanel } from "./panels/attribution/strip";
import {
  type About,
  type Cells,
  cellsOf,
  curvesOf,
  type Input,
  inputsOf,
  type Pair,
  pairsOf,
  sharesOf,
  Thumbs,
  unpack,
} from "./panels/attribution/tables";

const LINKED = ["latent", "token", "input"] as const;
const START = "Point at a token or a cell to read its value.";

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const tables = unpack(model.get("tables_header"), model.get("tables"));
  const rpc = new Rpc(model, life);
  const foot = h("div", { class: "nbs-readout", role: "status", "aria-live": "polite" }, START);
  const pairs = pairsOf(tables.pairs);
  const state = new State<View>(
    {
      latent: model.get("latent") as number,
      token: model.get("token") as number,
      input: model.get("input") as number,
      colour: about.by_token ? "all" : "source",
      list: "token",
      pair: 0,
      kernel: rpc.kernel,
      shown: undefined,
      cells: undefined,
    },
    life.fail,
  );
  const panel: Panel = {
    about,
    pairs,
    ranking: sharesOf(tables.ranking),
    state,
    say: ([first = "", ...rest]) => foot.replaceChildren(h("b", {}, bdi(first)), ...rest.map((part) => bdi(part))),
  };
  const source = sourceOf(model, rpc, life, about, tables);
  const root = h("div", {
    class: "nbs-dash nbs-attribution",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Attribution strip",
  });
  const bar = h("div", { class: "nbs-top" }, bdi(visible(about.title), "nbs-what"));
  const where = [about.site, about.model].filter(Boolean).map(visible).join(" of ");
  bar.append(h("span", { class: "nbs-site" }, bdi(where)), kernelStatus(rpc, life, savedText(about)));
  const scroll = h("div", { class: "nbs-scroll" });
  const shell = h("div", { class: "nbs-shell" }, bar, scroll, foot);
  root.append(shell);
  el.append(root);

  const sections = () => h("section", { class: "nbs-section" });
  const [strip, list, heads, curve] = [sections(), sections(), sections(), sections()];
  const failed = h("div");
  const { own, random } = curvesOf(tables.faithfulness);
  const hasList = about.by_token || panel.ranking.length > 0;
  const right = h("div", {}, pairs.length ? heads : null, own.length ? curve : null);
  const parts = h("div", { class: "nbs-parts" }, hasList ? list : null, right.childElementCount ? right : null);
  scroll.append(...factsOf(about), strip, parts);

  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  const colours = colourChoice(panel);
  strip.append(h("div", { class: "nbs-line" }, inputChoice(panel), colours.element), failed);
  life.add(state.on(["colour"], () => colours.mark(state.get("colour"))));
  life.add(stripPanel(strip, panel));
  if (hasList) life.add(listPanel(list, panel));
  if (pairs.length) life.add(headsPanel(heads, panel, source.cells));
  if (own.length) life.add(faithfulnessPanel(curve, panel, own, random));
  life.add(keys(shell, panel));
  let turn = 0;
  life.add(
    state.on(["input"], () => {
      turn += 1;
      const mine = turn;
      failed.replaceChildren();
      source.input(state.get("input")).then(
        (input) => mine === turn && state.set("shown", input),
        (error) =>
          mine === turn && failed.replaceChildren(errorCard(`Input ${state.get("input")} is not here.`, error)),
      );
    }),
  );
  for (const name of LINKED) {
    life.add(
      state.on([name], () => {
        if (model.get(name) === state.get(name)) return;
        model.set(name, state.get(name));
        model.save_changes();
      }),
    );
    life.add(onTrait(model, name, (value) => state.set(name, value as number)));
  }
});

function factsOf(about: About): HTMLElement[] {
  const facts: [string, number | null, string][] = [
    ["Metric", about.value, about.method],
    ["Reconstruction error", about.error, "its share"],
    ["Bias", about.bias, "its share"],
    ["Without latents", about.none, "the metric"],
  ];
  const known = facts.filter((one): one is [string, number, string] => one[1] !== null);
  const line = h("div", { class: "nbs-facts" });
  for (const [name, value, unit] of known) {
    line.append(h("div", {}, h("span", {}, name), h("b", {}, sig3(value)), h("span", {}, visible(unit))));
  }
  const note = about.note ? [h("p", { class: "nbs-note" }, bdi(visible(about.note)))] : [];
  return known.length ? [line, ...note] : note;
}

function savedText({ saved, inputs, per_token }: About): string {
  return `No kernel answers: ${count(saved.length)} of ${count(inputs.length)} inputs are inside, with up to ${per_token} latents behind each token`;
}

/** Nothing where there is one input. */
function inputChoice({ about, state }: Panel): HTMLElement {
  const title = about.grid ? "Patches" : "Tokens";
  if (about.inputs.length < 2) return h("h4", {}, title);
  const select = h("select", { "aria-label": "Input" });
  for (const one of about.inputs) select.append(h("option", { value: one }, `input ${one}`));
  select.addEventListener("change", () => state.set("input", Number(select.value)));
  state.on(["input"], () => {
    select.value = String(state.get("input"));
  });
  return h("h4", {}, `${title} of `, select);
}

function colourChoice({ about, pairs, state }: Panel) {
  const options: [Colour, string, string][] = [];
  if (about.by_token) {
    options.push(["all", "All latents", "Sum over the latents of each token"]);
    options.push(["latent", "This latent", "The chosen latent alone"]);
  }
  if (pairs.length) options.push(["source", "By source", "What attention brings from each source, over all heads"]);
  const found = choices<Colour>("Colours show", options, (key) => state.set("colour", key));
  found.element.hidden = options.length < 2;
  return found;
}

function keys(root: HTMLElement, panel: Panel): () => void {
  const { about, pairs, state } = panel;
  const move = (by: 1 | -1) => {
    const tokens = state.get("shown")?.tokens.length ?? 0;
    state.set("token", Math.min(tokens - 1, Math.max(0, state.get("token") + by)));
  };
  const colours: Colour[] = [
    ...(about.by_token ? (["all", "latent"] as Colour[]) : []),
    ...(pairs.length ? (["source"] as Colour[]) : []),
  ];
  const colour = () =>
    state.set("colour", colours[(colours.indexOf(state.get("colour")) + 1) % colours.length] ?? "all");
  return keySheet(root, [
    {
      key: "/",
      text: "go to the latents",
      actions: { "/": () => root.querySelector<HTMLElement>(".nbs-list")?.focus() },
    },
    { key: "[  ]", text: "previous, next token", actions: { "[": () => move(-1), "]": () => move(1) } },
    { key: "c", text: "colours: all latents, this latent, by source", actions: { c: colour } },
    {
      key: "t",
      text: "latents of the token, of the whole input",
      actions: { t: () => state.set("list", state.get("list") === "token" ? "all" : "token") },
    },
    { key: "← → ↑ ↓", text: "move among tokens, latents or cells" },
    { key: "Enter", text: "on a cell: choose its source" },
  ]);
}

/** Inputs and heat maps: saved ones from the traits, the others from the kernel. */
function sourceOf(model: AnyModel, rpc: Rpc, life: Life, about: About, tables: ReturnType<typeof unpack>) {
  const own = new Thumbs(model.get("thumbs_header"), model.get("thumbs"));
  const inputs = inputsOf(tables, about.saved, own);
  const header = model.get("direct_header") as { tables?: object };
  const read = () => cellsOf(header.tables ? unpack(header, model.get("direct")).cells : undefined);
  const cells = attempt(life, read, []);
  const thumbs = [own];
  life.add(() => {
    for (const one of thumbs) one.dispose();
  });
  const alone = (what: string) =>
    new ShownError(
      `${what} is not inside this saved view, and no kernel answers.`,
      "Run the notebook again to see it.",
    );
  return {
    input: async (input_id: number): Promise<Input> => {
      const known = inputs.get(input_id);
      if (known) return known;
      if (rpc.kernel === "none") throw alone(`Input ${input_id}`);
      const { content, buffers } = await rpc.request("input", { input_id });
      const pictures = new Thumbs(content.thumbs_header, buffers[1]);
      thumbs.push(pictures);
      const found = inputsOf(unpack(content.header, buffers[0]), [input_id], pictures).get(input_id);
      if (!found) throw new Error(`The kernel's answer holds no input ${input_id}.`);
      inputs.set(input_id, found);
      return found;
    },
    cells: async (pair: Pair): Promise<Cells> => {
      const same = (one: Cells) => one.latent === pair.latent && one.target === pair.target;
      const known = cells.find(same);
      if (known) return known;
      if (rpc.kernel === "none") throw alone(nameOf(pair));
      const { content, buffers } = await rpc.request("direct", { latent: pair.latent, target: pair.target });
      const [found] = cellsOf(unpack(content.header, buffers[0]).cells);
      if (!found) throw new Error(`The kernel's answer holds no heads of ${nameOf(pair)}, sum ${signed(pair.sum)}.`);
      cells.push(found);
      return found;
    },
  };
}

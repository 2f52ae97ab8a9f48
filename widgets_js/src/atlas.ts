/** The atlas: connects the widget's model to the panels, which know only tables and state. */

import { bdi, h } from "./core/dom";
import { count, visible } from "./core/format";
import { attempt, dashboard, onTrait } from "./core/host";
import { keySheet } from "./core/keys";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { block, unpack } from "./core/wire";
import { Cards } from "./panels/atlas/cards";
import { mapPanel } from "./panels/atlas/map";
import { nextMode } from "./panels/atlas/moves";
import { WHOLE } from "./panels/atlas/places";
import type { Panel, Source, View } from "./panels/atlas/shared";
import { shown } from "./panels/atlas/shared";
import { sidePanel } from "./panels/atlas/side";
import { type About, Atlas } from "./panels/atlas/tables";
import { legendPanel, toolsPanel } from "./panels/atlas/tools";

/** Cards from the kernel that are kept: going back is free, and memory stays bounded. */
const KEPT_CARDS = 24;
/** Steps with an arrow key reach the kernel together. */
const SEND_MS = 60;

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const atlas = new Atlas(about, unpack(model.get("points_header"), model.get("points")));
  atlas.labels = labelsOf(model);
  const rpc = new Rpc(model, life);
  const state = new State<View>(
    {
      latent: model.get("latent") as number,
      selected: selectedOf(model),
      colour: model.get("colour") as string,
      mode: "move",
      camera: WHOLE,
      query: "",
      found: undefined,
      cut: false,
      kernel: rpc.kernel,
      labels: atlas.labels,
      ground: "light",
    },
    life.fail,
  );
  const panel: Panel = { atlas, state, source: source(model, rpc, life, atlas, state) };
  const root = h("div", {
    class: "nbs-dash nbs-atlas",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Atlas of latents",
  });
  const facts = `${count(atlas.length)} latents · ${visible(about.site)}`;
  const bar = h(
    "div",
    { class: "nbs-top" },
    bdi(visible(about.title), "nbs-what"),
    h("span", { class: "nbs-site", title: facts }, facts),
  );
  bar.append(kernelStatus(rpc, life, "No kernel answers: what was saved can be explored"));
  const tools = h("div", { class: "nbs-controls nbs-tools" });
  const map = h("div", { class: "nbs-card" });
  const side = h("div", { class: "nbs-side" });
  const legend = h("div", { class: "nbs-controls nbs-below" });
  const foot = h("footer", { class: "nbs-readout" });
  const shell = h("div", { class: "nbs-shell" }, bar, tools, h("div", { class: "nbs-main" }, map, side), legend, foot);
  root.append(shell);
  el.append(root);
  const say = ([first = "", ...rest]: string[]) =>
    foot.replaceChildren(h("b", {}, bdi(visible(first))), ...rest.map((part) => bdi(visible(part))));

  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(mapPanel(map, panel, say));
  life.add(toolsPanel(tools, panel));
  life.add(legendPanel(legend, panel));
  life.add(sidePanel(side, panel));
  life.add(keys(shell, panel));
  life.add(both(model, state, atlas));
});

function labelsOf(model: AnyModel): Record<string, string> {
  return (model.get("labels") ?? {}) as Record<string, string>;
}

/** One bit per latent, the lowest of the first byte first. */
function selectedOf(model: AnyModel): number[] {
  const bytes = new Uint8Array(block(model.get("selected")));
  const found: number[] = [];
  for (const [at, byte] of bytes.entries()) {
    for (let bit = 0; bit < 8 && byte; bit += 1) if ((byte >> bit) & 1) found.push(8 * at + bit);
  }
  return found;
}

function bitsOf(selected: readonly number[], count: number): DataView {
  const bytes = new Uint8Array(Math.ceil(count / 8));
  for (const latent of selected) bytes[latent >> 3] = (bytes[latent >> 3] ?? 0) | (1 << (latent & 7));
  return new DataView(bytes.buffer);
}

/** The three choices are traits: each is read when it changes, and sent when the user changes it. */
function both(model: AnyModel, state: State<View>, atlas: Atlas): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let reading = false;
  const due = new Map<string, () => unknown>();
  const send = () => {
    clearTimeout(timer);
    for (const [name, value] of due) model.set(name, value());
    if (due.size) model.save_changes();
    due.clear();
  };
  const write = (name: "latent" | "selected" | "colour", value: () => unknown) =>
    state.on([name], () => {
      if (reading) return;
      due.set(name, value);
      clearTimeout(timer);
      timer = setTimeout(send, SEND_MS);
    });
  const read = (use: () => void) => () => {
    reading = true;
    use();
    reading = false;
  };
  reading = true; // `on` runs at once; what the model says already need not be sent back.
  const stops = [
    write("latent", () => state.get("latent")),
    write("selected", () => bitsOf(state.get("selected"), atlas.about.d_sae)),
    write("colour", () => state.get("colour")),
  ];
  reading = false;
  stops.push(
    onTrait(model, "latent", (latent) => {
      if (!due.has("latent")) read(() => state.set("latent", latent as number))();
    }),
    onTrait(model, "colour", (colour) => {
      if (!due.has("colour")) read(() => state.set("colour", colour as string))();
    }),
    onTrait(model, "selected", () => {
      const [before, next] = [state.get("selected"), selectedOf(model)];
      const same = next.length === before.length && next.every((latent, at) => latent === before[at]);
      if (!same && !due.has("selected")) read(() => state.set("selected", next))();
    }),
    onTrait(model, "labels", () => {
      atlas.labels = labelsOf(model);
      state.set("labels", atlas.labels);
    }),
  );
  return () => {
    send();
    for (const stop of stops) stop();
  };
}

/** Cards, names and columns: saved ones from the traits, the others from the kernel. */
function source(model: AnyModel, rpc: Rpc, life: Life, atlas: Atlas, state: State<View>): Source {
  const kept = new Map<number, Cards>();
  const get = (key: string) => model.get(key);
  const own = () => new Cards(get("cards_header"), get("cards"), get("cards_thumbs_header"), get("cards_thumbs"));
  const saved = attempt(life, own, new Cards());
  const asking = new Set<string>();
  life.add(() => {
    for (const set of [saved, ...kept.values()]) set.dispose();
  });
  return {
    card: (latent) => kept.get(latent)?.card(latent) ?? saved.card(latent),
    ask: async (latent) => {
      const { content, buffers } = await rpc.request("card", { latent });
      const set = new Cards(content.header, buffers[0], content.thumbs_header, buffers[1]);
      kept.set(latent, set);
      for (const [oldest, one] of kept) {
        if (kept.size <= KEPT_CARDS) break;
        one.dispose();
        kept.delete(oldest);
      }
      return set.card(latent);
    },
    find: async (text) => {
      const { all, saved: inside } = atlas.about.names;
      if (rpc.kernel !== "live" || inside >= all) return { latents: atlas.find(text), cut: false };
      const { content, buffers } = await rpc.request("find", { text });
      const { found } = unpack(content.header, buffers[0]);
      const latents = Array.from(found?.numbers("latent") ?? []);
      for (const [row, name] of ((found?.json("name") ?? []) as string[]).entries())
        atlas.keep(latents[row] ?? -1, name);
      return { latents, cut: content.cut === true };
    },
    column: async (key) => {
      if (asking.has(key)) return;
      asking.add(key);
      try {
        const { buffers } = await rpc.request("column", { column: key });
        atlas.setCodes(key, new Uint8Array(block(buffers[0])));
        // Anew, for everyone who shows colours.
        state.set("labels", { ...atlas.labels });
      } finally {
        asking.delete(key);
      }
    },
  };
}

function keys(root: HTMLElement, panel: Panel): () => void {
  const { atlas, state } = panel;
  const focus = (selector: string) => root.querySelector<HTMLElement>(selector)?.focus();
  const move = (by: number) => {
    const listed = shown(panel) ?? atlas.latents;
    const at = Array.prototype.indexOf.call(listed, state.get("latent"));
    const next = listed[at < 0 ? 0 : at + by];
    if (next !== undefined) state.set("latent", next);
  };
  return keySheet(root, [
    { key: "/", text: "search", actions: { "/": () => focus(".nbs-search") } },
    { key: "[  ]", text: "previous, next latent of the list", actions: { "[": () => move(-1), "]": () => move(1) } },
    { key: "g", text: "go to the map", actions: { g: () => focus(".nbs-stage") } },
    { key: "← ↑ → ↓", text: "the nearest latent that way; with Shift, move the map" },
    { key: "+ − 0", text: "zoom, as Ctrl or ⌘ and the wheel do; the whole map" },
    { key: "Space", text: "choose, or take out" },
    { key: "v x", text: "choose all in view, none" },
    { key: "m", text: "move, lasso, box", actions: { m: () => nextMode(panel) } },
  ]);
}

/** The flow dashboard: connects the widget's model to the panels, which know only tables and state. */

import { attr, bdi, h } from "./core/dom";
import { errorCard } from "./core/errors";
import { count, visible } from "./core/format";
import { attempt, dashboard } from "./core/host";
import { keySheet } from "./core/keys";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { block, type Header, NOTHING, type Table, Thumbs, unpack } from "./core/wire";
import { chainPanel } from "./panels/flow/chain";
import { detailPanel } from "./panels/flow/detail";
import { graphPanel } from "./panels/flow/graph";
import { type Pair, type Panel, type Source, type Steered, segments, type Tab, type View } from "./panels/flow/shared";
import { steerPanel } from "./panels/flow/steer";
import { tablePanel } from "./panels/flow/table";
import { type About, Flow, type Graph, keyOf, LANES, placeOf } from "./panels/flow/tables";
import { toolsPanel } from "./panels/flow/tools";
import { treePanel } from "./panels/flow/tree";
import { CardSet } from "./panels/tables";

/** Answers of the kernel whose cards and pictures are kept. */
const KEPT_CARDS = 12;
const HITS = 60;
/** Steering writes texts with many controls: minutes on a small machine. */
const STEER_MS = 900_000;
/** A filter that moves asks the kernel at most this often. */
const QUIET_MS = 60;
const TABS: { key: Tab; text: string }[] = [
  { key: "cards", text: "Chain" },
  { key: "steer", text: "Steer" },
  { key: "tree", text: "Levels" },
  { key: "table", text: "Table" },
];

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const tables = unpack(model.get("graph_header"), model.get("graph"));
  const flow = new Flow(tables, about);
  const saved = flow.read(tables);
  const rpc = new Rpc(model, life);
  const state = new State<View>(
    {
      chosen: chosenOf(model, flow),
      graph: saved,
      lanes: new Set(LANES.keys()),
      kind: -1,
      score: "s_residual",
      least: 0,
      tab: "cards",
      kernel: rpc.kernel,
      busy: false,
    },
    life.fail,
  );
  const panel: Panel = { flow, state, source: source(model, rpc, life, flow, saved) };
  const root = h("div", {
    class: "nbs-dash nbs-flow",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Flow dashboard",
  });
  const facts = `${count(flow.sites.length)} sites · ${count(about.latents)} latents · ${count(about.edges)} edges by ${visible(about.rule)}${about.left_out.map((one) => ` · left out: ${visible(one)}`).join("")}`;
  const bar = h(
    "div",
    { class: "nbs-top" },
    bdi(visible(about.title), "nbs-what"),
    h("span", { class: "nbs-site", title: facts }, facts),
  );
  bar.append(kernelStatus(rpc, life, savedText(about)));
  const tools = h("div", { class: "nbs-controls nbs-tabs" });
  const failed = h("div");
  const graph = h("div", { class: "nbs-card" });
  const detail = h("div", { class: "nbs-scroll" });
  const foot = h("div", { class: "nbs-readout" });
  const tabs = segments("Below the graph", TABS, (key) => state.set("tab", key));
  const panes = Object.fromEntries(
    TABS.map(({ key }) => [key, h("div", { class: "nbs-card nbs-lower", hidden: true })]),
  );
  const shell = h(
    "div",
    { class: "nbs-shell" },
    bar,
    tools,
    failed,
    h("div", { class: "nbs-main" }, graph, detail),
    foot,
    h("div", { class: "nbs-controls nbs-tabs" }, tabs.element),
    ...Object.values(panes),
  );
  root.append(shell);
  el.append(root);
  const say = (parts: string[]) => {
    const [first = "", ...rest] = parts;
    foot.replaceChildren(h("b", {}, bdi(first)), ...rest.map((part) => bdi(part)));
  };

  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(state.on(["busy"], () => attr(graph, "aria-busy", state.get("busy"))));
  life.add(toolsPanel(tools, panel));
  life.add(detailPanel(detail, panel));
  life.add(graphPanel(graph, panel, say));
  const draw: Partial<Record<Tab, (root: HTMLElement) => () => void>> = {
    cards: (pane) => chainPanel(pane, panel, say),
    steer: (pane) => steerPanel(pane, panel),
    tree: (pane) => treePanel(pane, panel),
    table: (pane) => tablePanel(pane, panel),
  };
  life.add(
    state.on(["tab"], () => {
      const tab = state.get("tab");
      tabs.mark([tab]);
      for (const [key, pane] of Object.entries(panes)) pane.hidden = key !== tab;
      // Drawn when it is first looked at.
      const first = draw[tab];
      delete draw[tab];
      const pane = panes[tab];
      if (first && pane) life.add(first(pane));
    }),
  );
  life.add(pages(rpc, panel, saved, failed));
  life.add(keys(shell, panel));
  life.add(selection(model, panel));
});

function savedText({ saved: { nodes, shown, cards }, latents }: About): string {
  return `No kernel answers: ${count(nodes)} of ${count(latents)} latents are inside, up to ${shown} per site, with ${count(cards)} cards; the others need a running kernel`;
}

function chosenOf(model: AnyModel, flow: Flow): number {
  const site = flow.sites.findIndex(({ name }) => name === model.get("site"));
  return keyOf(Math.max(0, site), model.get("latent") as number);
}

/** Both traits are one choice: they are sent together, and read together. */
function selection(model: AnyModel, { flow, state }: Panel): () => void {
  const read = () => state.set("chosen", chosenOf(model, flow));
  for (const name of ["site", "latent"]) model.on(`change:${name}`, read);
  const stop = state.on(["chosen"], () => {
    const { site, latent } = placeOf(state.get("chosen"));
    const name = flow.sites[site]?.name;
    if (model.get("site") === name && model.get("latent") === latent) return;
    for (const one of ["site", "latent"]) model.off(`change:${one}`, read);
    model.set("site", name);
    model.set("latent", latent);
    model.save_changes();
    for (const one of ["site", "latent"]) model.on(`change:${one}`, read);
  });
  return () => {
    stop();
    for (const name of ["site", "latent"]) model.off(`change:${name}`, read);
  };
}

/** What is shown: with a kernel, chosen anew among all latents after every change; without, the saved ones. */
function pages(rpc: Rpc, { flow, state }: Panel, saved: Graph, failed: HTMLElement): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let turn = 0;
  const ask = async () => {
    turn += 1;
    const mine = turn;
    const { site, latent } = placeOf(state.get("chosen"));
    const lanes = [...state.get("lanes")].map((lane) => LANES[lane]);
    const kind = ["translated", "processed", "newborn", "unexplained"][state.get("kind")] ?? "";
    const only = { lanes, only_kind: kind, score: state.get("score"), least: state.get("least") };
    state.set("busy", true);
    try {
      const { content, buffers } = await rpc.request("page", { site: flow.sites[site]?.name, latent, ...only });
      const graph = flow.read(unpack(content.header, buffers[0]));
      if (mine !== turn) return;
      failed.replaceChildren();
      state.set("graph", graph);
    } catch (error) {
      if (mine === turn)
        failed.replaceChildren(errorCard("The graph could not be loaded; the one before stays.", error));
    } finally {
      if (mine === turn) state.set("busy", false);
    }
  };
  const stop = state.on(["kernel", "chosen", "lanes", "kind", "score", "least"], () => {
    clearTimeout(timer);
    if (state.get("kernel") === "live") timer = setTimeout(() => void ask(), QUIET_MS);
    else if (state.get("kernel") === "none") state.set("graph", saved);
  });
  return () => {
    turn += 1;
    clearTimeout(timer);
    stop();
  };
}

/** Cards, search, trees and steering: saved ones from the traits, the others from the kernel. */
function source(model: AnyModel, rpc: Rpc, life: Life, flow: Flow, saved: Graph): Source {
  const get = (key: string) => model.get(key);
  const own = () => new CardSets(get("cards_header"), get("cards"), get("cards_thumbs_header"), get("cards_thumbs"));
  const kept = [attempt(life, own, new CardSets(NOTHING))];
  const thumbs: Thumbs[] = [];
  life.add(() => {
    for (const one of [...kept, ...thumbs]) one.dispose();
  });
  const pairsOf = (table: Table | undefined): Pair[] =>
    Array.from(
      { length: table?.rows ?? 0 },
      (_, row) =>
        Object.fromEntries(
          (table?.columns ?? []).map((name) => [name, table?.numbers(name)[row] ?? 0]),
        ) as unknown as Pair,
    );
  const tree = attempt(life, () => unpack(get("tree_header"), get("tree")).tree, undefined);
  const name = (key: number) => flow.sites[placeOf(key).site]?.name;
  return {
    card: (key) => {
      for (const one of kept) {
        const card = one.card(key);
        if (card) return card;
      }
      return undefined;
    },
    askCards: async (keys) => {
      const { content, buffers } = await rpc.request("cards", {
        latents: keys.map((key) => [name(key), placeOf(key).latent]),
      });
      kept.push(new CardSets(content.header, buffers[0], content.thumbs_header, buffers[1]));
      for (const old of kept.splice(1, Math.max(0, kept.length - 1 - KEPT_CARDS))) old.dispose();
    },
    find: async (text) => {
      if (rpc.kernel === "live") {
        const { content, buffers } = await rpc.request("find", { text });
        const { nodes } = unpack(content.header, buffers[0]);
        return nodes ? flow.nodes(nodes) : [];
      }
      const wanted = text.toLowerCase().replace(/^#/, "");
      const named = ({ name: own }: { name: string | undefined }) => own?.toLowerCase().includes(wanted) ?? false;
      const hits = saved.nodes.filter((node) => String(node.latent) === wanted || named(node));
      return hits.sort((a, b) => (a.name ?? "").length - (b.name ?? "").length || b.span - a.span).slice(0, HITS);
    },
    tree: async (key) => {
      const { site, latent } = placeOf(key);
      const all = flow.about.trees[site]?.pairs ?? 0;
      let table = site === flow.about.tree_site ? tree : undefined;
      if (rpc.kernel === "live" && (table?.rows ?? 0) < all) {
        const { content, buffers } = await rpc.request("tree", { site: name(key), latent });
        table = unpack(content.header, buffers[0]).tree;
      }
      return { pairs: pairsOf(table), whole: (table?.rows ?? 0) >= all };
    },
    steer: async (key, strength, mode) => {
      const what = { site: name(key), latent: placeOf(key).latent, strength, mode };
      const { content, buffers } = await rpc.request("steer", what, [], STEER_MS);
      const pictures = new Thumbs(content.thumbs_header, buffers[1]);
      thumbs.push(pictures);
      return steered(unpack(content.header, buffers[0]), pictures);
    },
  };
}

function steered({ sides, metrics, note }: Record<string, Table>, pictures: Thumbs): Steered {
  if (!sides || !metrics || !note) throw new Error("The kernel's answer holds no generations.");
  const texts = sides.json("text") as string[];
  const number = (name: string, row: number) => metrics.numbers(name)[row] ?? Number.NaN;
  return {
    sides: (sides.json("side") as string[]).map((side, row) => ({
      side,
      text: texts[row] ?? "",
      url: pictures.url(sides.numbers("thumb")[row] ?? -1),
    })),
    metrics: (metrics.json("name") as string[]).map((name, row) => ({
      name,
      before: number("before", row),
      after: number("after", row),
      control: number("control", row),
    })),
    note: String(note.json("text")[0] ?? ""),
  };
}

/** The cards of one message: tables `<site>/<table>`, pictures that the sites share. */
class CardSets {
  readonly #sets = new Map<number, CardSet>();

  constructor(header: unknown, bytes?: unknown, thumbsHeader?: unknown, thumbs?: unknown) {
    const { version, tables } = header as Header;
    const sites = new Set(Object.keys(tables).map((name) => Number(name.split("/")[0])));
    const own = sites.size ? block(bytes) : undefined;
    for (const site of sites) {
      const inside = Object.entries(tables).flatMap(([name, table]) => {
        const [place, rest] = name.split("/");
        return Number(place) === site && rest ? [[rest, table] as const] : [];
      });
      this.#sets.set(site, new CardSet({ version, tables: Object.fromEntries(inside) }, own, thumbsHeader, thumbs));
    }
  }

  card(key: number) {
    const { site, latent } = placeOf(key);
    return this.#sets.get(site)?.card(latent);
  }

  dispose(): void {
    for (const one of this.#sets.values()) one.dispose();
  }
}

function keys(root: HTMLElement, { state }: Panel): () => void {
  const tab = (by: number) => {
    const at = TABS.findIndex(({ key }) => key === state.get("tab"));
    const next = TABS[(at + by + TABS.length) % TABS.length];
    if (next) state.set("tab", next.key);
  };
  const focus = (selector: string) => root.querySelector<HTMLElement>(selector)?.focus();
  // The graph's own keys, from anywhere.
  const press = (key: string) => root.querySelector(".nbs-nodes")?.dispatchEvent(new KeyboardEvent("keydown", { key }));
  return keySheet(root, [
    { key: "/", text: "search", actions: { "/": () => focus(".nbs-search") } },
    { key: "g", text: "go to the graph", actions: { g: () => focus(".nbs-nodes") } },
    {
      key: "[  ]  ← →",
      text: "along the chain, else to the next layer",
      actions: { "[": () => press("ArrowLeft"), "]": () => press("ArrowRight") },
    },
    { key: "↑ ↓", text: "latents of the same layer" },
    { key: "Home End", text: "first, last latent of the chain" },
    { key: "t", text: "chain, steer, levels, table", actions: { t: () => tab(1) } },
  ]);
}

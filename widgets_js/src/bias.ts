/** The bias dashboard: connects the widget's model to the panels, which know only tables and state. */

import { bdi, h } from "./core/dom";
import { count, visible } from "./core/format";
import { attempt, dashboard, onTrait } from "./core/host";
import { keySheet } from "./core/keys";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { NOTHING, unpack } from "./core/wire";
import { behindPanel } from "./panels/bias/behind";
import { cardPanel } from "./panels/bias/card";
import { errorsPanel } from "./panels/bias/errors";
import { exportPanel } from "./panels/bias/export";
import { listPanel } from "./panels/bias/list";
import { retrievalPanel } from "./panels/bias/retrieval";
import { distinct, type Panel, type Source, segments, type Tab, type View } from "./panels/bias/shared";
import { type About, Details, Inputs, type Ranking, Report } from "./panels/bias/tables";

/** Details from the kernel that are kept: going back is free, and memory stays bounded. */
const KEPT_DETAILS = 24;
const TABS: { key: Tab; text: string }[] = [
  { key: "concepts", text: "Concepts" },
  { key: "errors", text: "Error gaps" },
  { key: "retrieval", text: "Retrieval" },
];

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const report = new Report(model.get("overview_header"), model.get("overview"), about);
  const rpc = new Rpc(model, life);
  const first = (ranking: Ranking, what: "side" | "given") =>
    distinct(report.effects(ranking).map((one) => one[what]))[0] ?? -1;
  const state = new State<View>(
    {
      latent: model.get("latent") as number,
      tab: "concepts",
      ranking: report.effects("association").length ? "association" : "reliance",
      group: first("association", "side"),
      output: first("reliance", "side"),
      given: first("conditional", "given"),
      text: "",
      flaggedOnly: false,
      kernel: rpc.kernel,
      order: [],
      behind: undefined,
    },
    life.fail,
  );
  const panel: Panel = { report, state, source: source(model, rpc, life, report) };
  life.accepts = (latent) => report.conceptOf(latent) >= 0;
  const root = h("div", {
    class: "nbs-dash nbs-bias",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Bias dashboard",
  });
  const facts = about.facts.map(([name, text]) => `${visible(name)} ${visible(text)}`).join(" · ");
  const bar = h(
    "div",
    { class: "nbs-top" },
    bdi(visible(about.title), "nbs-what"),
    h("span", { class: "nbs-site", title: facts }, facts),
  );
  bar.append(kernelStatus(rpc, life, savedText(report)));
  const tabs = segments("View", TABS, (key) => state.set("tab", key));
  const tools = h("div", { class: "nbs-line nbs-tabs" }, tabs.element);
  const caution = h("p", { class: "nbs-caution" }, h("b", {}, "Read with care: "), visible(about.caution));
  const list = h("div", { class: "nbs-latents" });
  const card = h("div", { class: "nbs-scroll" });
  const panes: Record<Tab, HTMLElement> = {
    concepts: h("div", { class: "nbs-main" }, list, h("div", { class: "nbs-card" }, card)),
    errors: h("div", { class: "nbs-scroll", hidden: true }),
    retrieval: h("div", { class: "nbs-scroll", hidden: true }),
  };
  const shell = h("div", { class: "nbs-shell" }, bar, tools, caution, ...Object.values(panes));
  root.append(shell);
  el.append(root);

  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(
    state.on(["tab"], () => {
      tabs.mark(state.get("tab"));
      for (const [tab, pane] of Object.entries(panes)) pane.hidden = tab !== state.get("tab");
    }),
  );
  life.add(exportPanel(tools, panel));
  life.add(listPanel(list, panel));
  life.add(cardPanel(card, panel));
  // Drawn when they are first looked at.
  const later: Partial<Record<Tab, () => () => void>> = {
    errors: () => errorsPanel(panes.errors, panel),
    retrieval: () => retrievalPanel(panes.retrieval, panel),
  };
  life.add(
    state.on(["tab"], () => {
      const draw = later[state.get("tab")];
      delete later[state.get("tab")];
      if (draw) life.add(draw());
    }),
  );
  life.add(behindPanel(shell, panel));
  life.add(keys(shell, panel));
  life.add(
    state.on(["latent"], () => {
      card.scrollTop = 0;
      state.set("behind", undefined);
      if (model.get("latent") === state.get("latent")) return;
      model.set("latent", state.get("latent"));
      model.save_changes();
    }),
  );
  life.add(onTrait(model, "latent", (latent) => state.set("latent", latent as number)));
});

function savedText({ about, length }: Report): string {
  const inside = about.saved < length ? `, ${count(about.saved)} of ${count(length)} concepts with curves` : "";
  return `No kernel answers: what was saved can be explored${inside}; pictures of ${count(about.thumbs)} of ${count(about.inputs)} inputs`;
}

function keys(root: HTMLElement, { report, state }: Panel): () => void {
  const move = (by: 1 | -1) => {
    const order = state.get("order").filter((one) => one !== undefined);
    const at = order.findIndex(({ concept }) => concept === report.conceptOf(state.get("latent")));
    const next = order[at < 0 ? 0 : at + by];
    if (next) state.set("latent", report.latent[next.concept] as number);
  };
  const rank = () => {
    const filled = (["association", "conditional", "reliance"] as Ranking[]).filter(
      (one) => report.effects(one).length,
    );
    const next = filled[(filled.indexOf(state.get("ranking")) + 1) % filled.length];
    if (next) state.set("ranking", next);
  };
  const search = () => {
    state.set("tab", "concepts");
    root.querySelector<HTMLElement>(".nbs-search")?.focus();
  };
  return keySheet(
    root,
    [
      { key: "/", text: "search", actions: { "/": search } },
      { key: "[  ]", text: "previous, next concept of the list", actions: { "[": () => move(-1), "]": () => move(1) } },
      { key: "r", text: "rank by the next measure", actions: { r: rank } },
      {
        key: "1 2 3",
        text: "concepts, error gaps, retrieval",
        actions: Object.fromEntries(TABS.map(({ key }, at) => [String(at + 1), () => state.set("tab", key)])),
      },
      { key: "↑ ↓", text: "move in the list" },
      { key: "← →", text: "move among pictures" },
      { key: "Esc", text: "close the inputs behind a number" },
    ],
    () => state.set("behind", undefined),
  );
}

/** Details and pictures: saved ones from the traits, the others from the kernel. */
function source(model: AnyModel, rpc: Rpc, life: Life, report: Report): Source {
  const inputs = new Inputs();
  const get = (key: string) => model.get(key);
  const table = attempt(life, () => unpack(get("inputs_header"), get("inputs")).inputs, undefined);
  if (table) attempt(life, () => inputs.add(table, get("thumbs_header"), get("thumbs")), undefined);
  life.add(() => inputs.dispose());
  const inside = (concept: number) => concept >= 0 && concept < report.about.saved;
  const none = new Details(NOTHING, new ArrayBuffer(), () => false);
  const saved = attempt(life, () => new Details(get("details_header"), get("details"), inside), none);
  const asked = new Map<number, Details>();
  return {
    inputs,
    saved,
    known: (concept) => asked.get(concept) ?? (saved.has(concept) ? saved : undefined),
    ask: async (concept) => {
      const { content, buffers } = await rpc.request("concept", { latent: report.latent[concept] });
      const details = new Details(content.header, buffers[0], (one) => one === concept);
      const { inputs: more, labels } = details.tables;
      if (more) inputs.add(more);
      // Names get their numbers once: a longer table holds the shorter one.
      if (labels && labels.rows > report.labels.length) report.labels = labels.json("text") as string[];
      asked.set(concept, details);
      for (const oldest of [...asked.keys()].slice(0, -KEPT_DETAILS)) asked.delete(oldest);
      return details;
    },
    askPictures: async (ids) => {
      const { content, buffers } = await rpc.request("pictures", { input_ids: ids });
      const { inputs: more } = unpack(content.header, buffers[0]);
      if (more) inputs.add(more, content.thumbs_header, buffers[1]);
    },
    askTable: async (name) => {
      const { buffers } = await rpc.request("table", { name });
      const [bytes] = buffers;
      if (!ArrayBuffer.isView(bytes) && !(bytes instanceof ArrayBuffer)) throw new Error("The kernel gave no table.");
      return bytes as BlobPart;
    },
  };
}

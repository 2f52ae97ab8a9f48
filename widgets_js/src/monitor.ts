/** The training monitor: connects the widget's model to the panels, which know only tables and state. */

import { liveRegion } from "./core/a11y";
import { bdi, h } from "./core/dom";
import { count, sig3, visible } from "./core/format";
import { dashboard, onTrait } from "./core/host";
import { keySheet } from "./core/keys";
import type { AnyModel, Life } from "./core/life";
import { Rpc } from "./core/rpc";
import { State } from "./core/state";
import { segments } from "./panels/bias/shared";
import { curvesPanel } from "./panels/monitor/curves";
import { formingPanel, samplePanel } from "./panels/monitor/looks";
import { paretoPanel } from "./panels/monitor/pareto";
import { runsPanel } from "./panels/monitor/runs";
import { duration, goesOn, type Panel, STATES, type Tab, type View } from "./panels/monitor/shared";
import { steerPanel } from "./panels/monitor/steer";
import { type About, Looks, levelText, type Note, type Run, seriesOf } from "./panels/monitor/tables";

const TABS: { key: Tab; text: string }[] = [
  { key: "curves", text: "Curves" },
  { key: "pareto", text: "FVU against k" },
  { key: "sample", text: "Sample" },
  { key: "features", text: "Features" },
];
/** Screen readers are told where training stands no more often than this. */
const SPEAK_MS = 5_000;
/** A kernel that trains answers a question within this time, or it does not hear. */
const HEARS_MS = 2_500;
const ASK_AGAIN_MS = 10_000;
/** Updates come four times a second; after this long without one something is wrong, or the steps are slow. */
const SILENT_MS = 15_000;

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const rpc = new Rpc(model, life);
  const state = new State<View>({
    runs: model.get("runs") as Run[],
    series: [],
    looks: undefined,
    notes: [],
    chosen: 0,
    tab: "curves",
    axis: "rows",
    kernel: rpc.kernel,
    alone: false,
    hears: undefined,
  });
  const ask = async (kind: string, what: Record<string, unknown>) => (await rpc.request(kind, what)).content;
  const panel: Panel = { about, state, ask };
  const root = h("div", {
    class: "nbs-dash nbs-monitor",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Training monitor",
  });
  const status = h("span", { class: "nbs-status" });
  const head = h("div", { class: "nbs-head-panel" });
  const tabs = segments("View", TABS, (key) => state.set("tab", key));
  const panes: Record<Tab, HTMLElement> = {
    curves: h("div", { class: "nbs-pane" }),
    pareto: h("div", { class: "nbs-pane", hidden: true }),
    sample: h("div", { class: "nbs-pane", hidden: true }),
    features: h("div", { class: "nbs-pane", hidden: true }),
  };
  const spoken = liveRegion();
  const shell = h(
    "div",
    { class: "nbs-shell" },
    h("div", { class: "nbs-top" }, bdi(visible(about.title), "nbs-what"), status),
    h(
      "div",
      { class: "nbs-scroll" },
      head,
      h("div", { class: "nbs-line nbs-tabs" }, tabs.element),
      ...Object.values(panes),
    ),
    spoken.element,
  );
  root.append(shell);
  el.append(root);

  const news = follow(model, state, life);
  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(listenFor(rpc, state, news, status));
  life.add(speak(spoken.say, state));
  life.add(runsPanel(head, panel));
  life.add(steerPanel(head, panel));
  life.add(tabbed(tabs, panes, panel));
  life.add(keys(shell, panel));
});

/** Take over the traits; gives when they changed last, and whether they did since the view was made. */
function follow(model: AnyModel, state: State<View>, life: Life): { at: number; count: number } {
  const news = { at: performance.now(), count: 0 };
  const stops = [
    onTrait(model, "runs", (runs) => {
      news.at = performance.now();
      news.count += 1;
      state.set("runs", runs as Run[]);
    }),
    onTrait(model, "notes", (notes) => state.set("notes", (notes ?? []) as Note[])),
  ];
  // Header and bytes change together, one event each: both are read once they are in.
  let due = 0;
  const series = () => {
    due = 0;
    state.set("series", seriesOf(model.get("points_header"), model.get("points"), state.get("runs")));
  };
  const laterSeries = () => {
    if (!due) due = setTimeout(series, 0) as unknown as number;
  };
  let dueLooks = 0;
  const looks = () => {
    dueLooks = 0;
    const before = state.get("looks");
    state.set(
      "looks",
      new Looks(model.get("looks_header"), model.get("looks"), model.get("thumbs_header"), model.get("thumbs")),
    );
    before?.dispose();
  };
  const laterLooks = () => {
    if (!dueLooks) dueLooks = setTimeout(looks, 0) as unknown as number;
  };
  series();
  looks();
  for (const key of ["points_header", "points"]) stops.push(onChange(model, key, laterSeries));
  for (const key of ["looks_header", "looks", "thumbs_header", "thumbs"]) stops.push(onChange(model, key, laterLooks));
  life.add(() => {
    for (const stop of stops) stop();
    clearTimeout(due);
    clearTimeout(dueLooks);
    state.get("looks")?.dispose();
  });
  return news;
}

function onChange(model: AnyModel, key: string, use: () => void): () => void {
  model.on(`change:${key}`, use);
  return () => model.off(`change:${key}`, use);
}

/** Find out whether the kernel hears while it trains, and say so where it does not, or where it went silent. */
function listenFor(rpc: Rpc, state: State<View>, news: { at: number; count: number }, status: HTMLElement): () => void {
  let [asking, askedAt, open] = [false, Number.NEGATIVE_INFINITY, true];
  // A run without a session is a loop of the user's own, which says nothing of its end.
  const going = () => state.get("runs").some((run) => goesOn(run) && run.reachable);
  const tell = () => {
    // Updates that arrive prove a kernel, even one that has not answered: it is training.
    const alone = state.get("kernel") === "none" && news.count < 2;
    state.set("alone", alone);
    const silent = going() && !alone && performance.now() - news.at > SILENT_MS;
    status.textContent = alone ? "saved view" : silent ? "no word from the kernel" : "";
    status.title = alone
      ? "No kernel answers: this is how it stood when it was saved"
      : silent
        ? "A step takes long, or the kernel was ended; what is drawn arrived last"
        : "";
  };
  const ask = () => {
    if (!open || asking || !going() || performance.now() - askedAt < ASK_AGAIN_MS) return;
    if (state.get("alone")) return;
    asking = true;
    askedAt = performance.now();
    rpc.request("ping", {}, [], HEARS_MS).then(
      () => hear(true),
      () => hear(false),
    );
  };
  const hear = (hears: boolean) => {
    asking = false;
    if (open) state.set("hears", hears);
  };
  let went = false;
  const stop = state.on(["runs", "kernel"], () => {
    if (going() && !went) {
      // Another cell trains now: what was true between cells need not be.
      state.set("hears", undefined);
      askedAt = Number.NEGATIVE_INFINITY;
    }
    went = going();
    tell();
    ask();
  });
  const timer = setInterval(() => {
    ask();
    tell();
  }, 2_000);
  return () => {
    open = false;
    clearInterval(timer);
    stop();
  };
}

/** One sentence about the chosen run, at most every five seconds; the end is said as soon as that allows. */
function speak(say: (text: string) => void, state: State<View>): () => void {
  let [last, timer] = [Number.NEGATIVE_INFINITY, 0];
  const now = () => {
    timer = 0;
    last = performance.now();
    say(sentence(state.get("runs")[state.get("chosen")]));
  };
  const stop = state.on(["runs", "chosen"], () => {
    const wait = last + SPEAK_MS - performance.now();
    if (wait <= 0) now();
    else if (!timer) timer = setTimeout(now, wait) as unknown as number;
  });
  return () => {
    clearTimeout(timer);
    stop();
  };
}

function sentence(run: Run | undefined): string {
  if (!run) return "";
  const of = run.steps === undefined ? "" : ` of ${count(run.steps)}`;
  const levels = run.quality.map(({ name, fvu }) => `${levelText(name)}: ${sig3(fvu)}`).join(", ");
  const left = run.state === "running" && run.left != null ? `, ${duration(run.left)} left` : "";
  const fvu = levels ? `; FVU ${levels}` : "";
  return `${visible(run.name)}: ${STATES[run.state]}, step ${count(run.step ?? run.latest.step ?? 0)}${of}${left}${fvu}`;
}

/** Panels are made when they are first looked at. */
function tabbed(tabs: { mark(key: Tab): void }, panes: Record<Tab, HTMLElement>, panel: Panel): () => void {
  const make = { curves: curvesPanel, pareto: paretoPanel, sample: samplePanel, features: formingPanel };
  const stops: (() => void)[] = [];
  const made = new Set<Tab>();
  const stop = panel.state.on(["tab"], () => {
    const tab = panel.state.get("tab");
    tabs.mark(tab);
    for (const [name, pane] of Object.entries(panes)) pane.hidden = name !== tab;
    if (made.has(tab)) return;
    made.add(tab);
    stops.push(make[tab](panes[tab], panel));
  });
  return () => {
    stop();
    for (const one of stops) one();
  };
}

function keys(root: HTMLElement, { state }: Panel): () => void {
  const move = (by: 1 | -1) => {
    const runs = state.get("runs").length;
    if (runs) state.set("chosen", Math.min(runs - 1, Math.max(0, state.get("chosen") + by)));
  };
  const press = (text: string) => () => {
    const found = [...root.querySelectorAll<HTMLButtonElement>(".nbs-button")].find((one) =>
      text.split("|").includes(one.textContent ?? ""),
    );
    found?.click();
  };
  return keySheet(root, [
    { key: "[  ]", text: "previous, next run", actions: { "[": () => move(-1), "]": () => move(1) } },
    { key: "p", text: "pause or continue the chosen run", actions: { p: press("Pause|Continue") } },
    {
      key: "1 … 4",
      text: "curves, FVU against k, sample, features",
      actions: Object.fromEntries(TABS.map(({ key }, at) => [String(at + 1), () => state.set("tab", key)])),
    },
    { key: "↑ ↓", text: "move among the runs" },
  ]);
}

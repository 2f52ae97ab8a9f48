/** The ranking: one line per concept with its interval and n; those that do not pass the test stand apart. */

import { liveRegion } from "../../core/a11y";
import { attr, h, listen } from "../../core/dom";
import { count, sig3 } from "../../core/format";
import { VirtualList } from "../../core/list";
import {
  axis,
  controls,
  distinct,
  interval,
  MEASURES,
  maskedText,
  named,
  nothing,
  type Panel,
  picker,
  qText,
  roundUp,
  segments,
  type View,
  whisker,
} from "./shared";
import { type Effect, type Ranking, ranked } from "./tables";

const ROW_HEIGHT = 30;

/** The lines of one ranking for the chosen group or output, one per concept. */
export function linesOf(panel: Panel, view: Pick<View, "ranking" | "group" | "output" | "given">): Effect[] {
  const side = view.ranking === "reliance" ? view.output : view.group;
  const given = view.ranking === "conditional" ? view.given : -1;
  return panel.report.effects(view.ranking).filter((one) => one.side === side && one.given === given);
}

export function listPanel(root: HTMLElement, panel: Panel): () => void {
  const { report, state } = panel;
  const sides = (ranking: Ranking) => distinct(report.effects(ranking).map(({ side }) => side));
  const search = h("input", {
    type: "search",
    class: "nbs-search",
    placeholder: "Concept  /",
    "aria-label": "Search concepts by name",
    spellcheck: "false",
    autocomplete: "off",
  });
  const rankings = segments(
    "Rank by",
    (Object.keys(MEASURES) as Ranking[]).map((key) => {
      const empty = report.effects(key).length === 0;
      const title = empty ? "the report does not hold it" : MEASURES[key].title;
      return { key, text: MEASURES[key].label, title, disabled: empty };
    }),
    (key) => state.set("ranking", key),
  );
  const groups = picker("Group", sides("association"), report, (code) => state.set("group", code));
  const outputs = picker("Output", sides("reliance"), report, (code) => state.set("output", code));
  const given = distinct(report.effects("conditional").map((one) => one.given));
  const givens = picker("Given", given, report, (code) => state.set("given", code));
  const box = h("input", { type: "checkbox" });
  const boxLabel = h("label", { class: "nbs-check" }, box, `Only q ≤ ${report.about.q}`);
  const head = h("div", { class: "nbs-head", "aria-hidden": "true" });
  const spoken = liveRegion();
  const empty = h("p", { class: "nbs-none", hidden: true }, "No concept matches.");
  let domain = 1;
  const list = new VirtualList({
    label: "Concepts",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => drawRow(row, panel, state.get("order")[index], domain),
    choose: (index) => {
      const order = state.get("order");
      // The line between the two parts is no concept: go on in the direction of the move.
      const wanted = order[index] ?? order[index < position() ? index - 1 : index + 1];
      if (wanted) state.set("latent", report.latent[wanted.concept] as number);
      list.choose(position());
    },
  });
  const position = () => state.get("order").findIndex((one) => one?.concept === report.conceptOf(state.get("latent")));
  const filters = h("div", { class: "nbs-filters" }, groups.element, outputs.element, givens.element, boxLabel);
  root.append(
    h("div", { class: "nbs-tools" }, rankings.element, search, filters),
    head,
    list.element,
    empty,
    spoken.element,
  );

  listen(search, "input", () => state.set("text", search.value));
  listen(search, "keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      const first = state.get("order")[0] ?? state.get("order")[1];
      if (first && (event.key === "Enter" || position() < 0))
        state.set("latent", report.latent[first.concept] as number);
      list.element.focus();
    } else if (event.key === "Escape") {
      search.value = "";
      state.set("text", "");
    }
  });
  listen(box, "change", () => state.set("flaggedOnly", box.checked));

  const stops = [
    state.on(["ranking", "group", "output", "given", "text", "flaggedOnly"], () => {
      const ranking = state.get("ranking");
      const view = { ranking, group: state.get("group"), output: state.get("output"), given: state.get("given") };
      const all = linesOf(panel, view);
      // The scale is that of the ranking, not of what the search leaves: lines keep their places.
      const ends = all.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]).filter(Number.isFinite);
      domain = roundUp(Math.max(0, ...ends));
      const text = state.get("text").trim().toLowerCase();
      const { flagged, others } = ranked(all.filter(({ concept }) => matches(panel, concept, text)));
      const apart = state.get("flaggedOnly") ? [] : others;
      state.set("order", apart.length ? [...flagged, undefined, ...apart] : flagged);
      list.reset(state.get("order").length, position());
      list.element.hidden = flagged.length + apart.length === 0;
      empty.hidden = !list.element.hidden;
      rankings.mark(ranking);
      groups.show(view.group, ranking !== "reliance");
      outputs.show(view.output, ranking === "reliance");
      givens.show(view.given, ranking === "conditional");
      drawHead(head, ranking, domain);
      spoken.say(said(panel, flagged.length, all.length));
    }),
    state.on(["latent"], () => list.choose(position())),
  ];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function said({ report }: Panel, flagged: number, all: number): string {
  const { concepts, q } = report.about;
  const missing = concepts > report.length ? `; ${count(report.length)} of ${count(concepts)} are in this view` : "";
  return `${count(flagged)} of ${count(all)} pass q ≤ ${q}${missing}`;
}

function matches({ report }: Panel, concept: number, text: string): boolean {
  return !text || (report.names[concept] ?? "").toLowerCase().includes(text) || `#${report.latent[concept]}` === text;
}

function drawHead(head: HTMLElement, ranking: Ranking, domain: number): void {
  const range = h("span", { class: "nbs-line" });
  for (const end of [-domain, domain]) range.append(h("span", {}, axis(end)));
  head.replaceChildren(
    h("span", {}, "Concept"),
    range,
    h("span", { class: "nbs-col-max", title: MEASURES[ranking].title }, "effect"),
    h("span", { class: "nbs-col-max" }, "n"),
  );
}

function drawRow(row: HTMLElement, panel: Panel, one: Effect | undefined, domain: number): void {
  const { report, state } = panel;
  if (!one) {
    row.className = "nbs-row nbs-apart";
    attr(row, "role", "presentation");
    for (const name of ["selected", "setsize", "posinset"]) row.removeAttribute(`aria-${name}`);
    row.append(h("span", {}, `Not distinguishable from ${nothing(state.get("ranking"))} (q > ${report.about.q})`));
    return;
  }
  const name = report.names[one.concept] ?? "";
  const number = { value: one.effect, low: one.low, high: one.high };
  const band = state.get("ranking") === "reliance" ? controls(one) : undefined;
  row.classList.toggle("nbs-quiet", !one.flagged);
  if (one.masked) {
    row.title = `${name}, ${maskedText(report)}`;
    row.append(
      h("span", { class: "nbs-col-name" }, named(name)),
      h("span", { class: "nbs-masked" }, maskedText(report)),
    );
    return;
  }
  const verdict = one.flagged
    ? `passes q ≤ ${report.about.q}`
    : `not distinguishable from ${nothing(state.get("ranking"))}`;
  row.title = `${name}, effect ${interval(number)}, n = ${count(one.n)}, q = ${qText(one.q)}, ${verdict}`;
  row.append(
    h("span", { class: "nbs-col-name" }, named(name)),
    whisker(number, [-domain, domain], { hollow: !one.flagged, band, at: 0 }),
    h("span", { class: "nbs-col-max" }, sig3(one.effect)),
    h("span", { class: "nbs-col-max nbs-key" }, count(one.n)),
  );
}

/** The card of the chosen concept: between groups, what the classifier leans on, errors by level, images. */

import { h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { count, percent, sig3 } from "../../core/format";
import { curvePanel } from "./curve";
import { errorTable } from "./errors";
import { histograms } from "./histograms";
import {
  axis,
  distinct,
  interval,
  maskedText,
  named,
  none,
  nothing,
  numberButton,
  type Panel,
  qText,
  roundUp,
  section,
  tableOf,
  whisker,
} from "./shared";
import { askMissing, type Strip, strip } from "./strip";
import type { Details, Effect } from "./tables";

const BUSY_WORDS_MS = 2_000;

export function cardPanel(root: HTMLElement, panel: Panel): () => void {
  const { report, state, source } = panel;
  const head = h("header", { class: "nbs-title" });
  const groups = section("Between the groups");
  const rest = h("div");
  root.append(head, groups.element, rest);
  let stops: (() => void)[] = [];
  let turn = 0;
  const clear = () => {
    for (const stop of stops) stop();
    stops = [];
  };
  const concept = () => report.conceptOf(state.get("latent"));

  const draw = (details: Details) => {
    clear();
    const mine = concept();
    const levels = details.levels(mine);
    const examples = details.examples(mine);
    const reliance = section("Reliance of the classifier");
    stops.push(curvePanel(reliance.body, panel, mine, details));
    const images = section("Strongest inputs of each group");
    const lines: Strip[] = [];
    for (const code of distinct(examples.map(({ group }) => group))) {
      const of = examples.filter(({ group }) => group === code).map(({ input, act }) => ({ input, said: sig3(act) }));
      const line = strip(panel, of, `Inputs of ${report.label(code)}`);
      images.body.append(h("p", { class: "nbs-note" }, named(report.label(code))), line.element);
      stops.push(line.stop);
      lines.push(line);
    }
    const unseen = examples.filter(({ input }) => !source.inputs.get(input).url && !source.inputs.get(input).text);
    if (unseen.length && state.get("kernel") === "none" && report.about.pictures) {
      const { thumbs, inputs } = report.about;
      images.body.append(none(`Pictures of ${count(thumbs)} of ${count(inputs)} inputs are inside this saved view.`));
    }
    if (!examples.length) images.body.append(none("The report holds no examples of this concept."));
    stops.push(
      askMissing(
        panel,
        examples.map(({ input }) => input),
        () => {
          for (const one of lines) one.fill();
        },
      ),
    );
    const shapes = histograms(report, details.histograms(mine));
    const errors = section("Errors where the concept is on and off");
    errors.body.append(
      levels.length ? errorTable(panel, levels, mine) : none("The report holds no errors by level of this concept."),
    );
    rest.replaceChildren(
      ...[shapes, reliance.element, images.element, errors.element].filter((one) => one !== undefined),
    );
  };
  const place = (...nodes: Node[]) => {
    clear();
    rest.replaceChildren(...nodes);
  };
  const ask = async (quiet: boolean) => {
    const mine = turn;
    const words = h("p", { class: "nbs-waiting", role: "status" }, "Asking the kernel …");
    const busy = setTimeout(() => {
      words.textContent = "A cell is running; the kernel will answer after it.";
    }, BUSY_WORDS_MS);
    if (!quiet) place(h("div", { "aria-busy": "true" }, words, ghost(), ghost()));
    try {
      const details = await source.ask(concept());
      if (mine === turn) draw(details);
    } catch (error) {
      // What is saved stays: the kernel could only have added to it.
      if (mine !== turn || quiet) return;
      const failed = errorCard("This concept's curves and examples could not be loaded.", error);
      const again = h("button", { type: "button", class: "nbs-button" }, "Try again");
      listen(again, "click", () => void ask(false));
      failed.append(again);
      place(failed);
    } finally {
      clearTimeout(busy);
    }
  };
  const show = () => {
    turn += 1;
    const mine = concept();
    drawHead(head, panel, mine);
    groups.body.replaceChildren(groupTable(panel, mine));
    const known = source.known(mine);
    if (known) {
      draw(known);
      const whole = known !== source.saved || report.about.images === null;
      if (!whole && state.get("kernel") === "live") void ask(true);
    } else if (state.get("kernel") === "none") place(notSaved(panel, mine));
    else void ask(false);
  };
  const stopLatent = state.on(["latent"], show);
  let kernel = state.get("kernel");
  const stopKernel = state.on(["kernel"], () => {
    const before = kernel;
    kernel = state.get("kernel");
    if (before !== kernel && !source.known(concept())) show();
  });
  const stopHead = state.on(["ranking", "group", "output", "given"], () => drawHead(head, panel, concept()));
  return () => {
    turn += 1;
    stopLatent();
    stopKernel();
    stopHead();
    clear();
  };
}

function ghost(): HTMLElement {
  return h("div", { class: "nbs-ghost nbs-section" });
}

/** The number by which the list is ranked, and all that belongs to it. */
function drawHead(head: HTMLElement, { report, state }: Panel, concept: number): void {
  const ranking = state.get("ranking");
  const side = ranking === "reliance" ? state.get("output") : state.get("group");
  const given = ranking === "conditional" ? state.get("given") : -1;
  const one = report
    .effects(ranking)
    .find((line) => line.concept === concept && line.side === side && line.given === given);
  const name = report.names[concept] ?? "";
  const number = `latent ${report.latent[concept]}`;
  const title = h("h3", {}, named(name));
  if (name !== number) title.append(" ", h("span", { class: "nbs-badge" }, number));
  head.replaceChildren(title);
  if (!one) return;
  const of = ranking === "reliance" ? `p(${report.label(side)})` : `${report.label(side)} against the others`;
  if (one.masked) {
    head.append(h("p", { class: "nbs-masked" }, `${maskedText(report)} — `, named(of)));
    return;
  }
  const verdict = one.flagged
    ? `passes q ≤ ${report.about.q}`
    : `not distinguishable from ${nothing(ranking)} at q ≤ ${report.about.q}`;
  const condition = given >= 0 ? `, given ${report.label(given)}` : "";
  head.append(
    h(
      "div",
      { class: "nbs-facts" },
      fact(
        ranking === "reliance" ? "Reliance" : "Effect",
        sig3(one.effect),
        `95 % ${sig3(one.low)} … ${sig3(one.high)}`,
      ),
      fact("n", count(one.n), one.n_rest ? `against ${count(one.n_rest)}` : "rows"),
      fact("q-value", qText(one.q), verdict),
    ),
    h("p", { class: "nbs-note" }, named(`${MEASURE_OF[ranking]}: ${of}${condition}`)),
  );
}

const MEASURE_OF = {
  association: "Rank-biserial difference",
  conditional: "Rank-biserial difference",
  reliance: "Change when the concept is set",
};

function fact(term: string, number: string, unit: string): HTMLElement {
  return h("div", {}, h("span", {}, term), h("b", {}, number), h("span", {}, unit));
}

/** Every group, alone and within strata of other attributes: a concept that only rides on another shows here. */
function groupTable(panel: Panel, concept: number): HTMLElement {
  const { report, state, source } = panel;
  const mine = (lines: Effect[]) => lines.filter((one) => one.concept === concept);
  const alone = mine(report.effects("association"));
  const within = mine(report.effects("conditional"));
  const lines = alone.flatMap((one) => [one, ...within.filter(({ side }) => side === one.side)]);
  if (!lines.length) return none("The report holds no association of this concept.");
  const ends = lines.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]).filter(Number.isFinite);
  const domain = roundUp(Math.max(0, ...ends));
  const density = (one: Effect, name: string) => {
    const share = one.table.numbers(name)[one.row] ?? Number.NaN;
    return Number.isNaN(share) ? "–" : percent(share);
  };
  const open = (one: Effect) => {
    const examples = source.known(concept)?.examples(concept) ?? [];
    const codes = distinct(examples.map(({ group }) => group)).sort(
      (a, b) => Number(b === one.side) - Number(a === one.side),
    );
    state.set("behind", {
      title: `${report.names[concept]}: strongest inputs, ${report.label(one.side)} first`,
      strips: codes.map((code) => ({
        name: report.label(code),
        inputs: examples.filter(({ group }) => group === code).map(({ input, act }) => ({ input, said: sig3(act) })),
      })),
    });
  };
  const cells = lines.map((one) => {
    const name =
      one.given < 0
        ? named(report.label(one.side))
        : h("span", { class: "nbs-given" }, "↳ given ", named(report.label(one.given)));
    if (one.masked) return [name, h("span", { class: "nbs-masked" }, maskedText(report)), "", "", "", ""];
    const number = { value: one.effect, low: one.low, high: one.high };
    return [
      name,
      whisker(number, [-domain, domain], { hollow: !one.flagged, at: 0 }),
      numberButton(interval(number), "Show the inputs behind this number", () => open(one)),
      qText(one.q),
      `${count(one.n)} / ${count(one.n_rest)}`,
      `${density(one, "density")} / ${density(one, "density_rest")}`,
    ];
  });
  const head = ["Group", `−${axis(domain)} … ${axis(domain)}`, "Effect [95 %]", "q", "n / others", "Active / others"];
  return tableOf("Effect of the concept in every group", head, cells);
}

function notSaved({ report }: Panel, concept: number): HTMLElement {
  const { saved } = report.about;
  return h(
    "div",
    { class: "nbs-message" },
    h("strong", {}, named(`The curves and examples of “${report.names[concept]}” are not inside this saved view.`)),
    h(
      "p",
      {},
      `The ranking holds ${count(report.length)} concepts; the details of the ${count(saved)} that are flagged most clearly are inside. No kernel answers here: run the notebook again to see the rest.`,
    ),
  );
}

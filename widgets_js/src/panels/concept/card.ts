/** The card of the chosen concept: what it is called, how sure that is, and the inputs on which it is strongest. */

import { roving } from "../../core/a11y";
import { bdi, h } from "../../core/dom";
import { percent, sig3, visible } from "../../core/format";
import type { Panel } from "./shared";
import { tile } from "./tiles";

export function cardPanel(root: HTMLElement, panel: Panel): () => void {
  const { concepts, source, state } = panel;
  let clear = () => {};
  const draw = () => {
    clear();
    clear = () => {};
    root.replaceChildren();
    const latent = state.get("latent");
    const row = concepts.rowOf(latent);
    if (row < 0) {
      root.append(h("p", { class: "nbs-message" }, "No concept is chosen. Choose one in the list."));
      return;
    }
    root.append(title(panel, row), facts(panel, row), others(panel, row));
    const card = source.cards.card(latent);
    const top = card?.examples.filter(({ interval }) => interval < 0) ?? [];
    if (!card || !top.length) {
      root.append(
        h("p", { class: "nbs-note" }, "Its strongest inputs are not inside this view; FeatureDashboard shows them."),
      );
      return;
    }
    const strip = h("div", { class: "nbs-strip", role: "group", "aria-label": "Strongest inputs" });
    for (const example of top) {
      strip.append(tile({ key: example.key, url: example.thumb, caption: sig3(example.act), said: "activation" }));
    }
    root.append(h("h4", {}, "Strongest inputs"), strip);
    clear = roving(strip, ".nbs-tile", () => 1);
  };
  const stop = state.on(["latent"], draw);
  return () => {
    stop();
    clear();
  };
}

function title({ concepts }: Panel, row: number): HTMLElement {
  const head = h("h3", {}, bdi(visible(concepts.name(row))), " ");
  head.append(h("span", { class: "nbs-badge" }, `latent ${concepts.latent[row]}`));
  const label = concepts.label(row);
  const word = concepts.word(row);
  if (label && word && label !== word)
    head.append(" ", h("span", { class: "nbs-badge" }, "named by hand; found: ", bdi(visible(word))));
  else if (label) head.append(" ", h("span", { class: "nbs-badge" }, "named by hand"));
  else if (!concepts.accepted[row]) head.append(" ", h("span", { class: "nbs-badge" }, "name not accepted"));
  return head;
}

function facts({ concepts }: Panel, row: number): HTMLElement {
  const auc = concepts.auc[row] ?? Number.NaN;
  const attribute = concepts.attribute(row);
  const agrees = concepts.agrees(row);
  const said = attribute
    ? `${visible(attribute)}${agrees === undefined ? "" : agrees ? ", agrees with the name" : ", another than the name"}`
    : "not checked against labels";
  const all = h(
    "div",
    { class: "nbs-facts" },
    fact("Cosine", sig3(concepts.cosine[row] ?? Number.NaN), "to the word"),
    fact("Margin", sig3(concepts.margin[row] ?? Number.NaN), "over the second"),
    fact("Density", percent(concepts.density[row] ?? Number.NaN), "of the rows"),
    fact("Data AUC", sig3(auc), said),
  );
  return all;
}

function fact(term: string, value: string, unit: string): HTMLElement {
  return h("div", {}, h("span", {}, term), h("b", {}, value), h("span", {}, unit));
}

function others({ concepts }: Panel, row: number): HTMLElement {
  const line = h("p", { class: "nbs-note" });
  const next = concepts.runnerUps(row);
  line.append(next.length ? "Next words: " : "No other word was compared.");
  for (const [place, { word, cosine }] of next.entries()) {
    if (place) line.append(", ");
    line.append(bdi(visible(word)), ` ${sig3(cosine)}`);
  }
  const comment = concepts.comment(row);
  if (comment) line.append(h("br"), "Comment: ", bdi(visible(comment)));
  return line;
}

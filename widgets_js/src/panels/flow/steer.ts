/** Steering the chosen chain: what the model gives before and after, beside a control. */

import { h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { sig3, visible } from "../../core/format";
import { note, type Panel, type Steered, segments } from "./shared";
import { placeOf } from "./tables";

const SIDES: [string, string][] = [
  ["before", "Before"],
  ["after", "After"],
  ["control", "Control"],
];
const MEANS: Record<string, string> = {
  single: "This latent alone",
  cumulative: "This latent and those before it on its chain",
};
const STRENGTH = 6;
const BUSY_WORDS_MS = 2_000;

export function steerPanel(root: HTMLElement, { flow, source, state }: Panel): () => void {
  if (!flow.about.steer) {
    root.append(
      note(
        "Nothing to steer with: give ",
        h("code", {}, "steer=lambda site, latent, strength, mode: ns.chain_effect(…, add=strength, mode=mode)"),
        ", or a callable that gives {'before': …, 'after': …, 'control': …}.",
      ),
    );
    return () => {};
  }
  let mode = flow.about.modes[0] ?? "single";
  let turn = 0;
  const modes = segments(
    "How to steer",
    flow.about.modes.map((key) => ({ key, text: key, title: MEANS[key] ?? key })),
    (key) => {
      mode = key;
      modes.mark([mode]);
    },
  );
  modes.mark([mode]);
  const strength = h("input", { type: "number", step: "any", value: STRENGTH, "aria-label": "Strength" });
  const go = h("button", { type: "button", class: "nbs-button" }, "Steer");
  const status = h("p", { class: "nbs-note", role: "status", "aria-live": "polite" });
  const result = h("div");
  root.append(
    h("div", { class: "nbs-controls" }, h("label", { class: "nbs-check" }, "Strength", strength), modes.element, go),
    status,
    result,
  );

  const run = async () => {
    const value = Number(strength.value);
    const key = state.get("chosen");
    turn += 1;
    const mine = turn;
    if (!strength.value || !Number.isFinite(value)) {
      status.textContent = "The strength is no number.";
      return;
    }
    go.disabled = true;
    status.textContent = "Steering …";
    const later = setTimeout(() => {
      status.textContent = "Steering: the model runs, or another cell does.";
    }, BUSY_WORDS_MS);
    try {
      const steered = await source.steer(key, value, mode);
      if (mine !== turn) return;
      const { site } = placeOf(key);
      const by = `by ${sig3(value)}, ${mode}`;
      status.textContent = `${flow.title(key)}, ${flow.where(site)}, ${by}. ${visible(steered.note)}`;
      result.replaceChildren(...drawn(steered));
    } catch (error) {
      if (mine !== turn) return;
      status.textContent = "";
      result.replaceChildren(errorCard("The chain could not be steered.", error));
    } finally {
      clearTimeout(later);
      go.disabled = state.get("kernel") === "none";
    }
  };
  listen(go, "click", () => void run());
  listen(strength, "keydown", (event) => event.key === "Enter" && !go.disabled && void run());
  const stops = [
    state.on(["kernel"], () => {
      const alone = state.get("kernel") === "none";
      go.disabled = strength.disabled = alone;
      if (alone) status.textContent = "Steering runs the model: it needs a running kernel.";
      else if (!result.childElementCount) status.textContent = "Steers the chosen latent, in its own activation units.";
    }),
    state.on(["chosen"], () => {
      const card = source.card(state.get("chosen"));
      if (card) strength.value = String(Number(card.scale.toPrecision(2)));
    }),
  ];
  return () => {
    turn += 1;
    for (const stop of stops) stop();
  };
}

function drawn({ sides, metrics }: Steered): HTMLElement[] {
  const given = SIDES.filter(([side]) => sides.some((one) => one.side === side));
  const columns = h("div", { class: "nbs-filters" });
  for (const [side, title] of given) {
    const body = h("div", { class: "nbs-side" }, h("h4", {}, title));
    for (const { text, url } of sides.filter((one) => one.side === side)) {
      body.append(url ? h("img", { src: url, alt: title, decoding: "async" }) : h("p", { dir: "auto" }, visible(text)));
    }
    columns.append(body);
  }
  if (!given.some(([side]) => side === "control")) {
    columns.append(note("No control was given: without one, an effect of steering cannot be told from any push."));
  }
  return metrics.length ? [columns, table(metrics)] : [columns];
}

function table(metrics: Steered["metrics"]): HTMLElement {
  const head = h("tr", {}, h("th", { scope: "col" }, "Measure"));
  for (const [, title] of SIDES) head.append(h("th", { scope: "col" }, title));
  const body = h("tbody");
  for (const one of metrics) {
    const line = h("tr", {}, h("th", { scope: "row" }, visible(one.name)));
    for (const value of [one.before, one.after, one.control]) line.append(h("td", {}, sig3(value)));
    body.append(line);
  }
  return h("table", {}, h("thead", {}, head), body);
}

/** Edit concepts of one input: what it then retrieves, and what the model then says of it. */

import { freshId, roving } from "../../core/a11y";
import { attr, bdi, h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { sig3, visible } from "../../core/format";
import type { Panel } from "./shared";
import type { Answer, Hit, Query } from "./tables";
import { tile } from "./tiles";

const QUIET_MS = 120; // a moving slider asks the kernel at most this often
const SLIDER_STEPS = 40;

export function editorPanel(root: HTMLElement, panel: Panel): () => void {
  const { about, source, state } = panel;
  if (!about.edits) {
    root.append(
      h(
        "p",
        { class: "nbs-note" },
        "Nothing to edit with: give ",
        h("code", {}, "editor=ns.ConceptEditor(dictionary, store, clip, …)"),
        " to move concepts of an input.",
      ),
    );
    return () => {};
  }
  const chooser = h("div", { class: "nbs-strip nbs-choose", role: "radiogroup", "aria-label": "Input to edit" });
  const sliders = h("div", { class: "nbs-sliders" });
  const result = h("div", { class: "nbs-result" });
  const status = h("p", { class: "nbs-note", role: "status", "aria-live": "polite" });
  root.append(h("h4", {}, "Edit an input"), chooser, sliders, status, result);
  const shown = [...(source.saved?.queries ?? [])];
  let clear = () => {};
  let turn = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const drawChooser = () => {
    chooser.replaceChildren();
    for (const query of shown) chooser.append(choice(panel, query));
    if (state.get("kernel") === "live") {
      const more = h("button", { type: "button", class: "nbs-button" }, "Another input");
      listen(more, "click", () => void another());
      chooser.append(more);
    }
  };
  const another = async () => {
    status.textContent = "Asking the kernel …";
    try {
      const query = await source.another();
      shown.push(query);
      drawChooser();
      state.set("set", new Map());
      state.set("query", query);
      status.textContent = "";
    } catch (error) {
      status.replaceChildren(errorCard("The kernel gave no other input.", error));
    }
  };

  const answer = async () => {
    const query = state.get("query");
    const set = state.get("set");
    turn += 1;
    const mine = turn;
    if (!query) return;
    if (!set.size) return show(query, undefined);
    try {
      const after = await source.edit(query, set);
      if (mine !== turn) return;
      if (after) show(query, after);
      else
        status.textContent =
          "This edit is not inside the saved view, and no kernel answers: move one concept at a time.";
    } catch (error) {
      if (mine === turn) status.replaceChildren(errorCard("The edit could not be computed.", error));
    }
  };
  const show = (query: Query, after: Answer | undefined) => {
    status.textContent = after
      ? `Cosine of the edited embedding to the original: ${sig3(after.cosine)}.`
      : "Move a slider: 0 takes the concept out, the right end is its 99th percentile.";
    clear();
    result.replaceChildren(bars(panel, query.before, after), ...strips(query.before, after));
    const stops = [...result.querySelectorAll<HTMLElement>(".nbs-strip")].map((strip) => roving(strip, ".nbs-tile"));
    clear = () => {
      for (const stop of stops) stop();
    };
  };

  const stops = [
    state.on(["kernel"], drawChooser),
    state.on(["query"], () => {
      for (const one of chooser.querySelectorAll<HTMLElement>("[role=radio]")) {
        const chosen = one.dataset.row === String(state.get("query")?.row);
        attr(one, "aria-checked", chosen);
        one.tabIndex = chosen ? 0 : -1;
      }
    }),
    state.on(["query", "latent", "kernel"], () => drawSliders(sliders, panel)),
    state.on(["query", "set"], () => {
      clearTimeout(timer);
      timer = setTimeout(() => void answer(), state.get("set").size && state.get("kernel") === "live" ? QUIET_MS : 0);
    }),
  ];
  if (!state.get("query") && shown[0]) state.set("query", shown[0]);
  return () => {
    turn += 1;
    clearTimeout(timer);
    for (const stop of stops) stop();
    clear();
  };
}

function choice({ state }: Panel, query: Query): HTMLElement {
  const button = tile({ key: query.key, url: query.url, caption: "", said: "" });
  attr(button, "role", "radio");
  attr(button, "aria-label", visible(query.key));
  attr(button, "aria-checked", state.get("query")?.row === query.row);
  button.dataset.row = String(query.row);
  button.tabIndex = 0;
  const choose = () => {
    state.set("set", new Map());
    state.set("query", query);
  };
  listen(button, "click", choose);
  listen(button, "keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose();
      return;
    }
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const all = [...(button.parentElement?.querySelectorAll<HTMLElement>("[role=radio]") ?? [])];
    const next = all[all.indexOf(button) + step];
    next?.click();
    next?.focus();
  });
  return button;
}

/** One slider for the chosen concept, and one for every concept that is moved already. */
function drawSliders(root: HTMLElement, panel: Panel): void {
  const { concepts, state } = panel;
  const latents = [...new Set([...state.get("set").keys(), state.get("latent")])];
  root.replaceChildren();
  for (const latent of latents) {
    if (concepts.rowOf(latent) >= 0) root.append(slider(panel, latent));
  }
  const reset = h("button", { type: "button", class: "nbs-button" }, "Reset");
  listen(reset, "click", () => {
    state.set("set", new Map());
    drawSliders(root, panel);
  });
  root.append(reset);
}

function slider(panel: Panel, latent: number): HTMLElement {
  const { concepts, source, state } = panel;
  const row = concepts.rowOf(latent);
  const steps = source.saved?.steps(latent) ?? [];
  const live = state.get("kernel") === "live";
  const high = concepts.high[row] ?? 1;
  const own = state.get("query")?.active.find((one) => one.latent === latent)?.act ?? 0;
  const id = freshId("slider");
  const input = h("input", {
    type: "range",
    id,
    min: 0,
    max: live ? SLIDER_STEPS : Math.max(0, steps.length - 1),
    step: 1,
  });
  const chosen = () => (live ? (Number(input.value) / SLIDER_STEPS) * high : (steps[Number(input.value)] ?? 0));
  const set = state.get("set").get(latent);
  const at = set ?? own;
  input.value = String(live ? Math.round((Math.min(at, high) / high) * SLIDER_STEPS) : nearest(steps, at));
  input.disabled = !live && steps.length === 0;
  const said = h("span", {}, set === undefined ? `${sig3(own)} as it is` : sig3(set));
  attr(input, "aria-valuetext", said.textContent ?? "");
  listen(input, "input", () => {
    const value = chosen();
    said.textContent = sig3(value);
    attr(input, "aria-valuetext", sig3(value));
    // A saved view holds the edits of one concept at a time.
    const next = live ? new Map(state.get("set")) : new Map<number, number>();
    next.set(latent, value);
    state.set("set", next);
  });
  const name = h("label", { for: id }, bdi(visible(concepts.name(row))));
  const line = h("div", { class: "nbs-slider" }, name, input, said);
  if (input.disabled) line.append(h("span", { class: "nbs-status" }, "not in the saved view"));
  return line;
}

function nearest(steps: number[], value: number): number {
  let best = 0;
  for (const [place, step] of steps.entries()) {
    if (Math.abs(step - value) < Math.abs((steps[best] ?? 0) - value)) best = place;
  }
  return best;
}

/** Two strips: what the input finds, and what the edited one finds; what is new or lost says so in words. */
function strips(before: Answer, after: Answer | undefined): HTMLElement[] {
  const kept = new Set(after?.hits.map(({ input }) => input));
  const had = new Set(before.hits.map(({ input }) => input));
  const strip = (title: string, hits: Hit[], mark: (hit: Hit) => "new" | "lost" | undefined) => {
    const line = h("div", { class: "nbs-strip", role: "group", "aria-label": title });
    for (const hit of hits) {
      line.append(tile({ key: hit.key, url: hit.url, caption: sig3(hit.score), said: "cosine", mark: mark(hit) }));
    }
    return h("section", { class: "nbs-section" }, h("h4", {}, title), line);
  };
  const first = strip("Nearest as it is", before.hits, ({ input }) => (after && !kept.has(input) ? "lost" : undefined));
  if (!after) return [first];
  const gained = after.hits.filter(({ input }) => !had.has(input)).length;
  const second = strip(`Nearest after the edit: ${gained} of ${after.hits.length} new`, after.hits, ({ input }) =>
    had.has(input) ? undefined : "new",
  );
  return [first, second];
}

/** Zero-shot probabilities before and after, as a table whose cells hold bars. */
function bars({ about }: Panel, before: Answer, after: Answer | undefined): HTMLElement {
  const table = h("table", { class: "nbs-bars" });
  if (!about.prompts.length) return table;
  const header = h("tr", {}, h("th", { scope: "col" }, "Prompt"), h("th", { scope: "col" }, "As it is"));
  if (after) header.append(h("th", { scope: "col" }, "Edited"), h("th", { scope: "col" }, "Change"));
  table.append(h("caption", {}, "Zero-shot probability"), h("thead", {}, header));
  const body = h("tbody");
  for (const [number, prompt] of about.prompts.entries()) {
    const [was, now] = [before.probabilities[number] ?? Number.NaN, after?.probabilities[number] ?? Number.NaN];
    const line = h("tr", {}, h("th", { scope: "row" }, bdi(visible(prompt))), bar(was));
    if (after) line.append(bar(now), h("td", {}, `${now > was ? "+" : ""}${sig3(now - was)}`));
    body.append(line);
  }
  table.append(body);
  return table;
}

function bar(value: number): HTMLElement {
  const fill = h("i", { class: "nbs-bar" });
  fill.style.setProperty("--share", String(Number.isNaN(value) ? 0 : value));
  return h("td", {}, fill, h("span", {}, sig3(value)));
}

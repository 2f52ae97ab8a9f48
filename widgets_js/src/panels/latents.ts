/** The list of all latents: sorted, searched, and drawn only where it is seen. */

import { liveRegion } from "../core/a11y";
import { attr, bdi, h, listen } from "../core/dom";
import { count, percent, sig3, visible } from "../core/format";
import { VirtualList } from "../core/list";
import type { Panel, SortKey, View } from "./shared";
import type { Latents } from "./tables";

const ROW_HEIGHT = 30;
const BAR_FLOOR = -5; // densities below 1e-5 draw no bar

const COLUMNS: { key: SortKey; label: string; title: string }[] = [
  { key: "latent", label: "#", title: "number" },
  { key: "name", label: "Name", title: "name" },
  { key: "level", label: "Level", title: "level" },
  { key: "density", label: "Density", title: "density: the share of rows on which it is active" },
  { key: "max", label: "Max", title: "largest activation" },
];

/** Latents that `view` lets through, in its order. */
export function ordered(
  latents: Latents,
  view: Pick<View, "query" | "sort" | "descending" | "showDead" | "savedOnly">,
  isSaved: (latent: number) => boolean,
): Uint32Array {
  const query = view.query.trim().toLowerCase().replace(/^#/, "");
  const found: number[] = [];
  for (let latent = 0; latent < latents.length; latent += 1) {
    if (!view.showDead && latents.dead[latent]) continue;
    if (view.savedOnly && !isSaved(latent)) continue;
    if (query && !matches(latents, latent, query)) continue;
    found.push(latent);
  }
  const sign = view.descending ? -1 : 1;
  if (view.sort === "name") {
    const name = (latent: number) => latents.name(latent) ?? "\uffff";
    const collator = new Intl.Collator();
    found.sort((a, b) => sign * collator.compare(name(a), name(b)) || a - b);
  } else if (view.sort !== "latent") {
    const column = latents[view.sort];
    found.sort((a, b) => sign * ((column[a] as number) - (column[b] as number)) || a - b);
  } else if (view.descending) found.reverse();
  return Uint32Array.from(found);
}

function matches(latents: Latents, latent: number, query: string): boolean {
  return String(latent).startsWith(query) || (latents.name(latent)?.toLowerCase().includes(query) ?? false);
}

export function latentsPanel(root: HTMLElement, panel: Panel): () => void {
  const { latents, state, source } = panel;
  const dead = [...latents.dead].filter((one) => one > 0).length;
  const search = h("input", {
    type: "search",
    class: "nbs-search",
    spellcheck: "false",
    autocomplete: "off",
  });
  const deadBox = checkbox(`Show ${count(dead)} dead`);
  const savedBox = checkbox(`Only the ${count(source.savedCount)} saved`);
  const header = h("div", { class: "nbs-head", role: "group", "aria-label": "Sort by" });
  const spoken = liveRegion();
  const empty = h("p", { class: "nbs-none", hidden: true }, "No latent matches.");
  const list = new VirtualList({
    label: "Latents",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => drawRow(row, panel, state.get("order")[index] as number),
    choose: (index) => state.set("latent", state.get("order")[index] as number),
  });
  const buttons = headerButtons(header, panel);
  root.append(
    h("div", { class: "nbs-tools" }, search, h("div", { class: "nbs-filters" }, deadBox.label, savedBox.label)),
    header,
    list.element,
    empty,
    spoken.element,
  );
  deadBox.label.hidden = dead === 0;

  listen(search, "input", () => state.set("query", search.value));
  listen(search, "keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      const first = state.get("order")[0];
      if (first !== undefined && (event.key === "Enter" || position() < 0)) state.set("latent", first);
      list.element.focus();
    } else if (event.key === "Escape") {
      search.value = "";
      state.set("query", "");
    }
  });
  listen(deadBox.input, "change", () => state.set("showDead", deadBox.input.checked));
  listen(savedBox.input, "change", () => state.set("savedOnly", savedBox.input.checked));

  const position = () => Array.prototype.indexOf.call(state.get("order"), state.get("latent"));
  const stops = [
    state.on(["notes"], () => {
      const named = latents.named;
      root.classList.toggle("nbs-named", named);
      for (const { key, button } of buttons) button.hidden = key === "name" && !named;
      search.placeholder = named ? "Number or name  /" : "Number  /";
      attr(search, "aria-label", `Search latents by number${named ? " or name" : ""}`);
    }),
    state.on(["query", "sort", "descending", "showDead", "savedOnly", "notes"], () => {
      const order = ordered(latents, pick(state), source.isSaved);
      state.set("order", order);
      list.reset(order.length, position());
      empty.hidden = order.length > 0;
      list.element.hidden = order.length === 0;
      for (const { key, button, arrow } of buttons) {
        const active = key === state.get("sort");
        attr(button, "aria-pressed", active);
        arrow.textContent = active ? (state.get("descending") ? " ↓" : " ↑") : "";
      }
      spoken.say(`${count(order.length)} of ${count(latents.length)} latents`);
    }),
    state.on(["latent"], () => list.choose(position())),
    state.on(["kernel"], () => {
      const closed = state.get("kernel") === "none" && source.savedCount < latents.length;
      root.classList.toggle("nbs-closed", closed);
      savedBox.label.hidden = !closed;
      if (!closed && savedBox.input.checked) {
        savedBox.input.checked = false;
        state.set("savedOnly", false);
      }
      list.refresh();
    }),
  ];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function pick(state: Panel["state"]) {
  return {
    query: state.get("query"),
    sort: state.get("sort"),
    descending: state.get("descending"),
    showDead: state.get("showDead"),
    savedOnly: state.get("savedOnly"),
  };
}

function checkbox(text: string) {
  const input = h("input", { type: "checkbox" });
  return { input, label: h("label", { class: "nbs-check" }, input, text) };
}

function headerButtons(header: HTMLElement, { state }: Panel) {
  return COLUMNS.map(({ key, label, title }) => {
    const arrow = h("i");
    const button = h(
      "button",
      { type: "button", class: `nbs-sort nbs-col-${key}`, title: `Sort by ${title}` },
      label,
      arrow,
    );
    listen(button, "click", () => {
      const again = state.get("sort") === key;
      // Numbers of interest are the large ones; names and numbers of latents read upwards.
      const natural = key === "density" || key === "max";
      state.set("descending", again ? !state.get("descending") : natural);
      state.set("sort", key);
    });
    header.append(button);
    return { key, button, arrow };
  });
}

function drawRow(row: HTMLElement, { latents, source }: Panel, latent: number): void {
  const density = latents.density[latent] ?? 0;
  const name = latents.name(latent);
  const dead = Boolean(latents.dead[latent]);
  row.classList.toggle("nbs-unsaved", !source.isSaved(latent));
  row.classList.toggle("nbs-dead", dead);
  const level = `level ${latents.level[latent]}`;
  const facts = dead ? "dead" : `density ${percent(density)}, largest ${sig3(latents.max[latent] ?? 0)}, ${level}`;
  // The name of a line is what it shows: a label of other words could not be spoken by who reads it.
  row.title = `Latent ${latent}${name ? `, ${visible(name)}` : ""}, ${facts}`;
  row.append(h("span", { class: "nbs-col-latent" }, String(latent)));
  if (latents.named) {
    row.append(h("span", { class: "nbs-col-name" }, name ? bdi(visible(name)) : "–"));
  }
  const bar = h("i", { class: "nbs-bar" });
  bar.style.setProperty("--share", String(barShare(density)));
  row.append(
    h("span", { class: "nbs-col-level" }, dead ? "" : `L${latents.level[latent]}`),
    h("span", { class: "nbs-col-density" }, bar, h("span", {}, dead ? "dead" : percent(density))),
    h("span", { class: "nbs-col-max" }, dead ? "" : sig3(latents.max[latent] ?? 0)),
  );
}

/** Length of the bar of a density: logarithmic, because densities spread over decades. */
export function barShare(density: number): number {
  return density > 0 ? Math.min(1, Math.max(0.02, 1 - Math.log10(density) / BAR_FLOOR)) : 0;
}

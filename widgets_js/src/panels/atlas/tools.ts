/** Above the map: search, what colours, how to draw, and zoom; below it: the legend. */

import { h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { count, percent, sig3, visible } from "../../core/format";
import { STEP, zoomBy } from "./moves";
import { WHOLE } from "./places";
import { button, choose, type Mode, type Panel } from "./shared";
import { colours } from "./tables";

const QUIET_MS = 150;
const MODES: [Mode, string, string][] = [
  ["move", "Move", "drag moves the map"],
  ["lasso", "Lasso", "drag chooses; Shift adds, Alt takes away"],
  ["box", "Box", "drag chooses; Shift adds, Alt takes away"],
];

export function toolsPanel(root: HTMLElement, panel: Panel): () => void {
  const failed = h("div");
  const stops = [search(root, panel, failed), colour(root, panel, failed), modes(root, panel), zoom(root, panel)];
  root.append(failed);
  return () => {
    for (const stop of stops) stop();
  };
}

function search(root: HTMLElement, { state, source }: Panel, failed: HTMLElement): () => void {
  const input = h("input", {
    type: "search",
    class: "nbs-search",
    placeholder: "Name or number  /",
    "aria-label": "Search latents by name or number",
    spellcheck: "false",
    autocomplete: "off",
  });
  root.append(input);
  let timer: ReturnType<typeof setTimeout> | undefined;
  let turn = 0;
  const look = async () => {
    turn += 1;
    const mine = turn;
    const text = input.value.trim();
    state.set("query", text);
    if (!text) return state.set("found", undefined);
    try {
      const { latents, cut } = await source.find(text);
      if (mine !== turn) return;
      failed.replaceChildren();
      state.set("cut", cut);
      state.set("found", latents);
    } catch (error) {
      if (mine === turn) failed.replaceChildren(errorCard("The search failed.", error));
    }
  };
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => void look(), QUIET_MS);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") input.value = "";
    else if (event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    clearTimeout(timer);
    void look().then(() => {
      const first = state.get("found")?.[0];
      if (event.key === "Enter" && first !== undefined) state.set("latent", first);
    });
  });
  return () => {
    turn += 1;
    clearTimeout(timer);
  };
}

function colour(root: HTMLElement, { atlas, state, source }: Panel, failed: HTMLElement): () => void {
  const select = h("select", { "aria-label": "Colour by" });
  for (const { key, label } of atlas.about.columns) select.append(h("option", { value: key }, label));
  select.addEventListener("change", () => state.set("colour", select.value));
  root.append(h("label", { class: "nbs-check" }, "colour", select));
  return state.on(["colour", "kernel"], () => {
    const key = atlas.column(state.get("colour")).key;
    select.value = key;
    const alone = state.get("kernel") === "none";
    for (const [at, { key }] of atlas.about.columns.entries()) {
      const option = select.options[at];
      const missing = alone && !atlas.codes(key);
      if (option) option.disabled = missing;
      if (option && missing) option.textContent = `${atlas.column(key).label} (needs a running kernel)`;
    }
    if (atlas.codes(key) || state.get("kernel") !== "live") return;
    source.column(key).then(
      () => failed.replaceChildren(),
      (error) => failed.replaceChildren(errorCard("The colours could not be loaded.", error)),
    );
  });
}

function modes(root: HTMLElement, { state }: Panel): () => void {
  const group = h("div", { class: "nbs-segments", role: "group", "aria-label": "What dragging does" });
  const buttons = MODES.map(([mode, text, title]) => {
    const one = h("button", { type: "button", title }, text);
    listen(one, "click", () => state.set("mode", mode));
    group.append(one);
    return one;
  });
  root.append(group);
  return state.on(["mode"], () => {
    for (const [at, [mode]] of MODES.entries())
      buttons[at]?.setAttribute("aria-pressed", String(state.get("mode") === mode));
  });
}

function zoom(root: HTMLElement, panel: Panel): () => void {
  const group = h("div", { class: "nbs-segments", role: "group", "aria-label": "Zoom" });
  const part = (text: string, title: string, act: () => void) => {
    // A sign is no name; "100 %" is one, and the title says the rest.
    const one = h("button", { type: "button", title, "aria-label": text.length === 1 && title }, text);
    listen(one, "click", act);
    group.append(one);
    return one;
  };
  const out = part("−", "Zoom out", () => zoomBy(panel, 1 / STEP));
  const level = part("100 %", "Whole map", () => panel.state.set("camera", WHOLE));
  part("+", "Zoom in", () => zoomBy(panel, STEP));
  root.append(group);
  return panel.state.on(["camera"], () => {
    const { zoom } = panel.state.get("camera");
    level.textContent = `${count(Math.round(zoom * 100))} %`;
    out.disabled = zoom <= 1;
  });
}

/** What the colours mean, how far the map can be trusted, and what is chosen. */
export function legendPanel(root: HTMLElement, panel: Panel): () => void {
  const { atlas, state } = panel;
  const scale = h("div", { class: "nbs-legend" });
  const trust = h("span", { class: "nbs-note" }, trusted(panel));
  const clear = button("Clear", () => choose(panel, [], "set"));
  root.append(scale, trust, clear);
  const put = (parts: (string | HTMLElement)[]) =>
    scale.replaceChildren(...parts.map((one) => (typeof one === "string" ? h("span", {}, one) : one)));
  const draw = () => {
    const column = atlas.column(state.get("colour"));
    const all = colours(column, state.get("ground"));
    const css = (code: number) => `rgb(${all[code]?.join(" ")})`;
    const ink = (background: string, wide: boolean) => {
      const box = h("i", { class: wide ? "nbs-ramp" : "nbs-swatch" });
      box.style.background = background;
      return box;
    };
    const end = (value: number) => (column.key === "density" ? percent(value) : sig3(value));
    if (column.kind === "category") {
      const few = column.categories.slice(0, 12);
      const more = few.length < column.categories.length ? [`… of ${column.categories.length}`] : [];
      put([column.label, ...few.flatMap((text, at) => [ink(css(at + 1), false), text]), ...more]);
    } else {
      const stops = Array.from({ length: 9 }, (_, at) => css(1 + Math.round((at * 254) / 8)));
      const unit = column.kind === "log" ? " (log)" : "";
      const ramp = ink(`linear-gradient(to right,${stops.join(",")})`, true);
      put([`${column.label}${unit}`, end(column.low), ramp, end(column.high)]);
    }
    clear.hidden = state.get("selected").length === 0;
  };
  return state.on(["colour", "selected", "labels", "ground"], draw);
}

function trusted({ atlas }: Panel): string {
  const { axes, layout, left_out } = atlas.about;
  const cut = left_out ? ` The ${count(left_out)} least dense of ${count(left_out + atlas.length)} are not drawn.` : "";
  if (axes.length) return `No layout was given: ${axes[1]} against ${axes[0]}. Size: density.${cut}`;
  const { kept, k } = layout;
  if (kept === undefined || k === undefined) return `Size: density.${cut}`;
  return `${visible(layout.method).toUpperCase()}: of the ${k} nearest by cosine, ${percent(kept)} are near here (by chance ${percent(layout.null ?? 0)}). Size: density.${cut}`;
}

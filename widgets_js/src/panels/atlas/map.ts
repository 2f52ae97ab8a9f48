/** The map: points on a canvas, marks above it, one Tab stop; picked by pointer or by keys, chosen with a line. */

import { h, s } from "../../core/dom";
import { type Look, type PointLayer, pointLayer } from "../../core/gl";
import { attend, type Stage } from "./moves";
import { type Fit, held, placing, type Spot, seen } from "./places";
import { type Panel, type Say, shown } from "./shared";
import { colours, type Ground, palette } from "./tables";

export function mapPanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const { atlas, state } = panel;
  const layer = pointLayer(atlas, atlas.about.draw);
  layer.element.setAttribute("role", "img");
  const svg = s("svg", { class: "nbs-over", "aria-hidden": "true" });
  const line = s("path", { class: "nbs-drawn" });
  const over = s("circle", { r: 7, class: "nbs-ring" });
  const ring = s("circle", { r: 9, class: "nbs-ring nbs-picked" });
  const name = s("text");
  svg.append(line, over, ring, name);
  const element = h("div", { class: "nbs-stage", tabindex: "0", role: "application", "aria-label": "Map of latents" });
  element.append(layer.element, svg);
  for (const [at, axis] of atlas.about.axes.entries())
    element.append(h("span", { class: at ? "nbs-axis-y" : "nbs-axis-x" }, at ? `${axis} ↑` : `${axis} →`));
  root.append(element);

  let [width, height] = [0, 0];
  let place: Fit = placing(1, 1, state.get("camera"), false);
  let hovered = -1;
  let frame = 0;
  let looked = false;

  const at = (circle: SVGElement, point: number): Spot | undefined => {
    const spot = point < 0 ? undefined : seen(atlas, place, point);
    circle.setAttribute("cx", String(spot?.[0] ?? -99));
    circle.setAttribute("cy", String(spot?.[1] ?? -99));
    return spot;
  };
  const draw = () => {
    frame = 0;
    if (!width) return;
    place = placing(width, height, state.get("camera"), atlas.about.axes.length > 0);
    if (!looked) {
      looked = true;
      state.set("ground", groundOf(element)[0]);
      layer.look(look(panel, element));
    }
    const density = Math.min(2, globalThis.devicePixelRatio || 1);
    const size = sizeOf(width * height, atlas.length, state.get("camera").zoom) * density;
    const scaled = (pair: [number, number]): [number, number] => [pair[0] * density, pair[1] * density];
    layer.draw(
      { scale: scaled(place.scale), shift: scaled(place.shift), least: 0.6 * size, most: 1.6 * size },
      Math.round(width * density),
      Math.round(height * density),
    );
    at(over, hovered);
    const latent = state.get("latent");
    const picked = at(ring, atlas.at(latent) ?? -1);
    name.textContent = picked ? short(atlas.title(latent)) : "";
    const end = picked !== undefined && picked[0] > width / 2;
    name.setAttribute("text-anchor", end ? "end" : "start");
    name.setAttribute("x", String((picked?.[0] ?? 0) + (end ? -14 : 14)));
    name.setAttribute("y", String((picked?.[1] ?? 0) + 4));
    layer.element.setAttribute("aria-label", words(panel));
  };
  const later = () => {
    frame ||= requestAnimationFrame(draw);
  };
  const again = () => {
    looked = false;
    later();
  };
  const stage: Stage = {
    element,
    place: () => place,
    hover: (point) => {
      if (hovered === point) return;
      hovered = point;
      at(over, point);
      element.classList.toggle("nbs-hit", point >= 0);
      if (point >= 0) say([short(atlas.title(atlas.latents[point] ?? -1)), ...atlas.facts(point)]);
    },
    line: (spots) => line.setAttribute("d", spots.length ? `M${spots.join("L")}Z` : ""),
  };
  attend(stage, panel);
  const stops = [
    state.on(["mode"], () => element.setAttribute("data-mode", state.get("mode"))),
    state.on(["camera", "latent"], later),
    state.on(["colour", "selected", "found", "labels"], again),
    state.on(["latent", "labels"], () => {
      const latent = state.get("latent");
      const point = atlas.at(latent);
      if (point === undefined) return say([short(atlas.title(latent)), "has no place on this map"]);
      say([short(atlas.title(latent)), ...atlas.facts(point)]);
      reveal(panel, place, point, width, height);
    }),
    watch(element, layer, again, (now) => {
      [width, height] = now;
      // At once: a frame later the host would have painted the empty canvas.
      cancelAnimationFrame(frame);
      draw();
    }),
  ];
  return () => {
    cancelAnimationFrame(frame);
    for (const stop of stops) stop();
    layer.dispose();
  };
}

/** Diameter of a point in CSS pixels: a tenth of the room where there are few, small where there are many. */
function sizeOf(area: number, count: number, zoom: number): number {
  return Math.min(16, Math.max(2, Math.sqrt((area * 0.1) / Math.max(1, count))) * zoom ** 0.5);
}

function short(text: string): string {
  return text.length > 42 ? `${text.slice(0, 40)} …` : text;
}

function look(panel: Panel, element: HTMLElement): Look {
  const { atlas, state } = panel;
  const some = shown(panel);
  let faded: Uint8Array | undefined;
  if (some) {
    faded = new Uint8Array(atlas.length).fill(1);
    for (const latent of some) {
      const at = atlas.at(latent);
      if (at !== undefined) faded[at] = 0;
    }
  }
  const [ground, rgb] = groundOf(element);
  const column = atlas.column(state.get("colour"));
  const blank = new Uint8Array(atlas.length);
  return {
    code: atlas.codes(column.key) ?? blank,
    size: atlas.codes("density") ?? blank,
    faded,
    palette: palette(colours(column, ground), rgb),
  };
}

/** Light or dark, as an element with a ground of its own is painted. */
function groundOf(element: HTMLElement): [Ground, [number, number, number]] {
  const said = getComputedStyle(element).backgroundColor;
  const parts = (said.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
  const [r = 255, g = 255, b = 255] = said.startsWith("color(") ? parts.map((part) => part * 255) : parts;
  return [0.2126 * r + 0.7152 * g + 0.0722 * b > 127 ? "light" : "dark", [r, g, b]];
}

function words(panel: Panel): string {
  const { atlas, state } = panel;
  const some = shown(panel);
  const stands = some ? `; ${some.length} stand out` : "";
  return `${atlas.described(state.get("colour"))}${stands}; picked: ${atlas.title(state.get("latent"))}`;
}

/** Move the map where the picked point lies outside the view. */
function reveal({ atlas, state }: Panel, place: Fit, point: number, width: number, height: number): void {
  const [x, y] = seen(atlas, place, point);
  if (!width || (x >= 0 && y >= 0 && x <= width && y <= height)) return;
  const share = (all: Uint16Array) => (all[point] ?? 0) / 65_535;
  state.set("camera", held({ ...state.get("camera"), x: share(atlas.x), y: share(atlas.y) }));
}

/** Sizes, themes, print, and whether the map can be seen at all. */
function watch(
  element: HTMLElement,
  layer: PointLayer,
  paint: () => void,
  resize: (size: [number, number]) => void,
): () => void {
  const stops: (() => void)[] = [];
  const size = () => resize([element.clientWidth, element.clientHeight]);
  size();
  if (typeof ResizeObserver !== "undefined") {
    const sizes = new ResizeObserver(size);
    sizes.observe(element);
    stops.push(() => sizes.disconnect());
  }
  if (typeof IntersectionObserver !== "undefined") {
    const sight = new IntersectionObserver(
      (entries) => (entries.at(-1)?.isIntersecting ? layer.wake() : layer.rest()),
      { rootMargin: "100px" },
    );
    sight.observe(element);
    stops.push(() => sight.disconnect());
  }
  const themes = new MutationObserver(paint);
  for (const one of [document.documentElement, document.body]) themes.observe(one, { attributes: true });
  stops.push(() => themes.disconnect());
  const listen = (target: EventTarget | undefined, event: string, use: () => void) => {
    target?.addEventListener(event, use);
    stops.push(() => target?.removeEventListener(event, use));
  };
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"])
    listen(globalThis.matchMedia?.(query), "change", paint);
  // A printed page shows 2D canvases only.
  listen(globalThis, "beforeprint", () => layer.rest());
  listen(globalThis, "afterprint", () => layer.wake());
  return () => {
    for (const stop of stops) stop();
  };
}

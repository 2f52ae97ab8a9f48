/** Pointer and keys on the map: pan, zoom, pick, and draw a line around what is to be chosen. */

import type { Stage } from "./map";
import {
  type Camera,
  held,
  inside,
  MOST_ZOOM,
  nearest,
  rectangle,
  type Spot,
  toward,
  under,
  WHOLE,
  zoomed,
} from "./places";
import { choose, type Mode, type Panel } from "./shared";

/** Pixels from a point at which it is still meant. */
const REACH = 24;
/** Pixels that a pointer may move and still be a click. */
const STILL = 4;
/** Pixels between two corners of a lasso. */
const CORNER = 3;
export const STEP = 1.5;
const MODES: Mode[] = ["move", "lasso", "box"];
const ARROWS: Record<string, Spot> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export function attend(stage: Stage, panel: Panel): () => void {
  const { element } = stage;
  const drag = new Drag(stage, panel);
  const keys = (event: KeyboardEvent) => onKey(event, stage, panel);
  const wheel = (event: WheelEvent) => {
    // The wheel alone scrolls the page.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const factor = Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 120);
    const { state } = panel;
    state.set("camera", zoomed(state.get("camera"), factor, spotOf(element, event), stage.place()));
  };
  const leave = () => stage.hover(-1);
  const on: [string, (event: never) => void][] = [
    ["keydown", keys],
    ["wheel", wheel],
    ["pointerdown", (event: PointerEvent) => drag.down(event)],
    ["pointermove", (event: PointerEvent) => drag.move(event)],
    ["pointerup", (event: PointerEvent) => drag.up(event)],
    ["pointercancel", (event: PointerEvent) => drag.cancel(event)],
    ["pointerleave", leave],
  ];
  for (const [name, use] of on) element.addEventListener(name, use as EventListener, { passive: false });
  return () => {
    for (const [name, use] of on) element.removeEventListener(name, use as EventListener);
  };
}

function spotOf(element: HTMLElement, event: MouseEvent): Spot {
  const edge = element.getBoundingClientRect();
  return [event.clientX - edge.left, event.clientY - edge.top];
}

/** Zoom about the picked latent where it is in view, else about the middle. */
export function zoomBy({ atlas, state }: Panel, factor: number): void {
  const camera = state.get("camera");
  const zoom = Math.min(MOST_ZOOM, Math.max(1, camera.zoom * factor));
  const at = atlas.at(state.get("latent")) ?? -1;
  const [x, y] = [(atlas.x[at] ?? 0) / 65_535, (atlas.y[at] ?? 0) / 65_535];
  const near = at >= 0 && Math.max(Math.abs(x - camera.x), Math.abs(y - camera.y)) * camera.zoom < 0.6;
  const by = near ? 1 - camera.zoom / zoom : 0;
  state.set("camera", held({ x: camera.x + (x - camera.x) * by, y: camera.y + (y - camera.y) * by, zoom }));
}

export function nextMode({ state }: Panel): void {
  state.set("mode", MODES[(MODES.indexOf(state.get("mode")) + 1) % MODES.length] ?? "move");
}

/** Choose every point that is in view. */
export function chooseSeen(panel: Panel, stage: Pick<Stage, "element" | "place">): void {
  const { clientWidth, clientHeight } = stage.element;
  pick(panel, stage, rectangle([0, 0], [clientWidth, clientHeight]), "set");
}

function pick(panel: Panel, stage: Pick<Stage, "place">, line: readonly Spot[], how: "set" | "add" | "take"): void {
  const { atlas } = panel;
  choose(
    panel,
    inside(atlas, stage.place(), line).map((at) => atlas.latents[at] ?? -1),
    how,
  );
}

function onKey(event: KeyboardEvent, stage: Stage, panel: Panel): void {
  const { state } = panel;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const latent = state.get("latent");
  const actions: Record<string, () => void> = {
    "+": () => zoomBy(panel, STEP),
    "=": () => zoomBy(panel, STEP),
    "-": () => zoomBy(panel, 1 / STEP),
    "0": () => state.set("camera", WHOLE),
    " ": () => choose(panel, [latent], state.get("selected").includes(latent) ? "take" : "add"),
    v: () => chooseSeen(panel, stage),
    x: () => choose(panel, [], "set"),
    m: () => nextMode(panel),
  };
  const act = arrow ? () => (event.shiftKey ? pan(panel, arrow) : step(panel, stage, arrow)) : actions[event.key];
  if (!act) return;
  event.preventDefault();
  event.stopPropagation();
  act();
}

function pan({ state }: Panel, [right, down]: Spot): void {
  const camera = state.get("camera");
  const by = 0.2 / camera.zoom;
  state.set("camera", held({ ...camera, x: camera.x + right * by, y: camera.y - down * by }));
}

function step({ atlas, state }: Panel, stage: Stage, direction: Spot): void {
  const at = toward(atlas, stage.place(), atlas.at(state.get("latent")) ?? 0, direction);
  if (at >= 0) state.set("latent", atlas.latents[at] ?? 0);
}

/** One pointer pans, picks or draws; two pinch. */
class Drag {
  readonly #held = new Map<number, Spot>();
  #start: Spot = [0, 0];
  #camera: Camera = WHOLE;
  #line: Spot[] = [];
  #moved = false;

  constructor(
    private readonly stage: Stage,
    private readonly panel: Panel,
  ) {}

  down(event: PointerEvent): void {
    if (event.button !== 0) return;
    const spot = spotOf(this.stage.element, event);
    this.#held.set(event.pointerId, spot);
    this.stage.element.setPointerCapture?.(event.pointerId);
    this.#start = spot;
    this.#camera = this.panel.state.get("camera");
    this.#moved = this.#held.size > 1;
    this.#line = [spot];
    this.stage.line([]);
  }

  move(event: PointerEvent): void {
    const { stage, panel } = this;
    const spot = spotOf(stage.element, event);
    const before = this.#held.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") stage.hover(nearest(panel.atlas, stage.place(), spot, REACH / 1.5));
      return;
    }
    if (this.#held.size === 2) {
      this.#pinch(event.pointerId, before, spot);
      return;
    }
    this.#moved ||= Math.hypot(spot[0] - this.#start[0], spot[1] - this.#start[1]) > STILL;
    if (!this.#moved) return;
    if (panel.state.get("mode") === "move") this.#pan(spot);
    else this.#draw(spot);
  }

  up(event: PointerEvent): void {
    if (!this.#held.delete(event.pointerId)) return;
    const { stage, panel } = this;
    const spot = spotOf(stage.element, event);
    stage.line([]);
    if (!this.#moved) {
      const at = nearest(panel.atlas, stage.place(), spot, REACH);
      const latent = panel.atlas.latents[at];
      if (latent === undefined) return;
      if (event.shiftKey) choose(panel, [latent], panel.state.get("selected").includes(latent) ? "take" : "add");
      panel.state.set("latent", latent);
    } else if (panel.state.get("mode") !== "move" && this.#line.length > 1)
      pick(panel, stage, this.#shape(), event.altKey ? "take" : event.shiftKey ? "add" : "set");
    this.#line = [];
  }

  cancel(event: PointerEvent): void {
    this.#held.delete(event.pointerId);
    this.#line = [];
    this.stage.line([]);
  }

  #shape(): Spot[] {
    const end = this.#line.at(-1) ?? this.#start;
    return this.panel.state.get("mode") === "box" ? rectangle(this.#start, end) : this.#line;
  }

  #draw(spot: Spot): void {
    const last = this.#line.at(-1) ?? this.#start;
    if (Math.hypot(spot[0] - last[0], spot[1] - last[1]) < CORNER) return;
    this.#line.push(spot);
    this.stage.line(this.#shape());
  }

  #pan([x, y]: Spot): void {
    const place = this.stage.place();
    const { zoom } = this.#camera;
    const [dx, dy] = [(x - this.#start[0]) / place.scale[0], (y - this.#start[1]) / place.scale[1]];
    this.panel.state.set("camera", held({ x: this.#camera.x - dx, y: this.#camera.y - dy, zoom }));
  }

  /** The middle of two fingers stays on the same place of the map. */
  #pinch(id: number, before: Spot, now: Spot): void {
    const other = [...this.#held].find(([key]) => key !== id)?.[1];
    this.#held.set(id, now);
    if (!other) return;
    const apart = (spot: Spot) => Math.max(1, Math.hypot(spot[0] - other[0], spot[1] - other[1]));
    const { state } = this.panel;
    const place = this.stage.place();
    const middle: Spot = [(before[0] + other[0]) / 2, (before[1] + other[1]) / 2];
    const next = zoomed(state.get("camera"), apart(now) / apart(before), middle, place);
    const [a, b] = [under(place, middle), under(place, [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2])];
    const scale = state.get("camera").zoom / next.zoom;
    state.set("camera", held({ ...next, x: next.x - (b[0] - a[0]) * scale, y: next.y - (b[1] - a[1]) * scale }));
  }
}

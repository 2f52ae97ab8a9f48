/** Pointer and keys on the map: pan, zoom, pick, and draw a line around what is to be chosen. */

import { listen } from "../../core/dom";
import {
  type Camera,
  type Fit,
  held,
  inside,
  MOST_ZOOM,
  nearest,
  rectangle,
  type Spot,
  toward,
  WHOLE,
  zoomed,
} from "./places";
import { choose, type Mode, type Panel } from "./shared";

/** What pointer and keys work on. */
export interface Stage {
  element: HTMLElement;
  place(): Fit;
  /** Show what lies under the pointer; -1: nothing. */
  hover(at: number): void;
  /** The line that is being drawn; empty: none. */
  line(spots: readonly Spot[]): void;
}

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

export function attend(stage: Stage, panel: Panel): void {
  const { element } = stage;
  const { state } = panel;
  const { down, move, up, cancel } = dragging(stage, panel);
  listen(element, "keydown", (event) => onKey(event, stage, panel));
  const wheel = (event: WheelEvent) => {
    // The wheel alone scrolls the page.
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const factor = Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 120);
    state.set("camera", zoomed(state.get("camera"), factor, spotOf(element, event), stage.place()));
  };
  listen(element, "wheel", wheel, { passive: false });
  listen(element, "pointerdown", down);
  listen(element, "pointermove", move);
  listen(element, "pointerup", up);
  listen(element, "pointercancel", cancel);
  listen(element, "pointerleave", () => stage.hover(-1));
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
function dragging(stage: Stage, panel: Panel) {
  const { atlas, state } = panel;
  const { element } = stage;
  const touching = new Map<number, Spot>();
  let start: Spot = [0, 0];
  let camera: Camera = WHOLE;
  let line: Spot[] = [];
  let moved = false;
  const moves = () => state.get("mode") === "move";
  const shape = (): Spot[] => (state.get("mode") === "box" ? rectangle(start, line.at(-1) ?? start) : line);
  const draw = (spot: Spot) => {
    const last = line.at(-1) ?? start;
    if (Math.hypot(spot[0] - last[0], spot[1] - last[1]) < CORNER) return;
    line.push(spot);
    stage.line(shape());
  };
  const pan = ([x, y]: Spot) => {
    const { scale } = stage.place();
    const [dx, dy] = [(x - start[0]) / scale[0], (y - start[1]) / scale[1]];
    state.set("camera", held({ x: camera.x - dx, y: camera.y - dy, zoom: camera.zoom }));
  };
  /** What lies between two fingers stays there. */
  const pinch = (id: number, before: Spot, now: Spot) => {
    const other = [...touching].find(([key]) => key !== id)?.[1] ?? now;
    touching.set(id, now);
    const apart = (spot: Spot) => Math.max(1, Math.hypot(spot[0] - other[0], spot[1] - other[1]));
    const middle: Spot = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
    state.set("camera", zoomed(state.get("camera"), apart(now) / apart(before), middle, stage.place()));
  };
  const end = ({ pointerId }: PointerEvent) => {
    stage.line([]);
    return touching.delete(pointerId);
  };
  return {
    down: (event: PointerEvent) => {
      if (event.button !== 0) return;
      start = spotOf(element, event);
      touching.set(event.pointerId, start);
      element.setPointerCapture?.(event.pointerId);
      camera = state.get("camera");
      moved = touching.size > 1;
      line = [start];
    },
    move: (event: PointerEvent) => {
      const spot = spotOf(element, event);
      const before = touching.get(event.pointerId);
      if (!before) {
        if (event.pointerType === "mouse") stage.hover(nearest(atlas, stage.place(), spot, REACH / 1.5));
        return;
      }
      if (touching.size === 2) {
        pinch(event.pointerId, before, spot);
        return;
      }
      moved ||= Math.hypot(spot[0] - start[0], spot[1] - start[1]) > STILL;
      if (moved) (moves() ? pan : draw)(spot);
    },
    up: (event: PointerEvent) => {
      if (!end(event)) return;
      const { shiftKey, altKey } = event;
      if (moved) {
        if (!moves() && line.length > 1) pick(panel, stage, shape(), altKey ? "take" : shiftKey ? "add" : "set");
        return;
      }
      const latent = atlas.latents[nearest(atlas, stage.place(), spotOf(element, event), REACH)];
      if (latent === undefined) return;
      if (shiftKey) choose(panel, [latent], state.get("selected").includes(latent) ? "take" : "add");
      state.set("latent", latent);
    },
    cancel: end,
  };
}

/** Where each latent is drawn: a column per layer, a band per lane, the order within a column given by the flow. */

import type { Flow, Node } from "./tables";

export const GAP = 9;
export const LEFT = 26;
const RIGHT = 30;
const TOP = 16;
const MIN_STEP = 34;

export interface Column {
  x: number;
  text: string;
  title: string;
}

export interface Band {
  text: string;
  top: number;
  height: number;
}

export interface Layout {
  width: number;
  height: number;
  step: number;
  columns: Column[];
  bands: Band[];
  at: Map<number, { x: number; y: number; node: Node }>;
}

const BANDS = [
  { text: "Residual stream", lanes: [0, 3] },
  { text: "Attention", lanes: [1] },
  { text: "MLP", lanes: [2] },
];

/** The band of a lane. */
export function bandOf(lane: number): number {
  return BANDS.findIndex(({ lanes }) => lanes.includes(lane));
}

/**
 * Positions of `nodes` on `width` pixels. `rows` is how many latents a column has room for: it keeps the height the same
 * when filters leave fewer.
 */
export function layout(flow: Flow, nodes: Node[], lanes: ReadonlySet<number>, width: number, rows: number): Layout {
  const sites = flow.sites.map((site, place) => ({ ...site, place })).filter(({ lane }) => lanes.has(lane));
  const layers = [...new Set(sites.map(({ layer }) => layer))].sort((a, b) => a - b);
  const modules = sites.some(({ lane }) => lane === 1 || lane === 2);
  const steps = Math.max(1, layers.length - 1) + (modules ? 0.5 : 0);
  const step = Math.max(MIN_STEP, (width - LEFT - RIGHT) / steps);
  // What a block adds stands before what leaves it.
  const x = (layer: number, lane: number) =>
    LEFT + step * (layers.indexOf(layer) + (modules ? (bandOf(lane) > 0 ? 0 : 0.5) : 0));
  const bands: Band[] = [];
  const at: Layout["at"] = new Map();
  let top = 0;
  for (const { text, lanes: own } of BANDS) {
    const inside = sites.filter(({ lane }) => own.includes(lane));
    if (!inside.length) continue;
    const room = Math.min(rows, Math.max(...inside.map(({ latents }) => latents))) * GAP;
    for (const site of inside) {
      const column = nodes.filter((node) => node.site === site.place);
      column.sort((a, b) => a.y - b.y || a.latent - b.latent);
      const places = spaced(
        column.map((node) => node.y * room),
        GAP,
        room,
      );
      for (const [number, node] of column.entries()) {
        at.set(node.key, { x: x(site.layer, site.lane), y: top + TOP + (places[number] ?? 0), node });
      }
    }
    bands.push({ text, top, height: room + TOP + 6 });
    top += room + TOP + 6;
  }
  const heads = layers.map((layer) => {
    const own = sites.filter((site) => site.layer === layer);
    const main = own.find(({ lane }) => bandOf(lane) === 0) ?? own[0];
    return {
      x: x(layer, main?.lane ?? 0),
      text: main ? flow.layerText(main.place) : "",
      title: own.map(({ name }) => name).join(", "),
    };
  });
  return { width: LEFT + step * steps + RIGHT, height: top + 4, step, columns: heads, bands, at };
}

/**
 * Positions nearest to `wanted` (ascending) that keep their order, at least `gap` apart and within 0 … `room`:
 * isotonic regression by pooling neighbours (Ayer et al. 1955).
 */
export function spaced(wanted: number[], gap: number, room: number): number[] {
  const pools: { sum: number; count: number }[] = [];
  for (const [number, one] of wanted.entries()) {
    let pool = { sum: one - number * gap, count: 1 };
    for (let last = pools.at(-1); last && last.sum / last.count >= pool.sum / pool.count; last = pools.at(-1)) {
      pools.pop();
      pool = { sum: last.sum + pool.sum, count: last.count + pool.count };
    }
    pools.push(pool);
  }
  const most = Math.max(0, room - (wanted.length - 1) * gap);
  const places: number[] = [];
  for (const { sum, count } of pools) {
    const base = Math.min(most, Math.max(0, sum / count));
    for (let member = 0; member < count; member += 1) places.push(base + places.length * gap);
  }
  return places;
}

/** The latent nearest to a point, within `reach` pixels. */
export function hit({ at }: Layout, x: number, y: number, reach = 12): Node | undefined {
  let best: Node | undefined;
  let least = reach * reach;
  for (const one of at.values()) {
    const far = (one.x - x) ** 2 + (one.y - y) ** 2;
    if (far <= least) [best, least] = [one.node, far];
  }
  return best;
}

/** Geometry of the map: where a point is seen, which one is meant, and which lie inside a shape. */

import type { PointTable } from "../../core/gl";

export interface Camera {
  /** What is in the middle, as shares 0 … 1 of the map; y upwards. */
  x: number;
  y: number;
  /** 1 shows the whole map. */
  zoom: number;
}

/** Pixels from shares: `x * scale[0] + shift[0]`, the same for y, whose scale is negative. */
export interface Fit {
  scale: [number, number];
  shift: [number, number];
}

export type Spot = readonly [number, number];

export const WHOLE: Camera = { x: 0.5, y: 0.5, zoom: 1 };
export const MOST_ZOOM = 200;
/** Pixels around the points; axes need room for their names. */
const [PAD, AXIS_PAD] = [16, 28];

/** `stretch`: both axes fill the room, for a map whose axes are values. */
export function placing(width: number, height: number, camera: Camera, stretch: boolean): Fit {
  const pad = 2 * (stretch ? AXIS_PAD : PAD);
  const room = [Math.max(1, width - pad), Math.max(1, height - pad)] as const;
  const least = Math.min(...room);
  const size = stretch ? room : ([least, least] as const);
  const scale: [number, number] = [size[0] * camera.zoom, -size[1] * camera.zoom];
  return { scale, shift: [width / 2 - camera.x * scale[0], height / 2 - camera.y * scale[1]] };
}

/** The share that lies under a pixel. */
export function under({ scale, shift }: Fit, [x, y]: Spot): Spot {
  return [(x - shift[0]) / scale[0], (y - shift[1]) / scale[1]];
}

export function seen({ x, y }: PointTable, { scale, shift }: Fit, at: number): Spot {
  return [((x[at] ?? 0) / 65_535) * scale[0] + shift[0], ((y[at] ?? 0) / 65_535) * scale[1] + shift[1]];
}

/** Zoom by `factor` so that what is under `pixel` stays there. */
export function zoomed(camera: Camera, factor: number, pixel: Spot, place: Fit): Camera {
  const zoom = Math.min(MOST_ZOOM, Math.max(1, camera.zoom * factor));
  const [x, y] = under(place, pixel);
  const kept = camera.zoom / zoom;
  return held({ x: x + (camera.x - x) * kept, y: y + (camera.y - y) * kept, zoom });
}

/** The map never leaves the view. */
export function held({ x, y, zoom }: Camera): Camera {
  const share = (one: number) => Math.min(1, Math.max(0, one));
  return { x: share(x), y: share(y), zoom };
}

/** The point nearest to a pixel, not further than `reach`; -1 where there is none. */
export function nearest(points: PointTable, place: Fit, pixel: Spot, reach: number): number {
  let [best, least] = [-1, reach * reach];
  const { scale, shift } = place;
  for (let i = 0; i < points.x.length; i += 1) {
    const dx = ((points.x[i] as number) / 65_535) * scale[0] + shift[0] - pixel[0];
    const dy = ((points.y[i] as number) / 65_535) * scale[1] + shift[1] - pixel[1];
    const away = dx * dx + dy * dy;
    if (away <= least) [best, least] = [i, away];
  }
  return best;
}

/**
 * The next point from `at` within 45° of a direction (in pixels): near ones first, and those that lie straight ahead
 * before those to the side. -1 where nothing lies there.
 */
export function toward(points: PointTable, { scale }: Fit, at: number, [right, down]: Spot): number {
  let [best, least] = [-1, Number.POSITIVE_INFINITY];
  const [fromX, fromY] = [points.x[at] ?? 0, points.y[at] ?? 0];
  for (let i = 0; i < points.x.length; i += 1) {
    const dx = ((points.x[i] as number) - fromX) * scale[0];
    const dy = ((points.y[i] as number) - fromY) * scale[1];
    const along = dx * right + dy * down;
    const across = Math.abs(dx * down - dy * right);
    if (along <= 0 || across > along || i === at) continue;
    const cost = along + 2 * across;
    if (cost < least) [best, least] = [i, cost];
  }
  return best;
}

/** Bands that the sides of a line are sorted into: a point is compared with those of its own. */
const BANDS = 64;

/** Points inside a closed line of pixels, by the even-odd rule. */
export function inside(points: PointTable, place: Fit, line: readonly Spot[]): number[] {
  const found: number[] = [];
  const corners = line.map((spot) => under(place, spot).map((share) => share * 65_535) as [number, number]);
  const ys = corners.map((one) => one[1]);
  const low = Math.min(...ys);
  const size = (Math.max(...ys) - low) / BANDS;
  const sides: [number, number, number, number][][] = Array.from({ length: BANDS + 1 }, () => []);
  for (const [at, [ax, ay]] of corners.entries()) {
    const [bx, by] = corners.at(at - 1) as [number, number];
    const last = (Math.max(ay, by) - low) / size;
    for (let band = Math.floor((Math.min(ay, by) - low) / size); band <= last; band += 1)
      sides[band]?.push([ay, by, ax, (bx - ax) / (by - ay)]);
  }
  for (let i = 0; i < points.x.length; i += 1) {
    const [x, y] = [points.x[i] as number, points.y[i] as number];
    let odd = false;
    for (const [ay, by, ax, slope] of sides[Math.floor((y - low) / size)] ?? [])
      if (ay > y !== by > y && x < slope * (y - ay) + ax) odd = !odd;
    if (odd) found.push(i);
  }
  return found;
}

/** A rectangle as a closed line. */
export function rectangle([x0, y0]: Spot, [x1, y1]: Spot): Spot[] {
  return [
    [x0, y0],
    [x1, y0],
    [x1, y1],
    [x0, y1],
  ];
}

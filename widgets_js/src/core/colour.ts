/** Cividis, which reads almost the same with red-green deficiency, and heat maps painted with it. */

// Ten evenly spaced colours of cividis (Nuñez et al. 2018, doi:10.1371/journal.pone.0199239).
const STOPS = [
  [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
  [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
] as const; // biome-ignore format: one line of the table per five colours

export type Rgb = readonly [number, number, number];

/** The colour at `share`, 0 … 1; what lies outside is clipped. */
export function cividis(share: number): Rgb {
  const at = Math.min(1, Math.max(0, share)) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  const part = at - low;
  const [a, b] = [STOPS[low] as Rgb, STOPS[low + 1] as Rgb];
  return [0, 1, 2].map((i) => Math.round((a[i] as number) * (1 - part) + (b[i] as number) * part)) as unknown as Rgb;
}

/** How opaque a patch is painted: inactive patches only dim the picture, the strongest one covers it. */
const FAINT = 0.25;

const TABLE = (() => {
  const table = new Uint8ClampedArray(256 * 4);
  for (let value = 0; value < 256; value += 1) {
    const [r, g, b] = cividis(value / 255);
    table.set([r, g, b, 255 * (FAINT + (1 - FAINT) * Math.sqrt(value / 255))], value * 4);
  }
  return table;
})();

/** Paint a map of `rows` × `columns` bytes, one pixel each: the page enlarges it without smoothing. */
export function paint(canvas: HTMLCanvasElement, map: ArrayLike<number>, rows: number, columns: number): void {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i += 1) {
    const value = map[i] ?? 0;
    image.data.set(TABLE.subarray(value * 4, value * 4 + 4), i * 4);
  }
  context.putImageData(image, 0, 0);
}

/** Cividis as a CSS gradient, for a legend. */
export function gradient(): string {
  return `linear-gradient(to right,${STOPS.map((stop) => `rgb(${stop.join(" ")})`).join(",")})`;
}

/** Draws the plotly figures of a report, after reading plotly.js from the page itself. */

import { b64decode, inflate } from "./decode";

interface Plotly {
  newPlot(root: HTMLElement, data: unknown, layout: unknown, config: unknown): Promise<unknown>;
}

interface Figure {
  data?: unknown;
  layout?: Record<string, unknown>;
  config?: Record<string, unknown>;
}

/** Draw every `.nbsae-plotly`; what stood in it (a static picture) stays where that fails. Returns the errors. */
export async function drawFigures(): Promise<string[]> {
  const places = [...document.querySelectorAll<HTMLElement>(".nbsae-plotly[data-figure]")];
  if (places.length === 0) return [];
  const errors: string[] = [];
  let plotly: Plotly;
  try {
    plotly = await load();
  } catch (error) {
    return [`plotly: ${error}`];
  }
  for (const place of places) {
    try {
      await draw(plotly, place);
    } catch (error) {
      errors.push(`figure ${place.dataset.figure}: ${error}`);
    }
  }
  return errors;
}

async function draw(plotly: Plotly, place: HTMLElement): Promise<void> {
  const text = document.getElementById(place.dataset.figure ?? "")?.textContent;
  if (!text) throw new Error("This report does not hold the figure.");
  const figure = JSON.parse(text) as Figure;
  const before = [...place.children];
  const root = document.createElement("div");
  place.append(root);
  try {
    await plotly.newPlot(root, figure.data ?? [], figure.layout ?? {}, {
      responsive: true,
      displaylogo: false,
      ...figure.config,
    });
  } catch (error) {
    root.remove();
    throw error;
  }
  for (const child of before) if (child instanceof HTMLElement) child.hidden = true;
}

async function load(): Promise<Plotly> {
  const source = document.querySelector("script[data-nbsae-plotly]");
  if (!source) throw new Error("This report holds figures but not plotly.js.");
  const text = await inflate(b64decode(source.textContent ?? ""));
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    await new Promise<void>((resolve, reject) => {
      const script = document.createElement("script");
      script.src = url;
      script.onload = () => resolve();
      script.onerror = () => reject(new Error("plotly.js of this report could not be read."));
      document.head.append(script);
    });
  } finally {
    URL.revokeObjectURL(url);
  }
  const loaded = (window as unknown as { Plotly?: Plotly }).Plotly;
  if (!loaded) throw new Error("plotly.js of this report defines no Plotly.");
  return loaded;
}

import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/atlas.json";
import atlasDashboard from "../src/atlas";
import { unpack } from "../src/core/wire";
import {
  held,
  inside,
  nearest,
  placing,
  rectangle,
  seen,
  toward,
  under,
  WHOLE,
  zoomed,
} from "../src/panels/atlas/places";
import { type About, Atlas, colours, palette } from "../src/panels/atlas/tables";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const opened: (() => void)[] = [];
type Asked = keyof typeof fixture.asked;

function open({ kernel = false, about = {} }: { kernel?: boolean; about?: object } = {}) {
  const state: Record<string, unknown> = { ...fixture.state };
  state.about = { ...fixture.state.about, ...about };
  for (const name of fixture.binary) state[name] = unaligned(bytes(state[name] as string));
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  const close = atlasDashboard.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = <E extends HTMLElement>(selector: string) => el.querySelector<E>(selector);
  const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
  const wait = (ms = 200) => vi.advanceTimersByTimeAsync(ms);
  const answer = async (kind: Asked) => {
    const asked = model.sent.filter((one) => one.kind === kind).at(-1);
    const made = fixture.asked[kind];
    model.answer(
      { ...made.content, id: asked?.id, ok: true },
      made.buffers.map((one) => unaligned(bytes(one))),
    );
    await wait(50);
    return asked;
  };
  const live = async () => {
    model.answer({ id: model.sent[0]?.id, ok: true });
    await wait();
  };
  const press = (key: string, more: object = {}) =>
    find(".nbs-stage")?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
  const button = (name: string) => all("button").find((one) => one.textContent === name);
  return { model, el, find, all, answer, live, wait, press, button, close };
}

function read() {
  return new Atlas(
    fixture.state.about as unknown as About,
    unpack(fixture.state.points_header, bytes(fixture.state.points)),
  );
}

/** The latents of a trait of bits. */
function chosen(model: FakeModel): number[] {
  const bits = model.get("selected") as DataView;
  return Array.from({ length: 8 * bits.byteLength }, (_, at) => at).filter(
    (at) => (bits.getUint8(at >> 3) >> (at & 7)) & 1,
  );
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(HTMLElement.prototype, "clientWidth", "get").mockReturnValue(640);
  vi.spyOn(HTMLElement.prototype, "clientHeight", "get").mockReturnValue(480);
  URL.createObjectURL = () => "blob:thumb";
  URL.revokeObjectURL = () => {};
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

describe("places", () => {
  // A cross: the middle, and one point each to the left, right, below and above.
  const cross = {
    x: Uint16Array.from([32768, 0, 65535, 32768, 32768]),
    y: Uint16Array.from([32768, 32768, 32768, 0, 65535]),
  };
  const place = placing(400, 300, WHOLE, false);

  it("put the middle into the middle, up is up, and both axes are in one scale", () => {
    const [x, y] = seen(cross, place, 0);
    expect(x).toBeCloseTo(200, 1);
    expect(y).toBeCloseTo(150, 1);
    expect(seen(cross, place, 4)[1]).toBeLessThan(y);
    expect(place.scale[0]).toBe(-place.scale[1]);
    const stretched = placing(400, 300, WHOLE, true);
    expect(stretched.scale[0]).toBeGreaterThan(-stretched.scale[1]);
  });

  it("find the nearest point within reach, and the next one in a direction", () => {
    expect(nearest(cross, place, seen(cross, place, 2), 5)).toBe(2);
    expect(nearest(cross, place, [390, 10], 20)).toBe(-1);
    expect(toward(cross, place, 0, [-1, 0])).toBe(1);
    expect(toward(cross, place, 0, [1, 0])).toBe(2);
    expect(toward(cross, place, 0, [0, 1])).toBe(3);
    expect(toward(cross, place, 0, [0, -1])).toBe(4);
    expect(toward(cross, place, 2, [1, 0])).toBe(-1);
  });

  it("go straight ahead before they go to the side, and never to a point in the same place", () => {
    const points = { x: Uint16Array.from([0, 0, 300, 200]), y: Uint16Array.from([0, 0, 0, 150]) };
    expect(toward(points, place, 0, [1, 0])).toBe(2);
  });

  it("keep what is under the pointer there while zooming", () => {
    const pixel = [300, 80] as const;
    const before = under(place, pixel);
    const camera = zoomed(WHOLE, 4, pixel, place);
    const after = under(placing(400, 300, camera, false), pixel);
    expect(camera.zoom).toBe(4);
    expect(after[0]).toBeCloseTo(before[0], 9);
    expect(after[1]).toBeCloseTo(before[1], 9);
    expect(zoomed(WHOLE, 1e9, pixel, place).zoom).toBe(200);
    expect(zoomed(WHOLE, 0.01, pixel, place).zoom).toBe(1);
    expect(held({ x: 3, y: -1, zoom: 2 })).toEqual({ x: 1, y: 0, zoom: 2 });
  });

  it("are inside a line by the even-odd rule, holes and crossings included", () => {
    const grid = { x: new Uint16Array(400), y: new Uint16Array(400) };
    for (let at = 0; at < 400; at += 1) {
      grid.x[at] = (at % 20) * 3449;
      grid.y[at] = Math.floor(at / 20) * 3449;
    }
    const all = inside(grid, place, rectangle([0, 0], [400, 300]));
    expect(all.length).toBe(400);
    expect(inside(grid, place, rectangle([190, 0], [400, 300])).every((at) => at % 20 >= 9)).toBe(true);
    const ring = [
      ...rectangle([80, 40], [320, 260]),
      [80, 40] as const,
      ...rectangle([150, 90], [250, 210]),
      [150, 90] as const,
    ];
    const kept = inside(grid, place, ring);
    const hole = inside(grid, place, rectangle([150, 90], [250, 210]));
    const outer = inside(grid, place, rectangle([80, 40], [320, 260]));
    expect(hole.length).toBeGreaterThan(10);
    expect(kept.length).toBe(outer.length - hole.length);
    expect(
      inside(grid, place, [
        [1, 1],
        [2, 2],
      ]),
    ).toEqual([]);
  });
});

describe("the table", () => {
  it("reads places, names and bytes as Python wrote them", () => {
    const atlas = read();
    expect(atlas.length).toBe(23);
    expect(atlas.at(4)).toBeUndefined();
    expect(atlas.at(5)).toBe(4);
    expect(atlas.name(2)).toBe("hat");
    expect(atlas.find("HAT")).toEqual([2, 3]);
    expect(atlas.find("#17")).toEqual([17]);
    const cluster = atlas.column("cluster");
    expect(cluster.categories).toEqual(["0", "1", "2"]);
    expect(atlas.said(cluster, 0)).toBe("0");
    // The last latent is dead.
    expect(atlas.said(atlas.column("density"), 22)).toBe("never active");
    expect(atlas.said(atlas.column("density"), 0)).toMatch(/^≈ .* %$/);
  });

  it("gives weak and strong colours apart from the ground, and groups colours of their own", () => {
    const luminance = (rgb: readonly number[]) => {
      const [r = 0, g = 0, b = 0] = rgb.map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a: readonly number[], b: readonly number[]) => {
      const [x, y] = [luminance(a) + 0.05, luminance(b) + 0.05];
      return Math.max(x, y) / Math.min(x, y);
    };
    const atlas = read();
    for (const [ground, rgb] of [
      ["light", [255, 255, 255]],
      ["dark", [21, 23, 28]],
    ] as const) {
      for (const key of ["density", "cluster", "level"]) {
        const column = atlas.column(key);
        const used = column.kind === "category" ? column.categories.length : 255;
        const own = colours(column, ground).slice(1, used + 1);
        expect(Math.min(...own.map((one) => contrast(one, rgb)))).toBeGreaterThan(2.99);
        if (key === "cluster") expect(new Set(own.map(String)).size).toBe(3);
      }
      const bytes = palette(colours(atlas.column("density"), ground), rgb as never);
      const faded = [...bytes.slice(1024 + 255 * 4, 1024 + 255 * 4 + 3)];
      expect(contrast(faded, rgb)).toBeLessThan(contrast([...bytes.slice(1020, 1023)], rgb));
    }
  });
});

describe("the atlas", () => {
  it("shows the picked latent, what is chosen and where the map came from, from the saved view alone", async () => {
    const { find, all, wait } = open();
    await wait();
    expect(find("h3")?.textContent).toBe("Latent 2 hat");
    expect(find(".nbs-status")?.textContent).toBe("saved view");
    expect(find(".nbs-spoken")?.textContent).toBe("2 chosen of 23 latents");
    expect(all(".nbs-row .nbs-col-latent").map((one) => one.textContent)).toEqual(["2", "9"]);
    expect(find(".nbs-below")?.textContent).toContain("PCA: of the 10 nearest by cosine, 50.0 % are near here");
    expect(find(".nbs-stage [role=img]")?.getAttribute("aria-label")).toBe(
      "Map of 23 latents laid out by pca, coloured by density; 2 stand out; picked: hat (2)",
    );
    expect(all(".nbs-tile").length).toBeGreaterThan(0);
  });

  it("picks the neighbour with an arrow key and tells the kernel once", async () => {
    const { model, find, press, wait } = open();
    await wait();
    // On the ring, counted against the clock from the right: up from 2 is 3, down from there 2 again, then 1.
    press("ArrowUp");
    press("ArrowDown");
    press("ArrowDown");
    await wait();
    expect(find("h3")?.textContent).toContain("Latent 1");
    expect(model.get("latent")).toBe(1);
    expect(model.saves).toBe(1);
    press("ArrowDown");
    await wait();
    expect(model.get("latent")).toBe(0);
  });

  it("chooses with the space bar, all in view, and none", async () => {
    const { model, find, press, wait, button } = open();
    await wait();
    press(" ");
    await wait();
    expect(chosen(model)).toEqual([9]);
    press("v");
    await wait();
    expect(chosen(model).length).toBe(23);
    expect(chosen(model)).not.toContain(4);
    press("x");
    await wait();
    expect(chosen(model)).toEqual([]);
    expect(find(".nbs-spoken")?.textContent).toBe("23 latents");
    button("Choose")?.click();
    await wait();
    expect(chosen(model)).toEqual([2]);
  });

  it("chooses inside a lasso, and Shift and Alt add and take away", async () => {
    const { model, find, wait, button } = open();
    await wait();
    const stage = find(".nbs-stage") as HTMLElement;
    const at = (name: string, [clientX, clientY]: number[], more: object = {}) =>
      stage.dispatchEvent(
        Object.assign(new Event(name, { bubbles: true, cancelable: true }), {
          clientX, clientY, button: 0, pointerId: 1, pointerType: "mouse", shiftKey: false, altKey: false, ...more,
        }),
      ); // biome-ignore format: one event
    const drag = (corners: number[][], more: object = {}) => {
      at("pointerdown", corners[0] ?? [], more);
      for (const corner of corners.slice(1)) at("pointermove", corner, more);
      at("pointerup", corners.at(-1) ?? [], more);
    };
    button("Box")?.click();
    // The map is 640 × 480 pixels here: the right half.
    drag([
      [320, 0],
      [640, 480],
    ]);
    await wait();
    const right = chosen(model);
    expect(right).toContain(0);
    expect(right).not.toContain(12);
    button("Lasso")?.click();
    drag(
      [
        [0, 0],
        [320, 0],
        [320, 480],
        [0, 480],
      ],
      { shiftKey: true },
    );
    await wait();
    expect(chosen(model).length).toBe(23);
    drag(
      [
        [320, 0],
        [640, 0],
        [640, 480],
        [320, 480],
      ],
      { altKey: true },
    );
    await wait();
    expect(chosen(model).length).toBe(23 - right.length);
    // A click picks, whatever dragging does.
    const before = model.get("latent");
    drag([[320 + 224, 240]]);
    await wait();
    expect(before).toBe(2);
    expect(model.get("latent")).toBe(0);
  });

  it("follows Python without answering back", async () => {
    const { model, find, wait } = open();
    await wait();
    model.set("latent", 9);
    model.set("colour", "cluster");
    model.set("selected", new DataView(Uint8Array.from([0b11, 0, 0]).buffer));
    model.set("labels", { "9": "cap" });
    await wait();
    expect(find("h3")?.textContent).toBe("Latent 9 cap");
    expect(find<HTMLSelectElement>("select")?.value).toBe("cluster");
    expect(find(".nbs-below")?.textContent).toContain("cluster012");
    expect(find(".nbs-spoken")?.textContent).toBe("2 chosen of 23 latents");
    expect(model.saves).toBe(0);
  });

  it("says that a latent has no place, and still shows it", async () => {
    const { model, find, wait } = open();
    model.set("latent", 4);
    await wait();
    expect(find("h3")?.textContent).toBe("Latent 4");
    expect(find(".nbs-side .nbs-note")?.textContent).toContain("This latent has no place on the map.");
    expect(find(".nbs-readout")?.textContent).toContain("has no place");
  });

  it("lists what a search finds, and Enter picks the first", async () => {
    const { model, find, all, wait } = open();
    await wait();
    const input = find<HTMLInputElement>(".nbs-search") as HTMLInputElement;
    input.value = "hat";
    input.dispatchEvent(new Event("input"));
    await wait();
    expect(find(".nbs-spoken")?.textContent).toBe("2 found of 23 latents");
    expect(all(".nbs-row .nbs-col-name").map((one) => one.textContent)).toEqual(["hat", "striped hat"]);
    input.value = "striped";
    input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    await wait();
    expect(model.get("latent")).toBe(3);
    input.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    await wait();
    expect(find(".nbs-spoken")?.textContent).toBe("2 chosen of 23 latents");
  });

  it("gets exact numbers, missing columns and other names from the kernel", async () => {
    const columns = fixture.state.about.columns.map((one) => (one.key === "max" ? { ...one, saved: false } : one));
    const { model, find, live, answer, wait, all } = open({
      kernel: true,
      about: { columns, names: { all: 9, saved: 3 } },
    });
    await live();
    // The card of the picked latent is inside; that of 3 is not.
    expect(model.sent.filter((one) => one.kind === "card")).toEqual([]);
    model.set("latent", 3);
    await wait();
    expect(find(".nbs-side .nbs-note")?.textContent).toContain("density ≈");
    expect((await answer("card"))?.latent).toBe(3);
    expect(find(".nbs-side .nbs-note")?.textContent).toMatch(/^active on .* rows\), largest/);
    model.set("colour", "max");
    await wait();
    expect((await answer("column"))?.column).toBe("max");
    expect(find(".nbs-row .nbs-col-max")?.textContent).not.toBe("–");
    const input = find<HTMLInputElement>(".nbs-search") as HTMLInputElement;
    input.value = "hat";
    input.dispatchEvent(new Event("input"));
    await wait();
    expect((await answer("find"))?.text).toBe("hat");
    expect(all(".nbs-row").length).toBe(2);
  });

  it("shows why the kernel could not answer, and goes on", async () => {
    const { model, find, live, wait } = open({ kernel: true });
    await live();
    model.set("latent", 20);
    await wait();
    const asked = model.sent.filter((one) => one.kind === "card").at(-1);
    model.answer({ id: asked?.id, ok: false, error: { cause: "no such latent", fix: "choose another" } });
    await wait();
    expect(find(".nbs-error")?.textContent).toContain("no such latent");
    model.set("latent", 2);
    await wait();
    expect(find(".nbs-error")).toBeNull();
  });

  it("leaves nothing behind", async () => {
    const { model, el, wait, close } = open();
    await wait();
    close();
    expect(model.listening).toBe(0);
    el.remove();
    model.set("latent", 1);
    await wait();
    expect(model.saves).toBe(0);
  });

  it("never takes names for HTML", async () => {
    const { model, el, find, wait } = open();
    await wait();
    model.set("latent", 1);
    await wait();
    expect(find("h3")?.textContent).toContain("<img src=x onerror=");
    expect(el.querySelector("[onerror], script, iframe")).toBeNull();
  });
});

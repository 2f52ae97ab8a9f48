import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/attribution.json";
import attribution from "../src/attribution";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const opened: (() => void)[] = [];

function open(kind: "text" | "patches", { kernel = false, about = {} }: { kernel?: boolean; about?: object } = {}) {
  const { state: saved, binary } = fixture[kind];
  const state: Record<string, unknown> = { ...saved, about: { ...saved.about, ...about } };
  for (const name of binary) state[name] = unaligned(bytes(state[name] as string));
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  const close = attribution.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = (selector: string) => el.querySelector<HTMLElement>(selector);
  const press = (key: string, target = find(".nbs-strip")) =>
    target?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const cells = () => [...el.querySelectorAll<HTMLElement>(".nbs-cell")];
  const readout = () => find(".nbs-readout")?.textContent ?? "";
  const button = (text: string) =>
    [...el.querySelectorAll<HTMLElement>("button")].find((one) => one.textContent === text) as HTMLElement;
  return { model, el, close, find, press, cells, readout, button };
}

const settle = () => new Promise((resolve) => setTimeout(resolve));

beforeEach(() => {
  URL.createObjectURL = () => "blob:thumb";
  URL.revokeObjectURL = () => {};
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

describe("the strip of tokens", () => {
  it("colours every token by its share, and says the sign without colour", async () => {
    const { cells } = open("text");
    await settle();
    expect(cells().length).toBe(6);
    const shares = cells().map((one) => Number(one.style.getPropertyValue("--share")));
    expect(Math.max(...shares)).toBe(1);
    expect(Math.min(...shares)).toBeGreaterThanOrEqual(0);
    for (const cell of cells()) {
      expect(cell.classList.contains("nbs-against")).toBe(cell.getAttribute("aria-label")?.includes("−") ?? false);
    }
  });

  it("is one Tab stop, in which arrows choose tokens that Python sees", async () => {
    const { model, el, find, press, cells, readout } = open("text");
    await settle();
    expect(el.querySelectorAll('.nbs-cell[tabindex="0"]').length).toBe(0);
    press("Home");
    expect(model.state.token).toBe(0);
    press("ArrowRight");
    expect(model.state.token).toBe(1);
    expect(cells()[1]?.getAttribute("aria-selected")).toBe("true");
    expect(find(".nbs-strip")?.getAttribute("aria-activedescendant")).toBe(cells()[1]?.id);
    expect(readout()).toContain("token 1");
    model.set("token", 3);
    expect(cells()[3]?.getAttribute("aria-selected")).toBe("true");
  });

  it("shows the latents behind the chosen token; choosing one is seen by Python", async () => {
    const { model, el, cells, button } = open("text");
    await settle();
    cells()[2]?.click();
    expect(model.state.token).toBe(2);
    expect([...el.querySelectorAll("h4")].some((one) => one.textContent?.startsWith("Behind token 2"))).toBe(true);
    const rows = [...el.querySelectorAll<HTMLElement>(".nbs-row")];
    expect(rows.length).toBe(3);
    rows[1]?.click();
    expect(String(model.state.latent)).toBe(rows[1]?.querySelector(".nbs-col-latent")?.textContent);
    expect(model.saves).toBeGreaterThan(0);
    button("Whole input").click();
    expect(el.querySelectorAll(".nbs-row").length).toBeGreaterThan(3);
  });

  it("colours by one latent, or by source", async () => {
    const { cells, model, button } = open("text");
    await settle();
    button("This latent").click();
    model.set("latent", 11);
    const loud = cells().filter((one) => one.style.getPropertyValue("--share") !== "0.000");
    expect(loud.length).toBeLessThan(6);
    model.set("latent", 0);
    button("By source").click();
    await settle();
    expect(cells().some((one) => one.style.getPropertyValue("--share") === "1.000")).toBe(true);
  });

  it("shows hostile strings as text", async () => {
    const { el, find } = open("text");
    await settle();
    expect(find(".nbs-strip")?.textContent).toContain("<img src=x onerror=");
    expect(el.querySelectorAll("script, [onerror], img, iframe").length).toBe(0);
    expect(el.textContent).not.toMatch(/[\u202a-\u202e\u2066-\u2069]/);
  });
});

describe("the patches", () => {
  it("are coloured up to the strongest patch, whatever the prefix token says", async () => {
    const { el, find } = open("patches");
    await settle();
    const share = (one: Element) => Number((one as HTMLElement).style.getPropertyValue("--share"));
    const shares = [...el.querySelectorAll(".nbs-grid-cells .nbs-cell")].map(share);
    expect(Math.max(...shares)).toBe(1);
    expect(share(find(".nbs-prefix .nbs-cell") as Element)).toBeLessThanOrEqual(1);
  });

  it("move by rows, with the prefix token above the first one", async () => {
    const { model, find, press, cells } = open("patches");
    await settle();
    expect(cells().length).toBe(5);
    expect(find(".nbs-prefix")?.textContent).toMatch(/^CLS [+−][\d.]+$/);
    expect(find(".nbs-grid-cells")?.children.length).toBe(4);
    press("Home");
    const walk = ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp"].map((key) => {
      press(key);
      return model.state.token;
    });
    expect(walk).toEqual([1, 3, 4, 2, 0]);
    const patches = [...(find(".nbs-grid-cells")?.children ?? [])].map((one) => one.getAttribute("aria-label"));
    expect(patches[2]).toMatch(/^row 2, column 1, /);
  });
});

describe("heads by sources", () => {
  it("reads single cells with the arrow keys, and Enter chooses the source", async () => {
    const { model, find, press, readout, el } = open("text");
    model.set("latent", 1);
    await settle();
    const map = find(".nbs-heads") as HTMLElement;
    expect(map.getAttribute("aria-label")).toContain("2 heads by 6 sources for 1 one at token 5");
    map.focus();
    for (const key of ["ArrowUp", "Home", "ArrowDown", "ArrowRight", "ArrowRight"]) press(key, map);
    expect(readout()).toMatch(/head 1from token 2.*attention [\d.]+ %/);
    press("Enter", map);
    expect(model.state.token).toBe(2);
    const twin = [...el.querySelectorAll("details")].find((one) => one.textContent?.includes("Heads and sources"));
    twin?.dispatchEvent(new Event("toggle"));
    expect(twin?.querySelectorAll("tbody tr").length).toBe(12);
  });

  it("keeps what is shown for a latent that is not there, and says so", async () => {
    const { model, el, find } = open("text");
    model.set("latent", 1);
    await settle();
    model.set("latent", 9);
    await settle();
    expect(el.textContent).toContain("Latent 9 is not taken apart by head and source; shown is 1 one.");
    expect(find(".nbs-heads")).not.toBeNull();
    model.set("latent", 0);
    await settle();
    expect(
      find('[aria-label="Latent and target"]')?.closest("section")?.querySelector<HTMLElement>(".nbs-note")?.hidden,
    ).toBe(true);
  });
});

describe("the curve", () => {
  it("stands beside the band of random orders, with a table", async () => {
    const { el, find } = open("text");
    await settle();
    expect(find("path.nbs-band")).not.toBeNull();
    expect(el.querySelectorAll("circle.nbs-own-curve").length).toBe(5);
    const twin = [...el.querySelectorAll("details")].find((one) => one.textContent?.includes("Faithfulness"));
    twin?.dispatchEvent(new Event("toggle"));
    expect(twin?.querySelectorAll("tbody tr").length).toBe(5);
    expect(open("patches").find("path.nbs-band")).toBeNull();
  });
});

describe("an input that is not saved", () => {
  it("is said to be missing where no kernel answers", async () => {
    const { model, el, find } = open("text");
    model.set("input", 1);
    await settle();
    expect(find(".nbs-error")?.textContent).toContain("Input 1 is not inside this saved view");
    model.set("input", 0);
    await settle();
    expect(el.querySelector(".nbs-error")).toBeNull();
  });

  it("comes from the kernel", async () => {
    const { model, find, cells } = open("text", { kernel: true });
    model.answer({ id: model.sent[0]?.id, ok: true });
    model.set("input", 1);
    const asked = model.sent.find(({ kind }) => kind === "input");
    expect(asked).toMatchObject({ input_id: 1 });
    const buffers = fixture.asked.buffers.map((one) => unaligned(bytes(one)));
    model.answer({ ...(fixture.asked.content as object), id: asked?.id, ok: true }, buffers);
    await settle();
    expect(find(".nbs-error")).toBeNull();
    expect(cells()[0]?.textContent).toBe(" b");
  });
});

describe("keys and the host", () => {
  it("step through tokens, change colours and lists, and list themselves", async () => {
    const { model, find, press, el } = open("text");
    await settle();
    model.set("token", 2);
    press("]");
    expect(model.state.token).toBe(3);
    press("[");
    expect(model.state.token).toBe(2);
    const pressed = () => [...el.querySelectorAll('[aria-pressed="true"]')].map((one) => one.textContent);
    expect(pressed()).toEqual(["All latents", "This token"]);
    press("c");
    press("t");
    expect(pressed()).toEqual(["This latent", "Whole input"]);
    press("?");
    expect(find(".nbs-help")?.hidden).toBe(false);
  });

  it("gives everything back when the view closes", async () => {
    const { model, close } = open("text");
    await settle();
    close();
    expect(model.listening).toBe(0);
  });

  it("draws an error in place of itself", () => {
    const el = document.createElement("div");
    attribution.render({ model: new FakeModel({ twin: "twin-1" }), el });
    expect(el.querySelector(".nbs-error")?.textContent).toContain("could not be drawn");
  });
});

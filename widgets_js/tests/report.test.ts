import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { b64decode } from "../src/report/decode";
import { host, ReportModel } from "../src/report/model";

const saved = { module: "m", state: { latent: 3, nested: { list: [1] } } };

describe("a model without a kernel", () => {
  it("gives state, and buffers where their paths say, without touching what was saved", () => {
    const entry = {
      ...saved,
      buffers: [
        { path: ["thumbs"], encoding: "base64", data: btoa("abc") },
        { path: ["nested", "list", 0], encoding: "base64", data: btoa("xy") },
      ],
    };
    const model = new ReportModel(entry);
    expect((model.get("thumbs") as DataView).byteLength).toBe(3);
    const nested = model.get("nested") as { list: DataView[] };
    expect(nested.list[0]?.getUint8(1)).toBe("y".charCodeAt(0));
    expect(saved.state.nested.list).toEqual([1]);
  });

  it("tells its listeners of real changes only, and forgets those of a closed view", () => {
    const model = new ReportModel(saved);
    const close = new AbortController();
    const view = model.forView(close.signal);
    const seen: unknown[] = [];
    view.on("change:latent", () => seen.push(model.get("latent")));
    view.set("latent", 3);
    view.set({ latent: 4 });
    close.abort();
    model.set("latent", 5);
    expect(seen).toEqual([4]);
  });

  it("rejects calls, swallows messages, and says at once that there is no kernel", async () => {
    const model = new ReportModel(saved);
    await expect(model.experimental.invoke()).rejects.toThrow("no kernel");
    expect(model.forView(new AbortController().signal).send()).toBeUndefined();
    const own = host(async () => ({ model, exports: { mount: 1 } }));
    expect(own.kernel).toBe(false);
    expect((await own.getWidget("IPY_MODEL_abc")).exports).toEqual({ mount: 1 });
    expect((await own.getModel("anywidget:abc")).get("latent")).toBe(3);
  });

  it("refuses buffers it cannot read", () => {
    const entry = { ...saved, buffers: [{ path: ["x"], encoding: "hex", data: "00" }] };
    expect(() => new ReportModel(entry)).toThrow("stored as hex");
  });
});

describe("base64", () => {
  it("may be broken into lines", () => {
    expect([...b64decode("\n AAEC\n/w==\n")]).toEqual([0, 1, 2, 255]);
  });
});

describe("a report page", () => {
  beforeEach(() => void vi.resetModules());
  afterEach(() => document.body.replaceChildren());

  async function run(state: unknown): Promise<HTMLElement> {
    const json = document.createElement("script");
    json.type = "application/json";
    json.id = "nbsae-state";
    json.textContent = JSON.stringify(state);
    const view = document.createElement("div");
    view.className = "nbsae-view";
    view.dataset.model = "one";
    view.append(document.createElement("img"));
    document.body.append(json, view);
    await import("../src/report");
    await window.nbsaeReport?.ready;
    return view;
  }

  it.each([
    [{ version: 1, models: {} }, "holds no state for the dashboard one"],
    [{ version: 1, models: { one: { module: "gone", state: {} } } }, "does not hold the script gone"],
    [{ version: 9, models: {} }, "has version 9"],
  ])("keeps the static picture and says why", async (state, why) => {
    const view = await run(state);
    expect(view.querySelector("img")?.hidden).toBe(false);
    expect(view.querySelector(".nbsae-failed")?.textContent).toContain(why);
    expect(window.nbsaeReport?.mounted).toBe(0);
    expect(window.nbsaeReport?.errors.length).toBe(1);
  });
});

import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ShownError } from "../src/core/errors";
import type { AnyModel } from "../src/core/life";
import { kernelStatus, PING_MS, Rpc, TIMEOUT_MS } from "../src/core/rpc";
import { FakeModel, life } from "./fake";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("requests", () => {
  it("resolve with the answer of their own number", async () => {
    const model = new FakeModel();
    const rpc = new Rpc(model, life());
    const [a, b] = [rpc.request("card", { latent: 1 }), rpc.request("card", { latent: 2 })];
    const [, first, second] = model.sent;
    expect(first).toMatchObject({ kind: "card", latent: 1 });
    model.answer({ id: second?.id, ok: true, said: "b" }, ["bytes"]);
    model.answer({ id: first?.id, ok: true, said: "a" });
    expect(await a).toMatchObject({ content: { said: "a" } });
    expect(await b).toMatchObject({ content: { said: "b" }, buffers: ["bytes"] });
  });

  it("reject with the cause, the fix and the details of the kernel", async () => {
    const model = new FakeModel();
    const asked = new Rpc(model, life()).request("card");
    model.answer({ id: model.sent[1]?.id, ok: false, error: { cause: "c", fix: "f", details: "d" } });
    await expect(asked).rejects.toMatchObject({ message: "c", fix: "f", details: "d" });
  });

  it("end after a stated time", async () => {
    const asked = new Rpc(new FakeModel(), life()).request("card");
    const caught = asked.catch((error) => error);
    await vi.advanceTimersByTimeAsync(TIMEOUT_MS);
    const error = await caught;
    expect(error).toBeInstanceOf(ShownError);
    expect(error.message).toContain("30 s");
  });

  it("ignore what is no answer to them", () => {
    const model = new FakeModel();
    const rpc = new Rpc(model, life());
    for (const strange of [null, 3, "x", {}, []]) model.answer(strange);
    expect(rpc.kernel).toBe("asking");
  });
});

describe("whether there is a kernel", () => {
  it("is decided by a ping", async () => {
    const model = new FakeModel();
    const rpc = new Rpc(model, life());
    expect(model.sent[0]).toMatchObject({ kind: "ping" });
    model.answer({ id: model.sent[0]?.id, ok: true });
    await vi.advanceTimersByTimeAsync(PING_MS);
    expect(rpc.kernel).toBe("live");
  });

  it("is no when nobody answers, and yes when an answer comes late", async () => {
    const model = new FakeModel();
    const rpc = new Rpc(model, life());
    const seen: string[] = [];
    rpc.onKernel((kernel) => seen.push(kernel));
    await vi.advanceTimersByTimeAsync(PING_MS);
    model.answer({ id: model.sent[0]?.id, ok: true });
    expect(seen).toEqual(["none", "live"]);
  });

  it("is known at once where the host says so, and nothing is sent", () => {
    const model = new FakeModel();
    expect(new Rpc(model, life(false)).kernel).toBe("none");
    expect(model.sent).toEqual([]);
  });

  it("waits where the host says that a cell is running", async () => {
    const model = new FakeModel() as FakeModel & Pick<AnyModel, "widget_manager">;
    const kernel = { status: "busy" };
    model.widget_manager = { kernel };
    const rpc = new Rpc(model, life());
    await vi.advanceTimersByTimeAsync(60 * PING_MS);
    expect(rpc.kernel).toBe("asking");
    kernel.status = "idle";
    await vi.advanceTimersByTimeAsync(PING_MS);
    expect(rpc.kernel).toBe("none");
  });

  it("leaves no listener and no timer behind", () => {
    const model = new FakeModel();
    const own = life();
    new Rpc(model, own);
    own.close();
    expect(model.listening).toBe(0);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("the words about the kernel", () => {
  const BUSY = "the kernel is busy: it answers after the running cell";

  it("say that it is asked, that it is busy after 2 s, and nothing once it has answered", async () => {
    const model = new FakeModel();
    const own = life();
    const rpc = new Rpc(model, own);
    model.answer({ id: model.sent[0]?.id, ok: true });
    const status = kernelStatus(rpc, own, "what was saved");
    void rpc.request("card");
    const seen = [];
    for (const ms of [250, 100, 1_600, 100]) {
      await vi.advanceTimersByTimeAsync(ms);
      seen.push(status.textContent);
    }
    expect(seen).toEqual(["", "asking the kernel …", "asking the kernel …", BUSY]);
    model.answer({ id: model.sent[1]?.id, ok: true });
    expect(status.textContent).toBe("");
  });

  it("say that this is a saved view where nobody answers, with what it holds", async () => {
    const own = life();
    const status = kernelStatus(new Rpc(new FakeModel(), own), own, "what was saved");
    expect(status.title).toBe("");
    await vi.advanceTimersByTimeAsync(PING_MS);
    expect([status.textContent, status.title]).toEqual(["saved view", "what was saved"]);
  });
});

describe("what is too much or was refused", () => {
  it("a text of 10 MB is not sent, and the reason is told", async () => {
    const model = new FakeModel();
    const asked = new Rpc(model, life()).request("find", { text: "x".repeat(10_000_000) });
    await expect(asked).rejects.toMatchObject({ message: expect.stringContaining("longer than 100000 characters") });
    expect(model.sent.map(({ kind }) => kind)).toEqual(["ping"]);
  });

  it("a change that the kernel refused is shown", () => {
    const model = new FakeModel();
    const own = life();
    const failed: unknown[] = [];
    own.fail = (error) => void failed.push(error);
    new Rpc(model, own);
    model.answer({ refused: { cause: "latent=99 is outside", fix: "", details: "" } });
    expect(String(failed[0])).toContain("latent=99 is outside");
  });
});

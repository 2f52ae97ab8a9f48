import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ShownError } from "../src/core/errors";
import { PING_MS, Rpc, TIMEOUT_MS } from "../src/core/rpc";
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

  it("leaves no listener and no timer behind", () => {
    const model = new FakeModel();
    const own = life();
    new Rpc(model, own);
    own.close();
    expect(model.listening).toBe(0);
    expect(vi.getTimerCount()).toBe(0);
  });
});

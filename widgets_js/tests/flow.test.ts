import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/flow.json";
import { unpack } from "../src/core/wire";
import flowDashboard from "../src/flow";
import { moved } from "../src/panels/flow/graph";
import { hit, layout, spaced } from "../src/panels/flow/layout";
import { type About, bornText, chainOf, Flow, keyOf, placeOf } from "../src/panels/flow/tables";
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
  const close = flowDashboard.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = <E extends HTMLElement>(selector: string) => el.querySelector<E>(selector);
  const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
  const wait = (ms = 100) => vi.advanceTimersByTimeAsync(ms);
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
    await answer("page");
  };
  const tab = (name: string) =>
    all(".nbs-tabs button")
      .find((one) => one.textContent === name)
      ?.click();
  const press = (selector: string, key: string) =>
    el.querySelector(selector)?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  return { model, el, find, all, answer, live, wait, tab, press, close };
}

function read() {
  const tables = unpack(fixture.state.graph_header, bytes(fixture.state.graph));
  const flow = new Flow(tables, fixture.state.about as unknown as About);
  return { flow, graph: flow.read(tables) };
}

beforeEach(() => {
  vi.useFakeTimers();
  URL.createObjectURL = () => "blob:thumb";
  URL.revokeObjectURL = () => {};
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

describe("places in a column", () => {
  it("keep the order and the gap, and stay where they are wanted when there is room", () => {
    expect(spaced([5, 40, 90], 10, 100)).toEqual([5, 40, 90]);
    const crowded = spaced([50, 50, 50], 10, 100);
    expect(crowded).toEqual([40, 50, 60]);
    const low = spaced([0, 1, 2, 99, 99], 10, 100);
    for (const [number, one] of low.slice(1).entries()) expect(one - (low[number] ?? 0)).toBeGreaterThanOrEqual(9.999);
    expect(Math.min(...low)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...low)).toBeLessThanOrEqual(100);
    expect(spaced([], 10, 100)).toEqual([]);
  });

  it("are nearest to the wanted ones in the sense of least squares", () => {
    const wanted = [3, 4, 30, 31, 33, 80];
    const best = spaced(wanted, 8, 200);
    const cost = (places: number[]) => places.reduce((sum, one, at) => sum + (one - (wanted[at] ?? 0)) ** 2, 0);
    // Any small shift that keeps the gaps costs more.
    for (let at = 0; at < best.length; at += 1) {
      for (const by of [-0.5, 0.5]) {
        const other = best.map((one, place) => (place === at ? one + by : one));
        const valid = other.every((one, place) => one >= 0 && (place === 0 || one - (other[place - 1] ?? 0) >= 8));
        if (valid) expect(cost(other)).toBeGreaterThan(cost(best));
      }
    }
  });
});

describe("the layout", () => {
  const lanes = new Set([0, 1, 2, 3]);
  it("puts layers from left to right, modules before what they write to, and no two latents upon each other", () => {
    const { flow, graph } = read();
    const plan = layout(flow, graph.nodes, lanes, 800, 20);
    const x = (lane: number, layer: number) =>
      [...plan.at.values()].find(
        ({ node }) => flow.sites[node.site]?.lane === lane && flow.sites[node.site]?.layer === layer,
      )?.x ?? Number.NaN;
    expect(x(1, 1)).toBeGreaterThan(x(0, 0));
    expect(x(1, 1)).toBeLessThan(x(0, 1));
    expect(x(3, 3)).toBeGreaterThan(x(0, 2));
    expect(plan.columns.map(({ text }) => text)).toEqual(["0", "1", "2", "embed"]);
    expect(plan.bands.map(({ text }) => text)).toEqual(["Residual stream", "Attention", "MLP"]);
    const points = [...plan.at.values()];
    for (const [number, one] of points.entries()) {
      for (const other of points.slice(number + 1)) {
        expect(Math.hypot(one.x - other.x, one.y - other.y)).toBeGreaterThan(8.9);
      }
    }
    const some = points[17];
    expect(hit(plan, (some?.x ?? 0) + 3, (some?.y ?? 0) - 3)?.key).toBe(some?.node.key);
    expect(hit(plan, -50, -50)).toBeUndefined();
  });

  it("keeps the order of latents whatever is shown beside them", () => {
    const { flow, graph } = read();
    const order = (nodes: typeof graph.nodes) =>
      [...layout(flow, nodes, lanes, 800, 20).at.values()]
        .filter(({ node }) => node.site === 2)
        .sort((a, b) => a.y - b.y)
        .map(({ node }) => node.latent);
    const whole = order(graph.nodes);
    const half = order(graph.nodes.filter(({ latent }) => latent % 2 === 0));
    expect(half).toEqual(whole.filter((latent) => latent % 2 === 0));
    expect(layout(flow, [], lanes, 800, 20).at.size).toBe(0);
  });
});

describe("chains", () => {
  it("are followed both ways and end where no match reaches its threshold", () => {
    const { flow, graph } = read();
    const longest = Math.max(...graph.nodes.map(({ span }) => span));
    for (const node of graph.nodes) {
      const chain = chainOf(flow, node.key);
      expect(chain.length).toBe(node.span);
      expect(chain.filter(({ cosine }) => Number.isNaN(cosine)).map(({ key }) => key)).toEqual([node.key]);
    }
    expect(longest).toBeGreaterThan(3);
  });

  it("say where the feature was born", () => {
    const { flow, graph } = read();
    const said = (kind: number, lane = 0) => {
      const node = graph.nodes.find((one) => one.kind === kind && flow.sites[one.site]?.lane === lane);
      return node ? bornText(flow, chainOf(flow, node.key), node) : "";
    };
    expect(said(2)).toMatch(/at layer \d, latent \d+, written by layer \d MLP/);
    expect(said(3)).toMatch(/nothing before it reaches its threshold/);
    expect(said(-1)).toMatch(/the first site/);
    expect(said(-1, 2)).toMatch(/what this block adds/);
  });

  it("lead the arrow keys to the next layer, and up and down to neighbours", () => {
    const { flow, graph } = read();
    const plan = layout(flow, graph.nodes, new Set([0, 1, 2, 3]), 800, 20);
    const node = graph.nodes.find(({ span, site }) => span > 3 && site === 2);
    const chain = chainOf(flow, node?.key ?? 0);
    const next = moved(flow, plan, chain, node?.key ?? 0, "ArrowRight");
    expect(next?.key).toBe(chain[chain.findIndex(({ key }) => key === node?.key) + 1]?.key);
    expect(moved(flow, plan, chain, node?.key ?? 0, "End")?.key).toBe(chain.at(-1)?.key);
    const below = moved(flow, plan, chain, node?.key ?? 0, "ArrowDown");
    expect(below?.site).toBe(2);
    expect(moved(flow, plan, chainOf(flow, below?.key ?? 0), below?.key ?? 0, "ArrowUp")?.key).toBe(node?.key);
    expect(moved(flow, plan, chain, node?.key ?? 0, "x")).toBeUndefined();
  });
});

describe("a saved view", () => {
  it("draws the graph, the chosen latent and hostile names as text", async () => {
    const { el, find, all, wait } = open();
    await wait();
    const { graph } = read();
    expect(all(".nbs-nodes [role=option]").length).toBe(graph.nodes.length);
    expect(all(".nbs-nodes [aria-selected=true]").length).toBe(1);
    expect(find("canvas")?.getAttribute("aria-label")).toMatch(/latents at 10 sites and [\d,]+ edges/);
    expect(find("h3")?.textContent).toContain("<img src=x");
    expect(el.querySelectorAll("script, [onerror], a, iframe").length).toBe(0);
    expect(find(".nbs-status")?.textContent).toBe("saved view");
    expect(find(".nbs-top")?.textContent).toContain("left out: </script>");
    expect(find(".nbs-scores")?.textContent).toContain("carried");
    expect(all(".nbs-link").length).toBe(chainOf(read().flow, keyOf(2, 1)).length);
  });

  it("follows the traits and sets both of them", async () => {
    const { model, find, all, press, wait } = open();
    await wait();
    model.set("site", fixture.state.site.replace("0", "1"));
    await wait();
    expect(find(".nbs-scroll .nbs-note")?.textContent).toContain("layer 1");
    const before = model.saves;
    press(".nbs-nodes", "ArrowDown");
    await wait();
    expect(model.saves).toBe(before + 1);
    expect(model.get("site")).toBe("blocks.1.hook_resid_post");
    all(".nbs-pick")
      .find((one) => one.textContent?.includes("layer 0"))
      ?.click();
    await wait();
    expect(model.get("site")).toBe("blocks.0.hook_resid_post");
    expect(model.saves).toBe(before + 2);
  });

  it("filters by lane, kind and score, and keeps the chosen chain", async () => {
    const { find, all, wait } = open();
    await wait();
    const shown = () => all(".nbs-nodes [role=option]").length;
    const whole = shown();
    const lane = all(".nbs-segments button").find((one) => one.textContent === "MLP");
    lane?.click();
    await wait();
    expect(shown()).toBeLessThan(whole);
    expect(lane?.getAttribute("aria-pressed")).toBe("false");
    const least = find<HTMLInputElement>("[type=range]");
    if (least) least.value = "1";
    least?.dispatchEvent(new Event("input"));
    await wait();
    const chain = chainOf(read().flow, keyOf(2, 1)).filter(({ key }) => placeOf(key).site !== 1);
    expect(shown()).toBe(chain.filter(({ node }) => node).length);
  });

  it("searches by name and number among what is saved", async () => {
    const { model, find, all, press, wait } = open();
    await wait();
    const search = find<HTMLInputElement>(".nbs-search");
    const type = async (text: string) => {
      if (search) search.value = text;
      search?.dispatchEvent(new Event("input"));
      await wait();
      return all(".nbs-hits [role=option]").map((one) => one.textContent);
    };
    expect(await type("hat")).toEqual(["hat #2, layer 0", "striped hat #3, layer 0"]);
    expect((await type("#7")).length).toBe(10);
    expect(await type("no such thing")).toEqual([]);
    expect(find(".nbs-hits")?.textContent).toContain("No latent matches in this saved view");
    await type("striped");
    press(".nbs-search", "Enter");
    await wait();
    expect(model.get("latent")).toBe(3);
    expect(find(".nbs-hits")?.hidden).toBe(true);
    if (search) search.value = "hat"; // Enter before the list is there
    search?.dispatchEvent(new Event("input"));
    press(".nbs-search", "Enter");
    await wait();
    expect(model.get("latent")).toBe(2);
  });

  it("says that steering needs a kernel, and shows the levels with their null", async () => {
    const { find, all, tab, press, wait } = open();
    await wait();
    tab("Steer");
    expect(find(".nbs-lower:not([hidden])")?.textContent).toContain("needs a running kernel");
    expect(
      all(".nbs-lower button")
        .find((one) => one.textContent === "Steer")
        ?.hasAttribute("disabled"),
    ).toBe(true);
    press(".nbs-nodes", "t");
    await wait();
    const chosen = find('[role=treeitem][aria-selected="true"]');
    expect(chosen?.textContent).toContain("<img src=x");
    expect(chosen?.textContent).toMatch(/by chance/);
    expect(chosen?.getAttribute("aria-expanded")).toBe("true");
    press('[role=treeitem][aria-selected="true"]', "ArrowLeft");
    expect(find('[role=treeitem][aria-selected="true"]')?.getAttribute("aria-expanded")).toBe("false");
  });

  it("hangs a child on its nearest parent and names the others", async () => {
    const { model, find, all, tab, wait } = open();
    await wait();
    tab("Levels");
    model.set("latent", 17);
    await wait();
    expect(all('[data-latent="17"]').length).toBe(1);
    expect(find('[data-latent="9"] [data-latent="17"]')).not.toBeNull();
    expect(find(".nbs-lower:not([hidden])")?.textContent).toContain(
      "Also a child of striped hat (active with it 60.0 %",
    );
  });

  it("twins the graph with a table whose rows choose", async () => {
    const { model, find, all, tab, wait } = open();
    await wait();
    tab("Table");
    await wait();
    expect(find(".nbs-lower:not([hidden])")?.textContent).toMatch(/\d+ of 200 latents are shown/);
    const row = all(".nbs-row")[1];
    row?.click();
    await wait();
    expect(row?.title).toContain(String(model.get("latent")));
  });

  it("leaves nothing behind", async () => {
    const { model, close, wait } = open();
    await wait();
    close();
    expect(model.listening).toBe(0);
  });
});

describe("a live view", () => {
  it("asks for a page per change and keeps the one before when it fails", async () => {
    const { model, find, all, live, wait, press } = open({ kernel: true });
    await live();
    const pages = () => model.sent.filter(({ kind }) => kind === "page");
    expect(pages().length).toBe(1);
    expect(pages()[0]).toMatchObject({ site: "blocks.0.hook_resid_post", latent: 1, only_kind: "", least: 0 });
    const marks = all(".nbs-nodes [role=option]").length;
    press(".nbs-nodes", "ArrowDown");
    press(".nbs-nodes", "ArrowDown");
    await wait();
    expect(pages().length).toBe(2); // two quick keys, one question
    await wait(400);
    expect(find(".nbs-status")?.textContent).toBe("asking the kernel …");
    await wait(2_000);
    expect(find(".nbs-status")?.textContent).toContain("busy");
    model.answer({ id: pages().at(-1)?.id, ok: false, error: { cause: "out of memory", fix: "", details: "" } });
    await wait();
    expect(find(".nbs-status")?.textContent).toBe("");
    expect(find(".nbs-error")?.textContent).toContain("out of memory");
    expect(all(".nbs-nodes [role=option]").length).toBeGreaterThanOrEqual(marks);
  });

  it("takes the cards that are not saved from the kernel", async () => {
    const { model, all, live, answer, wait } = open({
      kernel: true,
      about: { saved: { nodes: 0, shown: 5, cards: 0 } },
    });
    await live();
    model.set("site", "blocks.1.hook_resid_post");
    model.set("latent", 7);
    await wait();
    const asked = model.sent.filter(({ kind }) => kind === "cards").at(-1);
    if (asked) await answer("cards");
    expect(all(".nbs-link").length).toBeGreaterThan(0);
    expect(all(".nbs-link .nbs-error").length).toBe(0);
  });

  it("searches among all latents", async () => {
    const { find, all, live, answer, wait } = open({ kernel: true });
    await live();
    const search = find<HTMLInputElement>(".nbs-search");
    if (search) search.value = "hat";
    search?.dispatchEvent(new Event("input"));
    await wait(200);
    expect(await answer("find")).toMatchObject({ text: "hat" });
    expect(all(".nbs-hits [role=option]").length).toBe(2);
  });

  it("steers once per press, says that it is busy, and shows both sides with the control", async () => {
    const { model, find, all, live, answer, tab, wait } = open({ kernel: true });
    await live();
    tab("Steer");
    const go = all(".nbs-lower button").find((one) => one.textContent === "Steer") as HTMLButtonElement;
    go.click();
    go.click();
    await wait(40_000); // longer than other questions may take
    expect(model.sent.filter(({ kind }) => kind === "steer").length).toBe(1);
    expect(find(".nbs-lower:not([hidden]) [role=status]")?.textContent).toContain("the model runs");
    await answer("steer");
    const shown = find(".nbs-lower:not([hidden])");
    expect(all(".nbs-side h4").map((one) => one.textContent)).toEqual(["Before", "After", "Control"]);
    expect(shown?.textContent).toContain("blocks.0.hook_resid_post 1 2.0 single");
    expect(shown?.querySelector("td:last-child")?.textContent).toBe("–");
    go.click();
    const asked = model.sent.at(-1);
    model.answer({ id: asked?.id, ok: false, error: { cause: "the prompt is too long", fix: "", details: "" } });
    await wait();
    expect(shown?.querySelector(".nbs-error")?.textContent).toContain("the prompt is too long");
    expect(go.disabled).toBe(false);
  });
});

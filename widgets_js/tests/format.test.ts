import { describe, expect, it } from "vitest";
import { cividis } from "../src/core/colour";
import { brief, count, percent, sig3, visible } from "../src/core/format";
import { logShare } from "../src/panels/histogram";
import { barShare } from "../src/panels/latents";
import { folded } from "../src/panels/texts";
import { contract } from "./fixture";

describe("numbers", () => {
  it("are written as Python writes them", () => {
    for (const [value, text] of contract.sig3 as [number, string][]) {
      expect(sig3(value).replace(/−/g, "-"), String(value)).toBe(text);
    }
  });

  it("have three significant digits at every size", () => {
    expect([0.5, 1, 99.96, 999.5, 1e5, 0.00012].map(sig3)).toEqual([
      "0.500",
      "1.00",
      "100",
      "1,000",
      "100,000",
      "0.000120",
    ]);
    expect([sig3(Number.NaN), sig3(Infinity)]).toEqual(["–", "∞"]);
    expect([count(1234567), percent(0.0321), brief(950), brief(12_300)]).toEqual(["1,234,567", "3.21 %", "950", "12k"]);
  });
});

describe("text", () => {
  it("is made visible as Python makes it visible", () => {
    for (const [text, shown] of contract.visible as [string, string][]) expect(visible(text)).toBe(shown);
  });

  it("shows direction marks, controls and lone surrogates, and keeps joined emoji", () => {
    expect(visible("a\u202eb\u2066\n\t\0")).toBe("a⟨U+202E⟩b⟨U+2066⟩↵⇥␀");
    expect(visible("x\ud83dy")).toBe("x\ufffdy");
    expect(visible("👩\u200d🔬 漢")).toBe("👩\u200d🔬 漢");
  });
});

describe("scales", () => {
  it("colour runs from dark blue to yellow and gets lighter all the way", () => {
    expect(cividis(-1)).toEqual([0, 34, 78]);
    expect(cividis(2)).toEqual([254, 232, 56]);
    const light = Array.from({ length: 50 }, (_, i) => {
      const [r, g, b] = cividis(i / 49);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    });
    for (let i = 1; i < light.length; i += 1) expect(light[i]).toBeGreaterThan(light[i - 1] as number);
  });

  it("bars are logarithmic, full at the largest and seen at one", () => {
    expect([logShare(0, 100), logShare(100, 100)]).toEqual([0, 1]);
    expect(logShare(1, 1e6)).toBeGreaterThan(0.04);
    expect([barShare(0), barShare(1), barShare(1e-9)]).toEqual([0, 1, 0.02]);
  });

  it("a long text opens around its peak", () => {
    expect(folded(20, 3)).toEqual([0, 20]);
    expect(folded(30, 3)).toEqual([0, 18]);
    expect(folded(500, 200)).toEqual([172, 215]);
    expect(folded(500, -1)).toEqual([0, 42]);
  });
});

/** Numbers with three significant digits, and text whose invisible characters can be seen. */

const COUNT = new Intl.NumberFormat("en-US");

/** 3 significant digits: 0, 4.10, 0.0321, 12,300, 1.23e−7. */
export function sig3(value: number): string {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text: string;
  if (size >= 1e6 || size < 1e-4) text = value.toExponential(2);
  else if (size >= 999.5) text = COUNT.format(Number(value.toPrecision(3)));
  else text = value.toPrecision(3);
  return text.replace("e+", "e").replace(/-/g, "−");
}

/** An exact count with thousands separated. */
export function count(value: number): string {
  return COUNT.format(value);
}

/** A fraction as a percentage; 0.0321 is 3.21 %. */
export function percent(fraction: number): string {
  return `${sig3(fraction * 100)} %`;
}

/** A short count for an axis: 950, 1k, 25k, 3M. */
export function brief(value: number): string {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(2))}M`;
  if (value >= 1e3) return `${Number((value / 1e3).toPrecision(2))}k`;
  return String(Number(value.toPrecision(3)));
}

const SHOWN: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥" };

/**
 * Text as a reader should see it: line ends, tabs, control and direction characters become visible signs, lone
 * surrogates U+FFFD. Joiners stay: they hold emoji and some scripts together.
 */
export function visible(text: string): string {
  return text.replace(/\p{Cs}/gu, "\ufffd").replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (char) => {
    if (char === "\u200c" || char === "\u200d") return char;
    const code = char.codePointAt(0) ?? 0;
    if (code < 0x20) return SHOWN[char] ?? String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

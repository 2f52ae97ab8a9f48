// Writes the long names of the DOM once per script: `.addEventListener(` becomes `[à](` with `const à="addEventListener"`
// at the top. What a notebook pays for is the raw size of a script, and these names are a thirtieth of it.

/** Names that stand in no text of ours behind a dot, so that text is never changed. */
export const NAMES = [
  "addEventListener", "removeEventListener", "setAttribute", "removeAttribute", "replaceChildren", "textContent",
  "querySelector", "querySelectorAll", "getBoundingClientRect", "preventDefault", "stopPropagation", "clientWidth",
  "clientHeight", "scrollTop", "createElement", "createElementNS", "requestAnimationFrame", "cancelAnimationFrame",
  "globalAlpha", "byteLength", "byteOffset", "classList", "parentElement", "fromEntries", "toPrecision", "disconnect",
  "devicePixelRatio", "getContext", "fillStyle", "strokeStyle", "scrollIntoView", "offsetWidth", "offsetHeight",
  "childElementCount", "activeElement", "createObjectURL", "revokeObjectURL", "tabIndex",
  "append", "includes", "entries", "filter", "forEach", "findIndex", "toString", "replace",
]; // biome-ignore format: a list

/** Of two bytes each, and used by no minified name. */
const LETTERS = [..."àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿāăąćĉċčďđēĕėęěĝğġģĥħĩīĭ"];

/** The script with every name that is worth it written once. */
export function hoist(script) {
  const found = [];
  for (const name of NAMES) {
    const pattern = new RegExp(`(?<!\\.)\\??\\.${name}\\b`, "g");
    const letter = LETTERS[found.length];
    const uses = script.match(pattern)?.length ?? 0;
    // `.name` against `[x]` of four bytes, and the declaration.
    if (uses * (name.length - 3) <= name.length + 6) continue;
    found.push(`${letter}="${name}"`);
    script = script.replace(pattern, (whole) => `${whole.startsWith("?") ? "?." : ""}[${letter}]`);
  }
  return found.length ? `const ${found.join(",")};${script}` : script;
}

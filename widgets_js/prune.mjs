// Leaves out of a style sheet the rules for classes that a script never names, so that each dashboard carries only its
// part of the shared sheet. Works on esbuild's minified output, where comments are gone.

/** Split at `separator` where no bracket and no quote is open. */
function split(text, separator) {
  const parts = [];
  let [depth, quote, start] = [0, "", 0];
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at];
    if (quote) quote = char === quote ? "" : quote;
    else if (char === '"' || char === "'") quote = char;
    else if ("([{".includes(char)) depth += 1;
    else if (")]}".includes(char)) depth -= 1;
    else if (char === separator && depth === 0) {
      parts.push(text.slice(start, at));
      start = at + 1;
    }
  }
  return [...parts, text.slice(start)];
}

/** Position of the first of `wanted` from `start` on that stands in no quotes; the end of the text where there is none. */
function find(text, wanted, start) {
  let quote = "";
  for (let at = start; at < text.length; at += 1) {
    const char = text[at];
    if (quote) quote = char === quote ? "" : quote;
    else if (char === '"' || char === "'") quote = char;
    else if (wanted.includes(char)) return at;
  }
  return text.length;
}

/** Position of the brace that closes the one at `open`. */
function closing(text, open) {
  let depth = 0;
  for (let at = open; at < text.length; at = find(text, "{}", at + 1)) {
    depth += text[at] === "{" ? 1 : -1;
    if (depth === 0) return at;
  }
  throw new Error("A style sheet has a brace that nothing closes.");
}

/** The alternatives of a selector that can match; empty where none can. */
function reachable(selector, isUsed) {
  const kept = split(selector, ",").flatMap((one) => {
    let dead = false;
    const own = one.replace(/:is\(([^()]*(?:\([^()]*\)[^()]*)*)\)/g, (whole, inner) => {
      const left = reachable(inner, isUsed);
      if (!left) dead = true;
      return left === inner ? whole : split(left, ",").length > 1 || /[ >+~]/.test(left) ? `:is(${left})` : left;
    });
    // What stands in `:not` need not exist.
    const needed = own.replace(/:not\([^()]*\)/g, "").match(/\.nbs-[\w-]+/g) ?? [];
    return dead || !needed.every((name) => isUsed(name.slice(1))) ? [] : [own];
  });
  return kept.join(",");
}

function rules(text, isUsed) {
  let out = "";
  let at = 0;
  while (at < text.length) {
    const open = find(text, "{;", at);
    if (text[open] !== "{") {
      out += text.slice(at, open + 1);
      at = open + 1;
      continue;
    }
    const close = closing(text, open);
    const prelude = text.slice(at, open);
    const kept = prelude.startsWith("@") ? prelude : reachable(prelude, isUsed);
    const body = prelude.startsWith("@keyframes")
      ? text.slice(open + 1, close)
      : rules(text.slice(open + 1, close), isUsed);
    if (kept && body) out += `${kept}{${body}}`;
    at = close + 1;
  }
  return out;
}

/** Whether a script names a class. A name that ends in "-" is a beginning. */
function namer(script) {
  const names = [...new Set(script.match(/nbs-[\w-]+/g) ?? [])];
  const whole = new Set(names);
  const beginnings = names.filter((name) => name.endsWith("-"));
  return (name) => whole.has(name) || beginnings.some((start) => name.startsWith(start));
}

/** The sheet without rules for `nbs-` classes that are not in `script`. */
export function prune(css, script) {
  return rules(css, namer(script));
}

/** Classes of a sheet that `script` does not name: rules that would be lost. */
export function unnamed(css, script) {
  const isUsed = namer(script);
  return [...new Set(css.match(/\.nbs-[\w-]+/g) ?? [])].filter((name) => !isUsed(name.slice(1)));
}

// Writes what a script says often once: `x.addEventListener("click", f)` becomes `x[À](Á,f)`, with
// `const À="addEventListener",Á="click"` at the top. A notebook pays for the raw size of a script, and what is said again
// is a tenth of it. Works on the syntax tree of esbuild's output, so that no text and no private name is touched.

import ts from "typescript";

/** Read in loops over every point or pixel, where a name that is known at once is faster. */
const HOT = new Set(["length", "data"]);
/** Of an object's own names only long ones: objects of names that are computed are made more slowly. */
const LONG = 5;
/** Letters of two bytes; esbuild's own short names have one. */
const LETTERS = Array.from({ length: 0x190 }, (_, at) => String.fromCharCode(0xc0 + at)).filter((letter) =>
  /\p{ID_Start}/u.test(letter),
);
const bytes = (text) => Buffer.byteLength(text);

/** Every place of a name or a text: where, what is said, and what must stand around a letter instead. */
function places(script) {
  const found = [];
  const source = ts.createSourceFile("script.js", script, ts.ScriptTarget.ES2022, true, ts.ScriptKind.JS);
  const add = (start, end, what, before, after) => {
    const saves = bytes(script.slice(start, end)) - 2 - before.length - after.length;
    if (saves > 0 && !HOT.has(what) && what !== "__proto__") found.push({ start, end, what, before, after, saves });
  };
  const apart = (char) => (/[\w$]/.test(char ?? "") ? " " : "");
  const visit = (node) => {
    const [start, end] = [node.getStart(source), node.getEnd()];
    const { parent } = node;
    if (ts.isPropertyAccessExpression(node) && ts.isIdentifier(node.name)) {
      // From the dot on, or from behind `?.`.
      add(node.questionDotToken?.getEnd() ?? node.expression.getEnd(), end, node.name.text, "[", "]");
    } else if (parent && ts.isPropertyAssignment(parent) && parent.name === node) {
      if (ts.isStringLiteral(node) || (ts.isIdentifier(node) && node.text.length >= LONG)) {
        add(start, end, node.text, "[", "]");
      }
    } else if (ts.isStringLiteral(node) && !ts.isExpressionStatement(parent) && !ts.isBindingElement(parent)) {
      add(start, end, node.text, apart(script[start - 1]), apart(script[end]));
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** The script with every name and text that is worth it written once. */
export function hoist(script) {
  const groups = grouped(places(script));
  const chosen = [...groups]
    .map(([what, list]) => ({ what, list, saves: list.reduce((sum, one) => sum + one.saves, 0) }))
    .filter(({ what, saves }) => saves > bytes(JSON.stringify(what)) + 4)
    .sort((a, b) => b.saves - a.saves)
    .slice(0, LETTERS.length)
    .map((one, at) => ({ ...one, letter: LETTERS[at] }));
  if (!chosen.length) return script;
  const edits = chosen.flatMap(({ list, letter }) => list.map((one) => ({ ...one, letter })));
  let [short, last] = ["", 0];
  for (const { start, end, before, after, letter } of edits.sort((a, b) => a.start - b.start)) {
    short += script.slice(last, start) + before + letter + after;
    last = end;
  }
  const said = chosen.map(({ what, letter }) => `${letter}=${JSON.stringify(what)}`);
  return `const ${said};${short}${script.slice(last)}`;
}

function grouped(list) {
  const groups = new Map();
  for (const one of list) groups.set(one.what, [...(groups.get(one.what) ?? []), one]);
  return groups;
}

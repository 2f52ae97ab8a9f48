// Bundles every dashboard into one self-contained file and holds it to a byte budget.
//
//   node build.mjs           writes {feature,concept,…}.{js,css} and report.js into ../nb_sae/widgets/static
//   node build.mjs flow …    only these
//   node build.mjs --watch   rebuilds on every change

import { mkdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";
import { hoist } from "./hoist.mjs";
import { prune, unnamed } from "./prune.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "nb_sae", "widgets", "static");

/** Every dashboard: `src/<name>.ts` and `src/<name>.css`, which begins with `base.css`. */
const dashboards = ["feature", "concept", "bias", "attribution", "flow", "atlas", "monitor"];

/** What is built, how, and how large it may become (bytes, minified, not compressed). */
const outputs = [
  ...dashboards.flatMap((name) => [
    { entry: `src/${name}.ts`, file: `${name}.js`, format: "esm", budget: name === "monitor" ? 90_000 : 60_000 },
    { entry: `src/${name}.css`, file: `${name}.css`, target: "chrome123", budget: 8_000 },
  ]),
  { entry: "src/shared.ts", file: "shared.js", format: "esm", budget: 3_000 },
  { entry: "src/report.ts", file: "report.js", format: "iife", budget: 20_000 },
];

/** Calls that would leave the page or run text as code; none may be in what we ship. */
const forbidden = [/\beval\(/, /new Function\b/, /\.innerHTML\b/, /\bfetch\(/, /XMLHttpRequest/, /new Worker\b/];

const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  charset: "utf8",
  target: "es2022",
  legalComments: "none",
  logLevel: "warning",
  // A UMD dependency must not register itself with a RequireJS that the page happens to hold.
  define: { "define.amd": "false" },
};

/** One letter for each of the style sheet's own properties; those that scripts set (`--share`, `--heat`) keep theirs. */
function shorten(css) {
  const names = [...new Set(css.match(/--nbs-[a-z]+/g))];
  if (names.length > 26) throw new Error(`There are ${names.length} own properties and 26 letters.`);
  const short = css.replace(/--nbs-[a-z]+/g, (name) => `--${String.fromCharCode(97 + names.indexOf(name))}`);
  return short.replace(/([,:]) | (?=\/ )|(?<= \/) /g, "$1");
}

/** Writes beside the target first, so that a reader never sees half a file. */
async function build({ entry, file, budget, ...options }) {
  const out = join(target, file);
  const part = `${out}.part`;
  const { metafile } = await esbuild.build({
    ...common,
    entryPoints: [entry],
    outfile: part,
    metafile: true,
    ...options,
  });
  const foreign = Object.keys(metafile.inputs).filter((path) => !path.startsWith("src/"));
  if (foreign.length)
    throw new Error(`${file} would hold ${foreign}. Others' code needs a line in THIRD_PARTY_NOTICES.md.`);
  if (file.endsWith(".css")) {
    // Written just before: the script says which rules its dashboard needs.
    const script = await readFile(out.replace(/\.css$/, ".js"), "utf8");
    const unknown = unnamed(await readFile(join(here, entry), "utf8"), script);
    if (unknown.length) throw new Error(`${entry} has rules for ${unknown}, which its script does not name in full.`);
    await writeFile(part, shorten(prune(await readFile(part, "utf8"), script)));
  }
  const text = await readFile(part, "utf8");
  const found = forbidden.find((pattern) => pattern.test(text));
  if (file.endsWith(".js")) await writeFile(part, hoist(text));
  const { size } = await stat(part);
  if (size > budget || found) {
    await rm(part);
    const why = found ? `it holds ${found}` : `it is ${size} bytes, the budget is ${budget}`;
    throw new Error(`${file} is refused: ${why}.`);
  }
  await rename(part, out);
  return `${file.padEnd(12)} ${String(size).padStart(6)} B of ${budget}`;
}

const asked = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const due = outputs.filter(({ file }) => !asked.length || asked.includes(file.replace(/\.\w+$/, "")));
if (!due.length) throw new Error(`Nothing is called ${asked}. Known: ${dashboards}, report.`);

await mkdir(target, { recursive: true });
if (process.argv.includes("--watch")) {
  const builds = due.map(({ entry, file, budget: _, ...options }) =>
    esbuild.context({ ...common, entryPoints: [entry], outfile: join(target, file), logLevel: "info", ...options }),
  );
  for (const context of await Promise.all(builds)) await context.watch();
} else {
  for (const output of due) console.log(await build(output));
}

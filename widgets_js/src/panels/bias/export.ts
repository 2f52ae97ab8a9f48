/** Every table as CSV: whole from the kernel, else what the saved view holds, which the file's name says. */

import { h, listen } from "../../core/dom";
import { csv, save } from "../../core/download";
import { count } from "../../core/format";
import type { Table } from "../../core/wire";
import type { Panel } from "./shared";
import type { Report } from "./tables";

/** Tables by the name that Python gives them, and the tables of this view that hold them. */
const TABLES: Record<string, { title: string; parts: string[] }> = {
  association: { title: "Association", parts: ["association"] },
  conditional: { title: "Conditional association", parts: ["conditional"] },
  reliance: { title: "Reliance", parts: ["reliance"] },
  curves: { title: "Curves", parts: ["curves"] },
  image_curves: { title: "Curves of inputs", parts: ["image_curves"] },
  errors: { title: "Errors", parts: ["errors", "levels"] },
  class_errors: { title: "Errors of each class", parts: ["class_errors"] },
  gaps: { title: "Gaps", parts: ["gaps"] },
  retrieval: { title: "Retrieval", parts: ["retrieval"] },
  histograms: { title: "Histograms", parts: ["histograms"] },
  controls: { title: "Matched latents", parts: [] },
  groups: { title: "Groups", parts: ["groups"] },
  examples: { title: "Examples", parts: ["examples", "shown"] },
};
/** Tables of which the saved view holds the concepts with details only, tables without any, and without those lines. */
const DETAILS = new Set(["curves", "image_curves", "errors", "examples", "histograms"]);
const WHOLE = new Set(["retrieval", "groups"]);
const OF_GROUPS = new Set(["gaps", "class_errors"]);
const CODED = new Set(["group", "versus", "given", "output", "query", "level"]);

export function exportPanel(root: HTMLElement, panel: Panel): () => void {
  const select = h("select", { "aria-label": "Table to save" });
  for (const [key, { title }] of Object.entries(TABLES)) select.append(h("option", { value: key }, title));
  const button = h("button", { type: "button", class: "nbs-button" }, "Save CSV");
  const said = h("span", { class: "nbs-status", role: "status" });
  listen(button, "click", async () => {
    const name = select.value;
    try {
      if (panel.state.get("kernel") === "live") {
        save(`bias-${name}.csv`, await panel.source.askTable(name));
        said.textContent = "";
        return;
      }
      const { about, length } = panel.report;
      const held = DETAILS.has(name) ? about.saved : length;
      const isCut = name === "image_curves" && about.images !== null;
      const isWhole = WHOLE.has(name) || (held === about.concepts && !isCut && !OF_GROUPS.has(name));
      save(`bias-${name}${isWhole ? "" : "-part"}.csv`, tableCsv(panel, name));
      if (OF_GROUPS.has(name)) said.textContent = "what is saved: whole groups, without the concepts";
      else said.textContent = isWhole ? "" : `what is saved: ${count(held)} of ${count(about.concepts)} concepts`;
    } catch (error) {
      said.textContent = error instanceof Error ? error.message : String(error);
    }
  });
  root.append(h("span", { class: "nbs-legend" }, select, button, said));
  return () => {};
}

/** A table of this view as CSV. */
export function tableCsv({ report, source }: Panel, name: string): string {
  const wanted = TABLES[name]?.parts ?? [];
  if (!wanted.length) throw new Error("This table needs a kernel: it is not in a saved view.");
  const parts = wanted.map((part) => {
    const found = report.tables[part] ?? source.saved.tables[part];
    if (!found) throw new Error(`This view holds no table ${name}.`);
    return found;
  });
  const columns = [...new Set(parts.flatMap((part) => part.columns))];
  const hasConcept = columns.includes("concept");
  const rest = columns.filter((column) => column !== "concept");
  const head = hasConcept ? ["concept", "latent", ...rest] : rest;
  const lines = parts.flatMap((part) =>
    Array.from({ length: part.rows }, (_, row) => {
      const own = hasConcept ? conceptCells(report, part, row) : [];
      return [...own, ...rest.map((column) => cell(report, part, column, row))];
    }),
  );
  return csv(head, lines);
}

function conceptCells(report: Report, part: Table, row: number): (string | number | null)[] {
  const concept = part.has("concept") ? (part.numbers("concept")[row] ?? -1) : -1;
  return [report.names[concept] ?? null, report.latent[concept] ?? null];
}

function cell(report: Report, part: Table, column: string, row: number): string | number | null {
  if (!part.has(column)) return null;
  if (part.isText(column)) return String(part.json(column)[row]);
  const isMasked = part.has("masked") && part.numbers("masked")[row] === 1;
  if (column === "masked") return isMasked ? "true" : "false";
  if (part.isList(column)) {
    const of = part.list(column, row);
    // In steps, so that it takes two bytes.
    const scale = column === "probability" ? 1 / 65_535 : 1;
    return Array.from(of, (one) => Number((one * scale).toPrecision(7))).join(";");
  }
  const number = part.numbers(column)[row] ?? Number.NaN;
  if (CODED.has(column)) return number < 0 ? null : report.label(number);
  return isMasked ? null : number;
}

/** Retrieval skew: what a query finds before and after concepts are removed, against what chance gives. */

import { h } from "../../core/dom";
import { count, percent, sig3 } from "../../core/format";
import { distinct, named, none, numberButton, type Panel, qText, roundUp, section, tableOf, whisker } from "./shared";
import { value } from "./tables";

export function retrievalPanel(root: HTMLElement, { report, state }: Panel): () => void {
  const part = section("Skew of retrieval, before and after removing concepts");
  root.append(part.element);
  const table = report.table("retrieval");
  if (!table.rows) {
    part.body.append(none("The report holds no retrieval: give ns.bias_report a CLIP model for its queries."));
    return () => {};
  }
  const rows = Array.from({ length: table.rows }, (_, row) => row);
  const of = (name: string, row: number) => value(table, name, row);
  const domain: [number, number] = [
    0,
    roundUp(
      Math.max(...rows.flatMap((row) => [of("max_skew", row), of("chance_skew", row)]).filter(Number.isFinite), 0.1),
    ),
  ];
  const removed = table.json("removed") as string[];
  const groups = report.table("groups");
  const open = (query: number) => {
    const inputs = report.shown().filter(({ group }) => group === query);
    state.set("behind", {
      title: `First hits of “${report.label(query)}”`,
      strips: [
        { name: "as retrieved, before removing", inputs: inputs.map(({ input, act }) => ({ input, said: sig3(act) })) },
      ],
    });
  };
  part.body.append(
    h(
      "p",
      { class: "nbs-note" },
      "MaxSkew@k is the largest log of (share of a group among the k hits ÷ its share overall); 0 is even. Shaded: what k random rows stay below in 97.5 % of draws.",
    ),
  );
  for (const query of distinct(rows.map((row) => of("query", row)))) {
    const lines = rows.filter((row) => of("query", row) === query);
    const cells = lines.map((row) => {
      const skew = of("max_skew", row);
      const shares = [...table.list("shares", row)].map(
        (share, at) => `${report.label(value(groups, "group", at))} ${percent(share)}`,
      );
      return [
        removed[row] ? h("span", {}, "without ", named(removed[row])) : "as it is",
        whisker({ value: skew, low: Number.NaN, high: Number.NaN }, domain, {
          band: [0, of("chance_skew", row)],
          hollow: !(of("q_value", row) <= report.about.q),
        }),
        numberButton(sig3(skew), "Show the first hits", () => open(query)),
        qText(of("q_value", row)),
        `${sig3(of("parity_gap", row))} (chance ${sig3(of("chance_parity", row))})`,
        count(of("k", row)),
        named(shares.join(" · ")),
      ];
    });
    const head = ["Concepts", `0 … ${sig3(domain[1])}`, "MaxSkew@k", "q", "Parity gap", "k", "Shares among the k"];
    part.body.append(h("h4", {}, named(`“${report.label(query)}”`)), tableOf(report.label(query), head, cells));
  }
  return () => {};
}

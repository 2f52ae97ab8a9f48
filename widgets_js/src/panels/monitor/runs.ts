/** The runs, one line each, of which one is chosen; and the numbers of the chosen one. */

import { roving } from "../../core/a11y";
import { bdi, h, listen } from "../../core/dom";
import { brief, count, percent, sig3, visible } from "../../core/format";
import { colour, duration, goesOn, type Panel, STATES, size } from "./shared";
import { levelText, type Run } from "./tables";

export function runsPanel(root: HTMLElement, { state }: Panel): () => void {
  const list = h("div", { class: "nbs-runs", role: "listbox", "aria-label": "Runs" });
  const facts = h("div", { class: "nbs-facts" });
  const why = h("p", { class: "nbs-why" });
  const empty = h(
    "div",
    { class: "nbs-message" },
    h("strong", {}, "No run has begun."),
    h("p", {}, "Give this monitor to a training: ns.train_sae(store, on_log=monitor)."),
  );
  root.append(list, empty, why, facts);
  listen(list, "click", (event) => choose((event.target as Element).closest<HTMLElement>("[data-at]")));
  listen(list, "focusin", (event) => choose((event.target as Element).closest<HTMLElement>("[data-at]")));
  const choose = (line: HTMLElement | null) => line && state.set("chosen", Number(line.dataset.at));
  const lines: ReturnType<typeof lineOf>[] = [];
  const stop = state.on(["runs", "chosen", "alone"], () => {
    const runs = state.get("runs");
    const chosen = Math.min(state.get("chosen"), Math.max(0, runs.length - 1));
    for (let at = lines.length; at < runs.length; at += 1) {
      const line = lineOf(at);
      lines.push(line);
      list.append(line.element);
    }
    for (const [at, line] of lines.entries()) {
      const run = runs[at];
      if (run) line.show(run, at === chosen, state.get("alone"));
    }
    list.hidden = runs.length < 1;
    empty.hidden = runs.length > 0;
    const run = runs[chosen];
    facts.replaceChildren(...(run ? factsOf(run) : []));
    why.hidden = !run?.why;
    why.textContent = run?.why ? `It ended by ${visible(run.why)} What was drawn until then stays.` : "";
  });
  const stopKeys = roving(list, "[data-at]");
  return () => {
    stop();
    stopKeys();
  };
}

/** A line that changes in place, so that focus and pointer stay where they are. */
function lineOf(at: number) {
  const name = bdi("", "nbs-key");
  const said = h("span", { class: "nbs-said" });
  const bar = h("progress", { max: 1, "aria-label": "Steps done" });
  const fvu = h("span", { class: "nbs-said" });
  const element = h(
    "div",
    { class: "nbs-run", role: "option", "data-at": at, tabindex: at === 0 ? 0 : -1 },
    h("i", { class: colour(at), "aria-hidden": "true" }),
    name,
    said,
    bar,
    fvu,
  );
  const show = (run: Run, chosen: boolean, alone: boolean) => {
    name.textContent = visible(run.name);
    name.title = run.title ?? "";
    const left = run.state === "running" && run.left ? `, ${duration(run.left)} left` : "";
    said.textContent = STATES[run.state] + (alone && goesOn(run) ? " when this was saved" : left);
    bar.hidden = run.steps === undefined;
    bar.value = (run.step ?? 0) / Math.max(1, run.steps ?? 1);
    const last = run.quality.at(-1);
    fvu.textContent = last ? `FVU ${sig3(last.fvu)}` : "";
    fvu.title = last ? `${levelText(last.name)}, mean of the last ten logged batches` : "";
    element.setAttribute("aria-selected", String(chosen));
  };
  return { element, show };
}

function factsOf(run: Run): HTMLElement[] {
  const latest = (name: string) => run.latest[name] ?? Number.NaN;
  const of = run.steps === undefined ? "" : `of ${count(run.steps)}`;
  const step = run.step ?? latest("step");
  const facts: [string, string, string][] = [["Step", count(step), of]];
  if (run.batch_rows) facts.push(["Rows seen", count(step * run.batch_rows), ""]);
  if (run.rate) facts.push(["Speed", sig3(run.rate), "rows/s"]);
  if (goesOn(run) && run.left != null) facts.push(["Time left", duration(run.left), ""]);
  facts.push(["Trained for", duration(run.seconds ?? latest("seconds")), ""]);
  facts.push(["Loss", sig3(latest("loss")), ""]);
  for (const one of run.quality) facts.push([`FVU, ${levelText(one.name)}`, sig3(latest(one.name)), ""]);
  facts.push(["L0", sig3(latest("l0")), "active per row"]);
  const silence = run.dead_after ? `silent for ${brief(run.dead_after)} rows` : "of latents";
  facts.push(["Dead", percent(latest("dead")), silence]);
  facts.push(["Learning rate", sig3(latest("learning_rate")), ""]);
  if (run.memory != null) facts.push(["GPU memory", size(run.memory), "held"]);
  return facts.map(([term, value, unit]) => h("div", {}, h("span", {}, term), h("b", {}, value), h("span", {}, unit)));
}

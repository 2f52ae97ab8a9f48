/** Pause, continue, stop, save and fork the chosen run, where the kernel hears it; and what came of it. */

import { h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { visible } from "../../core/format";
import { goesOn, type Panel } from "./shared";
import type { Run } from "./tables";

const SHOWN_NOTES = 4;
const COMMON = "learning_rate";

export function steerPanel(root: HTMLElement, panel: Panel): () => void {
  const { state } = panel;
  const button = (text: string, act: () => void) => {
    const made = h("button", { type: "button", class: "nbs-button" }, text);
    listen(made, "click", act);
    return made;
  };
  const failure = h("div");
  const notes = h("ul", { class: "nbs-notes", "aria-label": "What was asked for, and what came of it" });
  const hearing = h("span", { class: "nbs-note", role: "status" });
  const send = (kind: string, what: Record<string, unknown> = {}) => {
    failure.replaceChildren();
    hearing.textContent = "Asked; it is done between two steps.";
    return panel.ask(kind, { run: state.get("chosen"), ...what }).then(
      (answer) => {
        hearing.textContent = "";
        return answer;
      },
      (error: unknown) => {
        hearing.textContent = "";
        failure.replaceChildren(errorCard("That could not be done.", error));
        return undefined;
      },
    );
  };
  const hold = button("Pause", () => {
    const paused = state.get("runs")[state.get("chosen")]?.state === "paused";
    send(paused ? "proceed" : "pause");
  });
  const stop = button("Stop", () => send("stop"));
  const folder = h("input", { class: "nbs-search", "aria-label": "Folder to save into", type: "text" });
  const saveForm = form(
    folder,
    button("Save here", () => close(send("save", { folder: folder.value }))),
  );
  const setting = h("select", { "aria-label": "Setting that the fork changes" });
  const value = h("input", { class: "nbs-search", "aria-label": "Value in the fork", type: "text" });
  const forkForm = form(
    setting,
    value,
    button("Fork now", () => close(send("fork", { settings: { [setting.value]: value.value } }))),
  );
  const toggle = (which?: HTMLElement) => {
    for (const one of [saveForm, forkForm]) one.hidden = one !== which || !one.hidden;
    save.setAttribute("aria-expanded", String(!saveForm.hidden));
    fork.setAttribute("aria-expanded", String(!forkForm.hidden));
  };
  const close = (sent: Promise<unknown>) => sent.then((answer) => answer && toggle());
  const save = button("Save…", async () => {
    toggle(saveForm);
    if (saveForm.hidden) return;
    const answer = await send("place");
    folder.value = String(answer?.folder ?? "");
    folder.focus();
  });
  const fork = button("Fork…", async () => {
    toggle(forkForm);
    if (forkForm.hidden) return;
    const answer = await send("settings");
    const settings = (answer?.settings ?? {}) as Record<string, unknown>;
    const names = Object.keys(settings).sort((one, other) => Number(other === COMMON) - Number(one === COMMON));
    setting.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    const fill = () => {
      const now = settings[setting.value];
      value.value = now === null || now === undefined ? "None" : String(now);
    };
    setting.onchange = fill;
    fill();
    value.focus();
  });
  root.append(h("div", { class: "nbs-controls" }, hold, stop, save, fork, hearing), saveForm, forkForm, failure, notes);

  const stopRuns = state.on(["runs", "chosen", "alone", "hears"], () => {
    const run = state.get("runs")[state.get("chosen")];
    const [going, hears] = [goesOn(run), state.get("hears")];
    const why = reason(run, state.get("alone"), hears);
    hold.textContent = run?.state === "paused" ? "Continue" : "Pause";
    for (const one of [hold, stop]) one.disabled = Boolean(why) || !going || run?.state === "stopping";
    for (const one of [save, fork]) one.disabled = Boolean(why) || !run;
    if (why || hearing.dataset.why) hearing.textContent = why;
    hearing.dataset.why = why;
  });
  // What stands in a form is of the run that was chosen when it was opened.
  const stopForms = state.on(["chosen"], () => toggle());
  const stopNotes = state.on(["notes"], () => {
    const shown = state.get("notes").slice(-SHOWN_NOTES).reverse();
    notes.hidden = !shown.length;
    notes.replaceChildren(
      ...shown.map((note) =>
        h("li", note.error ? { class: "nbs-failed" } : {}, `${visible(note.run)}: ${visible(note.text)}`),
      ),
    );
  });
  return () => {
    stopRuns();
    stopForms();
    stopNotes();
  };
}

/** Why the buttons do nothing now; empty where they work. */
function reason(run: Run | undefined, alone: boolean, hears: boolean | undefined): string {
  if (!run) return "";
  if (alone) return "A saved view: buttons need the kernel that trains.";
  if (!run.reachable) return "Its session is gone; there is nothing to save or fork.";
  if (goesOn(run) && hears === undefined) return "Asking whether the kernel hears while it trains…";
  if (goesOn(run) && hears === false) {
    return "This kernel hears nothing while a cell runs (that needs ipykernel 7 and JupyterLab 4.4 or later). The notebook's stop button (■) ends the run after the step, and session.run() goes on.";
  }
  return "";
}

function form(...parts: HTMLElement[]): HTMLElement {
  const element = h("div", { class: "nbs-controls nbs-form", hidden: true }, ...parts);
  listen(element, "keydown", (event) => {
    if (event.key === "Enter" && event.target instanceof HTMLInputElement) parts.at(-1)?.click();
  });
  return element;
}

/** A line of small pictures or passages of inputs. */

import { roving } from "../../core/a11y";
import { h, listen } from "../../core/dom";
import { visible } from "../../core/format";
import { named, type Panel } from "./shared";

export interface StripInput {
  input: number;
  said: string;
}

export interface Strip {
  element: HTMLElement;
  /** Draw the pictures again, after more have come. */
  fill(): void;
  stop(): void;
}

/** `choose` makes every tile a button. */
export function strip(panel: Panel, inputs: StripInput[], label: string, choose?: (at: number) => void): Strip {
  const element = h("div", {
    class: "nbs-strip",
    role: "group",
    "aria-label": visible(`${label}; arrow keys move among them`),
  });
  let stop = () => {};
  const fill = () => {
    stop();
    element.replaceChildren(...inputs.map((one, at) => tile(panel, one, choose && (() => choose(at)))));
    stop = roving(element, ".nbs-tile");
  };
  fill();
  return { element, fill, stop: () => stop() };
}

function tile({ source }: Panel, { input, said }: StripInput, choose?: () => void): HTMLElement {
  const shown = source.inputs.get(input);
  const key = visible(shown.key);
  const picture = h("div", { class: "nbs-picture" });
  if (shown.url) picture.append(h("img", { src: shown.url, alt: "", decoding: "async", draggable: "false" }));
  else picture.append(h("span", { class: "nbs-nopicture" }, shown.text ? named(shown.text) : "no picture"));
  const caption = h("div", { class: "nbs-caption" }, h("b", {}, said));
  const about = { class: `nbs-tile${shown.text ? " nbs-passage" : ""}`, title: key, "aria-label": `${key}, ${said}` };
  if (!choose) return h("div", { ...about, role: "img" }, picture, caption);
  const button = h("button", { ...about, type: "button" }, picture, caption);
  listen(button, "click", choose);
  return button;
}

/** Ask a live kernel for the pictures that are missing, now or once it answers. Returns what stops it. */
export function askMissing({ report, source, state }: Panel, ids: number[], then: () => void): () => void {
  let stopped = false;
  let asked = false;
  const stop = state.on(["kernel"], () => {
    const missing = [...new Set(ids)].filter((id) => !source.inputs.get(id).url && !source.inputs.get(id).text);
    if (asked || !missing.length || state.get("kernel") !== "live" || !report.about.pictures) return;
    asked = true;
    source.askPictures(missing).then(
      () => stopped || then(),
      () => {}, // the tiles say "no picture"; the numbers stand without them
    );
  });
  return () => {
    stopped = true;
    stop();
  };
}

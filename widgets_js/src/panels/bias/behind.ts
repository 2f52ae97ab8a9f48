/** The drawer with the inputs behind a number. */

import { h, listen } from "../../core/dom";
import { visible } from "../../core/format";
import type { Panel } from "./shared";
import { askMissing, type Strip, strip } from "./strip";

export function behindPanel(root: HTMLElement, panel: Panel): () => void {
  const { state } = panel;
  const drawer = h("section", { class: "nbs-drawer", hidden: true, "aria-label": "Inputs behind the number" });
  root.append(drawer);
  let strips: Strip[] = [];
  let opener: HTMLElement | undefined;
  let stopMissing = () => {};
  const clear = () => {
    for (const one of strips) one.stop();
    strips = [];
    stopMissing();
  };
  const close = () => state.set("behind", undefined);
  const stop = state.on(["behind"], () => {
    clear();
    const behind = state.get("behind");
    const wasHidden = drawer.hidden;
    drawer.hidden = !behind;
    if (!behind) {
      drawer.replaceChildren();
      opener?.focus();
      opener = undefined;
      return;
    }
    const owner = drawer.getRootNode() as Document | ShadowRoot;
    if (wasHidden && owner.activeElement instanceof HTMLElement) opener = owner.activeElement;
    const button = h(
      "button",
      { type: "button", class: "nbs-button", title: "Close (Esc)", "aria-label": "Close" },
      "✕",
    );
    listen(button, "click", close);
    drawer.replaceChildren(h("div", { class: "nbs-line" }, h("h4", {}, visible(behind.title)), button));
    const full = behind.strips.filter(({ inputs }) => inputs.length);
    for (const { name, inputs } of full) {
      const line = strip(panel, inputs, `Inputs of ${name}`);
      strips.push(line);
      drawer.append(h("p", { class: "nbs-note" }, visible(name)), line.element);
    }
    if (!full.length) drawer.append(h("p", { class: "nbs-none" }, "The report holds no inputs of this."));
    const ids = full.flatMap(({ inputs }) => inputs.map(({ input }) => input));
    stopMissing = askMissing(panel, ids, () => {
      for (const one of strips) one.fill();
    });
    if (!wasHidden || !opener) return;
    button.focus({ preventScroll: true });
  });
  return () => {
    stop();
    clear();
  };
}

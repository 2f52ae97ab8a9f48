/** The error card: what happened, what to do, and details that can be copied. */

import { h } from "./dom";

/** An error that says its cause and the next step; what a kernel's answer `{cause, fix, details}` becomes. */
export class ShownError extends Error {
  constructor(
    cause: string,
    readonly fix = "",
    readonly details = "",
  ) {
    super(cause);
  }
}

/** A card with one sentence, the cause, the fix and copyable details. Carries its own root class for its style. */
export function errorCard(sentence: string, error: unknown): HTMLElement {
  const shown = error instanceof ShownError ? error : undefined;
  const cause = error instanceof Error ? error.message : String(error);
  const details = shown?.details || (error instanceof Error && !shown ? (error.stack ?? "") : "");
  const card = h(
    "div",
    { class: "nbs-error", role: "alert" },
    h("strong", {}, sentence),
    h("p", {}, cause),
    shown?.fix ? h("p", { class: "nbs-fix" }, shown.fix) : null,
  );
  if (details) card.append(detailsOf(details));
  return card;
}

function detailsOf(text: string): HTMLElement {
  const copy = h("button", { type: "button", class: "nbs-button" }, "Copy details");
  copy.addEventListener("click", () => {
    // Denied in a sandboxed frame; the text below can still be selected by hand.
    navigator.clipboard?.writeText(text).then(
      () => {
        copy.textContent = "Copied";
      },
      () => {
        copy.textContent = "Select the text below";
      },
    );
  });
  return h("details", {}, h("summary", {}, "Details"), copy, h("pre", {}, text));
}

/** What the user says about the chosen latent: edited where a kernel answers, shown everywhere. */

import { attr, bdi, h, listen } from "../core/dom";
import { errorCard } from "../core/errors";
import { visible } from "../core/format";
import type { Panel } from "./shared";
import { type Note, STARS } from "./tables";

const LABEL_CHARS = 120;
const COMMENT_CHARS = 2_000;

export function notePanel(root: HTMLElement, { latents, source, state }: Panel): () => void {
  // What was typed and not yet saved, by latent: looking at another one loses nothing.
  const drafts = new Map<number, Note>();
  const label = h("input", {
    class: "nbs-search nbs-label",
    placeholder: "Your label",
    "aria-label": "Your label",
    maxlength: LABEL_CHARS,
    autocomplete: "off",
  });
  const comment = h("textarea", {
    class: "nbs-search",
    placeholder: "Comment",
    "aria-label": "Your comment",
    rows: 2,
    maxlength: COMMENT_CHARS,
  });
  const rating = h("span", { class: "nbs-segments", role: "group", "aria-label": `Your rating, 1 to ${STARS}` });
  const save = h("button", { type: "button", class: "nbs-button" }, "Save");
  const said = h("span", { class: "nbs-cut", role: "status" });
  const failed = h("div");
  const shown = h("p", { class: "nbs-said" });
  const summary = h("summary", {}, "Your note");
  const editor = h(
    "details",
    {},
    summary,
    h("div", { class: "nbs-controls" }, label, comment),
    h("div", { class: "nbs-controls" }, h("span", { class: "nbs-cut" }, "Rating"), rating, save, said),
    failed,
  );
  root.append(shown, editor);

  const kept = (): Note => latents.notes.get(state.get("latent")) ?? { label: null, rating: null, comment: null };
  const now = (): Note => drafts.get(state.get("latent")) ?? kept();
  const change = (part: Partial<Note>) => {
    drafts.set(state.get("latent"), { ...now(), ...part });
    drawState();
  };
  const stars = Array.from({ length: STARS }, (_, at) => {
    const button = h("button", { type: "button", "aria-label": `${at + 1} of ${STARS}` }, String(at + 1));
    // The pressed one again takes the rating away.
    listen(button, "click", () => change({ rating: now().rating === at + 1 ? null : at + 1 }));
    rating.append(button);
    return button;
  });

  const drawState = (words = "") => {
    const note = now();
    const drafted = drafts.has(state.get("latent"));
    for (const [at, star] of stars.entries()) attr(star, "aria-pressed", note.rating === at + 1);
    save.disabled = !drafted;
    said.textContent = words || (drafted ? "Not saved yet" : "");
  };
  const draw = () => {
    const note = now();
    label.value = note.label ?? "";
    comment.value = note.comment ?? "";
    failed.replaceChildren();
    drawState();
    drawShown();
  };
  const drawShown = () => {
    const note = kept();
    const live = state.get("kernel") === "live" && latents.notable;
    editor.hidden = !live;
    shown.replaceChildren();
    if (note.rating)
      shown.append(h("span", { "aria-label": `Rated ${note.rating} of ${STARS}` }, starred(note.rating)));
    if (note.comment) shown.append(note.rating ? " " : "", bdi(visible(note.comment)));
    shown.hidden = !shown.firstChild;
    root.hidden = shown.hidden && editor.hidden;
    summary.textContent = note.label || note.rating || note.comment ? "Change your note" : "Label, rate or comment";
  };

  const send = async () => {
    const latent = state.get("latent");
    const note = drafts.get(latent);
    if (!note) return;
    drawState("Saving …");
    failed.replaceChildren();
    try {
      await source.note(latent, note);
      // What was typed while the kernel answered is a newer draft.
      if (drafts.get(latent) === note) drafts.delete(latent);
      if (latent !== state.get("latent") || drafts.has(latent)) return;
      draw();
      drawState("Saved");
    } catch (error) {
      if (latent !== state.get("latent")) return;
      drawState();
      failed.replaceChildren(errorCard("The note was not saved.", error));
    }
  };
  listen(label, "input", () => change({ label: label.value }));
  listen(comment, "input", () => change({ comment: comment.value }));
  listen(save, "click", () => void send());
  listen(editor, "keydown", (event) => {
    const isEnter = event.key === "Enter" && !event.isComposing;
    if (isEnter && (event.target === label || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      void send();
    }
  });

  const stops = [
    state.on(["latent"], draw),
    state.on(["kernel"], drawShown),
    state.on(["notes"], () => (drafts.has(state.get("latent")) ? drawShown() : draw())),
  ];
  return () => {
    for (const stop of stops) stop();
  };
}

/** Open the fields of the chosen latent and go there. */
export function openNote(root: HTMLElement): void {
  const label = root.querySelector<HTMLElement>(".nbs-label");
  const editor = label?.closest("details");
  if (!label || !editor || editor.hidden) return;
  editor.open = true;
  label.focus();
}

function starred(rating: number): string {
  return "★".repeat(rating) + "☆".repeat(STARS - rating);
}

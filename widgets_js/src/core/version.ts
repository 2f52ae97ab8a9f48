/** Whether script, kernel side and front end understand each other; where not, which of them to update, and how. */

import { ShownError } from "./errors";
import type { AnyModel } from "./host";
import { WIRE_VERSION } from "./wire";

const NEEDED = ["get", "set", "save_changes", "send", "on", "off"] as const;

/** Throws a `ShownError`. What does not say its version is tried: the tables have one of their own. */
export function checkSides(model: AnyModel): void {
  const missing = NEEDED.filter((name) => typeof model[name] !== "function");
  if (missing.length) {
    throw new ShownError(
      `This front end lacks ${missing.join(", ")} of a widget model: the anywidget beside the notebook server is too old.`,
      "Where the server runs: pip install -U 'anywidget>=0.9.21', restart the server, and reload this browser tab.",
    );
  }
  const { wire, nb_sae } = (model.get("kernel_side") ?? {}) as { wire?: number; nb_sae?: string };
  if (wire === undefined || wire === WIRE_VERSION) return;
  if (wire < WIRE_VERSION) {
    throw new ShownError(
      `The kernel runs nb_sae ${nb_sae}, which is older than this script (format ${wire}, expected ${WIRE_VERSION}).`,
      "nb_sae was updated while the kernel ran: restart the kernel and run the notebook again.",
    );
  }
  throw new ShownError(
    `This script is older than the kernel's nb_sae ${nb_sae} (format ${WIRE_VERSION}, expected ${wire}).`,
    "Run the cell again and reload this browser tab; in a source checkout run first: make widgets.",
  );
}

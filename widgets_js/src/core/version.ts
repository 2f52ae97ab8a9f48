/** Whether script, kernel side and front end understand each other; where not, which of them to update, and how. */

import { ShownError } from "./errors";
import type { AnyModel } from "./life";
import { WIRE_VERSION } from "./wire";

const NEEDED = ["get", "set", "save_changes", "send", "on", "off"] as const;

/** Throws a `ShownError`. What does not say its version is tried: the tables have one of their own. */
export function checkSides(model: AnyModel): void {
  const missing = NEEDED.filter((name) => !model[name]);
  if (missing.length) {
    throw new ShownError(
      `This front end is too old: its models have no ${missing}.`,
      "Where the notebook server runs: pip install -U 'anywidget>=0.9.21', restart it, and reload this browser tab.",
    );
  }
  const { wire = WIRE_VERSION, nb_sae } = (model.get("kernel_side") ?? {}) as { wire?: number; nb_sae?: string };
  if (wire < WIRE_VERSION) {
    throw new ShownError(
      `The kernel runs nb_sae ${nb_sae}, which is older than this script.`,
      "nb_sae was updated while the kernel ran: restart the kernel and run the notebook again.",
    );
  }
  if (wire > WIRE_VERSION) {
    throw new ShownError(
      `This script is older than nb_sae ${nb_sae} in the kernel.`,
      "Run the cell again and reload this browser tab.",
    );
  }
}

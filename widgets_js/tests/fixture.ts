/** The contract that Python writes (`tests/test_widgets_wire.py`), as this side reads it. */

import contract from "../../tests/fixtures/wire.json";

export { contract };

export function bytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

/** The same bytes as a DataView that starts at an odd offset of a larger block, as some hosts give them. */
export function unaligned(data: Uint8Array): DataView {
  const larger = new Uint8Array(data.length + 8);
  larger.set(data, 3);
  return new DataView(larger.buffer, 3, data.length);
}

/** Tables as CSV, and files that the browser saves without a server. */

/** RFC 4180: quoted where it must be; missing numbers are empty. */
export function csv(head: string[], lines: (string | number | null)[][]): string {
  const cell = (value: string | number | null) => {
    if (value === null || (typeof value === "number" && Number.isNaN(value))) return "";
    // A float32 holds 7 digits; more would only be noise.
    const text = typeof value === "number" ? String(Number(value.toPrecision(7))) : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

/** Let the browser save a file. */
export function save(name: string, content: BlobPart, type = "text/csv"): void {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // Later: some browsers read the address only after the click has returned.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// Before the first paint: the theme that the reader chose for this file, if any.
try {
  const chosen = localStorage.getItem("nbsae-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.nbsaeTheme = chosen;
} catch {
  // A sandboxed page has no storage; the system's theme it is.
}

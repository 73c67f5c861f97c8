// The theme, and tables that sort and filter. Everything else on the page works without script.
"use strict";

(function theme() {
  const root = document.documentElement, button = document.querySelector("[data-theme-button]");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const store = (value) => { try { localStorage.setItem("lorascope-theme", value); } catch { /* a file:// page may have none */ } };
  const stored = () => { try { return localStorage.getItem("lorascope-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    button.setAttribute("aria-pressed", String(isDark()));
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; store(root.dataset.theme); show(); });
  system.addEventListener("change", show);
  button.hidden = false;
  show();
})();

for (const figure of document.querySelectorAll("figure[data-interactive]")) {
  const body = figure.querySelector("tbody"), tools = figure.querySelector(".tools");
  if (!tools) continue;
  const rows = [...body.rows], headers = [...figure.querySelectorAll("thead th")];
  sortable(body, rows, headers);
  filterable(rows, tools);
}

function sortable(body, rows, headers) {
  const words = new Intl.Collator(undefined, { numeric: true });
  headers.forEach((header, j) => {
    // A span, not a <button>: Chromium leaves buttons out of the header that it repeats on each printed page.
    const numeric = !header.classList.contains("t"), button = document.createElement("span");
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    // What a row sorts by: a number, a text, or null where there is nothing, which always comes last.
    const key = (row) => {
      const cell = row.cells[j], text = cell.textContent;
      if (!numeric) return text === "–" ? null : text;
      const value = Number.parseFloat(cell.dataset.v ?? text.replaceAll(",", "").replace("−", "-"));
      return Number.isNaN(value) ? null : value;
    };
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    });
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const next = now === "none" ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
      const sign = next === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => [key(row), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (numeric ? a - b : words.compare(a, b));
      });
      headers.forEach((other) => other.setAttribute("aria-sort", other === header ? next : "none"));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

function filterable(rows, tools) {
  const input = tools.querySelector("input"), count = tools.querySelector("output");
  const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  input.addEventListener("input", apply);
  tools.hidden = false;
  apply();
}

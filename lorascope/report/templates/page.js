// The theme; tables that sort, filter and are copied; tips in figures; commands that are copied. The page reads without.
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

// On a narrow screen the navigation scrolls sideways: to this page's own name and the one before it, whole words at the edge.
for (const here of document.querySelectorAll(".site [aria-current]")) here.parentNode.scrollLeft = (here.previousElementSibling ?? here).offsetLeft - here.parentNode.offsetLeft;
for (const row of document.querySelectorAll(".site div")) {
  const mark = () => row.toggleAttribute("data-before", row.scrollLeft > 4);
  row.addEventListener("scroll", mark, { passive: true });
  mark();
}

{% if not plain %}
for (const figure of document.querySelectorAll("figure[data-interactive]")) {
  const body = figure.querySelector("tbody"), tools = figure.querySelector(".tools");
  if (!tools) continue;
  const rows = [...body.rows], headers = [...figure.querySelectorAll("thead th")];
  const titles = headers.map((header) => header.firstChild ? title(header) : "");
  sortable(body, rows, headers);
  filterable(figure, rows, tools, titles);
  takeable(figure, body, tools, titles);
  pickable(figure, rows, headers, tools, titles);
}

// Rows of a forest plot by what is chosen above it; a heading without rows goes with them.
for (const figure of document.querySelectorAll("figure.forest")) {
  const tools = figure.querySelector(".tools"), rows = [...figure.querySelectorAll("tr[data-verdict]")];
  if (!tools) continue;
  const picks = [...tools.querySelectorAll("select")];
  const apply = () => {
    for (const row of rows) row.hidden = !picks.every((pick) => !pick.value || row.dataset[pick.dataset.filter] === pick.value);
    for (const group of figure.querySelectorAll("tr.group")) group.hidden = ![...group.parentNode.querySelectorAll("tr[data-verdict]")].some((row) => !row.hidden);
    tools.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} verdicts`;
  };
  picks.forEach((pick) => pick.addEventListener("change", apply));
  tools.hidden = false;
  apply();
}

// A link into what is folded opens it; tables that appear say what is cut off.
addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const folded = link && document.getElementById(link.hash.slice(1))?.closest("details");
  if (folded) folded.open = true;
});
addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);

// What is folded is printed, too.
addEventListener("beforeprint", () => document.querySelectorAll(".claims details").forEach((details) => { details.open = true; }));

// The words of a header, without the mark that leads to its definition.
function title(header) {
  const copy = header.cloneNode(true);
  copy.querySelectorAll(".def").forEach((mark) => mark.remove());
  return copy.textContent.trim();
}

// The words of a cell, without what keeps them on one line.
function said(cell) { return cell.textContent.replaceAll("\u00a0", " ").replaceAll("\u2060", ""); }

// What a cell of numbers is, as shown: of "12.5 %" 12.5. null where it has none.
function numberIn(cell) {
  const text = cell.textContent.trim(), value = Number.parseFloat(cell.dataset.v ?? text.replaceAll(",", "").replaceAll("−", "-"));
  if (Number.isNaN(value)) return null;
  return text.endsWith("%") && cell.dataset.v !== undefined ? value * 100 : value;
}

function sortable(body, rows, headers) {
  const words = new Intl.Collator(undefined, { numeric: true });
  headers.forEach((header, j) => {
    // A span, not a <button>: Chromium leaves buttons out of the header that it repeats on each printed page.
    const numeric = !header.classList.contains("t"), button = document.createElement("span");
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    const mark = header.querySelector(".def");
    button.append(...[...header.childNodes].filter((node) => node !== mark));
    header.prepend(button);
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

// What a filter asks for: words that a row must have, and bounds on columns that the start of their title names, as in
// "q_proj stable rank > 1.5 energy > 10 %". A bound's name is as many of the words before it as a title begins with.
function asked(typed, titles) {
  const plain = (text) => text.toLowerCase().replace(/[\s.‖_]/g, "");
  const named = titles.map(plain), words = [], bounds = [], unknown = [];
  const tied = typed.toLowerCase().replaceAll("≥", ">=").replaceAll("≤", "<=").replace(/\s*(>=|<=|>|<|=)\s*/g, "$1").replace(/(\d)\s+%/g, "$1%");
  for (const word of tied.split(/\s+/).filter(Boolean)) {
    const bound = /^(.*?)(>=|<=|>|<|=)(?:([-−]?[\d.,]+(?:e[-−+]?\d+)?)%?)?$/.exec(word);
    if (!bound) { words.push(word); continue; }
    let column = -1, used = 0;
    for (let n = 0; n <= words.length; n++) {
      const name = plain([...words.slice(words.length - n), bound[1]].join("")), at = name ? named.findIndex((title) => title.startsWith(name)) : -1;
      if (at >= 0) [column, used] = [at, n];
    }
    words.splice(words.length - used);
    if (bound[3] === undefined && column >= 0) continue;  // still being typed
    if (column < 0) unknown.push({ name: bound[1], word });
    else bounds.push({ column, sign: bound[2], value: Number(bound[3].replaceAll(",", "").replaceAll("−", "-")) });
  }
  return { words, bounds, unknown };
}

function filterable(figure, rows, tools, titles) {
  const input = tools.querySelector("input"), count = tools.querySelector("output");
  const texts = rows.map((row) => [...row.cells].map(said).join(" ").toLowerCase());
  const compare = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b };
  const holds = (row, { column, sign, value }) => { const found = numberIn(row.cells[column]); return found !== null && compare[sign](found, value); };
  const apply = () => {
    const { words, bounds, unknown } = asked(input.value, titles);
    // "r=8" may stand in the rows themselves.
    const close = unknown.length ? texts.map((text) => text.replace(/\s/g, "")) : [];
    const literal = unknown.filter(({ word }) => close.some((text) => text.includes(word))), lost = unknown.filter((one) => !literal.includes(one));
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !(words.every((word) => texts[i].includes(word)) && bounds.every((bound) => holds(row, bound)) && literal.every(({ word }) => close[i].includes(word)));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} rows${lost.map(({ name }) => `; no column starts with “${name}”`).join("")}`;
  };
  input.addEventListener("input", apply);
  // A link to a row that the filter hides shows it.
  addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#row-"]'), row = link && document.getElementById(link.hash.slice(1));
    if (row && rows.includes(row) && row.hidden) { input.value = ""; apply(); }
  });
  tools.hidden = false;
  apply();
}

// The rows that are shown, with the columns that are the same in all of them, as CSV or JSON.
function takeable(figure, body, tools, titles) {
  const same = JSON.parse(figure.dataset.same ?? "[]"), names = [...titles, ...same.map(([name]) => name)];
  const values = () => [...body.rows].filter((row) => !row.hidden).map((row) => [
    ...[...row.cells].map((cell) => (cell.classList.contains("t") ? said(cell) : cell.dataset.v !== undefined ? Number(cell.dataset.v) : numberIn(cell))),
    ...same.map(([, text]) => text),
  ]);
  // A spreadsheet would run a text that begins like a formula.
  const quoted = (value) => { const text = value === null ? "" : typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value); return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  const csv = () => [names, ...values()].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  const json = () => JSON.stringify(values().map((row) => Object.fromEntries(names.map((name, j) => [name, row[j]]))), null, 1);
  for (const button of tools.querySelectorAll("[data-take]")) button.addEventListener("click", () => {
    const kind = button.dataset.take;
    if (kind === "copy") return copied(button, csv().replaceAll(",", "\t"), values().length && [names, ...values()].map((row) => row.map((v) => v ?? "").join("\t")).join("\n"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([kind === "csv" ? csv() : json()], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = `${document.title.replace(/[^\w.-]+/g, "_")}-${figure.id}.${kind}`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// On a narrow screen a table shows its first column and the one that is chosen; on a wide one it says what is cut off.
function pickable(figure, rows, headers, tools, titles) {
  const select = tools.querySelector("select"), scroll = figure.querySelector(".scroll");
  titles.slice(1).forEach((name, j) => select.append(new Option(headers[j + 1].dataset.name ?? name, String(j + 1))));
  const pick = (at) => [headers, ...rows.map((row) => row.cells)].forEach((cells) => [...cells].forEach((cell, j) => cell.classList.toggle("picked", j === at)));
  const narrow = matchMedia("(max-width: 640px)");
  const arrange = () => {
    figure.toggleAttribute("data-picked", narrow.matches && titles.length > 2);
    if (narrow.matches) pick(Number(select.value));
    const edge = scroll.getBoundingClientRect().right, cut = headers.filter((header) => header.getBoundingClientRect().right > edge + 4).length;
    more.textContent = cut && !narrow.matches ? `${cut} more column${cut > 1 ? "s" : ""} →` : "";
  };
  const more = document.createElement("span");
  more.className = "more-columns";
  tools.querySelector("output").after(more);
  select.value = figure.dataset.pick ?? "1";
  select.addEventListener("change", arrange);
  narrow.addEventListener("change", arrange);
  scroll.addEventListener("scroll", arrange, { passive: true });
  addEventListener("resize", arrange);
  arrange();
}

function copied(button, text, other) {
  const done = (word) => { const before = button.dataset.word ?? button.textContent; button.dataset.word = before; button.textContent = word; setTimeout(() => { button.textContent = before; }, 1200); };
  const area = document.createElement("textarea");  // works on file:// pages too, where there may be no clipboard
  area.value = other || text;
  document.body.append(area);
  area.select();
  const worked = document.execCommand("copy");
  area.remove();
  button.focus();
  done(worked ? "Copied" : "Not copied");
}

for (const command of document.querySelectorAll(".command")) {
  const button = document.createElement("button"), text = command.textContent.trim();
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy ${text}`);
  button.addEventListener("click", () => copied(button, text));
  command.append(button);
}

// The nearest point of a figure says what it is: to the pointer, to a touch, and to the arrow keys.
(function tips() {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let pin = null, near = null;
  const hide = () => { tip.hidden = true; pin?.remove(); near?.classList.remove("near"); pin = near = null; };
  const number = (v) => (Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(Number(v.toPrecision(3)))).replace("-", "−");

  function show(svg, point) {
    hide();
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    if (point.mark) { near = point.mark; near.classList.add("near"); } else {
      pin = document.createElementNS(svg.namespaceURI, "circle");
      for (const [key, value] of [["cx", point.x], ["cy", point.y], ["r", 4.5], ["class", "pin"]]) pin.setAttribute(key, value);
      svg.append(pin);
    }
    tip.textContent = point.text;
    tip.hidden = false;
    const left = box.left + point.x * scale + scrollX, top = box.top + point.y * scale + scrollY;
    tip.style.left = `${Math.max(8 + scrollX, Math.min(left + 12, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${top - tip.offsetHeight - 12 < scrollY ? top + 16 : top - tip.offsetHeight - 10}px`;
  }

  function pointsOf(svg) {
    const axes = JSON.parse(svg.closest("figure").dataset.axes ?? "[]"), points = [];
    for (const titled of [...svg.querySelectorAll("title")]) {
      const mark = titled.parentNode, words = titled.textContent;
      titled.remove();
      if (mark.localName === "rect") {
        const at = (name) => Number(mark.getAttribute(name));
        points.push({ x: at("x") + at("width") / 2, y: at("y") + at("height") / 2, text: words, mark });
        continue;
      }
      const use = [...mark.querySelectorAll("use")].map((u) => [Number(u.getAttribute("x")), Number(u.getAttribute("y"))]);
      const path = mark.querySelector("path")?.getAttribute("d")?.match(/[ML] ?[-\d.]+ [-\d.]+/g) ?? [];
      const named = use.length > 0;
      for (const [x, y] of named ? use : path.map((step) => step.replace(/[ML] ?/, "").split(" ").map(Number))) {
        const box = axes.find(([l, t, w, h]) => x >= l - 1 && x <= l + w + 1 && y >= t - 1 && y <= t + h + 1);
        if (!box) continue;
        const [l, t, w, h, x0, x1, y0, y1, logX, logY] = box;
        const value = (share, lo, hi, log) => (log ? lo * (hi / lo) ** share : lo + (hi - lo) * share);
        let vx = value((x - l) / w, x0, x1, logX);
        const vy = value(1 - (y - t) / h, y0, y1, logY);
        if (Math.abs(vx - Math.round(vx)) < 0.02 * Math.max(1, Math.abs(vx) / 50)) vx = Math.round(vx);
        points.push({ x, y, text: `${words}: ${number(vy)} at ${number(vx)}` });
      }
    }
    return points;
  }

  for (const svg of document.querySelectorAll("svg.plot")) {
    let points = null, at = -1;
    const all = () => (points ??= pointsOf(svg));
    const nearest = (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = 40 ** 2;
      at = -1;
      all().forEach((p, i) => {
        const d = (p.x - x) ** 2 + (p.y - y) ** 2;
        if (d < best) { best = d; at = i; }
      });
      if (at < 0) hide(); else show(svg, all()[at]);
    };
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    const region = svg.closest(".scroll");
    region.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !svg.getClientRects().length || !all().length) return;
      event.preventDefault();
      at = (at + step + all().length) % all().length;
      show(svg, all()[at]);
    });
    region.addEventListener("focusout", hide);
  }
})();
{% endif %}

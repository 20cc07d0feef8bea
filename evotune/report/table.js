// Rows that are shown at first, and with each press of the button.
const PAGE = 100;
const sorting = { name: "trial", isDescending: false };
let rowsShown = PAGE;

const collator = new Intl.Collator("en", { numeric: true });

// Columns with what a cell shows and what it is sorted by; null goes last.
function columnsOf(data) {
  const { trials } = data, defaultAt = trials.number.indexOf(data.default);
  const ms = (i) => trials.ms[i];
  const before = defaultAt < 0 ? null : ms(defaultAt);
  const faster = (i) => before === null || ms(i) === null ? null : before / ms(i);
  const found = [
    { name: "trial", key: (i) => trials.number[i] + 1 },
    { name: "origin", key: (i) => data.origins[trials.origin[i]], style: "left" },
    { name: "latency, ms", key: ms, show: (i) => short(ms(i)) },
    { name: "× default", key: faster, show: (i) => { const f = faster(i); return f === null ? "–" : f.toFixed(2); } },
    { name: "fidelity", key: (i) => trials.ms[i] === null ? null : trials.fidelity[i], style: "left" },
    { name: "finals, ms", key: (i) => trials.final_ms[i], show: (i) => short(trials.final_ms[i]) },
    ...data.parameters.map((p, j) => ({ name: p.name, key: (i) => trials.config[i][j], show: (i) => p.values[trials.config[i][j]] ?? "–" })),
    { name: "after, s", key: (i) => trials.at_s[i], show: (i) => trials.at_s[i].toFixed(1) },
    { name: "derived from", key: (i) => trials.parent[i] === null ? null : trials.parent[i] + 1 },
  ];
  if (data.stages.length) {
    found.push({ name: "failed", key: (i) => trials.stage[i] === null ? null : data.stages[trials.stage[i]], style: "left" });
    found.push({ name: "reason", key: (i) => trials.reason[i] === null ? null : data.reasons[trials.reason[i]], style: "wide-cell" });
  }
  return data.has_shapes ? found.filter((c) => c.name !== "× default") : found;
}

// All words must be found: NAME=VALUE exactly, others anywhere in origin, stage or reason.
function matcher(data, text) {
  const { trials } = data;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (i) => words.every((word) => {
    const [name, value] = word.split("=");
    if (value === undefined) {
      const stage = trials.stage[i] === null ? "" : `${data.stages[trials.stage[i]]} ${data.reasons[trials.reason[i]]}`;
      return `${trials.number[i] + 1} ${data.origins[trials.origin[i]]} ${stage}`.toLowerCase().includes(word);
    }
    const j = data.parameters.findIndex((p) => p.name.toLowerCase() === name);
    return j >= 0 && String(data.parameters[j].values[trials.config[i][j]]).toLowerCase() === value;
  });
}

function rowsOf(data, columns) {
  const { trials } = data;
  const origin = byId("of-origin").value, outcome = byId("of-outcome").value;
  const fits = matcher(data, byId("find").value), axes = axesOf(data);
  const found = trials.number.map((_, i) => i).filter((i) =>
    fits(i) &&
    (!origin || data.origins[trials.origin[i]] === origin) &&
    (!outcome || (outcome === "timed") === (trials.ms[i] !== null)) &&
    (!byId("of-brush").checked || isKept(axes, i)));
  const { key } = columns.find((c) => c.name === sorting.name) ?? columns[0];
  const sign = sorting.isDescending ? -1 : 1;
  return found.sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    return sign * (typeof left === "number" ? left - right : collator.compare(left, right)) || a - b;
  });
}

function drawTable(data) {
  const table = byId("trials-table");
  if (!table) return;
  const columns = columnsOf(data), rows = rowsOf(data, columns);
  drawHead(table.tHead, columns, () => drawTable(data));
  const body = table.tBodies[0];
  body.replaceChildren();
  for (const i of rows.slice(0, rowsShown)) {
    const row = add(body, "tr", data.trials.number[i] === data.best ? { class: "best" } : {});
    columns.forEach((c, j) => {
      const text = c.show ? c.show(i) : c.key(i) ?? "–";
      add(row, j ? "td" : "th", j ? { class: c.style ?? "" } : { scope: "row" }, text);
    });
  }
  const count = Math.min(rows.length, rowsShown);
  byId("found").textContent = `${rows.length} of ${data.trials.number.length} trials` + (count < rows.length ? `, ${count} of them shown.` : ".");
  byId("more").hidden = count >= rows.length;
}

// The buttons stay when they are the same, so that the focus does.
function drawHead(head, columns, redraw) {
  const names = columns.map((c) => c.name);
  if ([...head.querySelectorAll("button")].map((b) => b.dataset.column).join("\n") !== names.join("\n")) {
    head.replaceChildren();
    const row = add(head, "tr");
    for (const c of columns) {
      const button = add(add(row, "th", { scope: "col", class: c.style ?? "" }), "button", { type: "button", "data-column": c.name });
      button.addEventListener("click", () => {
        sorting.isDescending = sorting.name === c.name && !sorting.isDescending;
        sorting.name = c.name;
        redraw();
      });
    }
  }
  for (const button of head.querySelectorAll("button")) {
    const isSorted = button.dataset.column === sorting.name;
    button.textContent = button.dataset.column + (isSorted ? (sorting.isDescending ? " ↓" : " ↑") : "");
    if (isSorted) button.parentElement.setAttribute("aria-sort", sorting.isDescending ? "descending" : "ascending");
    else button.parentElement.removeAttribute("aria-sort");
  }
}

function offerFilters(data, redraw) {
  const [origin, outcome] = [byId("of-origin"), byId("of-outcome")];
  if (!origin) return;
  const chosen = origin.value;
  origin.replaceChildren(new Option("all", ""), ...data.origins.map((name) => new Option(name)));
  origin.value = data.origins.includes(chosen) ? chosen : "";
  if (outcome.options.length) return;
  outcome.replaceChildren(new Option("all", ""), new Option("timed"), new Option("failed"));
  const restart = () => { rowsShown = PAGE; redraw(); };
  byId("find").addEventListener("input", restart);
  for (const control of [origin, outcome, byId("of-brush")]) control.addEventListener("change", restart);
  byId("more").addEventListener("click", () => { rowsShown += PAGE; redraw(); });
}

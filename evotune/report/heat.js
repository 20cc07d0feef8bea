// The best measured latency of each pair of values; those that only failed are listed.
function measuredOf(data, down, across) {
  const { trials, parameters } = data;
  const [rows, columns] = [down, across].map((axis) => {
    const j = parameters.findIndex((p) => p.name === axis.name);
    // A position among all values as one among those shown, which may be fewer.
    return { j, shown: parameters[j].values.map((v) => axis.values.indexOf(v)) };
  });
  const best = new Array(down.values.length * across.values.length).fill(null);
  const failed = new Set();
  trials.config.forEach((config, i) => {
    const [row, column] = [rows.shown[config[rows.j]], columns.shown[config[columns.j]]];
    if (row < 0 || column < 0 || row === undefined || column === undefined) return;
    const k = row * across.values.length + column;
    const ms = trials.ms[i];
    if (ms === null) failed.add(k);
    else if (best[k] === null || ms < best[k]) best[k] = Number(ms.toPrecision(4));
  });
  return { numbers: best, failed: [...failed].filter((k) => best[k] === null) };
}

// What is predicted of a pair, whichever way it is turned.
function predictedOf(data, down, across, field) {
  const { pairs } = data.belief;
  const as = pairs.find((p) => p.down === down.name && p.across === across.name);
  if (as) return as[field];
  const turned = pairs.find((p) => p.down === across.name && p.across === down.name);
  const columns = across.values.length, rows = down.values.length;
  return Array.from({ length: rows * columns }, (_, i) => turned[field][(i % columns) * rows + Math.floor(i / columns)]);
}

function drawHeat(data) {
  if (!byId("down") || !data.belief) return;
  const { axes } = data.belief;
  const [down, across] = ["down", "across"].map((id) => axes[byId(id).selectedIndex]);
  const measured = measuredOf(data, down, across), predicted = predictedOf(data, down, across, "ms");
  const std = predictedOf(data, down, across, "std");
  const all = [...measured.numbers, ...predicted].filter((ms) => ms !== null);
  const [from, to] = [Math.max(...all), Math.min(...all)];
  const scale = { from, to, share: (ms) => Math.log(ms / from) / (Math.log(to / from) || 1) };
  const best = data.trials.number.indexOf(data.best);
  const framed = best < 0 ? {} : Object.fromEntries(
    data.parameters.map((p, j) => [p.name, p.values[data.trials.config[best][j]]]));
  heatMap(byId("measured"), { down, across, numbers: measured.numbers, failed: measured.failed, scale, framed });
  heatMap(byId("predicted"), { down, across, numbers: predicted, scale, framed });
  const table = byId("heat-table");
  table.replaceChildren();
  const head = add(add(table, "thead"), "tr");
  for (const text of [`${down.name}, ${across.name}`, "measured, ms", "predicted, ms", "give or take"]) add(head, "th", { scope: "col" }, text);
  const body = add(table, "tbody");
  predicted.forEach((ms, i) => {
    const isFailed = measured.failed.includes(i);
    if (ms === null && measured.numbers[i] === null && !isFailed) return;
    const row = add(body, "tr");
    add(row, "th", { scope: "row" }, combination(down, across, i));
    add(row, "td", {}, isFailed ? "failed" : short(measured.numbers[i]));
    add(row, "td", {}, ms === null ? "not legal" : short(ms));
    add(row, "td", {}, ms === null ? "–" : `${Math.round(100 * std[i])} %`);
  });
}

// Any two different parameters; the most influential ones at first.
function offerHeat(data, redraw) {
  const [down, across] = [byId("down"), byId("across")];
  if (!down || !data.belief) return;
  const names = data.belief.axes.map((axis) => axis.name);
  const [first, second] = [down, across].map((select) => names.indexOf(select.value));
  const isKnown = first >= 0 && second >= 0;
  // Pages scroll down, not across: the one with more values goes across.
  const isTurned = data.belief.axes[0].values.length > data.belief.axes[1].values.length;
  offer(down, names, isKnown ? first : Number(isTurned));
  offer(across, names, isKnown ? second : Number(!isTurned));
  if (down.dataset.heard) return;
  down.dataset.heard = "yes";
  for (const [changed, other] of [[down, across], [across, down]]) {
    changed.addEventListener("change", () => {
      if (changed.selectedIndex === other.selectedIndex) other.selectedIndex = changed.selectedIndex === 0 ? 1 : 0;
      redraw();
    });
  }
}

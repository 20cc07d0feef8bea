// Ranges that are kept, by the name of the axis: the lowest and the highest position on it, both from 0 to 1.
const brushes = new Map();
const LATENCY = "latency, ms";
const STEPS = 100;

// Axes with a place from 0 to 1 for each trial, null where it has none.
function axesOf(data) {
  const { trials, parameters } = data;
  const found = parameters.flatMap((p, j) => {
    const last = p.values.length - 1;
    if (last < 1) return [];
    return [{ name: p.name, steps: last, at: (i) => trials.config[i][j] === null ? null : trials.config[i][j] / last, say: (share) => String(p.values[Math.round(share * last)]) }];
  });
  const { ms } = trials, known = ms.filter((x) => x !== null);
  if (!known.length) return found;
  const low = known.reduce((a, b) => Math.min(a, b)), span = Math.log(known.reduce((a, b) => Math.max(a, b)) / low) || 1;
  return [...found, { name: LATENCY, steps: STEPS, at: (i) => ms[i] === null ? null : Math.log(ms[i] / low) / span, say: (share) => short(low * Math.exp(share * span)) }];
}

// Half a step of slack: positions are computed.
const passes = (axis, i) => {
  const kept = brushes.get(axis.name);
  if (!kept) return true;
  const at = axis.at(i);
  return at !== null && at >= kept[0] - .5 / STEPS && at <= kept[1] + .5 / STEPS;
};
const isKept = (axes, i) => axes.every((axis) => passes(axis, i));

function drawLines(data) {
  const svg = byId("lines");
  if (!svg) return;
  const axes = axesOf(data), { trials } = data;
  const width = Math.max(svg.parentElement.clientWidth, axes.length * 84), height = 340;
  const top = 44, bottom = height - 24, left = 46, right = width - 46;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.width = `${width}px`;
  const x = (j) => axes.length > 1 ? left + j * (right - left) / (axes.length - 1) : width / 2;
  const y = (share) => bottom - share * (bottom - top);
  const latency = axes.find((axis) => axis.name === LATENCY);
  const timed = trials.number.map((_, i) => i).filter((i) => latency && latency.at(i) !== null);
  const kept = new Set(timed.filter((i) => isKept(axes, i)));
  const best = trials.number.indexOf(data.best);
  // The faster on top of the slower, what is kept on top of the rest, the best on top of all.
  const rank = (i) => (i === best ? 4 : 0) + (kept.has(i) ? 2 : 0) - latency.at(i);
  for (const i of timed.sort((a, b) => rank(a) - rank(b))) {
    const places = axes.map((axis, j) => `${x(j).toFixed(1)} ${y(axis.at(i) ?? 0).toFixed(1)}`);
    const isIn = kept.has(i), name = i === best && isIn ? "line best" : isIn ? "line" : "line out";
    const line = add(svg, "path", { class: name, d: `M${places.join("L")}` });
    if (name === "line") line.style.stroke = `rgb(${colour(1 - latency.at(i))})`;
    add(line, "title", {}, `trial ${trials.number[i] + 1}: ${latency.say(latency.at(i))} ms`);
  }
  axes.forEach((axis, j) => drawAxis(svg, axis, x(j), y, j % 2 === 0 ? 14 : 30));
  const told = brushes.size ? `${kept.size} of ${timed.length} timed trials pass the ranges` : `${timed.length} timed trials`;
  svg.setAttribute("aria-label", `Parallel coordinates of ${axes.length} axes, ${told}; the table of trials has the numbers`);
  byId("brushed").textContent = `${told}.`;
}

function drawAxis(svg, axis, x, y, at) {
  add(svg, "path", { class: "axis", d: `M${x} ${y(0)}V${y(1)}` });
  add(svg, "text", { class: "title", x, y: at, "text-anchor": "middle" }, axis.name);
  const every = Math.max(1, Math.ceil(axis.steps / 8));
  for (let i = 0; i <= axis.steps; i += axis.name === LATENCY ? STEPS / 5 : every) {
    const text = add(svg, "text", { x: x - 5, y: y(i / axis.steps) + 4, "text-anchor": "end" }, axis.say(i / axis.steps));
    text.style.paintOrder = "stroke";
    text.style.stroke = "var(--paper)";
    text.style.strokeWidth = "3px";
  }
  const kept = brushes.get(axis.name);
  if (kept) add(svg, "rect", { class: "kept", x: x - 7, width: 14, y: y(kept[1]) - 3, height: y(kept[0]) - y(kept[1]) + 6 });
  add(svg, "rect", { class: "hit", "data-axis": axis.name, x: x - 16, width: 32, y: y(1) - 8, height: y(0) - y(1) + 16 });
}

// Keep what lies between two places of an axis; all of it means that it is free.
function brush(axis, from, to) {
  const low = Math.min(from, to), high = Math.max(from, to);
  if (low <= 0 && high >= 1) brushes.delete(axis.name);
  else brushes.set(axis.name, [Math.max(low, 0), Math.min(high, 1)]);
}

// Drag along an axis; a click without dragging frees it.
function hearDrags(getData, redraw) {
  const svg = byId("lines");
  if (!svg) return;
  let drag = null;
  const shareAt = (event) => {
    const box = svg.getBoundingClientRect(), scale = 340 / box.height;
    return Math.min(Math.max(((340 - 24) - (event.clientY - box.top) * scale) / (340 - 24 - 44), 0), 1);
  };
  svg.addEventListener("pointerdown", (event) => {
    const axis = axesOf(getData()).find((a) => a.name === event.target.dataset?.axis);
    if (!axis) return;
    drag = { axis, from: shareAt(event), moved: false };
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const to = shareAt(event);
    if (!drag.moved && Math.abs(to - drag.from) < .02) return;
    drag.moved = true;
    brush(drag.axis, drag.from, to);
    redraw();
  });
  svg.addEventListener("pointerup", () => {
    if (drag && !drag.moved) brushes.delete(drag.axis.name);
    drag = null;
    redraw();
  });
  svg.addEventListener("pointercancel", () => { drag = null; });
}

// Two sliders an axis, for the keyboard and for fingers; they follow what was dragged.
function offerBrushes(data, redraw) {
  const form = byId("brushes");
  if (!form) return;
  const axes = axesOf(data);
  if ([...form.children].map((f) => f.dataset.axis).join("\n") !== axes.map((a) => a.name).join("\n")) {
    form.replaceChildren();
    for (const axis of axes) offerBrush(form, axis, redraw);
  }
  for (const axis of axes) {
    const field = [...form.children].find((f) => f.dataset.axis === axis.name);
    const kept = brushes.get(axis.name) ?? [0, 1];
    [...field.querySelectorAll("input")].forEach((input, k) => {
      input.max = axis.steps;
      if (document.activeElement !== input) input.value = Math.round(kept[k] * axis.steps);
      const said = axis.say(input.value / axis.steps);
      input.setAttribute("aria-valuetext", said);
      input.nextElementSibling.textContent = said;
    });
  }
}

function offerBrush(form, axis, redraw) {
  const field = add(form, "fieldset", { "data-axis": axis.name });
  add(field, "legend", {}, axis.name);
  for (const name of ["from", "to"]) {
    const label = add(field, "label", {}, name);
    const input = add(label, "input", { type: "range", min: 0, max: axis.steps, step: 1 });
    input.value = name === "from" ? 0 : axis.steps;
    add(label, "output");
    input.addEventListener("input", () => {
      const [from, to] = [...field.querySelectorAll("input")].map((i) => i.value / i.max);
      brush(axis, from, to);
      redraw();
    });
  }
}

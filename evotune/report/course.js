// Origins in the colours of Okabe & Ito 2008, told apart with any colour vision.
const OF_ORIGIN = {
  default: "light-dark(#000, #fff)", random: "#999999", surrogate: "light-dark(#0072B2, #3d9fdc)", mutation: "#009E73",
  crossover: "#56B4E9", llm: "#D55E00", mock: "#CC79A7",
};
const hidden = new Set();

const ofOrigin = (origin) => OF_ORIGIN[origin] ?? "#E69F00";
const short = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(4))));

// Four to eight round numbers in a range.
function ticks(low, high) {
  const rough = (high - low || 1) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Round numbers at even ratios: 1, 2 and 5 of each power of ten, or fewer of them where there are many.
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const m of [1, 2, 5]) found.push(Number((m * 10 ** power).toPrecision(3)));
  }
  const inside = found.filter((x) => x >= low && x <= high);
  if (inside.length < 3) return ticks(low, high).filter((x) => x > 0);
  return inside.length > 8 ? inside.filter((x) => /^0?\.?0*1/.test(String(x))) : inside;
}

function drawCourse(svg, data, at, unit) {
  const { trials } = data, width = svg.clientWidth || 560, height = 300;
  const left = 52, right = width - 18, top = 26, bottom = height - 38;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const timed = trials.ms.filter((x) => x !== null);
  const told = timed.length ? `best so far from ${short(trials.best_ms.find((x) => x !== null))} to ${short(trials.best_ms.at(-1))} ms` : "no trial was timed";
  svg.setAttribute("aria-label", `Latency by ${unit}: ${told}; the table of new bests has the numbers`);
  const low = timed.length ? timed.reduce((a, b) => Math.min(a, b)) / 1.1 : .1, high = timed.length ? timed.reduce((a, b) => Math.max(a, b)) * 1.1 : 1;
  const most = at.reduce((a, b) => Math.max(a, b), 0) || 1;
  const x = (value) => left + value / most * (right - left);
  const y = (ms) => bottom - Math.log(ms / low) / Math.log(high / low) * (bottom - top - 8);
  for (const tick of logTicks(low, high)) {
    add(svg, "path", { class: "grid", d: `M${left} ${y(tick)}H${right}` });
    add(svg, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick));
  }
  for (const tick of ticks(0, most)) {
    add(svg, "text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, tick);
  }
  add(svg, "text", { x: 0, y: 11 }, "ms");
  add(svg, "text", { x: right, y: height - 6, "text-anchor": "end" }, unit);
  const isCrowded = trials.number.length > 1000;
  trials.number.forEach((number, i) => {
    const origin = data.origins[trials.origin[i]];
    if (hidden.has(origin)) return;
    const style = `--of: ${ofOrigin(origin)}`, across = x(at[i]).toFixed(1);
    const isFailed = trials.ms[i] === null;
    const mark = isFailed
      ? add(svg, "path", { class: "failed", style, d: `M${across - 3} ${top - 10}l6 6m0 -6l-6 6` })
      : add(svg, "circle", { class: "point", style, cx: across, cy: y(trials.ms[i]).toFixed(1), r: isCrowded ? 2 : 3.2 });
    const outcome = isFailed ? `failed: ${data.stages[trials.stage[i]]}` : `${short(trials.ms[i])} ms, ${trials.fidelity[i]}`;
    add(mark, "title", {}, `trial ${number + 1}, ${origin}: ${outcome}`);
  });
  let path = "";
  trials.best_ms.forEach((ms, i) => {
    if (ms !== null) path += path ? `H${x(at[i]).toFixed(1)}V${y(ms).toFixed(1)}` : `M${x(at[i]).toFixed(1)} ${y(ms).toFixed(1)}`;
  });
  if (!path) return;
  // A halo hides what lies under it, and makes the line readable over thousands of points.
  for (const name of isCrowded ? ["halo", "best-line"] : ["best-line"]) add(svg, "path", { class: name, d: `${path}H${right}` });
}

function drawCourses(data) {
  if (!byId("legend")) return;
  const { trials } = data;
  drawCourse(byId("by-evaluation"), data, trials.number.map((_, i) => i + 1), "evaluations");
  drawCourse(byId("by-second"), data, trials.at_s, data.seconds);
}

// Buttons that hide an origin; those of origins that are known already stay as they are.
function offerLegend(data, redraw) {
  const legend = byId("legend");
  if (!legend) return;
  const counts = data.origins.map((_, i) => data.trials.origin.filter((o) => o === i).length);
  data.origins.forEach((origin, i) => {
    let button = legend.querySelector(`[data-origin="${origin}"]`);
    if (!button) {
      button = add(legend, "button", { type: "button", "data-origin": origin, "aria-pressed": "true" });
      add(button, "i", { style: `--of: ${ofOrigin(origin)}`, "aria-hidden": "true" });
      add(button, "span");
      button.addEventListener("click", () => {
        if (!hidden.delete(origin)) hidden.add(origin);
        button.setAttribute("aria-pressed", String(!hidden.has(origin)));
        redraw();
      });
    }
    button.lastChild.textContent = `${origin} ${counts[i]}`;
  });
}

const byId = (id) => document.getElementById(id);
// viridis, at quarters: as even in grey as in colour.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
// Width of a letter at the size of the style sheet, with room to spare.
const FONT = 11, CHAR = 6.4, BAR = 9;

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[i].map((c, k) => Math.round(c + (at - i) * (STOPS[i + 1][k] - c)));
}

function add(parent, name, attributes, text) {
  const made = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

function offer(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name)));
  select.selectedIndex = chosen;
}

// One cell of a heat map; its number is written where there is room.
function cell(svg, at, width, height, share, value, description) {
  const rgb = colour(share);
  const box = add(svg, "rect", { ...at, width: width - .5, height: height - .5, fill: `rgb(${rgb})` });
  add(box, "title", {}, description);
  const isBright = .3 * rgb[0] + .6 * rgb[1] + .1 * rgb[2] > 120;
  if (width <= CHAR * (String(value).length + 1)) return;
  const middle = { x: at.x + width / 2, y: at.y + height / 2 + 4, "text-anchor": "middle" };
  add(svg, "text", { ...middle, class: isBright ? "dark" : "light", "pointer-events": "none" }, value);
}

const combination = (down, across, i) =>
  `${down.name} ${down.values[Math.floor(i / across.values.length)]}, ${across.name} ${across.values[i % across.values.length]}`;

// Numbers over two parameters, row by row, null where there is none; the figure's caption says of what.
function heatMap(svg, { down, across, numbers, scale, failed = [], marked = [], framed = {} }) {
  const columns = across.values.length;
  const width = svg.clientWidth || 480;
  const left = 8 + CHAR * Math.max(...down.values.map((v) => String(v).length));
  const wide = Math.min((width - left - CHAR) / columns, 110);
  const high = Math.min(Math.max(wide, 15), 30), top = 2 * FONT;
  const bottom = top + high * down.values.length, right = left + wide * columns;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 5 * FONT + BAR}`);
  const caption = svg.previousElementSibling.textContent;
  const hasCells = numbers.some((x) => x !== null);
  const range = hasCells ? `from ${scale.from} to ${scale.to}` : "nothing legal";
  svg.setAttribute("aria-label", `${caption}, ${down.name} by ${across.name}, ${range}`);
  add(svg, "text", { x: 0, y: FONT }, `${down.name} ↓`);
  add(svg, "text", { x: right, y: bottom + 2.4 * FONT, "text-anchor": "end" }, `${across.name} →`);
  down.values.forEach((v, i) =>
    add(svg, "text", { x: left - 5, y: top + (i + .5) * high + 4, "text-anchor": "end" }, v));
  const longest = 4 + CHAR * Math.max(...across.values.map((v) => String(v).length));
  const every = Math.ceil(longest / wide);
  across.values.forEach((v, i) => {
    if (i % every) return;
    add(svg, "text", { x: left + (i + .5) * wide, y: bottom + 1.2 * FONT, "text-anchor": "middle" }, v);
  });
  const at = (i) => ({ x: left + (i % columns) * wide, y: top + Math.floor(i / columns) * high });
  numbers.forEach((x, i) => {
    if (x !== null) cell(svg, at(i), wide, high, scale.share(x), x, `${combination(down, across, i)}: ${x}`);
  });
  for (const i of failed) {
    add(svg, "text", { x: at(i).x + wide / 2, y: at(i).y + high / 2 + 4, "text-anchor": "middle" }, "×");
  }
  for (const i of marked) add(svg, "circle", { class: "marked", cx: at(i).x + 4.5, cy: at(i).y + 4.5, r: 2.5 });
  const [row, column] = [down.values.indexOf(framed[down.name]), across.values.indexOf(framed[across.name])];
  if (row >= 0 && column >= 0) {
    for (const name of ["edge", "frame"]) {
      add(svg, "rect", { ...at(row * columns + column), width: wide - .5, height: high - .5, class: name });
    }
  }
  if (hasCells) drawScale(svg, scale, bottom + 3 * FONT, width);
}

// The colours with what they stand for, from worst to best.
function drawScale(svg, scale, y, width) {
  const parts = 40, long = Math.min(width, 240);
  for (let i = 0; i < parts; i++) {
    const fill = `rgb(${colour(i / (parts - 1))})`;
    add(svg, "rect", { x: i * long / parts, y, width: long / parts + .5, height: BAR, fill });
  }
  add(svg, "text", { x: 0, y: y + BAR + 1.1 * FONT }, scale.from);
  add(svg, "text", { x: long, y: y + BAR + 1.1 * FONT, "text-anchor": "end" }, scale.to);
}

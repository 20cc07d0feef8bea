// Works every control of a page, and leaves what came of it in the document.
const out = {};
const drawnAnew = () => new Promise((go) => setTimeout(go, 100));
const all = (selector) => [...document.querySelectorAll(selector)];
const one = (id) => document.getElementById(id);
const fire = (element, name) => element.dispatchEvent(new Event(name, { bubbles: true }));
const set = (id, value, name = "change") => { one(id).value = value; fire(one(id), name); };
const rows = () => all("#trials-table tbody tr").map((row) => row.firstChild.textContent);
const column = (name) => {
  const j = all("#trials-table thead th").findIndex((th) => th.textContent.startsWith(name));
  return all("#trials-table tbody tr").map((row) => row.children[j].textContent);
};

const points = () => all("#by-evaluation circle, #by-evaluation .failed").length;
const mutation = document.querySelector('[data-origin="mutation"]');
out.points = [points()];
mutation.click();
out.points.push(points(), mutation.getAttribute("aria-pressed"));
mutation.click();
out.points.push(points());

const drawn = () => one("measured").outerHTML + one("predicted").outerHTML;
const names = [...one("down").options].map((option) => option.text);
const before = drawn();
set("down", one("across").value);
out.heat = { differ: one("down").value !== one("across").value, redrawn: drawn() !== before, names };
set("across", names.find((name) => name !== one("down").value && name !== one("across").value));
out.cells = all("#heat-table tbody tr").length;

const kept = () => all("#lines .line:not(.out)").length;
const field = (name) => all("#brushes fieldset").find((f) => f.dataset.axis === name);
const slider = (name, k) => field(name).querySelectorAll("input")[k];
out.kept = [kept()];
slider("tile", 0).value = 3;
fire(slider("tile", 0), "input");
await drawnAnew();
out.kept.push(kept());
out.slider = slider("tile", 0).getAttribute("aria-valuetext");
one("of-brush").click();
out.brushed = { rows: rows().length, tiles: [...new Set(column("tile"))], said: one("brushed").textContent };
one("of-brush").click();
one("free").click();
out.kept.push(kept());

one("lines").setPointerCapture = () => {};
const axis = document.querySelector('.hit[data-axis="stages"]'), box = axis.getBoundingClientRect();
const pointer = (name, share) => {
  const at = { bubbles: true, clientX: box.x + 5, clientY: box.bottom - share * box.height };
  // The axis is drawn anew while it is dragged along.
  (axis.isConnected ? axis : one("lines")).dispatchEvent(new PointerEvent(name, at));
};
pointer("pointerdown", 0.02);
pointer("pointermove", 0.2);
await drawnAnew();
pointer("pointerup", 0.2);
await drawnAnew();
out.dragged = { kept: kept(), to: slider("stages", 1).getAttribute("aria-valuetext") };
one("free").click();

const sort = (name) => all("#trials-table thead button").find((b) => b.dataset.column === name).click();
sort("latency, ms");
out.sorted = { up: column("latency"), aria: document.querySelector("[aria-sort]").getAttribute("aria-sort") };
sort("latency, ms");
out.sorted.down = column("latency");
set("find", "tile=8 mutation", "input");
out.found = { rows: rows(), said: one("found").textContent };
set("find", "", "input");
set("of-outcome", "failed");
out.failed = rows();
set("of-outcome", "");
set("of-origin", "default");
out.default = rows();
set("of-origin", "");

const paper = () => getComputedStyle(document.body).backgroundColor;
set("theme", "light");
out.theme = [paper()];
set("theme", "dark");
out.theme.push(paper());

const skip = document.querySelector(".skip");
skip.focus();
out.skip = { left: skip.getBoundingClientRect().left, isFirst: all("a, button, select")[0] === skip };
const copy = document.querySelector("[data-copies]");
copy.click();
setTimeout(() => {
  out.copied = { said: copy.textContent, selected: String(getSelection()) };
  const made = document.createElement("pre");
  made.id = "result";
  made.textContent = JSON.stringify(out);
  document.body.append(made);
}, 500);

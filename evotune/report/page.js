let data = JSON.parse(byId("data").textContent);

// Sliders and drags tell more often than thousands of lines can be drawn.
let waiting = 0;
function later(draw) {
  clearTimeout(waiting);
  waiting = setTimeout(draw, 16);
}

function show() {
  const table = () => drawTable(data);
  const lines = () => {
    drawLines(data);
    offerBrushes(data, () => later(lines));
    if (byId("of-brush")?.checked) table();
  };
  offerLegend(data, () => drawCourses(data));
  offerHeat(data, () => drawHeat(data));
  offerFilters(data, table);
  drawCourses(data);
  drawHeat(data);
  lines();
  table();
  return lines;
}

async function copy(button) {
  const text = byId(button.dataset.copies);
  // Without permission, or while the browser asks for it, the reader's own keys work.
  getSelection().selectAllChildren(text);
  button.textContent = "Selected: copy with your keys";
  setTimeout(() => { button.textContent = "Copy"; }, 4000);
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    // It stays selected.
  }
}

const lines = show();
hearDrags(() => data, () => later(lines));
byId("free")?.addEventListener("click", () => { brushes.clear(); lines(); });
document.addEventListener("click", (event) => {
  if (event.target.dataset?.copies) copy(event.target);
});
document.addEventListener("submit", (event) => event.preventDefault());
byId("theme").addEventListener("change", (event) => { document.documentElement.dataset.theme = event.target.value; });
addEventListener("resize", () => later(() => { drawCourses(data); drawHeat(data); lines(); }));

// Tells the page around it how wide the contents are, what was drawn, and what the keyboard cannot reach.
const root = document.documentElement;
const clipped = [...document.querySelectorAll("h1, h2, p, dd, pre, li, button, select, input")]
  .filter((e) => !e.closest(".wide, .tall, .skip") && e.getBoundingClientRect().right > innerWidth + 1);
const scrolls = [...document.querySelectorAll(".wide, .tall")].filter((e) => e.scrollWidth > e.clientWidth + 1);
const pictures = [...document.querySelectorAll("svg[role=img]")];
parent.postMessage({
  kind: KIND,
  width: root.scrollWidth,
  clipped: clipped.map((e) => e.outerHTML.slice(0, 80)),
  unreachable: scrolls.filter((e) => e.tabIndex < 0 && !e.closest("details")).length,
  unnamed: pictures.filter((e) => !e.getAttribute("aria-label")).map((e) => e.id),
  marks: document.querySelectorAll("svg circle, svg rect, svg path.line").length,
}, "*");

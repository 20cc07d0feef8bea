// Milliseconds between two questions whether there is news.
const ASK_EVERY = 2000;
const status = byId("live");
// What parts were when they came: what the reader opened or copied in them is no news.
const came = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.id, part.innerHTML]));

async function ask() {
  try {
    const state = await (await fetch("state.json", { cache: "no-store" })).json();
    if (state.revision !== status.dataset.revision) await renew();
    const said = `${state.is_running ? "Live" : "The run does not go on"}: ${state.evaluations} evaluations; ${state.state}.`;
    if (status.textContent !== said) status.textContent = said;
  } catch {
    status.textContent = "Nobody answers any more: this is what was known last.";
  }
  setTimeout(ask, ASK_EVERY);
}

// Parts take the place of those of the same name where there is news; what the reader chose stays.
async function renew() {
  const found = new DOMParser().parseFromString(await (await fetch(".", { cache: "no-store" })).text(), "text/html");
  const hasControls = (section) => section !== null && section.querySelector("svg, table, form") !== null;
  const interactive = [...found.querySelectorAll("section:not([data-part])")];
  if (interactive.some((section) => hasControls(section) !== hasControls(byId(section.id)))) {
    location.reload();  // a section has something to show for the first time
    return;
  }
  for (const part of found.querySelectorAll("[data-part]")) {
    if (came.get(part.id) === part.innerHTML) continue;
    came.set(part.id, part.innerHTML);
    byId(part.id).innerHTML = part.innerHTML;
  }
  status.dataset.revision = found.getElementById("live").dataset.revision;
  data = JSON.parse(found.getElementById("data").textContent);
  show();
}

setTimeout(ask, ASK_EVERY);

// Listening

const KEYS = {
  ArrowLeft: () => choose({token: active().token - 1, focus: true}),
  ArrowRight: () => choose({token: active().token + 1, focus: true}),
  ArrowUp: () => choose({layer: active().layer + 1}),
  ArrowDown: () => choose({layer: active().layer - 1}),
  Home: () => choose({token: 0, focus: true}),
  End: () => choose({token: active().n - 1, focus: true}),
  s: () => chooseFramed(1, true),
  S: () => chooseFramed(-1, true),
  v: () => {
    chooseView(state.view === "grid" ? "text" : "grid");
    focusOn(active());
  },
  b: () => choose({focus: true}, sides.at(state.side - 1)),
  d: chooseParting,
  "[": () => choosePrompt(state.prompt - 1),
  "]": () => choosePrompt(state.prompt + 1),
};

function takesText(target) {
  return target instanceof Element && target.matches('input[type="search"], input[type="range"], select, textarea');
}

function listen() {
  byId("explorer").addEventListener("keydown", (event) => {
    const typed = event.ctrlKey || event.metaKey || event.altKey || takesText(event.target) || byId("help").open;
    if (typed || !(event.key in KEYS) || !active().shown) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || takesText(event.target) || byId("help").open) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
    }
    if (event.key === "?") byId("help").showModal();
  });
  sides.forEach(listenToSide);
  byId("layer").addEventListener("input", (event) => choose({layer: Number(event.target.value)}, sides[0]));
  byId("prompt").addEventListener("change", (event) => choosePrompt(Number(event.target.value)));
  byId("prompt-previous").addEventListener("click", () => choosePrompt(state.prompt - 1));
  byId("prompt-next").addEventListener("click", () => choosePrompt(state.prompt + 1));
  byId("replaced-previous").addEventListener("click", () => chooseFramed(-1, false));
  byId("replaced-next").addEventListener("click", () => chooseFramed(1, false));
  byId("measure").addEventListener("change", (event) => chooseColour(event.target.value));
  for (const view of VIEWS) byId(`view-${view}`).addEventListener("click", () => chooseView(view));
  byId("shared").addEventListener("change", (event) => {
    state.shared = event.target.checked;
    recolour();
  });
  byId("numbers").addEventListener("change", (event) => {
    state.numbers = event.target.checked;
    byId("explorer").classList.toggle("with-numbers", state.numbers);
    recolour();
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  // not a form of method "dialog": a sandboxed frame may not submit forms
  byId("help-close").addEventListener("click", () => byId("help").close());
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => find(event.target.value), 150);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") focusOn(active());
  });
  byId("search-previous").addEventListener("click", () => nextHit(-1));
  byId("search-next").addEventListener("click", () => nextHit(1));
}

function listenToSide(side) {
  side.part("tokens").addEventListener("click", (event) => {
    const box = event.target instanceof Element && event.target.closest('[role="option"]');
    if (box) choose({token: Number(box.dataset.token), focus: true}, side);
  });
  side.part("layers").addEventListener("click", (event) => {
    const row = event.target instanceof Element && event.target.closest("tr[data-layer]");
    if (row) choose({layer: Number(row.dataset.layer)}, side);
  });
  listenToGrid(side);
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (side.shown && Math.abs(entry.contentRect.width - width) > 1) drawPlot(side);
    width = entry.contentRect.width;
  }).observe(side.part("plot"));
}

// Light and dark

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : prefersDark.matches;
}

function themed() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
  readRamps();
  if (active().shown) recolour();
}

// Starting

/** Parts of the page for the second run, made of those of the first. */
function makeSecondSide() {
  for (const id of ["text-pane", "detail"]) {
    const copy = byId(id).cloneNode(true);
    for (const part of [copy, ...copy.querySelectorAll("[id]")]) part.id += sides[1].suffix;
    (id === "text-pane" ? byId(id) : byId("detail")).after(copy);
  }
  byId("panes").classList.add("beside");
  sides.forEach((side, at) => {
    const name = side.part("run-name");
    name.hidden = false;
    name.textContent = data.labels[at];
    side.part("detail-name").hidden = false;
    side.part("detail-name").textContent = data.labels[at];
  });
}

function fillControls() {
  byId("prompt").append(...data.prompts.map((prompt, index) => {
    const flaw = prompt.finish === "non_finite" ? ", not finite" : "";
    const option = make("option", `${visibleText(prompt.id)} (${counted(prompt.n_tokens)} tokens${flaw})`);
    option.value = String(index);
    return option;
  }));
  byId("measure").append(...offered.map((name) => {
    const option = make("option", COLOURINGS[name].label);
    option.value = name;
    return option;
  }));
  byId("layer").max = sides[0].L;
  sides.forEach(fillLayersHead);
  byId("explorer-note").textContent = notes().join(" ");
  for (const key of document.querySelectorAll(".of-two")) key.hidden = sides.length < 2;
}

function notes() {
  const said = sides.map(({packed}) => {
    const errors = Object.entries(packed.measures).map(([name, {error}]) => {
      const off = error < 0.0005 ? "0.001" : error < 1 ? error.toPrecision(1) : counted(Math.ceil(error));
      return name === "entropy" ? `${off} nats` : `${off} in ${inText(name)}`;
    });
    return `Values are held in ${counted(packed.steps)} steps a layer: 99 % of them are within `
      + `${errors.slice(0, -1).join(", ")} and ${errors.at(-1)}.`;
  });
  const found = said[0] === said.at(-1) ? said.slice(0, 1) : said.map((note, at) => `${at ? "Second" : "First"} run: ${note}`);
  if (data.prompts_left_out) {
    found.push(`The first ${data.prompts.length} prompts are on this page; ${data.prompts_left_out} more did not fit.`);
  }
  if (data.unpaired === 1) found.push("1 prompt of only one of the runs is left out.");
  if (data.unpaired > 1) found.push(`${counted(data.unpaired)} prompts of only one of the runs are left out.`);
  return found;
}

async function start() {
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  prefersDark.addEventListener("change", themed);
  themed();
  if (typeof DecompressionStream === "undefined") {
    byId("explorer-note").textContent = "The explorer needs a newer browser, one that knows DecompressionStream.";
    return;
  }
  if (sides.length > 1) makeSecondSide();
  await Promise.all(sides.map((side) => side.readWords()));
  fillControls();
  listen();
  const link = linked();
  await (link ? follow(link) : choosePrompt(0));
  if (link) {
    byId("explorer").scrollIntoView();
    focusOn(active());
  }
  listenToLinks();
}

start();

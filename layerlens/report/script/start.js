// Listening

const KEYS = {
  ArrowLeft: () => inspect({token: active().token - 1}),
  ArrowRight: () => inspect({token: active().token + 1}),
  ArrowUp: () => choose({layer: active().layer + 1}),
  ArrowDown: () => choose({layer: active().layer - 1}),
  Home: () => inspect({token: 0}),
  End: () => inspect({token: active().n - 1}),
  s: () => chooseFramed(1),
  S: () => chooseFramed(-1),
  v: () => {
    chooseView(state.view === "grid" ? "text" : "grid");
    focusOn(active());
  },
  b: () => inspect({}, sides.at(state.side - 1)),
  d: chooseParting,
  Escape: closeDetail,
  "[": () => choosePrompt(state.prompt - 1),
  "]": () => choosePrompt(state.prompt + 1),
};

function takesText(target) {
  return target instanceof Element && target.matches('input[type="search"], input[type="text"], input[type="range"], select, textarea');
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
  listenToPrompts();
  byId("framed-previous").addEventListener("click", () => chooseFramed(-1, false));
  byId("framed-next").addEventListener("click", () => chooseFramed(1, false));
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
    if (box) inspect({token: Number(box.dataset.token)}, side);
  });
  side.part("detail-close").addEventListener("click", closeDetail);
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
    for (const name of ["text-pane", "tokens", "grid", "detail", "layers-scroll", "detail-close"]) {
      const part = side.part(name);
      part.setAttribute("aria-label", `${part.getAttribute("aria-label")}, ${data.labels[at]}`);
    }
  });
}

function fillControls() {
  byId("measure").append(...offered.map((name) => {
    const option = make("option", COLOURINGS[name].label);
    option.value = name;
    return option;
  }));
  byId("layer").max = sides[0].L;
  sides.forEach(fillLayersHead);
  byId("explorer-note").textContent = leftOut().join(" ");
  byId("precision").textContent = precision().join(" ");
  for (const key of document.querySelectorAll(".of-two")) key.hidden = sides.length < 2;
}

/** How exact the values on the page are. */
function precision() {
  const said = sides.map(({packed}) => {
    const errors = Object.entries(packed.measures).map(([name, {error}]) => {
      const off = error < 0.0005 ? "0.001" : error < 1 ? error.toPrecision(1) : counted(Math.ceil(error));
      return name === "entropy" ? `${off} nats` : `${off} in ${inText(name)}`;
    });
    return `The values on this page are rounded. 99 % of them are off by at most `
      + `${errors.slice(0, -1).join(", ")} and ${errors.at(-1)}.`;
  });
  return said[0] === said.at(-1) ? said.slice(0, 1) : said.map((note, at) => `${at ? "Second" : "First"} run: ${note}`);
}

function leftOut() {
  const found = [];
  if (data.prompts_left_out) {
    found.push(`The first ${counted(data.prompts.length)} prompts are on this page; ${counted(data.prompts_left_out)} more did not fit.`);
  }
  if (data.unpaired === 1) found.push("1 prompt that only one of the runs has is left out.");
  if (data.unpaired > 1) found.push(`${counted(data.unpaired)} prompts that only one of the runs has are left out.`);
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
    inspect({});
  } else if (byId("link-note").textContent) {
    byId("explorer").scrollIntoView();
  } else if (document.documentElement.classList.contains("alone")) {
    openDetail(sides[0]); // a notebook shows them at once, and keeps its focus
    choose({});
    keepChosenInView(sides[0]);
  }
  listenToLinks();
}

start();

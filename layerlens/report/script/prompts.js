// Prompts: a list to choose from, by what a prompt says or by its id

const picker = {texts: null, shown: [], active: -1};

/** What a prompt is called: how its text begins, or its id where it has no text. */
const titleOf = (index) => data.prompts[index].begins || visibleText(data.prompts[index].id);

function aboutPrompt({id, n_tokens, finish}) {
  return [visibleText(id), `${counted(n_tokens)} token${n_tokens === 1 ? "" : "s"}`,
    ...(finish === "non_finite" ? ["with values that are not finite"] : [])].join(" · ");
}

/** Say which prompt is shown. */
function drawPrompt() {
  byId("prompt").value = titleOf(state.prompt);
  byId("prompt-number").textContent = `${counted(state.prompt + 1)} of ${counted(data.prompts.length)}`;
  byId("prompt-about").textContent = aboutPrompt(data.prompts[state.prompt]);
  byId("prompt-previous").disabled = state.prompt === 0;
  byId("prompt-next").disabled = state.prompt === data.prompts.length - 1;
}

/** Open the list of the prompts whose text or id has what is wanted; all of them where nothing is. */
async function openPrompts(wanted = "") {
  picker.texts ??= Promise.all(data.prompts.map(async ({id, begins, texts}) =>
    `${id}\n${begins}\n${(await inflateJson(texts)).prompt ?? ""}`.toLowerCase()));
  const texts = await picker.texts;
  if (document.activeElement !== byId("prompt")) return;
  const sought = wanted.trim().toLowerCase();
  picker.shown = texts.flatMap((text, index) => text.includes(sought) ? [index] : []);
  byId("prompt-list").replaceChildren(...picker.shown.map(promptOption));
  byId("prompt-list").hidden = !picker.shown.length;
  byId("prompt").setAttribute("aria-expanded", String(picker.shown.length > 0));
  byId("prompt-number").textContent = picker.shown.length
    ? `${counted(picker.shown.length)} of ${counted(data.prompts.length)} found`
    : "no prompt has this in its text or id";
  markPrompt(Math.max(0, picker.shown.indexOf(state.prompt)));
}

function promptOption(index) {
  const made = make("div", "", "prompt-option");
  const begins = make("span", titleOf(index), "begins");
  begins.dir = "auto";
  made.append(begins, make("span", aboutPrompt(data.prompts[index]), "about"));
  made.id = `prompt-${index}`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", "false");
  made.dataset.prompt = index;
  return made;
}

function markPrompt(at) {
  const options = byId("prompt-list").querySelectorAll('[role="option"]');
  options[picker.active]?.setAttribute("aria-selected", "false");
  picker.active = within(at, 0, options.length - 1);
  const option = options[picker.active];
  if (!option) {
    byId("prompt").removeAttribute("aria-activedescendant");
    return;
  }
  option.setAttribute("aria-selected", "true");
  byId("prompt").setAttribute("aria-activedescendant", option.id);
  const list = byId("prompt-list");
  const below = option.offsetTop + option.offsetHeight - list.clientHeight;
  list.scrollTop = within(list.scrollTop, below, option.offsetTop);
}

function closePrompts() {
  byId("prompt-list").hidden = true;
  byId("prompt").setAttribute("aria-expanded", "false");
  byId("prompt").removeAttribute("aria-activedescendant");
  drawPrompt();
}

async function takePrompt(index) {
  await choosePrompt(index);
  closePrompts();
}

function listenToPrompts() {
  const input = byId("prompt");
  const list = byId("prompt-list");
  const open = () => {
    input.select();
    openPrompts();
  };
  const keys = {
    ArrowDown: () => list.hidden ? open() : markPrompt(picker.active + 1),
    ArrowUp: () => list.hidden ? open() : markPrompt(picker.active - 1),
    Enter: () => list.hidden ? open() : picker.shown.length && takePrompt(picker.shown[picker.active]),
    Escape: closePrompts,
  };
  input.addEventListener("click", () => list.hidden && open());
  input.addEventListener("input", () => openPrompts(input.value));
  input.addEventListener("blur", closePrompts);
  input.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.isComposing) return;
    event.preventDefault();
    keys[event.key]();
  });
  list.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays where it is
  list.addEventListener("click", (event) => {
    const option = event.target instanceof Element && event.target.closest("[data-prompt]");
    if (option) takePrompt(Number(option.dataset.prompt));
  });
  byId("prompt-previous").addEventListener("click", () => choosePrompt(state.prompt - 1));
  byId("prompt-next").addEventListener("click", () => choosePrompt(state.prompt + 1));
}

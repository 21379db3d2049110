// The link: the page's address names what is shown, and opens the page there

const WAIT = 250; // ms; browsers take only so many new addresses in a while
let linking = false; // whether what is shown is written into the address
let remembering = 0;

function linkOf() {
  const side = active();
  const parts = {prompt: data.prompts[state.prompt].id, token: side.token + 1, layer: side.layer, view: state.view};
  const link = new URLSearchParams({...parts, colour: state.measure});
  if (state.side) link.set("run", state.side + 1);
  return `#${link}`;
}

function remember() {
  if (!linking) return;
  byId("link-note").textContent = "";
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", linkOf()), WAIT);
}

/** What the address asks for, as far as this page has it; null where it asks for no prompt, or for one that is not here. */
function linked() {
  const link = new URLSearchParams(location.hash.slice(1));
  const asked = link.get("prompt");
  const prompt = data.prompts.findIndex(({id}) => id === asked);
  byId("link-note").textContent = asked !== null && prompt < 0
    ? `The address asks for the prompt “${visibleText(asked)}”, which this page does not have.` : "";
  if (prompt < 0) return null;
  const number = (name) => {
    const value = Number(link.get(name) ?? NaN);
    return Number.isInteger(value) ? value : undefined;
  };
  const token = number("token");
  const measure = link.get("colour");
  return {
    prompt,
    token: token === undefined ? 0 : token - 1,
    layer: number("layer"),
    view: VIEWS.includes(link.get("view")) ? link.get("view") : state.view,
    measure: offered.includes(measure) ? measure : state.measure,
    side: sides[number("run") - 1] ?? sides[0],
  };
}

async function follow(link) {
  openDetail(link.side);
  chooseColour(link.measure);
  chooseView(link.view);
  await choosePrompt(link.prompt, {token: link.token, layer: link.layer}, link.side);
}

function listenToLinks() {
  if (location.protocol === "about:") return; // a notebook's frame has no address of its own
  linking = true;
  addEventListener("hashchange", () => {
    const link = linked();
    if (link) follow(link);
  });
}

// The text: every token a box

function drawTokens(side) {
  const {columns} = side.shown;
  const list = side.part("tokens");
  const parts = [];
  side.boxes = [];
  side.names = [];
  side.frames = Array.from({length: side.n}, (_, token) => side.frameOf(token));
  if (columns.position[0] === 0) {
    const first = word(side, columns.token_id[0], "span", "token aside");
    first.setAttribute("role", "presentation");
    parts.push(first);
  }
  for (let token = 0; token < side.n; token += 1) {
    if (columns.is_generated[token] && token > 0 && !columns.is_generated[token - 1]) {
      parts.push(aside("generated ▸"));
    }
    if (token === partingOf(side)) parts.push(aside("first difference ▸"));
    const code = side.nextCode(token);
    const box = word(side, code, "span", "token");
    box.append(make("span", "", "value"));
    box.setAttribute("role", "option");
    box.setAttribute("aria-selected", "false");
    box.tabIndex = -1;
    box.dataset.token = token;
    const frame = side.frames[token];
    if (frame) box.classList.add(frame);
    if (token === partingOf(side)) box.classList.add("parts");
    side.boxes.push(box);
    side.names.push(plain(side, code) + (frame && (frame === "replaced" ? ", replaced" : ", the valley layer differs")));
    parts.push(box);
    if (code && side.words[code].includes("\n")) parts.push(document.createElement("br"));
  }
  if (side.shown.n_left_out) parts.push(aside(`and ${counted(side.shown.n_left_out)} more positions, not on this page`));
  list.replaceChildren(...parts);
  list.scrollTop = 0;
}

function aside(text) {
  const made = make("span", text, "aside");
  made.setAttribute("role", "presentation");
  return made;
}

function recolourTokens(side) {
  const ends = scale();
  side.boxes.forEach((box, token) => {
    const value = side.colouring(state.measure, token, side.layer);
    paint(box, value, ends);
    box.lastChild.textContent = numeral(value, state.measure);
    box.setAttribute("aria-label", `${side.names[token]}, ${shortly(state.measure)} ${numeral(value, state.measure)}`);
  });
}

function markChosenBox(side, before) {
  side.boxes[before]?.setAttribute("aria-selected", "false");
  if (side.boxes[before]) side.boxes[before].tabIndex = -1;
  const box = side.boxes[side.token];
  box.setAttribute("aria-selected", "true");
  box.tabIndex = 0;
  const list = side.part("tokens");
  if (box.offsetTop < list.scrollTop) list.scrollTop = box.offsetTop - 8;
  const below = box.offsetTop + box.offsetHeight - list.clientHeight;
  if (below + 8 > list.scrollTop) list.scrollTop = below + 8;
}

function framed(side) {
  return side.frames.flatMap((frame, token) => frame ? [token] : []);
}

function markMatches() {
  for (const side of sides) {
    const matching = matchingTokens(side);
    side.boxes.forEach((box, token) => box.classList.toggle("match", matching.has(token)));
  }
}

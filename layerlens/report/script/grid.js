// The grid: layers by tokens, each cell the layer's top token. Only the cells in view are on the page.

const CELL = {width: 78, height: 24, withValue: 38, head: 28, layers: 40};
const BEYOND = 2; // cells on each side of what is seen

const cellHeight = () => state.numbers ? CELL.withValue : CELL.height;

/** Draw the grid anew: another prompt, colour, or size of cells. */
function drawGrid(side) {
  const canvas = side.part("grid-canvas");
  canvas.style.width = `${CELL.layers + side.n * CELL.width}px`;
  canvas.style.height = `${CELL.head + side.L * cellHeight()}px`;
  const grid = side.part("grid");
  grid.setAttribute("aria-rowcount", side.L + 1);
  grid.setAttribute("aria-colcount", side.n + 1);
  side.drawn = "";
  drawCells(side);
}

/** Which columns and rows are in view: [first, end) of each. */
function inView(side) {
  const grid = side.part("grid");
  const height = cellHeight();
  const columns = [grid.scrollLeft / CELL.width, (grid.scrollLeft + grid.clientWidth - CELL.layers) / CELL.width];
  const rows = [grid.scrollTop / height, (grid.scrollTop + grid.clientHeight - CELL.head) / height];
  const bounded = ([first, end], most) =>
    [Math.max(0, Math.floor(first) - BEYOND), Math.min(most, Math.ceil(end) + BEYOND)];
  return [bounded(columns, side.n), bounded(rows, side.L)];
}

function drawCells(side) {
  if (state.view !== "grid" || !side.shown) return;
  const [columns, rows] = inView(side);
  const wanted = `${columns} ${rows}`;
  if (side.drawn === wanted) return;
  side.drawn = wanted;
  const ends = scale();
  const matching = matchingTokens(side);
  const drawn = [headRow(side, columns, matching)];
  for (let row = rows[0]; row < rows[1]; row += 1) drawn.push(layerRow(side, side.L - row, row, columns, ends));
  side.part("grid-canvas").replaceChildren(...drawn);
  markChosenCell(side);
}

function headRow(side, [first, end], matching) {
  const row = gridRow(1, "head");
  const corner = make("div", "layer", "row-name");
  corner.setAttribute("role", "columnheader");
  corner.setAttribute("aria-colindex", 1);
  row.append(corner);
  const {is_generated: generated} = side.shown.columns;
  for (let token = first; token < end; token += 1) {
    const cell = gridCell(side, token, side.nextCode(token), "columnheader", "head-cell");
    if (side.frames[token]) cell.classList.add(side.frames[token]);
    cell.classList.toggle("begins", Boolean(generated[token]) && token > 0 && !generated[token - 1]);
    cell.classList.toggle("parts", token === partingOf(side));
    cell.classList.toggle("match", matching.has(token));
    cell.setAttribute("aria-label", `token ${counted(token + 1)}: ${side.names[token]}`);
    row.append(cell);
  }
  return row;
}

function layerRow(side, layer, at, [first, end], ends) {
  const row = gridRow(at + 2, "layer");
  row.style.top = `${CELL.head + at * cellHeight()}px`;
  row.style.height = `${cellHeight()}px`;
  const name = make("div", String(layer), "row-name");
  name.setAttribute("role", "rowheader");
  name.setAttribute("aria-colindex", 1);
  name.dataset.layer = layer;
  row.append(name);
  const {valley_layer: valley, selected_layer: selected} = side.shown.columns;
  for (let token = first; token < end; token += 1) {
    const code = side.topCode(token, layer);
    const cell = gridCell(side, token, code, "gridcell", "cell");
    const value = side.colouring(state.measure, token, layer);
    cell.dataset.layer = layer;
    paint(cell, value, ends);
    cell.classList.toggle("known", side.knows(token, layer));
    cell.classList.toggle("parts", token === partingOf(side));
    const said = [plain(side, code), `layer ${layer}`, `${shortly(state.measure)} ${numeral(value, state.measure)}`];
    if (side.knows(token, layer)) said.push("the token that followed");
    if (valley[token] === layer && layer < side.L) {
      cell.append(make("span", "▼", "valley-sign"));
      said.push("valley");
    }
    if (selected[token] === layer && layer < side.L) {
      cell.append(make("span", "○", "selected-sign"));
      said.push("selected");
    }
    if (state.numbers) cell.append(make("span", numeral(value, state.measure), "value"));
    cell.setAttribute("aria-label", said.join(", "));
    row.append(cell);
  }
  return row;
}

function gridRow(index, className) {
  const row = make("div", "", `grid-row ${className}`);
  row.setAttribute("role", "row");
  row.setAttribute("aria-rowindex", index);
  return row;
}

function gridCell(side, token, code, role, className) {
  const cell = make("div", "", className);
  cell.append(word(side, code));
  cell.setAttribute("role", role);
  cell.setAttribute("aria-colindex", token + 2);
  cell.dataset.token = token;
  cell.style.left = `${CELL.layers + token * CELL.width}px`;
  cell.style.width = `${CELL.width}px`;
  return cell;
}

function markChosenCell(side) {
  const grid = side.part("grid");
  for (const marked of grid.querySelectorAll("[aria-selected], .chosen-name")) {
    marked.removeAttribute("aria-selected");
    marked.removeAttribute("id");
    marked.classList.remove("chosen-name");
  }
  grid.querySelector(`.row-name[data-layer="${side.layer}"]`)?.classList.add("chosen-name");
  grid.querySelector(`.head-cell[data-token="${side.token}"]`)?.classList.add("chosen-name");
  const cell = grid.querySelector(`.cell[data-token="${side.token}"][data-layer="${side.layer}"]`);
  if (!cell) {
    grid.removeAttribute("aria-activedescendant");
    return;
  }
  cell.setAttribute("aria-selected", "true");
  cell.id = `chosen-cell${side.suffix}`;
  grid.setAttribute("aria-activedescendant", cell.id);
}

/** Scroll as little as shows the chosen cell and its neighbours, then draw what is in view. */
function keepCellInView(side) {
  const grid = side.part("grid");
  const height = cellHeight();
  const scrolled = (at, size, seen, from) => {
    const around = Math.min(1, Math.max(0, (seen / size - 1) / 2)) * size; // so that the neighbours are seen too
    return Math.max(Math.min(from, at * size - around), (at + 1) * size + around - seen);
  };
  grid.scrollLeft = scrolled(side.token, CELL.width, grid.clientWidth - CELL.layers, grid.scrollLeft);
  grid.scrollTop = scrolled(side.L - side.layer, height, grid.clientHeight - CELL.head, grid.scrollTop);
  drawCells(side);
  markChosenCell(side);
}

function listenToGrid(side) {
  const grid = side.part("grid");
  let waiting = false;
  grid.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawCells(side);
    });
  });
  grid.addEventListener("click", (event) => {
    const cell = event.target instanceof Element && event.target.closest("[data-token], [data-layer]");
    if (!cell) return;
    const {token = side.token, layer = side.layer} = cell.dataset;
    inspect({token: Number(token), layer: Number(layer)}, side);
  });
  new ResizeObserver(() => drawCells(side)).observe(grid);
}
